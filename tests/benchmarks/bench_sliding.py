"""What sliding windows cost beside tumbling ones, over the same rows, in the same run. Needs no Ray.

    python tests/benchmarks/bench_sliding.py [--rows N] [--keys N …] [--minutes N] [--rounds N] [--disorder S] [--json]

Rows of random keys, evenly spread over so many minutes of event time, in batches of 65,536, with a watermark after each
batch. Two ways: the window operator alone, and a whole job inside this process (`execute(local=True)`: source,
exchange by key, window, `discard()`). Sliding 5 min / 1 s makes a result per key and second, tumbling 5 min one per key
and 5 minutes; "out/in" says how many rows come out per row that goes in. Where that is far above 1, making the
results is what is paid for, so nanoseconds per row in or out are shown beside the ratio.

Ratios are those of medians of several rounds, taken in turns: of the time that passed, and of processor time, which
others on the machine disturb less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.batch.aggregates import AggregateExpr
from rayflow.model.times import WATERMARK_MAX
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.contracts import OperatorContext
from rayflow.protocol.key_groups import key_group_range
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows

SECOND, MS, BATCH = 1_000_000_000, 1_000_000, 65_536
SCHEMA = pa.schema([("key", pa.int64()), ("time", pa.timestamp("ms")), ("value", pa.int64())])
AGGREGATES: dict[str, dict[str, AggregateExpr]] = {
    "count": {"n": rf.count()},
    "count, sum, max": {"n": rf.count(), "total": col("value").sum(), "most": col("value").max()},
}
SIZE_S = 300
SLIDES_S = {"tumbling": 300, "sliding": 1}

Seconds = tuple[float, float]
"""Time that passed, and processor time."""


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


def rows_of(rows: int, keys: int, minutes: int, disorder_s: float) -> pa.Table:
    rng = np.random.default_rng(7)
    times = np.arange(rows) * (minutes * 60_000) // rows
    if disorder_s:
        times = times[np.argsort(times + rng.uniform(0, disorder_s * 1000, rows))]
    columns = [
        rng.integers(0, keys, rows),
        pa.array(times).cast(pa.timestamp("ms")),
        rng.integers(0, 1000, rows),
    ]
    return pa.Table.from_arrays([pa.array(column) for column in columns], schema=SCHEMA)


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


def run_operator(table: pa.Table, slide_s: int, aggregates: str, delay_ms: int) -> tuple[Seconds, int]:
    """Return seconds, and rows that came out."""
    spec = TimeWindows(keys=("key",), size_ns=SIZE_S * SECOND, slide_ns=slide_s * SECOND, time_column="time")
    operator = time_window_operator(spec, list(AGGREGATES[aggregates].items()), SCHEMA)
    out = CountingOutput()
    operator.open(context(), out, ())
    batches = table.to_batches(max_chunksize=BATCH)
    watermarks = np.maximum.accumulate(
        [batch["time"].cast(pa.int64()).to_numpy().max() - delay_ms - 1 for batch in batches]
    )
    began = time.perf_counter(), time.process_time()
    for batch, watermark in zip(batches, watermarks.tolist()):
        operator.process(batch, 0)
        operator.on_watermark(watermark * MS)
    operator.on_watermark(WATERMARK_MAX)
    return (time.perf_counter() - began[0], time.process_time() - began[1]), out.rows


def run_job(table: pa.Table, slide_s: int, aggregates: str, delay_ms: int) -> tuple[Seconds, int]:
    """Return seconds, and rows that came out: unknown."""
    env = rf.StreamEnvironment(name="sliding", parallelism=1)
    window = rf.Sliding(f"{SIZE_S}s", f"{slide_s}s") if slide_s < SIZE_S else rf.Tumbling(f"{SIZE_S}s")
    rows = env.from_arrow(table, watermark=rf.Watermark("time", delay=f"{delay_ms}ms"))
    rows.key_by("key").window(window).aggregate(**AGGREGATES[aggregates]).discard()
    began = time.perf_counter(), time.process_time()
    env.execute(local=True)
    return (time.perf_counter() - began[0], time.process_time() - began[1]), 0


WAYS: dict[str, Callable[[pa.Table, int, str, int], tuple[Seconds, int]]] = {
    "operator": run_operator,
    "job": run_job,
}


def measure(table: pa.Table, aggregates: str, rounds: int, delay_ms: int) -> list[dict[str, Any]]:
    cases = [(way, windows) for way in WAYS for windows in SLIDES_S]
    taken: dict[tuple[str, str], list[Seconds]] = {case: [] for case in cases}
    made: dict[str, int] = {}
    for _ in range(rounds + 1):
        for way, windows in cases:
            seconds, rows_out = WAYS[way](table, SLIDES_S[windows], aggregates, delay_ms)
            taken[way, windows].append(seconds)
            made[windows] = max(rows_out, made.get(windows, 0))
    # The first round warms up.
    wall, cpu = (
        {case: statistics.median(seconds[i] for seconds in taken[case][1:]) for case in cases} for i in (0, 1)
    )
    rows, out = table.num_rows, made["sliding"]
    return [
        {
            "aggregates": aggregates,
            "way": way,
            "rows": rows,
            "tumbling_s": round(wall[way, "tumbling"], 4),
            "sliding_s": round(wall[way, "sliding"], 4),
            "ratio": round(wall[way, "sliding"] / wall[way, "tumbling"], 2),
            "ratio_cpu": round(cpu[way, "sliding"] / cpu[way, "tumbling"], 2),
            "rows_out": out,
            "out_per_in": round(out / rows, 2),
            "tumbling_ns_per_row": round(1e9 * cpu[way, "tumbling"] / (rows + made["tumbling"]), 1),
            "sliding_ns_per_row": round(1e9 * cpu[way, "sliding"] / (rows + out), 1),
        }
        for way in WAYS
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keys", type=int, nargs="*", default=[100, 1000, 10_000, 100_000])
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disorder", type=float, default=0, help="seconds that rows are out of order")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = []
    for keys in options.keys:
        table = rows_of(options.rows, keys, options.minutes, options.disorder)
        for aggregates in AGGREGATES:
            found = measure(table, aggregates, options.rounds, int(options.disorder * 1000))
            results += [{"keys": keys, "minutes": options.minutes, **r} for r in found]
    if options.json:
        print(json.dumps({"results": results}, indent=1))
        return
    over = f"{options.rows:,} rows over {options.minutes} min"
    print(f"5 min / 1 s beside tumbling 5 min, {over}, medians of {options.rounds} rounds")
    print(
        "|    keys | aggregates      | way      | tumbling s | sliding s | ratio | ratio, CPU | out/in | "
        "ns a row in or out, tumbling | sliding |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for r in results:
        print(
            f"| {r['keys']:>7} | {r['aggregates']:<15} | {r['way']:<8} | {r['tumbling_s']:>10.3f} | "
            f"{r['sliding_s']:>9.3f} | {r['ratio']:>5.2f} | {r['ratio_cpu']:>10.2f} | {r['out_per_in']:>6.2f} | "
            f"{r['tumbling_ns_per_row']:>28.1f} | {r['sliding_ns_per_row']:>7.1f} |"
        )


if __name__ == "__main__":
    main()
