"""What state on disk costs beside state in memory: where it fits its share of memory, and where it is ten times that.

Run: `python tests/benchmarks/bench_state.py [--rounds 3] [--json]`. One subtask's operator, without an engine, batches
of 16,384 rows. `hot`: keys drawn from few, which fit the budget; `ten times`: drawn evenly from so many that a tenth of
them fits. Processor time of the whole process, RocksDB's threads included; medians of rounds taken in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.operators.contracts import Operator, OperatorContext
from rayflow.operators.process import Port, ProcessOperator
from rayflow.protocol.key_groups import key_group_range
from rayflow.state.disk.scratch import LocalDisk
from rayflow.state.disk.share import DiskShare

BATCH_ROWS, BATCHES = 16_384, 24
SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64())])
BYTES_PER_KEY = 120
"""About what a key of the aggregate takes in memory; sets how many keys fit a budget."""


class Count(rf.KeyedProcessFunction):
    n = rf.ValueState("int64", default=0)
    last = rf.ValueState("int64")

    def process(self, row: dict[str, Any], ctx: rf.ProcessContext) -> Iterator[dict[str, Any]]:
        self.n.value += 1
        self.last.value = row["v"]
        yield {"k": row["k"], "n": self.n.value}


def aggregate() -> Operator:
    aggregates = [("n", rf.count()), ("total", col("v").sum()), ("most", col("v").max())]
    return RunningAggregateOperator(("k",), aggregates, SCHEMA, False)


def process() -> Operator:
    returns = pa.schema([("k", pa.int64()), ("n", pa.int64())])
    return ProcessOperator(
        Count, [Port(method="process", keys=("k",))], pa.schema([SCHEMA.field("k")]), returns
    )


class Nowhere:
    """Takes results."""

    def emit(self, batch: pa.RecordBatch) -> None:
        """Drop them."""


def run(make: Callable[[], Operator], keys: int, budget: int | None, folder: str) -> dict[str, float]:
    """Return processor and passed time (s) of `BATCHES`, after as many that fill the state."""
    metrics, disk = MetricGroup(), LocalDisk()
    share = None
    if budget is not None:
        share = DiskShare(
            lambda memory, appended: disk.open_rows(folder, "bench", memory, appended),
            budget,
            disk.ticks_ns,
            metrics,
        )
    operator = make()
    context: Any = OperatorContext(
        job_id="bench", job_name="bench", attempt=1, uid="op", name="op", subtask_index=0, parallelism=1,
        max_parallelism=128, key_groups=key_group_range(128, 1, 0), metrics=metrics, now_ms=lambda: 0, disk=share,
    )  # fmt: skip
    operator.open(context, Nowhere(), [])  # type: ignore[arg-type]
    rng = np.random.default_rng(7)

    def feed(numbers: Any) -> None:
        operator.process(pa.record_batch({"k": numbers, "v": numbers}, schema=SCHEMA), 0)

    for begin in range(0, keys, BATCH_ROWS):
        feed(rng.permutation(np.arange(begin, min(keys, begin + BATCH_ROWS))))
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(BATCHES):
        feed(rng.integers(0, keys, BATCH_ROWS))
    found = {"s": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    looked, fetched = metrics.counter("state_keys").value, metrics.counter("state_fetched_keys").value
    operator.close()
    return {**found, "hits": 1 - fetched / looked if looked else 1.0}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    budget = 16 << 20
    fits = budget // 2 // BYTES_PER_KEY // 2
    cases = [
        (name, make, size, keys, where)
        for name, make in (("aggregate", aggregate), ("process", process))
        for size, keys in (("hot", fits), ("ten times", 20 * fits))
        for where in (None, budget)
    ]
    times: dict[Any, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for name, make, size, keys, where in cases:
                times.setdefault((name, size, keys, where is not None), []).append(
                    run(make, keys, where, folder)
                )
    rows = []
    for (name, size, keys, on_disk), found in times.items():
        median = {what: statistics.median(one[what] for one in found) for what in found[0]}
        rows.append({"operator": name, "keys": f"{size} ({keys:,})", "disk": on_disk, **median})
    if options.json:
        print(json.dumps(rows))
        return
    print("| operator | keys | memory, µs CPU a row | disk | ratio | ratio, time passed | in memory |")
    print("|---|---|---|---|---|---|---|")
    for memory, disk in zip(rows[::2], rows[1::2]):
        per_row = 1e6 / (BATCH_ROWS * BATCHES)
        print(
            f"| {memory['operator']} | {memory['keys']} | {memory['cpu_s'] * per_row:.2f} "
            f"| {disk['cpu_s'] * per_row:.2f} | {disk['cpu_s'] / memory['cpu_s']:.2f} "
            f"| {disk['s'] / memory['s']:.2f} | {disk['hits']:.0%} |"
        )


if __name__ == "__main__":
    main()
