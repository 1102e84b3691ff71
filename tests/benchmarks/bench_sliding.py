"""What sliding windows cost beside tumbling ones: the window operator alone, over the same rows, in the same run.

    python tests/benchmarks/bench_sliding.py [--rows N] [--keys N] [--minutes N] [--json]

Rows of random keys, evenly spread over so many minutes of event time, in batches of 65,536, with a watermark
after each batch as a source sends it. Sliding 5 min / 1 s makes a result per key and second, tumbling 5 min one per
key and 5 minutes: how many rows come out is printed, since making these is part of the cost. `sliding / tumbling`
is the ratio of the medians of several rounds, taken in turns. Needs no Ray.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.model.times import WATERMARK_MAX
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.contracts import OperatorContext
from rayflow.protocol.key_groups import key_group_range
from rayflow.windows.making import time_window_operator
from rayflow.windows.time_windows import TimeWindows

SECOND, MS, BATCH = 1_000_000_000, 1_000_000, 65_536
SCHEMA = pa.schema([("key", pa.int64()), ("time", pa.timestamp("ms")), ("value", pa.int64())])
AGGREGATES = {
    "count": [("n", count())],
    "count, sum, max": [("n", count()), ("total", col("value").sum()), ("most", col("value").max())],
}
WINDOWS = {
    "tumbling 5m": (300, 300),
    "sliding 5m/1s": (300, 1),
    "sliding 10s/2s": (10, 2),
}


class CountingOutput:
    """Counts the rows that come out."""

    def __init__(self) -> None:
        self.rows = 0

    def emit(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None:
        raise AssertionError("no row is late")

    def emit_watermark(self, watermark: int) -> None: ...

    def emit_idle(self) -> None: ...


def batches_of(rows: int, keys: int, minutes: int) -> list[pa.RecordBatch]:
    rng = np.random.default_rng(7)
    times = np.arange(rows) * (minutes * 60_000) // rows
    columns = [
        rng.integers(0, keys, rows),
        pa.array(times).cast(pa.timestamp("ms")),
        rng.integers(0, 1000, rows),
    ]
    table = pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMA)
    batches: list[pa.RecordBatch] = table.to_batches(max_chunksize=BATCH)
    return batches


def context() -> OperatorContext:
    return OperatorContext(
        job_id="job",
        job_name="job",
        attempt=1,
        uid="window",
        name="window",
        subtask_index=0,
        parallelism=1,
        max_parallelism=128,
        key_groups=key_group_range(128, 1, 0),
        metrics=MetricGroup(),
        now_ms=lambda: 0,
    )


def run(batches: list[pa.RecordBatch], windows: str, aggregates: str) -> tuple[float, int]:
    """Return seconds, and rows that came out."""
    size, slide = WINDOWS[windows]
    spec = TimeWindows(keys=("key",), size_ns=size * SECOND, slide_ns=slide * SECOND, time_column="time")
    operator = time_window_operator(spec, AGGREGATES[aggregates], SCHEMA)
    out = CountingOutput()
    operator.open(context(), out, ())
    began = time.perf_counter()
    for batch in batches:
        operator.process(batch, 0)
        operator.on_watermark(batch["time"][-1].value * MS - MS)
    operator.on_watermark(WATERMARK_MAX)
    return time.perf_counter() - began, out.rows


def measure(batches: list[pa.RecordBatch], aggregates: str, rounds: int) -> list[dict[str, Any]]:
    seconds: dict[str, list[float]] = {name: [] for name in WINDOWS}
    made = {}
    for _ in range(rounds + 1):
        for name in WINDOWS:
            taken, made[name] = run(batches, name, aggregates)
            seconds[name].append(taken)
    rows = sum(batch.num_rows for batch in batches)
    medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
    return [
        {
            "aggregates": aggregates,
            "windows": name,
            "seconds": round(medians[name], 4),
            "million_rows_per_s": round(rows / medians[name] / 1e6, 2),
            "rows_out": made[name],
            "to_tumbling": round(medians[name] / medians["tumbling 5m"], 2),
        }
        for name in WINDOWS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--keys", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for keys in options.keys:
        batches = batches_of(options.rows, keys, options.minutes)
        for aggregates in AGGREGATES:
            found = measure(batches, aggregates, options.rounds)
            results += [{"keys": keys, "rows": options.rows, "minutes": options.minutes, **r} for r in found]
    if options.json:
        print(json.dumps({"results": results}, indent=1))
        return
    print(
        f"{options.rows:,} rows over {options.minutes} min of event time; medians of {options.rounds} rounds"
    )
    print(
        f"{'keys':>8} {'aggregates':<16} {'windows':<15} {'s':>8} {'M rows/s':>9} {'rows out':>10} {'/ tumbling':>11}"
    )
    for r in results:
        print(
            f"{r['keys']:>8} {r['aggregates']:<16} {r['windows']:<15} {r['seconds']:>8.3f} "
            f"{r['million_rows_per_s']:>9.2f} {r['rows_out']:>10,} {r['to_tumbling']:>11.2f}"
        )


if __name__ == "__main__":
    main()
