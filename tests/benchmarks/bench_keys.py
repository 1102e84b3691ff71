"""What ten million distinct string keys in one running count cost: memory by key, the longest pause, rows a second.

Run: `python tests/benchmarks/bench_keys.py [--rows N] [--keys N] [--batch-rows N] [--snapshot-every N] [--json]`.

One subtask's operator is fed batches on one thread, its output is dropped. Keys come in random order, each as often
as rows / keys says. Memory is the process's resident memory after the last batch, less what it was before the
first, less the bytes of the keys themselves; the peak is the most that was resident. A pause is the time of one call:
a batch, or what a snapshot does on the task thread (the rest, which runs elsewhere, is left out of the pauses). The
CPU time of the longest batch says what of its pause is due to others on the machine.

To be below: 150 bytes a key beyond its own, 1 s a pause.
"""

from __future__ import annotations

import argparse
import gc
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.aggregates import count
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.operators.contracts import OperatorContext
from rayflow.protocol.key_groups import key_group_range

SCHEMA = pa.schema([("k", pa.string())])
_PAGE_BYTES = resource.getpagesize()


class Dropped:
    """An output that nobody reads."""

    def emit(self, batch: pa.RecordBatch) -> None:
        pass

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None:
        pass

    def emit_watermark(self, watermark: int) -> None:
        pass

    def emit_idle(self) -> None:
        pass


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def context(uid: str) -> OperatorContext:
    """Return that of the only subtask of an operator."""
    return OperatorContext(
        job_id="job",
        job_name="job",
        attempt=1,
        uid=uid,
        name=uid,
        subtask_index=0,
        parallelism=1,
        max_parallelism=128,
        key_groups=key_group_range(128, 1, 0),
        metrics=MetricGroup(),
        now_ms=lambda: 0,
    )


def opened() -> RunningAggregateOperator:
    operator = RunningAggregateOperator(("k",), [("n", count())], SCHEMA, False)
    operator.open(context("count"), Dropped(), ())
    return operator


def keys_of(numbers: Any) -> pa.RecordBatch:
    """Return the keys `user-000…123`, of 16 bytes each, as a batch."""
    digits = pa.array(numbers).cast(pa.string())
    padded = pc.utf8_lpad(digits, 11, padding="0")
    keys = pc.binary_join_element_wise(pa.scalar("user-"), padded, "")
    return pa.RecordBatch.from_arrays([keys], schema=SCHEMA)


def order_of(rows: int, keys: int) -> Any:
    """Return which key each row has: every key equally often, in random order."""
    rng = np.random.default_rng(1)
    rounds = [rng.permutation(keys).astype(np.int32) for _ in range(-(-rows // keys))]
    return np.concatenate(rounds)[:rows]


def measure(rows: int, keys: int, batch_rows: int, snapshot_every: int) -> dict[str, Any]:
    order = order_of(rows, keys)
    operator = opened()
    operator.process(keys_of(order[:1]), 0)
    gc.collect()
    before = resident_bytes()
    pauses: dict[str, list[float]] = {"batch": [], "batch_cpu": [], "snapshot": []}
    for number, begin in enumerate(range(0, rows, batch_rows)):
        batch = keys_of(order[begin : begin + batch_rows])
        started, started_cpu = time.perf_counter(), time.thread_time()
        operator.process(batch, 0)
        pauses["batch"].append(time.perf_counter() - started)
        pauses["batch_cpu"].append(time.thread_time() - started_cpu)
        if snapshot_every and number % snapshot_every == snapshot_every - 1:
            started = time.perf_counter()
            parts = operator.snapshot(number)
            pauses["snapshot"].append(time.perf_counter() - started)
            del parts
    del batch
    gc.collect()
    pa.default_memory_pool().release_unused()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    distinct = min(rows, keys)
    own_bytes = 16 * distinct
    return {
        "rows": rows,
        "keys": distinct,
        "rows_per_second": round(rows / sum(pauses["batch"])),
        "bytes_per_key_beyond_its_own": round((resident_bytes() - before - own_bytes) / distinct, 1),
        "peak_bytes_per_key_beyond_its_own": round((peak - before - own_bytes) / distinct, 1),
        "longest_batch_ms": round(1000 * max(pauses["batch"]), 1),
        "longest_batch_cpu_ms": round(1000 * max(pauses["batch_cpu"]), 1),
        "median_batch_ms": round(1000 * sorted(pauses["batch"])[len(pauses["batch"]) // 2], 1),
        "longest_snapshot_pause_ms": round(1000 * max(pauses["snapshot"], default=0.0), 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--keys", type=int, default=10_000_000)
    parser.add_argument("--batch-rows", type=int, default=65_536)
    parser.add_argument("--snapshot-every", type=int, default=50, metavar="BATCHES", help="0: never")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args.rows, args.keys, args.batch_rows, args.snapshot_every)
    if args.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name.replace('_', ' '):36} {value:>14,}")


if __name__ == "__main__":
    main()
