"""Skewed keys: a keyed sum and a windowed count over Zipf(1.5) keys, with each setting of `rf.Skew`, beside uniform
keys.

`python tests/benchmarks/bench_skew.py [--rows N] [--rounds N] [--parallelism 2 4] [--jobs sum count] [--local]
[--json FILE]`

Real Ray actors (`--local`: threads of this process), a million keys, rows of 24 bytes, made before they are read; a
checkpoint every second. A round runs all settings once; medians over rounds. Rows a second are counted from
`attempt_running` to
`job_finished`.

`busiest/least` is, of the subtasks that get rows over the network, the most rows that one got by the fewest: of the
worst operator among those that got at least 1 % of the job's rows. `sent` is rows over the network for each row read.
`M rows/CPU s` (`--local` only): rows for each second of processor time of this process, start included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.runtime.local import run_local

KEYS = 1_000_000
POOL, BATCH_ROWS = 32, 65_536
ROWS_PER_SECOND_OF_EVENT_TIME = 1_000_000

SETTINGS: dict[str, tuple[str, rf.Skew | None]] = {
    "uniform, plain": ("uniform", None),
    "uniform, local": ("uniform", rf.Skew()),
    "uniform, auto": ("uniform", rf.Skew(local_aggregation=False, salt="auto")),
    "uniform, local + auto": ("uniform", rf.Skew(salt="auto")),
    "plain": ("zipf", None),
    "local": ("zipf", rf.Skew()),
    "salted": ("zipf", rf.Skew(local_aggregation=False, salt=8)),
    "auto": ("zipf", rf.Skew(local_aggregation=False, salt="auto")),
    "local + auto": ("zipf", rf.Skew(salt="auto")),
}


class Made:
    """A generator function over batches that each subtask makes once, the same everywhere."""

    def __init__(self, distribution: str) -> None:
        self.distribution = distribution
        self.pool: list[tuple[Any, Any]] = []

    def __call__(self, start: int, count: int) -> pa.RecordBatch:
        if not self.pool:
            # Both in the same way: what making them costs is the same.
            random = np.random.default_rng(1)
            exponent = 0.0 if self.distribution == "uniform" else 1.5
            shares = np.cumsum(np.arange(1, KEYS + 1, dtype=np.float64) ** -exponent)
            for _ in range(POOL):
                keys = np.searchsorted(shares, random.random(BATCH_ROWS) * shares[-1])
                self.pool.append((pa.array(keys, pa.int64()), pa.array(random.integers(0, 100, BATCH_ROWS))))
        keys, values = self.pool[start // BATCH_ROWS % POOL]
        micros = np.arange(start, start + count) * (1_000_000 // ROWS_PER_SECOND_OF_EVENT_TIME)
        return pa.RecordBatch.from_arrays(
            [keys.slice(0, count), values.slice(0, count), pa.array(micros).cast(pa.timestamp("us"))],
            names=["key", "value", "at"],
        )


def run(job: str, setting: str, options: argparse.Namespace, parallelism: int) -> dict[str, float]:
    """Run one job; return what the table shows."""
    distribution, skew = SETTINGS[setting]
    with tempfile.TemporaryDirectory() as scratch:
        config = {
            "batch.rows": BATCH_ROWS,
            "checkpoint.interval": "1s",
            "checkpoint.storage": f"file://{scratch}/checkpoints",
            "heartbeat.interval": "250ms",
        }
        env = rf.StreamEnvironment(name=f"bench-{job}", parallelism=parallelism, config=config)
        rows = env.generate(Made(distribution), rows=options.rows)
        if job == "count":
            rows = rows.assign_watermarks(rf.Watermark("at", delay="100ms"))
            keyed = rows.key_by("key", skew=skew)
            keyed.window(rf.Tumbling("1s")).aggregate(n=rf.count()).discard()
        else:
            rows.key_by("key", skew=skew).aggregate(total=col("value").sum()).discard()
        began_s = time.process_time()
        if options.local:
            result = run_local(env.plan(), env.config)
            events, metrics = result.events, result.metrics
        else:
            handle = env.submit()
            handle.wait()
            events, metrics = handle.events(), handle.metrics()
    cpu_s = time.process_time() - began_s
    at = {event["type"]: datetime.fromisoformat(event["at"]) for event in events}
    seconds = (at["job_finished"] - at["attempt_running"]).total_seconds()
    received: dict[str, list[int]] = {}
    for subtask in metrics["subtasks"]:
        if not subtask["operator"].startswith("generate"):
            received.setdefault(subtask["operator"], []).append(subtask["rows_in"])
    busy = [rows for rows in received.values() if sum(rows) >= options.rows / 100]
    return {
        "rows_per_s": options.rows / seconds,
        # On Ray the work is that of other processes.
        "rows_per_cpu_s": options.rows / cpu_s if options.local else 0.0,
        "busiest_to_least": max((max(rows) / max(1, min(rows)) for rows in busy), default=1.0),
        "sent": sum(map(sum, received.values())) / options.rows,
    }


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parallelism", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--jobs", nargs="+", default=["sum", "count"], choices=["sum", "count"])
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=SETTINGS)
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--json", help="write all measurements to this file")
    options = parser.parse_args()
    if not options.local:
        import ray

        ray.init(include_dashboard=False, logging_level="warning", log_to_driver=False)
    found: dict[str, list[dict[str, float]]] = {}
    print(
        "| job | parallelism | keys, setting | M rows/s | M rows/CPU s | busiest/least | sent |\n"
        "|---|---|---|---|---|---|---|"
    )
    for parallelism in options.parallelism:
        for job in options.jobs:
            for _ in range(options.rounds):
                for setting in options.settings:
                    one = run(job, setting, options, parallelism)
                    found.setdefault(f"{job} | {parallelism} | {setting}", []).append(one)
            for name, rounds in found.items():
                if name.startswith(f"{job} | {parallelism} |"):
                    rate, cpu_rate, ratio, sent = (
                        statistics.median(one[key] for one in rounds)
                        for key in ("rows_per_s", "rows_per_cpu_s", "busiest_to_least", "sent")
                    )
                    cpu = f"{cpu_rate / 1e6:.2f}" if options.local else "–"
                    print(f"| {name} | {rate / 1e6:.2f} | {cpu} | {ratio:.2f} | {sent:.2f} |", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps({"options": vars(options), "found": found}, indent=1))


if __name__ == "__main__":
    main()
