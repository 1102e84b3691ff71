from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.expressions import col
from rayflow.batch.user_aggregates import Aggregate, as_aggregate
from rayflow.model.errors import PlanError
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.accumulators.user_states import AggregateError

SCHEMA = pa.schema([("a", pa.int64()), ("b", pa.string())])
SLOTS = 3


class Texts(Aggregate):
    """With states beside the object, returned."""

    result_type = "string"

    def create(self) -> Any:
        return {"texts": ()}

    def update(self, state: Any, batch: pa.RecordBatch) -> Any:
        a, b = (column.to_pylist() for column in batch.columns)
        return {"texts": (*state["texts"], *(f"{x}{y}" for x, y in zip(a, b)))}

    def merge(self, left: Any, right: Any) -> Any:
        return {"texts": left["texts"] + right["texts"]}

    def result(self, state: Any) -> str | None:
        return ",".join(sorted(state["texts"])) or None


class TextsInPlace(Texts):
    """With states beside the object, changed in place."""

    def create(self) -> Any:
        return {"texts": Counter()}

    def update(self, state: Any, batch: pa.RecordBatch) -> None:  # type: ignore[override]
        state["texts"].update(f"{row['a']}{row['b']}" for row in batch.to_pylist())

    def merge(self, left: Any, right: Any) -> None:  # type: ignore[override]
        left["texts"].update(right["texts"])

    def retract(self, state: Any, batch: pa.RecordBatch) -> None:
        state["texts"] -= Counter(f"{row['a']}{row['b']}" for row in batch.to_pylist())

    def result(self, state: Any) -> str | None:
        return ",".join(sorted(state["texts"].elements())) or None


class TextsInObjects(Aggregate):
    """Without states: every key has an object."""

    def __init__(self, separator: str, *columns: str) -> None:
        super().__init__(*columns)
        self.separator = separator
        self.seen: list[str] = []

    def create(self) -> None:
        self.rows = 0

    def update(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.seen += [f"{row['a']}{row['b']}" for row in batch.to_pylist()]

    def merge(self, other: TextsInObjects) -> None:
        self.rows += other.rows
        self.seen += other.seen

    def result(self) -> str | None:
        assert self.rows == len(self.seen)
        return self.separator.join(sorted(self.seen)) or None


MAKERS: list[Any] = [
    lambda: Texts("a", "b"),
    lambda: Texts,
    lambda: TextsInPlace("a", "b"),
    lambda: TextsInObjects(",", "a", "b"),
    lambda: TextsInObjects(","),
]


def columns_of(aggregate: Any, **options: Any) -> AggregateColumns:
    return AggregateColumns([("x", as_aggregate(aggregate))], SCHEMA, **options)


def batch_of(rows: list[Any]) -> tuple[pa.RecordBatch, Any, int]:
    a, b = pa.array([r[1] for r in rows], pa.int64()), pa.array([r[2] for r in rows], pa.string())
    return pa.record_batch([a, b], schema=SCHEMA), np.array([r[0] for r in rows], np.int64), SLOTS


def state_of(frozen: Any) -> pa.RecordBatch:
    state = frozen.state_columns(np.arange(SLOTS))
    return pa.RecordBatch.from_arrays([c for _, c in state], names=[n for n, _ in state])


ROWS = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.none() | st.integers(0, 9), st.none() | st.sampled_from("xy")),
    max_size=20,
)


@given(st.sampled_from(MAKERS), ROWS, st.sampled_from([1, 3, 100]), st.integers(0, 4))
@settings(deadline=None)
def test_every_way_to_write_one_agrees_with_a_naive_model(
    make: Any, rows: Any, cut: int, restore_at: int
) -> None:
    aggregate = as_aggregate(make()).filter(col("a") > 0)
    columns = columns_of(aggregate)
    columns.update(*batch_of([]))
    for number, at in enumerate(range(0, len(rows), cut)):
        columns.update(*batch_of(rows[at : at + cut]))
        if number == restore_at:
            frozen = columns.freeze()
            columns.update(*batch_of(rows[at : at + cut]))  # must not show in what was frozen
            columns = columns_of(aggregate)
            columns.merge(state_of(frozen), np.arange(SLOTS), SLOTS)
    (results,) = columns.results(np.arange(SLOTS))
    assert results.type == pa.string()
    kept = [r for r in rows if r[1] is not None and r[1] > 0]
    want = [",".join(sorted(f"{a}{b}" for s, a, b in kept if s == slot)) or None for slot in range(SLOTS)]
    assert results.to_pylist() == want
    merged = columns_of(aggregate)
    merged.merge_slots(np.zeros(SLOTS, np.int64), np.arange(SLOTS), SLOTS, columns)
    whole = ",".join(sorted(f"{a}{b}" for _, a, b in kept)) or None
    assert merged.results(np.array([0]))[0].to_pylist() == [whole]
    assert columns.results(np.arange(SLOTS))[0].to_pylist() == want  # the sources are as they were


def test_nulls_are_passed_on_and_columns_may_be_expressions() -> None:
    class Seen(Aggregate):
        def create(self) -> list[Any]:
            return []

        def update(self, state: Any, batch: pa.RecordBatch) -> Any:
            assert batch.schema.names == ["twice", "b"]
            return state + batch.column("twice").to_pylist()

        def merge(self, left: Any, right: Any) -> Any:
            return left + right

        def result(self, state: Any) -> list[int]:
            return list(state)

    columns = columns_of(Seen((col("a") * 2).alias("twice"), "b"))
    assert columns.fields[0].type == pa.list_(pa.int64())
    columns.update(*batch_of([(0, 1, "x"), (0, None, None)]))
    assert columns.results(np.array([0]))[0].to_pylist() == [[2, None]]


def test_rows_can_be_taken_back_where_the_class_says_how() -> None:
    columns = columns_of(TextsInPlace(), retractable=True)
    columns.update(*batch_of([(0, 1, "x"), (0, 2, "y"), (1, 3, "x")]))
    columns.retract(*batch_of([(0, 1, "x"), (1, 3, "x")]))
    assert columns.results(np.arange(2))[0].to_pylist() == ["2y", None]
    assert columns.row_counts(np.arange(2)).tolist() == [1, 0]
    with pytest.raises(PlanError, match="give Texts a method retract, the reverse of update"):
        columns_of(Texts(), retractable=True)


class Wrong(Texts):
    def result(self, state: Any, more: Any) -> str:  # type: ignore[override]
        return ""


class Untyped(Texts):
    result_type = None

    def result(self, state: Any):  # type: ignore[no-untyped-def]
        return None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Texts("a", "nope"), "unknown column 'nope'"),
        (lambda: Texts("a", col("a") + 1), "two columns are named 'a'"),
        (lambda: Texts(5), r"Texts: expected columns \(names or expressions\); got 5"),
        (
            Wrong,
            r"Wrong\.result takes 2 arguments, expected 1; write create\(self\), update\(self, state, batch\)",
        ),
        (Untyped, "Untyped has no result type; say result_type = "),
        (lambda: Untyped(returns="nonsense"), "has the result type 'nonsense', which is not one"),
        (lambda: as_aggregate(Texts()).filter(col("a")), "the filter is of type int64"),
        (lambda: 5, "5 is not an aggregate; expected one such as"),
    ],
)
def test_what_does_not_fit_is_a_plan_error(make: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        columns_of(make())


def test_a_result_type_may_be_given_in_three_ways() -> None:
    assert columns_of(Untyped(returns=pa.large_string())).fields[0].type == pa.large_string()
    assert columns_of(TextsInObjects(",")).fields[0].type == pa.string()
    assert columns_of(Texts()).fields[0].type == pa.string()
    assert repr(as_aggregate(Texts("a")).filter(col("b") == "x").alias("n")) == (
        'Texts(col("a")).filter((col("b") == \'x\')).alias("n")'
    )


class Raising(Texts):
    def update(self, state: Any, batch: pa.RecordBatch) -> Any:
        return 1 // 0


class Keeping(Texts):
    def update(self, state: Any, batch: pa.RecordBatch) -> Any:
        return {"sum": pc.sum(batch.column(0))}


class Misfit(Texts):
    result_type = pa.int64()

    def result(self, state: Any) -> Any:
        return "text"


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (
            Raising(),
            r"aggregate 'x': ZeroDivisionError: .*\n  in update, .*test_user_states\.py:\d+: return 1 // 0",
        ),
        (
            Keeping(),
            r"aggregate 'x': TypeError: the state\['sum'\] is .*Int64Scalar, which cannot be stored; call",
        ),
        (Misfit(), r"aggregate 'x': result\(\) returned 'text' \(str\), expected int64"),
    ],
)
def test_errors_name_the_aggregate_and_the_users_line(aggregate: Any, message: str) -> None:
    with pytest.raises(AggregateError, match=message):
        result_of_one_row(columns_of(aggregate))


def result_of_one_row(columns: AggregateColumns) -> Any:
    columns.update(*batch_of([(0, 1, "x")]))
    return columns.results(np.array([0]))
