"""What Arrow's memory pools and the collector of cyclic garbage cost a subtask: speed, pauses, memory.

    python tests/benchmarks/bench_memory.py pools|gc|all [--rounds 3]

Every run is a process of its own, and runs of different settings alternate; shown are medians. Rates are by processor
time, so that other processes on the machine matter less.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections import deque
from typing import Any

POOLS = ("mimalloc", "jemalloc", "system")
COLLECTORS = {
    "Python's defaults": (False, None),
    "frozen at start-up": (True, None),
    "young 50,000": (False, 50_000),
    "frozen, young 50,000": (True, 50_000),
}
MIB = 1 << 20


def measure_pool() -> dict[str, float]:
    """Batches as a keyed exchange has them: hashed, split, joined; some kept as state; then a burst that goes."""
    import numpy as np
    import pyarrow as pa

    from rayflow.batch.partition import make_partitioner
    from rayflow.batch.tables import concat
    from rayflow.runtime.process_memory import own_bytes
    from rayflow.state.disk.scratch import LocalDisk

    random = np.random.default_rng(1)
    rows = 65_536
    texts = pa.array([f"user-{n:012}" for n in range(rows)])
    partitioner = make_partitioner("hash", ("k",), 128, 4, 0, 1)
    before = own_bytes() or 0
    kept: deque[Any] = deque(maxlen=64)
    parts: list[list[Any]] = [[] for _ in range(4)]
    done, most = 0, 0
    began_s = time.process_time()
    while time.process_time() - began_s < 2.0:
        batch = pa.record_batch(
            {"k": random.integers(0, 1 << 40, rows), "v": random.random(rows), "text": texts}
        )
        for gathered, part in zip(parts, partitioner.split(batch), strict=True):
            gathered.append(part)
            if len(gathered) == 4:
                kept.append(concat(gathered))
                gathered.clear()
        done += rows
        most = max(most, own_bytes() or 0)
    took_s = time.process_time() - began_s
    burst = [concat(list(kept)) for _ in range(4)]
    del burst
    after_burst = own_bytes() or 0
    kept.clear()
    parts.clear()
    LocalDisk().give_back()
    return {
        "rows_s": done / took_s,
        "most_mib": (most - before) / MIB,
        "after_burst_mib": (after_burst - before) / MIB,
        "freed_mib": ((own_bytes() or 0) - before) / MIB,
    }


def measure_collector(freeze: bool, young: int | None, objects: int) -> dict[str, float]:
    """Rows that pass a function as Python objects, while `objects` more live in the user's state."""
    import rayflow.actors.subtask_actor  # noqa: F401  the modules that a subtask's process has
    from rayflow.runtime.process_memory import GarbageMeter

    if young is not None:
        gc.set_threshold(young, *gc.get_threshold()[1:])
    if freeze:
        gc.freeze()
    meter = GarbageMeter()
    state: dict[int, list[Any]] = {}
    began_s = time.process_time()
    for n in range(objects):
        state[n] = [n, {"n": n}]
    filled_s = time.process_time() - began_s
    done = 0
    while time.process_time() - began_s - filled_s < 2.0:
        rows = [{"k": n, "words": [n, n + 1]} for n in range(10_000)]
        for row in rows:
            entry = state.get(row["k"])
            if entry is not None:
                entry[1] = {"n": row["words"][1]}
        done += len(rows)
    return {
        "fill_s": filled_s,
        "rows_s": done / 2.0,
        "pause_share": meter.pause_ns / 1e9 / (filled_s + 2.0),
        "longest_ms": meter.longest_ns / 1e6,
        "collections": meter.collections,
    }


def run(what: str, *arguments: object, **environment: str) -> dict[str, float]:
    command = [sys.executable, __file__, what, *map(str, arguments)]
    answer = subprocess.run(
        command, env={**os.environ, **environment}, check=True, capture_output=True, text=True
    )
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {key: statistics.median(found[key] for found in runs) for key in runs[0]}


def show_pools(rounds: int) -> None:
    runs: dict[str, list[dict[str, float]]] = {pool: [] for pool in POOLS}
    for _ in range(rounds):
        for pool in POOLS:
            runs[pool].append(run("one-pool", ARROW_DEFAULT_MEMORY_POOL=pool))
    print("| pool | M rows/s | most MiB | after a burst | once freed |\n|---|---|---|---|---|")
    for pool, found in runs.items():
        m = medians(found)
        sizes = " | ".join(f"{m[key]:.0f}" for key in ("most_mib", "after_burst_mib", "freed_mib"))
        print(f"| {pool} | {m['rows_s'] / 1e6:.2f} | {sizes} |")


def show_collectors(rounds: int) -> None:
    for objects in (0, 1_000_000):
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in COLLECTORS}
        for _ in range(rounds):
            for name, (freeze, young) in COLLECTORS.items():
                runs[name].append(run("one-gc", int(freeze), young or 0, objects))
        print(f"\n{objects:,} entries in the user's state\n")
        print(
            "| collector | M rows/s | filling s | paused | longest ms | collections |\n|---|---|---|---|---|---|"
        )
        for name, found in runs.items():
            m = medians(found)
            print(
                f"| {name} | {m['rows_s'] / 1e6:.2f} | {m['fill_s']:.2f} | {m['pause_share']:.1%} "
                f"| {m['longest_ms']:.1f} | {m['collections']:.0f} |"
            )


def main() -> None:
    if sys.argv[1:2] == ["one-pool"]:
        print(json.dumps(measure_pool()))
        return
    if sys.argv[1:2] == ["one-gc"]:
        freeze, young, objects = map(int, sys.argv[2:])
        print(json.dumps(measure_collector(bool(freeze), young or None, objects)))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("pools", "gc", "all"))
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what != "gc":
        show_pools(options.rounds)
    if options.what != "pools":
        show_collectors(options.rounds)


if __name__ == "__main__":
    main()
