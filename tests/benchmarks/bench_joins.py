"""How fast joins are, one core each, without an engine around them: 94 bids to 6 auctions, as in NEXMark.

Run: `python tests/benchmarks/bench_joins.py [--rows N]` (N bids). The rate is of rows in, of both sides.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from rayflow.model.times import WATERMARK_MAX
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.contracts import Operator, OperatorContext
from rayflow.operators.joins.columns import JoinColumns, JoinSide
from rayflow.operators.joins.interval import IntervalJoinOperator
from rayflow.operators.joins.regular import RegularJoinOperator
from rayflow.operators.joins.temporal import TemporalJoinOperator
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.windows.joins import WindowJoinOperator

SECOND = 10**9
TIMES = ("dateTime", "dateTime")


class Counted:
    """An `Output` that counts rows."""

    rows = 0

    def emit(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None: ...

    def emit_watermark(self, watermark: int) -> None: ...

    def emit_idle(self) -> None: ...


def inputs(bids: int) -> tuple[pa.RecordBatch, pa.RecordBatch]:
    """Return bids, ten a millisecond, and the auctions they are for, over the same time."""
    rng = np.random.default_rng(1)
    auctions = bids * 6 // 94
    texts = pa.array(["x" * n for n in rng.integers(20, 80, 1000).tolist()])

    def some(rows: int) -> pa.Array:
        return texts.take(pa.array(rng.integers(0, 1000, rows)))

    bid = {
        "auction": rng.integers(0, auctions, bids),
        "price": rng.integers(0, 10**6, bids),
        "dateTime": pa.array(np.arange(bids) // 10, pa.timestamp("ms")),
        "url": some(bids),
        "extra": some(bids),
    }
    auction = {
        "id": np.arange(auctions),
        "category": rng.integers(0, 20, auctions),
        "dateTime": pa.array(np.arange(auctions) * (bids // 10) // auctions, pa.timestamp("ms")),
        "itemName": some(auctions),
        "extra": some(auctions),
    }
    return pa.record_batch(bid), pa.record_batch(auction)


def run(
    name: str,
    make: Callable[[], Operator],
    sides: tuple[pa.RecordBatch, pa.RecordBatch],
    batch_rows: int = 16_384,
    watermarks: bool = True,
) -> None:
    """Feed both sides as their times go and print the rate."""
    bids, auctions = sides
    operator, out = make(), Counted()
    context = OperatorContext(
        job_id="j", job_name="j", attempt=1, uid="op", name="op", subtask_index=0, parallelism=1,
        max_parallelism=128, key_groups=KeyGroupRange(0, 128), metrics=MetricGroup(), now_ms=lambda: 0,
    )  # fmt: skip
    operator.open(context, out, ())
    begin = time.perf_counter()
    fed = 0
    for start in range(0, bids.num_rows, batch_rows):
        end = min(start + batch_rows, bids.num_rows)
        operator.process(bids.slice(start, end - start), 0)
        until = auctions.num_rows * end // bids.num_rows
        if until > fed:
            operator.process(auctions.slice(fed, until - fed), 1)
        fed = until
        if watermarks:
            operator.on_watermark((end // 10 - 100) * 1_000_000)
    operator.on_watermark(WATERMARK_MAX)
    seconds = time.perf_counter() - begin
    rate = (bids.num_rows + auctions.num_rows) / seconds / 1e6
    print(
        f"{name:45} {rate:5.2f} M rows/s in, {out.rows / seconds / 1e6:5.2f} M rows/s out ({out.rows} rows)"
    )


def main(rows: int) -> None:
    """Run all joins."""
    bids, auctions = inputs(rows)
    left, right = JoinSide(bids.schema, ("auction",)), JoinSide(auctions.schema, ("id",))
    columns = JoinColumns(left, right)
    few = auctions.filter(pa.array(auctions["category"].to_numpy() == 10))
    for batch_rows in (4096, 16_384, 65_536):
        name = f"join, 1 auction in 20, {batch_rows} rows a batch"
        run(name, lambda: RegularJoinOperator(left, right, columns), (bids, few), batch_rows, False)
    run("join", lambda: RegularJoinOperator(left, right, columns), (bids, auctions))
    outer = JoinSide(bids.schema, ("auction",), True)
    run("left join", lambda: RegularJoinOperator(outer, right, JoinColumns(outer, right)), (bids, auctions))
    make = lambda: IntervalJoinOperator(left, right, columns, TIMES, -SECOND, SECOND)  # noqa: E731
    run("interval join, 1 s to either side", make, (bids, auctions))
    for watermarks in (True, False):
        name = "temporal join" if watermarks else "temporal join, all at the end"
        make_temporal = lambda: TemporalJoinOperator(left, right, columns, TIMES)  # noqa: E731
        run(name, make_temporal, (bids, auctions), watermarks=watermarks)
    bounds = [pa.field(name, pa.timestamp("ms")) for name in ("window_start", "window_end")]
    windowed = JoinColumns(left, right, bounds=bounds)
    for name, slide in (("window join, tumbling 10 s", 10), ("window join, sliding 10 s every 2 s", 2)):
        windows = (10 * SECOND, slide * SECOND, 0)
        run(
            name,
            lambda w=windows: WindowJoinOperator(left, right, windowed, TIMES, w),
            (bids, auctions),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    main(parser.parse_args().rows)
