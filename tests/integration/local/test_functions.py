"""Users' Python functions, end to end: rows, scalars, batches in four formats, classes, and odd results."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rayflow as rf
from rayflow import col


def env(parallelism: int = 1, rows: int = 65536) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(
        parallelism=parallelism, config={"batch.rows": rows, "restart.strategy": "none"}
    )


NUMBERS = pa.table({"n": range(100), "half": [None if n % 3 == 0 else n / 2 for n in range(100)]})


@pytest.mark.parametrize("rows", [1, 7, 65536])
def test_map_flat_map_and_filter_by_function(rows: int) -> None:
    def double(row: dict[str, Any]) -> dict[str, Any]:
        return {"m": row["n"] * 2, "half": row["half"]}

    def repeat(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for i in range(row["m"] % 5):
            yield {**row, "i": i}

    got = (
        env(1, rows)
        .from_arrow(NUMBERS)
        .filter(lambda row: row["half"] is None)
        .map(double, returns={"m": int, "half": float})
        .flat_map(repeat, returns={"m": int, "half": float, "i": pa.int8()})
        .execute_and_collect(local=True)
    )
    want = [{"m": 2 * n, "half": None, "i": i} for n in range(0, 100, 3) for i in range(2 * n % 5)]
    assert got.to_pylist() == want
    assert got.schema.field("i").type == pa.int8()


def test_one_column_streams_give_scalars() -> None:
    got = (
        env()
        .from_rows([{"line": "b a"}, {"line": ""}, {"line": "ß 語"}, {"line": None}])
        .filter(lambda line: line is not None)
        .flat_map(str.split, returns={"word": str})
        .map(str.upper, returns={"word": str})
        .execute_and_collect(local=True)
    )
    assert got["word"].to_pylist() == ["B", "A", "SS", "語"]


class Row(TypedDict):
    n: int
    tags: list[str]
    at: datetime


@dataclasses.dataclass
class Money:
    n: int
    amount: float | None


def test_type_hints_give_columns() -> None:
    def typed(row: dict[str, Any]) -> Row:
        return {"n": row["n"], "tags": ["x"] * (row["n"] % 3), "at": datetime(2024, 1, 1)}

    def money(row: dict[str, Any]) -> Money:
        return Money(row["n"], None if row["n"] % 2 else 1.5)

    def size(row: dict[str, Any]) -> int:
        return len(row)

    stream = env().from_arrow(NUMBERS)
    rows = stream.map(typed).explode("tags").select("n", "at").execute_and_collect(local=True)
    assert rows.num_rows == sum(n % 3 for n in range(100))
    assert rows.schema.field("at").type == pa.timestamp("us")
    assert stream.map(money).filter(col("amount") > 1).execute_and_collect(local=True).num_rows == 50
    assert stream.map(size).execute_and_collect(local=True)["value"].to_pylist() == [2] * 100


def test_results_without_returns_keep_the_columns_of_the_first() -> None:
    stream = env(1, 10).from_arrow(NUMBERS)
    got = stream.map(lambda row: {"n": row["n"], "d": Decimal("1.50")}).execute_and_collect(local=True)
    assert got["d"].to_pylist() == [Decimal("1.50")] * 100

    def drifting(row: dict[str, Any]) -> dict[str, Any]:
        return {"n": row["n"]} if row["n"] < 50 else {"n": str(row["n"])}

    with pytest.raises(rf.JobFailed, match="returns="):
        stream.map(drifting).execute_and_collect(local=True)


def plus_one_pyarrow(batch: Any) -> Any:
    assert isinstance(batch, pa.Table | pa.RecordBatch)
    return batch.set_column(0, "n", pc.add(batch.column("n"), 1))


def plus_one_pandas(batch: Any) -> Any:
    return batch.assign(n=batch["n"] + 1)


def plus_one_polars(batch: Any) -> Any:
    import polars as pl

    return batch.with_columns(pl.col("n") + 1)


def plus_one_numpy(batch: dict[str, Any]) -> dict[str, Any]:
    assert isinstance(batch["n"], np.ndarray)
    return {**batch, "n": batch["n"] + 1}


FORMATS = {
    "pyarrow": plus_one_pyarrow,
    "pandas": plus_one_pandas,
    "polars": plus_one_polars,
    "numpy": plus_one_numpy,
}


@pytest.mark.parametrize("batch_format", FORMATS)
@pytest.mark.parametrize("batch_size", [None, 1, 33])
def test_map_batches_in_every_format(lab: Any, batch_format: Any, batch_size: int | None) -> None:
    table = NUMBERS if batch_format != "numpy" else NUMBERS.select(["n"])
    got = (
        env(1, 10)
        .from_arrow(table)
        .map_batches(
            FORMATS[batch_format], batch_format=batch_format, batch_size=batch_size, returns=table.schema
        )
        .execute_and_collect(local=True)
    )
    assert got.schema == table.schema
    assert lab.bag(got) == lab.bag(table.set_column(0, "n", pc.add(table["n"], 1)))


@pytest.mark.parametrize("batch_format", FORMATS)
def test_map_batches_of_strings_nulls_and_times(lab: Any, batch_format: Any) -> None:
    table = pa.table(
        {
            "s": ["a", None, "ü"],
            "t": pa.array([datetime(2024, 1, 1), None, datetime(1969, 12, 31)], pa.timestamp("us")),
            "f": [1.5, None, float("inf")],
            "b": [True, None, False],
        }
    )
    stream = env().from_arrow(table).map_batches(lambda b: b, batch_format=batch_format, returns=table.schema)
    got = stream.execute_and_collect(local=True)
    if batch_format == "numpy":  # which has no null among numbers
        assert got["f"].to_pylist()[1] != got["f"].to_pylist()[1]
        got, table = got.drop_columns("f"), table.drop_columns("f")
    assert lab.bag(got) == lab.bag(table)


class Numbered:
    """Counts the rows it saw; made once per subtask."""

    def open(self, ctx: Any) -> None:
        self.index, self.of, self.seen = ctx.subtask_index, ctx.parallelism, 0
        self.counter = ctx.counter("seen")

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self.seen += batch.num_rows
        self.counter.inc(batch.num_rows)
        size = batch.num_rows
        return pa.RecordBatch.from_pydict(
            {"index": [self.index] * size, "of": [self.of] * size, "rows": [size] * size}
        )


def test_map_batches_with_a_class_batch_size_and_concurrency() -> None:
    schema = pa.schema({"index": pa.int64(), "of": pa.int64(), "rows": pa.int64()})
    got = (
        env(1, 10)
        .from_arrow(NUMBERS)
        .rebalance()
        .map_batches(Numbered, batch_size=15, concurrency=3, num_cpus=1, returns=schema)
        .execute_and_collect(local=True)
    )
    assert got.num_rows == 100
    assert set(got["of"].to_pylist()) == {3}
    assert set(got["index"].to_pylist()) == {0, 1, 2}
    assert max(got["rows"].to_pylist()) == 15


def test_a_class_is_closed_and_batches_may_grow_shrink_and_vanish() -> None:
    stream = env(1, 10).from_arrow(NUMBERS)

    def tripled(batch: pa.RecordBatch) -> pa.Table:
        return pa.Table.from_batches([batch] * 3)

    def nothing(batch: pa.RecordBatch) -> pa.RecordBatch:
        return batch.slice(0, 0)

    assert stream.map_batches(tripled, returns=NUMBERS.schema).execute_and_collect(local=True).num_rows == 300
    assert stream.map_batches(nothing, returns=NUMBERS.schema).execute_and_collect(local=True).num_rows == 0
    unknown = stream.map_batches(nothing).execute_and_collect(local=True)
    assert unknown.num_rows == 0


def test_a_function_of_a_keyed_row_sees_nulls_decimals_and_structs() -> None:
    table = pa.table(
        {
            "d": pa.array([Decimal("1.10"), None]),
            "st": [{"x": 1}, None],
            "l": [[1, None], None],
            "m": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
        }
    )
    seen = env().from_arrow(table).map(repr, returns=str).execute_and_collect(local=True)["value"].to_pylist()
    assert "Decimal('1.10')" in seen[0]
    assert "{'x': 1}" in seen[0]
    assert "[1, None]" in seen[0]
    assert seen[1].count("None") == 4
