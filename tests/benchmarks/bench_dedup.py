"""The three ways to deduplicate side by side: memory, speed and error, on dense and on scattered ids.

Run: `python tests/benchmarks/bench_dedup.py [--rows N] [--distinct N] [--batch-rows N] [--rate P] [--json]`; with
`--library` instead: testing and adding a batch by pyroaring's BitMap64 beside rayflow's own containers.

Rows have one id of exactly N different ones, in random order, each at least once: `dense` 0 to N − 1, `random` as
many 64-bit numbers. One subtask's operator (max_parallelism 128) is fed batches on one thread, its output is dropped;
each method and kind of ids has a process of its own. `state` is what the operator says it holds, `RSS` how much more
the process has resident after the last batch than before the first, `files` the state as it would be written (LZ4),
`lost` the first rows that were dropped, `wrong for new` how many of a million ids never seen before are dropped after
all rows (these come after everything else was measured). CPU: of the thread, which is what counts on a machine that
others use too.

To be so: Bloom lost and wrong at most as stated; on dense ids bitmaps at least 5 times smaller than exact state.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from bench_keys import Dropped, context, resident_bytes

from rayflow.operators.dedup.memories import CHUNK_COLUMN, Deduplication
from rayflow.operators.dedup.operator import DeduplicateOperator
from rayflow.state.dedup.id_set import CHUNK_BITS, ChunkedIds, IdSet
from rayflow.state.files import encode_table

KINDS = ("dense", "random")
METHODS = ("exact", "bitmap", "bloom")
NEW = 1_000_000
SCHEMA = pa.schema([("id", pa.uint64()), (CHUNK_COLUMN, pa.uint64())])


class Counted(Dropped):
    """An output that counts rows."""

    rows = 0

    def emit(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows


def numbers_of(indices: Any, kind: str) -> Any:
    """Return an id for each index, different ones for different indices."""
    ids = np.asarray(indices, np.uint64)
    if kind == "dense":
        return ids
    ids = (ids ^ (ids >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    ids = (ids ^ (ids >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ids ^ (ids >> np.uint64(31))


def order_of(rows: int, distinct: int) -> Any:
    """Return the index of each row's id: each at least once, in random order."""
    rng = np.random.default_rng(1)
    order = np.concatenate(
        [np.arange(distinct, dtype=np.int32), rng.integers(0, distinct, rows - distinct, np.int32)]
    )
    rng.shuffle(order)
    return order


def operator_of(method: Any, distinct: int, rate: float) -> tuple[DeduplicateOperator, Counted]:
    by = (CHUNK_COLUMN,) if method == "bitmap" else ("id",)
    todo = Deduplication(
        method=method,
        schema=SCHEMA,
        columns=("id",),
        partition=by,
        expected=distinct,
        false_positive_rate=rate,
    )
    operator, out = DeduplicateOperator(todo), Counted()
    operator.open(context("deduplicate"), out, ())
    return operator, out


def batch_of(ids: pa.Array, method: str) -> pa.RecordBatch:
    if method != "bitmap":
        return pa.RecordBatch.from_arrays([ids], names=["id"])
    chunks = pc.shift_right(ids, pa.scalar(CHUNK_BITS, pa.uint64()))
    return pa.RecordBatch.from_arrays([ids, chunks], schema=SCHEMA)


def measure(method: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    order = order_of(args.rows, args.distinct)
    operator, out = operator_of(method, args.distinct, args.rate)
    pa.default_memory_pool().release_unused()
    gc.collect()
    before = resident_bytes()
    cpu = passed = 0.0
    for begin in range(0, args.rows, args.batch_rows):
        ids = pa.array(numbers_of(order[begin : begin + args.batch_rows], kind))
        started, started_cpu = time.perf_counter(), time.thread_time()
        operator.process(batch_of(ids, method), 0)
        passed += time.perf_counter() - started
        cpu += time.thread_time() - started_cpu
    kept, gauges = out.rows, operator.ctx.metrics.snapshot()
    pa.default_memory_pool().release_unused()
    resident = resident_bytes() - before
    started = time.perf_counter()
    (part,) = operator.snapshot(1)
    pause = time.perf_counter() - started
    files = len(encode_table(part.build()))
    for begin in range(args.distinct, args.distinct + NEW, args.batch_rows):
        end = min(begin + args.batch_rows, args.distinct + NEW)
        operator.process(batch_of(pa.array(numbers_of(np.arange(begin, end), kind)), method), 0)
    return {
        "ids": kind,
        "method": method,
        "rows kept": kept,
        "lost": args.distinct - kept,
        "lost %": round(100 * (args.distinct - kept) / args.distinct, 4),
        "wrong for new %": round(100 * (NEW - (out.rows - kept)) / NEW, 4),
        "state MB": round(gauges["state_bytes"] / 1e6, 1),
        "bytes an id": round(gauges["state_bytes"] / args.distinct, 2),
        "RSS MB": round(resident / 1e6, 1),
        "files MB": round(files / 1e6, 1),
        "snapshot pause ms": round(1000 * pause, 1),
        "M rows/s": round(args.rows / passed / 1e6, 2),
        "M rows/s of CPU": round(args.rows / cpu / 1e6, 2),
    }


def of_own_process(method: str, kind: str, args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", method, kind, "--json"]
    for name in ("rows", "distinct", "batch_rows", "rate"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
    )
    return found


def library(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Test and add the same batches both ways; which rows are new must come out of both."""
    from pyroaring import BitMap64

    found = []
    for kind in KINDS:
        order = order_of(args.rows, args.distinct)
        roaring, own = BitMap64(), IdSet(pa.schema([("chunk", pa.uint64())]))
        passed = {"pyroaring": 0.0, "rayflow": 0.0}
        for begin in range(0, args.rows, args.batch_rows):
            ids = numbers_of(order[begin : begin + args.batch_rows], kind)
            started = time.thread_time()
            values, first = np.unique(ids, return_index=True)
            new = BitMap64(values)
            new -= roaring
            roaring |= new
            theirs = np.sort(first[np.searchsorted(values, np.array(new.to_array(), np.uint64))])
            passed["pyroaring"] += time.thread_time() - started
            started = time.thread_time()
            chunks = pa.array(ids >> np.uint64(CHUNK_BITS))
            chunked = ChunkedIds.of(pa.array(ids), chunks, pa.schema([("chunk", pa.uint64())]))
            ours = own.add_new(chunked, np.arange(len(ids)))
            passed["rayflow"] += time.thread_time() - started
            assert (theirs == ours).all()
        found.append(
            {
                "ids": kind,
                **{f"{name} M rows/s of CPU": round(args.rows / s / 1e6, 2) for name, s in passed.items()},
            }
        )
    return found


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| " + " | ".join(rows[0]) + " |")
    print("|" + "---|" * len(rows[0]))
    for row in rows:
        print(
            "| " + " | ".join(f"{v:,}" if isinstance(v, int | float) else str(v) for v in row.values()) + " |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--distinct", type=int, default=20_000_000)
    parser.add_argument("--batch-rows", type=int, default=65_536)
    parser.add_argument("--rate", type=float, default=0.01, help="stated to the Bloom filter")
    parser.add_argument("--library", action="store_true", help="compare with pyroaring instead")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=2, metavar=("METHOD", "IDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args)))
        return
    rows = library(args) if args.library else [of_own_process(m, k, args) for k in KINDS for m in METHODS]
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    print_table(rows)


if __name__ == "__main__":
    main()
