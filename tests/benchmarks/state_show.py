"""State ten times as large as its share of memory: that it is right, what it takes, and what checkpoints upload.

Run: `python tests/benchmarks/state_show.py [--state 640] [--managed 64] [--storage DIR]`, sizes in MiB. A running
aggregate keeps a text for each key. First every key comes once, in no order; then 1 % of them again. The same job runs
three times, each time in a process of its own: over a thousand keys (its peak of resident memory is the *base*: rows on
their way, buffers, code), with all state in memory, and with `state.backend=disk`. Exit code 1 where results differ,
the resident size goes beyond base and budget by more than 20 % of the budget, or the last checkpoint uploads more than
a tenth of the state.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.batch.hashing import hash_columns
from rayflow.runtime.local import run_local

MIB = 1 << 20
TEXT_BYTES = 112
ROW_BYTES = 8 + TEXT_BYTES + 8
CHANGED_SHARE = 0.01
BATCH_ROWS = 8_192
PROCESS_BYTES = 1 << 30


class Texts:
    """Row i is about key i, shuffled; those after the first `keys` about the first of these again."""

    def __init__(self, keys: int, distinct: int) -> None:
        self.keys, self.distinct = keys, distinct

    def __call__(self, start: int, count: int) -> pa.RecordBatch:
        n = np.arange(start, start + count, dtype=np.uint64)
        at = np.where(n < self.keys, n, n - np.uint64(self.keys))
        key = (at * np.uint64(11_400_714_819_323_198_485)) % np.uint64(2**61 - 1) % np.uint64(self.distinct)
        words = np.arange(1, TEXT_BYTES // 16 + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        bits = (n[:, None] * np.uint64(0x9E3779B97F4A7C15) * words[None, :]).ravel().astype(">u8")
        data = bits.tobytes().hex().encode()[: TEXT_BYTES * count]
        offsets = np.arange(0, TEXT_BYTES * count + 1, TEXT_BYTES, dtype=np.int32)
        text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(data))
        return pa.record_batch({"k": pa.array(key.astype(np.int64)), "text": text})


class Digest(rf.Sink):
    """Keeps the sum of the rows' hashes: equal for equal rows, whatever their order."""

    accepts_upserts = True
    seen: dict[str, int] = {}  # noqa: RUF012  of the process, for after the run

    def write(self, batch: pa.RecordBatch) -> None:
        hashes = hash_columns(batch, batch.schema.names)
        self.seen["rows"] = self.seen.get("rows", 0) + batch.num_rows
        self.seen["digest"] = (self.seen.get("digest", 0) + int(hashes.sum(dtype=np.uint64))) % 2**64


class Peak:
    """Watches the resident size of this process."""

    def __init__(self) -> None:
        self.bytes = 0
        self._over = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.bytes = max(self.bytes, resident_bytes())

    def stop(self) -> int:
        self._over.set()
        return self.bytes


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def run(keys: int, distinct: int, backend: str, managed: int, storage: str) -> dict[str, Any]:
    changed = int(keys * CHANGED_SHARE)
    config = {
        "state.backend": backend,
        "state.dir": f"{storage}/scratch",
        # The share of what cutoff and network leave that makes `managed` bytes.
        "memory.process": PROCESS_BYTES,
        "memory.managed": managed / (PROCESS_BYTES * 0.75 - PROCESS_BYTES * 0.75 * 0.1),
        "checkpoint.storage": f"{storage}/{backend}-{distinct}",
        "checkpoint.interval": "5s",
        "checkpoint.timeout": "10m",
        "batch.rows": BATCH_ROWS,
    }
    env = rf.StreamEnvironment(name="show", parallelism=1, config=config)
    rows = env.generate(Texts(keys, distinct), rows=keys + changed).uid("read").key_by("k")
    rows.aggregate(text=col("text").last(), n=rf.count()).uid("texts").sink_to(Digest())
    graph = env.plan()
    peak, began = Peak(), time.perf_counter()
    result = run_local(graph, env.config)
    seconds = time.perf_counter() - began
    assert result.failure is None, result.failure
    complete = [report for report in result.checkpoints if report["status"] == "completed"]
    return {
        "backend": backend,
        "keys": distinct,
        "seconds": round(seconds, 1),
        "peak_mib": round(peak.stop() / MIB, 1),
        "rows": Digest.seen["rows"],
        "digest": Digest.seen["digest"],
        "managed_mib": round(rf_managed(env) / MIB, 2),
        "checkpoints": [(round(r["bytes"] / MIB, 1), round(r["state_bytes"] / MIB, 1)) for r in complete],
        "metrics": {k: v for k, v in result.metrics["operators"]["texts"].items() if k.startswith("state_")},
    }


def rf_managed(env: rf.StreamEnvironment) -> int:
    from rayflow.model.config import JobConfig

    return JobConfig.from_flat(env.config).managed_bytes


def in_its_own_process(*arguments: Any) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--run", *map(str, arguments)], stdout=subprocess.PIPE, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(json.dumps(found), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--state", type=int, default=640)
    parser.add_argument("--managed", type=int, default=64)
    parser.add_argument("--storage")
    parser.add_argument("--run", nargs=5)
    options = parser.parse_args()
    if options.run:
        keys, distinct, backend, managed, storage = options.run
        print(json.dumps(run(int(keys), int(distinct), backend, int(managed), storage)))
        return 0
    keys = options.state * MIB // ROW_BYTES
    with tempfile.TemporaryDirectory(dir=options.storage) as storage:
        managed = options.managed * MIB
        base = in_its_own_process(keys, 1_000, "memory", managed, storage)
        memory = in_its_own_process(keys, keys, "memory", managed, storage)
        disk = in_its_own_process(keys, keys, "disk", managed, storage)
    over = disk["peak_mib"] - base["peak_mib"]
    uploaded, state = disk["checkpoints"][-1]
    equal = (memory["rows"], memory["digest"]) == (disk["rows"], disk["digest"])
    print(f"{keys:,} keys, {options.state} MiB of state, {options.managed} MiB for it")
    print(
        f"resident beyond the base: memory {memory['peak_mib'] - base['peak_mib']:.0f} MiB, disk {over:.0f} MiB"
    )
    print(f"last checkpoint: {uploaded} MiB written, of {state} MiB ({uploaded / state:.1%})")
    print(
        f"results {'equal' if equal else 'DIFFER'}; disk took {disk['seconds'] / memory['seconds']:.1f} times as long"
    )
    return 0 if equal and over <= 1.2 * options.managed and uploaded < 0.1 * state else 1


if __name__ == "__main__":
    sys.exit(main())
