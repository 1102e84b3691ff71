"""How many rows and timers per second process functions take on one core, and what their state weighs.

Run: `python tests/benchmarks/bench_process.py [--json]`. One subtask without an engine: keys to slots, users' Python,
results to Arrow; sources, exchange and sinks are not in it. CPU time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow.operators.process import Port, ProcessOperator

ROWS, BATCHES = 65_536, 6
TIME = pa.timestamp("us")


class Count(rf.KeyedProcessFunction):
    count = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: rf.ProcessContext) -> Iterator[dict[str, Any]]:
        self.count.value += 1
        yield {"k": row["k"], "n": self.count.value}


class CountFor10s(Count):
    count = rf.ValueState("int64", default=0, ttl="10s")


class Entries(rf.KeyedProcessFunction):
    seen = rf.MapState("int64", "int64")

    def process(self, row: dict[str, Any], ctx: rf.ProcessContext) -> Iterator[dict[str, Any]]:
        self.seen[row["v"]] = n = self.seen.get(row["v"], 0) + 1
        yield {"k": row["k"], "n": n}


class Timers(rf.KeyedProcessFunction):
    count = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: rf.ProcessContext) -> None:
        self.count.value += 1
        assert ctx.timestamp is not None
        ctx.register_event_timer(ctx.timestamp + timedelta(seconds=1))

    def on_timer(self, ts: Any, ctx: rf.ProcessContext) -> Iterator[dict[str, Any]]:
        yield {"k": ctx.current_key, "n": self.count.value}


def batch(keys: int, number: int) -> pa.RecordBatch:
    rng = np.random.default_rng(number)
    times = pa.array((np.arange(ROWS) + number * ROWS) * 1000).cast(TIME)
    return pa.record_batch({"k": rng.integers(0, keys, ROWS), "t": times, "v": rng.integers(0, 10, ROWS)})


def measured(harness: Any, fn: Any, keys: int) -> dict[str, Any]:
    port = Port(method="process", keys=("k",), time_column="t", time_type=TIME)
    key_schema, returns = pa.schema({"k": pa.int64()}), pa.schema({"k": pa.int64(), "n": pa.int64()})
    driven = harness(lambda: ProcessOperator(fn, [port], key_schema, returns), now_ms=lambda: 0)
    driven.emit = lambda rows: None
    driven.feed(batch(keys, 0))
    rest = [batch(keys, number) for number in range(1, BATCHES)]
    began = time.process_time()
    for rows in rest:
        driven.feed(rows)
    found = {"function": fn.__name__, "keys": keys, "rows_per_s": round((BATCHES - 1) * ROWS / cpu(began))}
    began = time.perf_counter()
    parts = driven.operator.snapshot(1)
    found["snapshot_ms"] = round((time.perf_counter() - began) * 1000, 1)
    began = time.perf_counter()
    found["snapshot_rows"] = sum(part.build().num_rows for part in parts)
    found["build_ms"] = round((time.perf_counter() - began) * 1000, 1)
    timers = len(driven.operator._event_timers)
    began = time.process_time()
    driven.watermark(2**90)
    found["timers_per_s"] = round(timers / cpu(began)) if timers else None
    return found


def cpu(began: float) -> float:
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    path = Path(__file__).parents[1] / "unit" / "conftest.py"
    spec = importlib.util.spec_from_file_location("harness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    functions = (Count, CountFor10s, Entries, Timers)
    found = [measured(module.Harness, fn, keys) for keys in (1000, 1_000_000) for fn in functions]
    for row in found:
        print(json.dumps(row) if as_json else "  ".join(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
