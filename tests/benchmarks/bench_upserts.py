"""How fast operators on upsert streams are, one core each, without an engine around them.

Run: `python tests/benchmarks/bench_upserts.py [--rows N]`. The first rows of keys over bids in the manner of NEXMark
(q9: the best of an auction, q18: the last of a bidder and auction, q19: the best ten), then the changes of a running
count grouped anew, and a running aggregate into upsert files.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.connectors.file_sink import FileSink
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.operators.contracts import Operator, OperatorContext, SinkContext
from rayflow.operators.top_n import TopNOperator
from rayflow.protocol.key_groups import KeyGroupRange


class Collected:
    """An `Output` that hands batches on."""

    def __init__(self, take: Callable[[pa.RecordBatch], None]) -> None:
        self.emit = take

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None: ...

    def emit_watermark(self, watermark: int) -> None: ...

    def emit_idle(self) -> None: ...


def run(name: str, operator: Operator, batches: list[pa.RecordBatch], to: Callable[[Any], None]) -> None:
    """Feed all batches and print the rate."""
    context = OperatorContext(
        job_id="j", job_name="j", attempt=1, uid="op", name="op", subtask_index=0, parallelism=1,
        max_parallelism=128, key_groups=KeyGroupRange(0, 128), metrics=MetricGroup(), now_ms=lambda: 0,
    )  # fmt: skip
    told = 0

    def take(batch: pa.RecordBatch) -> None:
        nonlocal told
        told += batch.num_rows
        to(batch)

    operator.open(context, Collected(take), ())
    begin = time.perf_counter()
    for batch in batches:
        operator.process(batch, 0)
    seconds = time.perf_counter() - begin
    rows = sum(batch.num_rows for batch in batches)
    print(f"{name:40} {rows / seconds / 1e6:6.2f} M rows/s, {rows} rows in, {told} changes out")


def bids(rows: int) -> pa.Table:
    rng = np.random.default_rng(1)
    recent = np.arange(rows) // 15
    urls = np.array([f"https://www.nexmark.com/{i:06}/item.htm?query=1" for i in range(5000)])
    return pa.table(
        {
            "event_order": np.arange(rows),
            "auction": np.maximum(recent - (rng.exponential(60, rows)).astype(np.int64), 0),
            "bidder": rng.integers(0, max(rows // 100, 1), rows),
            "price": (10 ** rng.uniform(2, 8, rows)).astype(np.int64),
            "url": urls[rng.integers(0, len(urls), rows)],
            "dateTime": pa.array(np.arange(rows) // 10, pa.timestamp("ms")),
            "extra": urls[rng.integers(0, len(urls), rows)],
        }
    )


def first_rows(rows: int) -> None:
    table = bids(rows)
    batches = table.to_batches(max_chunksize=65_536)
    best = [col("price").desc(), col("event_order").asc()]
    last = [col("dateTime").desc(), col("event_order").desc()]
    for name, keys, n, order, rank in [
        ("top_n(1) by auction (q9)", ("auction",), 1, best, None),
        ("top_n(1) by bidder, auction (q18)", ("bidder", "auction"), 1, last, None),
        ("top_n(10, rank=) by auction (q19)", ("auction",), 10, best, "rank"),
        ("top_n(10) by auction", ("auction",), 10, best, None),
    ]:
        run(
            name,
            TopNOperator(keys, n, order, table.schema, rank, False, None, False),
            batches,
            lambda _: None,
        )


def changes(rows: int, keys: int, groups: int) -> None:
    k = np.random.default_rng(1).integers(0, keys, rows)
    table = pa.table({"g": k % groups, "k": k})
    told: list[pa.RecordBatch] = []
    counts = RunningAggregateOperator(("g", "k"), [("n", count())], table.schema, True)
    run(f"count of {keys} keys, old rows told", counts, table.to_batches(max_chunksize=16_384), told.append)
    schema = pa.schema([("g", pa.int64()), ("k", pa.int64()), ("n", pa.int64())])
    top = TopNOperator(("g",), 10, [col("n").desc()], schema, "rank", False, ("g", "k"), False)
    run(f"  … top_n(10) of it in {groups} groups", top, told, lambda _: None)
    both = [("mean", col("n").mean()), ("most", col("n").max())]
    run(
        "  … mean and max of it",
        RunningAggregateOperator(("g",), both, schema, False, retracts=True),
        told,
        lambda _: None,
    )


def into_files(rows: int, keys: int) -> None:
    rng = np.random.default_rng(1)
    table = pa.table({"k": rng.integers(0, keys, rows), "v": rng.integers(0, 1000, rows)})
    aggregates = [("n", count()), ("sum", col("v").sum()), ("mean", col("v").mean())]
    with tempfile.TemporaryDirectory() as path:
        sink = FileSink(f"{path}/out", mode="upsert", upsert_key=["k"])
        context = SinkContext(
            job_id="j", attempt=1, uid="o", subtask_index=0, parallelism=1, max_parallelism=128
        )
        sink.open(context)
        operator = RunningAggregateOperator(("k",), aggregates, table.schema, False)
        run(
            f"aggregate of {keys} keys into upsert files",
            operator,
            table.to_batches(max_chunksize=65_536),
            sink.write,
        )
        begin = time.perf_counter()
        sink.prepare(1)
        print(f"  … and its checkpoint: {time.perf_counter() - begin:.2f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    rows = parser.parse_args().rows
    first_rows(rows)
    changes(rows // 2, 100_000, 1)
    changes(rows // 2, 100_000, 100)
    into_files(rows, 10_000)
