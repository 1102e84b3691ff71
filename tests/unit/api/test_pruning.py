"""Columns without a reader are neither read nor carried along; whoever reads gets what it had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import col


@pytest.fixture
def events(tmp_path: Path) -> str:
    """A file of a, b, c (int64), s (string) and t (timestamp)."""
    columns = {name: pa.array([1, 2, 3]) for name in "abc"}
    times = pa.array([1, 2, 3], pa.timestamp("ms"))
    pq.write_table(pa.table({**columns, "s": ["x", "y", "z"], "t": times}), tmp_path / "events.parquet")
    return str(tmp_path / "events.parquet")


def schemas(env: rf.StreamEnvironment) -> dict[str, list[str]]:
    """Return the columns of each operator's output, by its name."""
    return {op.name: op.schema.names for vertex in env.plan().vertices for op in vertex.operators}


def test_only_the_columns_of_a_selection_are_read(env: rf.StreamEnvironment, events: str) -> None:
    env.read_parquet(events).select("b", twice=col("a") * 2).discard()
    assert schemas(env)["read_parquet"] == ["a", "b"]


def test_the_event_time_is_read_though_no_expression_names_it(env: rf.StreamEnvironment, events: str) -> None:
    env.read_parquet(events, watermark=rf.Watermark("t")).select("b").discard()
    assert schemas(env)["read_parquet"] == ["b", "t"]


def test_filters_keep_what_they_and_what_is_behind_them_read(env: rf.StreamEnvironment, events: str) -> None:
    env.read_parquet(events).filter(col("c") > 1).select("a").discard()
    assert schemas(env) == {
        "read_parquet": ["a", "c"],
        "filter": ["a", "c"],
        "select": ["a"],
        "discard": ["a"],
    }


def test_added_columns_that_nobody_reads_are_not_computed(env: rf.StreamEnvironment, events: str) -> None:
    env.read_parquet(events).with_columns(d=col("a") + 1, e=col("b") + 1).select("d").discard()
    assert schemas(env) == {"read_parquet": ["a"], "with_columns": ["d"], "select": ["d"], "discard": ["d"]}


def test_two_readers_get_what_either_needs(env: rf.StreamEnvironment, events: str) -> None:
    stream = env.read_parquet(events)
    stream.filter(col("c") > 1).select("a").discard()
    stream.select("b").discard()
    assert schemas(env)["read_parquet"] == ["a", "b", "c"]
    assert schemas(env)["filter"] == ["a", "b", "c"]


@pytest.mark.parametrize("reader", ["sink", "function", "aggregate", "union"])
def test_whoever_is_not_known_to_read_less_reads_all(
    env: rf.StreamEnvironment, events: str, reader: str
) -> None:
    stream = env.read_parquet(events)
    readers: dict[str, Any] = {
        "sink": stream.discard,
        "function": lambda: stream.filter(lambda row: row["a"] > 1).select("a").discard(),
        "aggregate": lambda: stream.key_by("a").aggregate(n=rf.count()).discard(),
        "union": lambda: stream.union(stream).select("a").discard(),
    }
    readers[reader]()
    assert schemas(env)["read_parquet"] == ["a", "b", "c", "s", "t"]


def test_the_keys_of_an_exchange_are_carried_to_it(env: rf.StreamEnvironment, events: str) -> None:
    env.read_parquet(events).with_columns(k=col("a") % 2).key_by("k").select("b").discard()
    assert schemas(env)["read_parquet"] == ["a", "b"]
    assert schemas(env)["with_columns"] == ["b", "k"]


def test_a_row_of_constants_needs_one_column(env: rf.StreamEnvironment, events: str) -> None:
    rows = env.read_parquet(events).select("b", "c").select(one=rf.lit(1)).execute_and_collect(local=True)
    assert rows.to_pydict() == {"one": [1, 1, 1]}


@pytest.mark.parametrize("parallelism", [1, 2])
def test_rows_are_the_same(events: str, parallelism: int) -> None:
    env = rf.StreamEnvironment(parallelism=parallelism)
    stream = env.read_parquet(events, watermark=rf.Watermark("t")).with_columns(
        k=col("a") % 2, d=col("b") + 1
    )
    rows = stream.filter(col("c") > 1).rebalance().select("s", "d").execute_and_collect(local=True)
    assert sorted(rows.to_pylist(), key=str) == [{"s": "y", "d": 3}, {"s": "z", "d": 4}]


def test_a_stream_that_was_executed_can_be_executed_again_by_another_reader(
    env: rf.StreamEnvironment, events: str
) -> None:
    stream = env.read_parquet(events)
    assert stream.select("a").execute_and_collect(local=True).column_names == ["a"]
    assert stream.execute_and_collect(local=True).column_names == ["a", "b", "c", "s", "t"]
