"""Upsert streams, end to end, against DuckDB: the first rows of keys, whatever dies."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col

BIDS = 6000


def bids(seed: int = 1, rows: int = BIDS) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "event_order": np.arange(rows),
            "auction": rng.integers(0, 40, rows),
            "bidder": rng.integers(0, 30, rows),
            "price": rng.integers(0, 200, rows),
            "channel": rng.choice(["apple", "google", "baidu"], rows),
            "dateTime": pa.array(
                np.sort(rng.integers(0, 5000, rows)) + 1_436_918_400_000, pa.timestamp("ms")
            ),
        }
    )


def env(parallelism: int, rows: int = 500, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(parallelism=parallelism, config={"batch.rows": rows, **config})


def sql(query: str, table: pa.Table) -> Counter[Any]:
    assert table.num_rows  # DuckDB finds it by its name
    return Counter(duckdb.sql(query.replace("bids", '"table"')).fetchall())


Q18 = """select * exclude (r) from (select *, row_number() over (partition by bidder, auction
         order by dateTime desc, event_order desc) r from bids) where r = 1"""
Q19 = """select * from (select *, row_number() over (partition by auction
         order by price desc, event_order) rank_number from bids) where rank_number <= 10"""


def last_bids(stream: Any) -> Any:
    return stream.key_by("bidder", "auction").top_n(1, [col("dateTime").desc(), col("event_order").desc()])


def highest_bids(stream: Any, rank: str | None = "rank_number") -> Any:
    order = [col("price").desc(), col("event_order").asc()]
    return stream.key_by("auction").top_n(10, order_by=order, rank=rank)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_the_last_and_the_highest_rows_of_keys_equal_duckdb(lab: Any, parallelism: int) -> None:
    table = bids(parallelism)
    last = last_bids(env(parallelism).from_arrow(table)).execute_and_collect(local=True)
    assert lab.bag(last) == sql(Q18, table)
    highest = highest_bids(env(parallelism).from_arrow(table)).execute_and_collect(local=True)
    assert lab.bag(highest) == sql(Q19, table)
    unranked = highest_bids(env(parallelism).from_arrow(table), None).execute_and_collect(local=True)
    assert lab.bag(unranked) == sql(Q19.replace("*", "* exclude (rank_number)", 1), table)


def test_the_last_row_is_the_same_by_aggregates_and_by_top_n(lab: Any) -> None:
    table = bids(3)
    keyed = env(2).from_arrow(table, watermark=rf.Watermark("dateTime")).key_by("auction")
    columns = ["bidder", "price", "channel", "dateTime", "event_order"]
    by_aggregates = keyed.aggregate(**{name: col(name).last() for name in columns})
    by_order = keyed.top_n(1, order_by="dateTime", ties="last").select("auction", *columns)
    assert lab.bag(by_order.execute_and_collect(local=True)) == lab.bag(
        by_aggregates.execute_and_collect(local=True)
    )


def test_filters_and_projections_keep_whole_rows_apart(lab: Any) -> None:
    table = bids(4)
    highest = highest_bids(env(2).from_arrow(table), None)
    seen = highest.filter(col("price") < 195).select("auction", "price").execute_and_collect(local=True)
    assert lab.bag(seen) == sql(f"select auction, price from ({Q19}) where price < 195", table)


@pytest.mark.parametrize("seed", range(2))
def test_upsert_files_hold_the_first_rows_whatever_dies(lab: Any, tmp_path: Path, seed: int) -> None:
    table = bids(seed + 10)
    e = env(seed + 1, 50)

    def make(start: int, count: int) -> pa.RecordBatch:
        return table.slice(start, count).combine_chunks().to_batches()[0]

    stream = e.generate(make, rows=BIDS, rate_limit=12_000)
    last_bids(stream).write_parquet(tmp_path / "last", mode="upsert")
    highest_bids(stream).write_csv(tmp_path / "ranked", mode="upsert")
    highest_bids(stream, None).write_parquet(tmp_path / "unranked", mode="upsert", partition_by="channel")
    rng, crashed = random.Random(seed), []

    def look(job: Any) -> None:
        if len(crashed) < 3 and lab.completed(job) > len(crashed):
            crashed.append(lab.crash(job, rng))

    watcher = lab.watch(look)
    lab.finish(e, on_start=watcher, checkpoint__interval="30ms", restart__delay="1ms")
    watcher.stop()
    assert crashed
    assert lab.rows(tmp_path / "last") == sql(Q18, table)
    ranked = duckdb.sql(f"select * from read_csv('{tmp_path}/ranked/*.csv')").fetchall()
    assert Counter(ranked) == sql(Q19, table)
    columns = "event_order, auction, bidder, price, channel, dateTime"
    unranked = duckdb.sql(f"select {columns} from read_parquet('{tmp_path}/unranked/*/*.parquet')").fetchall()
    assert Counter(unranked) == sql(f"select {columns} from ({Q19})", table)
