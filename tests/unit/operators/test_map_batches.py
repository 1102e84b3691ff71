from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from rayflow.model.errors import UserFunctionError
from rayflow.operators.map_batches import MapBatchesOperator

BATCH = pa.record_batch({"n": [1, 2, 3], "s": ["a", "b", "c"]})


def doubled_pyarrow(batch: pa.RecordBatch) -> pa.Table:
    return pa.table({"n": [n * 2 for n in batch["n"].to_pylist()], "s": batch["s"]})


def doubled_pandas(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(n=frame["n"] * 2)


def doubled_polars(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("n") * 2)


def doubled_numpy(arrays: dict[str, Any]) -> dict[str, Any]:
    return {"s": arrays["s"], "n": arrays["n"] * 2}


@pytest.mark.parametrize(
    ("batch_format", "fn"),
    [
        ("pyarrow", doubled_pyarrow),
        ("pandas", doubled_pandas),
        ("polars", doubled_polars),
        ("numpy", doubled_numpy),
    ],
)
def test_every_format_goes_in_and_comes_back_with_the_columns_of_returns(
    harness: Any, batch_format: Any, fn: Any
) -> None:
    returns = pa.schema([("n", pa.int32()), ("s", pa.string())])
    driven = harness(lambda: MapBatchesOperator(fn, batch_format, None, returns)).feed(BATCH)
    assert driven.batches[0].schema == returns
    assert [(row["n"], row["s"]) for row in driven.rows] == [(2, "a"), (4, "b"), (6, "c")]


def test_results_may_be_a_generator(harness: Any) -> None:
    def halves(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield batch.slice(0, 1)
        yield batch.slice(1)

    driven = harness(lambda: MapBatchesOperator(halves, "pyarrow", None, None)).feed(BATCH)
    assert [batch.num_rows for batch in driven.batches] == [1, 2]
    assert driven.rows == BATCH.to_pylist()


def test_arrays_of_two_dimensions_become_lists(harness: Any) -> None:
    driven = harness(lambda: MapBatchesOperator(lambda a: {"v": np.ones((3, 2))}, "numpy", None, None))
    assert driven.feed(BATCH).rows == [{"v": [1.0, 1.0]}] * 3


def test_the_function_sees_exactly_batch_size_rows_until_the_barrier(harness: Any) -> None:
    seen: list[int] = []

    def count(batch: pa.RecordBatch) -> pa.RecordBatch:
        seen.append(batch.num_rows)
        return batch

    driven = harness(lambda: MapBatchesOperator(count, "pyarrow", 4, None))
    driven.feed(BATCH).watermark(1).feed(BATCH).watermark(2).feed(BATCH)
    assert seen == [4, 4]
    driven.snapshot(1)
    assert seen == [4, 4, 1]
    assert driven.rows == BATCH.to_pylist() * 3
    driven.feed(BATCH)
    driven.operator.end()
    assert seen == [4, 4, 1, 3]


def test_a_watermark_does_not_overtake_the_rows_before_it(harness: Any) -> None:
    driven = harness(lambda: MapBatchesOperator(lambda batch: batch, "pyarrow", 4, None))
    driven.feed(BATCH).watermark(10)
    assert driven.events == []
    driven.feed(BATCH)
    assert [event[0] for event in driven.events] == ["rows"]
    driven.operator.end()
    assert [event[0] for event in driven.events] == ["rows", "rows", "watermark"]
    driven.watermark(11)
    assert driven.watermarks == [10, 11]


def test_rows_do_not_wait_for_long_for_a_full_batch(harness: Any) -> None:
    driven = harness(lambda: MapBatchesOperator(lambda batch: batch, "pyarrow", 4, None))
    assert driven.operator.next_timer_ms() is None
    driven.feed(BATCH)
    assert driven.operator.next_timer_ms() == 0
    driven.operator.on_timer(5_000)
    assert driven.operator.next_timer_ms() == 6_000
    driven.operator.on_timer(6_000)
    assert driven.rows == BATCH.to_pylist()
    assert driven.operator.next_timer_ms() is None


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (pa.table({"m": [1]}), r"expected the columns 'n', got 'm'"),
        (pa.table({"n": ["text"]}), r"column 'n': expected int64, got string"),
        (pa.table({"n": [1.5]}), r"column 'n': expected int64, got double"),
        (7, r"returned int, expected a pyarrow"),
    ],
)
def test_a_result_that_does_not_fit_says_what_was_expected(harness: Any, result: Any, message: str) -> None:
    driven = harness(
        lambda: MapBatchesOperator(lambda b: result, "pyarrow", None, pa.schema([("n", pa.int64())]))
    )
    with pytest.raises(UserFunctionError, match=message):
        driven.feed(BATCH)


def test_without_returns_a_later_change_of_columns_asks_for_them(harness: Any) -> None:
    results = iter([pa.table({"n": [1]}), pa.table({"n": ["x"]})])
    driven = harness(lambda: MapBatchesOperator(lambda b: next(results), "pyarrow", None, None)).feed(BATCH)
    with pytest.raises(UserFunctionError, match=r"column 'n': expected int64, got string.*say returns="):
        driven.feed(BATCH)


def test_a_raising_function_is_blamed_but_not_for_what_comes_after_it(harness: Any) -> None:
    def broken(batch: pa.RecordBatch) -> pa.RecordBatch:
        raise KeyError("no such thing")

    driven = harness(lambda: MapBatchesOperator(broken, "pyarrow", None, None))
    with pytest.raises(UserFunctionError, match=r"KeyError.*\n.*raise KeyError"):
        driven.feed(BATCH)

    class Downstream(Exception):
        pass

    def emit(batch: pa.RecordBatch) -> None:
        raise Downstream

    driven = harness(lambda: MapBatchesOperator(lambda b: b, "pyarrow", None, None))
    driven.emit = emit
    with pytest.raises(Downstream):
        driven.feed(BATCH)


def test_string_views_become_strings_which_later_operators_can_handle(harness: Any) -> None:
    views = pa.table({"s": pa.array(["a"], pa.string_view())})
    driven = harness(lambda: MapBatchesOperator(lambda b: views, "pyarrow", None, None)).feed(BATCH)
    assert driven.batches[0].schema == pa.schema([("s", pa.string())])
