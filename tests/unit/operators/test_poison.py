"""Rows on which an operator raises: left out one by one, counted, put aside, and never half of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from rayflow.batch.expressions import col
from rayflow.model.error_policy import SideOutput
from rayflow.model.errors import TransientError, UserFunctionError
from rayflow.operators.map_batches import MapBatchesOperator
from rayflow.operators.poison import POISONED, poison_schema
from rayflow.operators.stateless import FilterOperator, FlatMapOperator, MapOperator, ProjectOperator

N = pa.schema([("n", pa.int64())])
ROWS = pa.record_batch({"n": pa.array(range(10), pa.int64())})
BAD = {3, 4, 9}


def raise_on_bad(n: int) -> int:
    if n in BAD:
        raise ValueError(f"no {n}")
    return n * 10


def driven(harness: Any, make: Any, policy: Any = "skip", **changes: Any) -> Any:
    tags = {policy.tag: None} if isinstance(policy, SideOutput) else {}
    return harness(make, errors=policy, side_outputs=tags, **changes)


def batches_of(function: Any, size: int | None = None) -> Any:
    return lambda: MapBatchesOperator(function, "pyarrow", size, N)


def some_fail(batch: pa.RecordBatch) -> pa.RecordBatch:
    return pa.record_batch({"n": [raise_on_bad(n) for n in batch.column("n").to_pylist()]})


def one_by_one(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    for n in batch.column("n").to_pylist():
        yield pa.record_batch({"n": [raise_on_bad(n)]})


GOOD = [n * 10 for n in range(10) if n not in BAD]
OPERATORS = {
    "map": (lambda: MapOperator(raise_on_bad, N, True), GOOD),
    "flat_map": (
        lambda: FlatMapOperator(lambda n: [raise_on_bad(n)] * 2, N, True),
        [g for g in GOOD for _ in "ab"],
    ),
    "filter": (lambda: FilterOperator(lambda n: raise_on_bad(n) >= 0, scalar=True), [g // 10 for g in GOOD]),
    "map_batches": (batches_of(some_fail), GOOD),
    "map_batches in sizes": (batches_of(some_fail, 4), GOOD),
    "map_batches with a generator": (batches_of(one_by_one), GOOD),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_rows_that_raise_are_left_out_and_counted_and_the_others_stay_in_order(
    harness: Any, name: str
) -> None:
    make, want = OPERATORS[name]
    made = driven(harness, make).feed(ROWS)
    made.operator.end()
    assert [row["n"] for row in made.rows] == want
    assert made.context.metrics.snapshot()[POISONED] == len(BAD)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_side_output_has_the_rows_as_they_came_with_error_and_operator(harness: Any, name: str) -> None:
    make, _ = OPERATORS[name]
    made = driven(harness, make, SideOutput("bad")).feed(ROWS)
    made.operator.end()
    aside = [row for tag, batch in made.side if tag == "bad" for row in batch.to_pylist()]
    assert [row["n"] for row in aside] == sorted(BAD)
    assert [row["error"].splitlines()[0] for row in aside] == [f"ValueError: no {n}" for n in sorted(BAD)]
    assert {row["operator"] for row in aside} == {made.context.name}
    assert {batch.schema for _, batch in made.side} == {poison_schema(N)}


@pytest.mark.parametrize("name", OPERATORS)
def test_without_a_policy_the_first_of_them_fails_the_job(harness: Any, name: str) -> None:
    make, _ = OPERATORS[name]
    made = driven(harness, make, "fail")
    with pytest.raises(UserFunctionError, match=r"no [34]"):
        made.feed(ROWS).operator.end()


def test_expressions_leave_out_what_overflows_or_cannot_be_cast(harness: Any) -> None:
    rows = pa.record_batch({"n": [1, 2**62, 3, 4], "s": ["1", "2", "x", "4"]})
    columns = [("twice", col("n") * 2), ("s", col("s").cast(pa.int64()))]
    made = driven(harness, lambda: ProjectOperator(columns), SideOutput("bad")).feed(rows)
    assert made.rows == [{"twice": 2, "s": 1}, {"twice": 8, "s": 4}]
    ((_, aside),) = made.side
    assert aside.column("n").to_pylist() == [2**62, 3]
    overflow, no_number = aside.column("error").to_pylist()
    assert "overflow" in overflow
    assert "'x'" in no_number


def test_a_condition_that_raises_leaves_the_row_out(harness: Any) -> None:
    rows = pa.record_batch({"s": ["1", "x", "3"]})
    made = driven(harness, lambda: FilterOperator(col("s").cast(pa.int64()) >= 1)).feed(rows)
    assert made.rows == [{"s": "1"}, {"s": "3"}]


def test_results_that_do_not_fit_the_columns_are_poison_too(harness: Any) -> None:
    made = driven(harness, lambda: MapOperator(lambda n: "text" if n in BAD else n, N, True)).feed(ROWS)
    assert [row["n"] for row in made.rows] == [n for n in range(10) if n not in BAD]
    assert made.context.metrics.snapshot()[POISONED] == len(BAD)


def test_nothing_is_kept_of_a_row_whose_generator_raises_midway(harness: Any) -> None:
    def twice(n: int) -> Iterator[int]:
        yield n
        yield raise_on_bad(n)

    made = driven(harness, lambda: FlatMapOperator(twice, N, True)).feed(ROWS)
    assert {row["n"] for row in made.rows}.isdisjoint(BAD - {0})
    assert len(made.rows) == 2 * (10 - len(BAD))


def test_a_flat_map_that_returns_no_list_is_poison(harness: Any) -> None:
    made = driven(harness, lambda: FlatMapOperator(lambda n: n if n in BAD else [n], N, True)).feed(ROWS)
    assert made.context.metrics.snapshot()[POISONED] == len(BAD)


@pytest.mark.parametrize("error", [TransientError("the service is away"), MemoryError()])
def test_what_is_no_fault_of_the_row_fails_the_job_all_the_same(harness: Any, error: Exception) -> None:
    def fails(n: int) -> int:
        raise error

    with pytest.raises((TransientError, UserFunctionError, MemoryError)):
        driven(harness, lambda: MapOperator(fails, N, True)).feed(ROWS)


def test_the_first_is_told_and_then_each_time_there_are_ten_times_as_many(harness: Any) -> None:
    def fails(n: int) -> int:
        raise ValueError(f"no {n}")

    made = driven(harness, lambda: MapOperator(fails, N, True))
    for start in range(0, 120, 10):
        made.feed(pa.record_batch({"n": range(start, start + 10)}))
    assert [message.split(" skipped")[0].split(": ")[1] for message in made.warnings] == [
        "a row",
        "10 rows",
        "100 rows",
    ]
    assert "no 0" in made.warnings[0]
    assert "{n: 0}" in made.warnings[0]


def test_the_count_is_state_and_goes_on_where_it_was(harness: Any) -> None:
    make, _ = OPERATORS["map"]
    before = driven(harness, make).feed(ROWS)
    after = driven(harness, make, restored=before.snapshot(1))
    assert after.context.metrics.snapshot()[POISONED] == len(BAD)
    assert after.feed(ROWS).context.metrics.snapshot()[POISONED] == 2 * len(BAD)


def test_in_pieces_calls_no_more_than_twice_per_row_and_keeps_order(harness: Any) -> None:
    sizes: list[int] = []

    def fails_on_one(batch: pa.RecordBatch) -> pa.RecordBatch:
        sizes.append(batch.num_rows)
        if 700 in batch.column("n").to_pylist():
            raise ValueError("no")
        return batch

    made = driven(harness, batches_of(fails_on_one)).feed(pa.record_batch({"n": range(1024)}))
    assert [row["n"] for row in made.rows] == [n for n in range(1024) if n != 700]
    assert len(sizes) == 21  # one call and ten halvings


def test_operators_that_catch_up_one_after_the_other_in_one_context_count_each_row_once(harness: Any) -> None:
    make, _ = OPERATORS["map"]
    then = [driven(harness, make, index=index, parallelism=2).feed(ROWS).snapshot(1) for index in (0, 1)]
    first = driven(harness, make, restored=then[0]).feed(ROWS)  # as a subtask of then
    second, own = make(), make()  # another, and the subtask's own
    second.open(first.context, first, then[1])
    parts = [*first.snapshot(1), *then[1]]
    own.open(first.context, first, parts)
    assert first.context.metrics.snapshot()[POISONED] == 3 * len(BAD)
    (part,) = own.snapshot(2)
    assert part.build()["rows"].to_pylist() == [3 * len(BAD)]
