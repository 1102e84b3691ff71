from __future__ import annotations

import dataclasses
from typing import Any

import pyarrow as pa
import pytest

from rayflow.batch.changelog import INSERT, OP_COLUMN, UPDATE_AFTER, with_op
from rayflow.batch.expressions import col
from rayflow.model.errors import UserFunctionError
from rayflow.operators.stateless import (
    ExplodeOperator,
    FilterOperator,
    FlatMapOperator,
    IdentityOperator,
    MapOperator,
    ProjectOperator,
)

BATCH = pa.record_batch({"a": [1, 2, None], "b": ["x", "y", "z"]})


def test_projection_computes_columns_and_keeps_the_operation(harness: Any) -> None:
    columns = [("twice", col("a") * 2), ("b", col("b"))]
    driven = harness(lambda: ProjectOperator(columns))
    driven.feed(BATCH).feed(with_op(BATCH, UPDATE_AFTER))
    plain, changed = driven.batches
    assert plain.to_pydict() == {"twice": [2, 4, None], "b": ["x", "y", "z"]}
    assert changed.column(OP_COLUMN).to_pylist() == [UPDATE_AFTER] * 3
    assert changed.schema.names == ["twice", "b", OP_COLUMN]


def test_filter_keeps_what_is_true_and_not_null(harness: Any) -> None:
    driven = harness(lambda: FilterOperator(col("a") > 1)).feed(with_op(BATCH, INSERT))
    assert driven.rows == [{"a": 2, "b": "y", OP_COLUMN: INSERT}]


def test_filter_by_function_sees_rows_without_the_operation(harness: Any) -> None:
    driven = harness(lambda: FilterOperator(lambda row: row.keys() == {"a", "b"} and row["b"] > "x"))
    driven.feed(with_op(BATCH, INSERT))
    assert [row["b"] for row in driven.rows] == ["y", "z"]


def test_filter_by_function_of_a_value(harness: Any) -> None:
    driven = harness(lambda: FilterOperator(lambda value: value % 2, scalar=True))
    assert driven.feed(pa.record_batch({"n": [1, 2, 3]})).rows == [{"n": 1}, {"n": 3}]


def test_map_makes_the_columns_of_returns(harness: Any) -> None:
    returns = pa.schema([("c", pa.int32()), ("d", pa.string())])
    driven = harness(lambda: MapOperator(lambda row: {"d": row["b"], "c": row["a"]}, returns, False))
    assert driven.feed(BATCH).batches[0].schema == returns
    assert driven.rows[2] == {"c": None, "d": "z"}


def test_map_of_values(harness: Any) -> None:
    driven = harness(lambda: MapOperator(str.upper, pa.schema([("word", pa.string())]), True))
    assert driven.feed(pa.record_batch({"w": ["a", "b"]})).rows == [{"word": "A"}, {"word": "B"}]


def test_map_takes_dataclasses(harness: Any) -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    driven = harness(lambda: MapOperator(lambda row: Point(len(row["b"])), None, False))
    assert driven.feed(BATCH).rows == [{"x": 1}] * 3


def test_a_function_that_raises_is_blamed_with_its_line_and_row(harness: Any) -> None:
    def broken(row: dict[str, Any]) -> dict[str, Any]:
        return {"r": 10 // (row["a"] - 2)}

    driven = harness(lambda: MapOperator(broken, None, False))
    with pytest.raises(UserFunctionError) as raised:
        driven.feed(BATCH)
    error = raised.value
    assert error.operator == "my operator"
    assert error.location == "job.py:7: stream.map(f)"
    assert "ZeroDivisionError" in error.cause
    assert 'return {"r": 10 // (row["a"] - 2)}' in error.cause
    assert error.sample == "{a: 2, b: 'y'}"


def test_a_result_that_does_not_fit_returns_names_column_expected_and_got(harness: Any) -> None:
    driven = harness(lambda: MapOperator(lambda row: {"n": row["b"]}, pa.schema([("n", pa.int64())]), False))
    with pytest.raises(UserFunctionError, match=r"do not fit returns=.*column 'n' is 'x', expected int64"):
        driven.feed(BATCH)


def test_a_result_that_is_no_row_names_what_was_expected(harness: Any) -> None:
    returns = pa.schema([("m", pa.int64()), ("n", pa.int64())])
    driven = harness(lambda: MapOperator(lambda row: 5, returns, False))
    with pytest.raises(UserFunctionError, match=r"returned 5 \(int\), expected a dict with 'm', 'n'"):
        driven.feed(BATCH)


def test_without_returns_the_first_results_settle_the_columns(harness: Any) -> None:
    driven = harness(lambda: MapOperator(lambda row: {"n": row["v"]}, None, False))
    driven.feed(pa.record_batch({"v": [1]})).feed(pa.record_batch({"v": pa.array([None], pa.int64())}))
    assert [batch.schema for batch in driven.batches] == [pa.schema([("n", pa.int64())])] * 2
    with pytest.raises(UserFunctionError, match=r"column 'n'.*first results; say returns="):
        driven.feed(pa.record_batch({"v": ["text"]}))


def test_flat_map_takes_lists_and_generators(harness: Any) -> None:
    def words(line: str) -> Any:
        if line != "skip":
            yield from line.split()

    driven = harness(lambda: FlatMapOperator(words, pa.schema([("word", pa.string())]), True))
    driven.feed(pa.record_batch({"line": ["a b", "skip", "c"]}))
    assert [row["word"] for row in driven.rows] == ["a", "b", "c"]
    lists = harness(lambda: FlatMapOperator(lambda row: [row, row] if row["a"] else None, None, False))
    assert lists.feed(BATCH).rows == [row for row in BATCH.to_pylist()[:2] for _ in range(2)]


def test_flat_map_blames_a_generator_that_raises_later(harness: Any) -> None:
    def broken(row: dict[str, Any]) -> Any:
        yield {"b": row["b"]}
        raise LookupError(row["b"])

    driven = harness(lambda: FlatMapOperator(broken, None, False))
    with pytest.raises(UserFunctionError, match="LookupError: x"):
        driven.feed(BATCH)


def test_flat_map_refuses_a_bare_string(harness: Any) -> None:
    driven = harness(lambda: FlatMapOperator(lambda row: row["b"], None, False))
    with pytest.raises(UserFunctionError, match="expected a list or generator"):
        driven.feed(BATCH)


def test_a_class_is_made_opened_and_closed_once_per_subtask(harness: Any) -> None:
    calls: list[Any] = []

    class Numbering:
        def open(self, ctx: Any) -> None:
            calls.append(("open", ctx.subtask_index, ctx.parallelism))
            self.seen = ctx.counter("seen")

        def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
            self.seen.inc()
            return {"n": self.seen.value}

        def close(self) -> None:
            calls.append("close")

    driven = harness(lambda: MapOperator(Numbering, None, False), index=1, parallelism=2)
    driven.feed(BATCH).feed(BATCH)
    driven.operator.close()
    assert [row["n"] for row in driven.rows] == [1, 2, 3, 4, 5, 6]
    assert calls == [("open", 1, 2), "close"]
    assert driven.metrics.snapshot()["seen"] == 6


@pytest.mark.parametrize(
    "list_type", [pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)]
)
def test_explode_repeats_the_other_columns(harness: Any, list_type: pa.DataType) -> None:
    lists = [[1, 2], None, [3, None]]
    if not pa.types.is_fixed_size_list(list_type):
        lists.append([])
    batch = pa.record_batch(
        [pa.array(lists, list_type), pa.array(list("abcd")[: len(lists)])], names=["n", "k"]
    )
    driven = harness(lambda: ExplodeOperator("n")).feed(batch.slice(0)).feed(batch.slice(1))
    expected = [(1, "a"), (2, "a"), (3, "c"), (None, "c"), (3, "c"), (None, "c")]
    assert [(row["n"], row["k"]) for row in driven.rows] == expected
    assert driven.batches[0].schema.names == ["n", "k"]


def test_identity_passes_everything_on(harness: Any) -> None:
    driven = harness(IdentityOperator).feed(BATCH).watermark(5)
    assert driven.batches == [BATCH]
    assert driven.watermarks == [5]
