"""State ten times as large as its share of memory: that it is right, what it takes, and what checkpoints upload.

Run: `python tests/benchmarks/state_show.py [--job aggregate] [--state 640] [--managed 64] [--storage DIR]`, sizes in
MiB. A running aggregate keeps a text for each key. First every key comes once, in no order; after a checkpoint that
has them all, 1 % of them, also in no order, come again, and the job ends with the next checkpoint. So keys are as far
from each other as they can be: what comes again is on disk, and no cache helps.

The same job runs three times, each time in a process of its own: with `state.backend=disk` over a thousand keys, as
many rows (its peak of resident memory is the *base*: rows on their way, buffers, code, a store of next to nothing; its
sink pauses, so that the buffers between subtasks, which are the network share's, are as full as where state is slow),
with all state in memory, and with all of it on disk. Peaks are sampled every 10 ms. Exit code 1 where results differ,
the resident size goes beyond the base by more than the budget and 20 %, or what is uploaded after 1 % of the keys
changed is more than a tenth of the state.

`--job window`: the same rows, over an hour of event time, in one tumbling window, which is shown when the input ends;
`--job sliding`: in windows of an hour every quarter of one, so that each row is in four. The base has windows as long
as a batch of rows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.batch.hashing import hash_columns
from rayflow.operators.source_contract import SplitReader
from rayflow.protocol.increments import MAX_LINKS, MAX_LINKS_SHARE
from rayflow.runtime.local import run_local
from rayflow.state.manifest import Manifest

MIB = 1 << 20
TEXT_BYTES = 112
ROW_BYTES = 8 + TEXT_BYTES + 8
CHANGED_SHARE = 0.01
BATCH_ROWS = 8_192
PROCESS_BYTES = 1 << 30
BASE_PAUSE_S = 0.03
HOUR_MS = 3_600_000
SLIDES_PER_WINDOW = {"window": 1, "sliding": 4}


class Texts(rf.Source):
    """Row i is about key i, scattered over 64 bits; those after the first `keys` about the first of these again. Waits
    before those, and at the end, until a checkpoint is complete that has all before."""

    bounded = True
    max_parallelism = 1

    def __init__(
        self, keys: int, distinct: int, checkpoints: str, wait: bool, job: str = "aggregate"
    ) -> None:
        self.keys, self.distinct, self.checkpoints, self.wait = keys, distinct, checkpoints, wait
        self.timed = job != "aggregate"
        self.rows = keys + int(keys * CHANGED_SHARE)

    @property
    def schema(self) -> pa.Schema:
        return self.make(0, 0).schema

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id="all", payload={})]

    def open_split(self, split: rf.Split, position: Any | None) -> TextReader:
        return TextReader(self, position or 0)

    def make(self, start: int, count: int) -> pa.RecordBatch:
        n = np.arange(start, start + count, dtype=np.uint64)
        at = np.where(n < self.keys, n, n - np.uint64(self.keys)) % np.uint64(self.distinct)
        # One to one: the factor is odd.
        key = at * np.uint64(11_400_714_819_323_198_485)
        words = np.arange(1, TEXT_BYTES // 16 + 1, dtype=np.uint64) * np.uint64(0xD1B54A32D192ED03)
        bits = (n[:, None] * np.uint64(0x9E3779B97F4A7C15) * words[None, :]).ravel().astype(">u8")
        data = bits.tobytes().hex().encode()[: TEXT_BYTES * count]
        offsets = np.arange(0, TEXT_BYTES * count + 1, TEXT_BYTES, dtype=np.int32)
        text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(data))
        made = pa.record_batch({"k": pa.array(key.view(np.int64)), "text": text})
        if not self.timed:
            return made
        times = (n * np.uint64(HOUR_MS) // np.uint64(self.rows)).astype(np.int64)
        return made.append_column("t", pa.array(times).cast(pa.timestamp("ms")))


class TextReader(SplitReader):
    released_by: dict[int, int] = {}  # noqa: RUF012  of the process: which checkpoint had all rows up to a number

    def __init__(self, texts: Texts, at: int) -> None:
        self.texts, self.at = texts, at

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        texts = self.texts
        stop = texts.keys if self.at < texts.keys else texts.rows
        if self.at in (texts.keys, texts.rows) and not self._may_pass():
            stop = self.at
        elif self.at == texts.rows:
            return None
        batch = texts.make(self.at, min(max_rows, stop - self.at))
        self.at += batch.num_rows
        return batch

    def _may_pass(self) -> bool:
        if not self.texts.wait or self.at in self.released_by:
            return True
        # Asked again and again: what looking takes is none of the job's work.
        time.sleep(0.1)
        last = self.at == self.texts.rows
        for manifest in complete(self.texts.checkpoints):
            (split,) = manifest.sources["read"]
            if split.position == str(self.at) and (last or may_be_extended(manifest)):
                self.released_by[self.at] = manifest.checkpoint_id
        return self.at in self.released_by

    def position(self) -> int:
        return self.at


def complete(checkpoints: str) -> Iterator[Manifest]:
    """Yield the manifests of complete checkpoints that are still there, the newest first."""
    found = {int(path.parent.name[4:]): path for path in Path(checkpoints).glob("*/chk-*/manifest.json")}
    for _, path in sorted(found.items(), reverse=True):
        with suppress(FileNotFoundError):
            yield Manifest.from_json(path.read_bytes())


def may_be_extended(manifest: Manifest) -> bool:
    """Whether the next checkpoint may hold what changed only: else it is a new base (`protocol.increments`)."""
    chain = [file for file in manifest.files if file.link is not None]
    base = sum(file.nbytes for file in chain if not file.link)
    links = sum(file.nbytes for file in chain if file.link)
    return (
        bool(chain) and max(file.link or 0 for file in chain) < MAX_LINKS and links <= MAX_LINKS_SHARE * base
    )


class Digest(rf.Sink):
    """Keeps the sum of the rows' hashes: equal for equal rows, whatever their order."""

    accepts_upserts = True
    seen: dict[str, int] = {}  # noqa: RUF012  of the process, for after the run

    def __init__(self, pause_s: float = 0) -> None:
        self.pause_s = pause_s

    def write(self, batch: pa.RecordBatch) -> None:
        time.sleep(self.pause_s)
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


def run(
    keys: int,
    distinct: int,
    backend: str,
    managed: int,
    storage: str,
    job: str = "aggregate",
    interval: str = "5s",
) -> dict[str, Any]:
    checkpoints = f"{storage}/{backend}-{distinct}"
    texts = Texts(keys, distinct, checkpoints, backend == "disk" and distinct == keys, job)
    config = {
        "state.backend": backend,
        "state.dir": f"{storage}/scratch",
        # The share of what cutoff and network leave that makes `managed` bytes.
        "memory.process": PROCESS_BYTES,
        "memory.managed": managed / (PROCESS_BYTES * 0.75 - PROCESS_BYTES * 0.75 * 0.1),
        "checkpoint.storage": checkpoints,
        "checkpoint.interval": interval,
        "checkpoint.retained": 3,
        "checkpoint.timeout": "10m",
        "batch.rows": BATCH_ROWS,
    }
    env = rf.StreamEnvironment(name="show", parallelism=1, config=config)
    stream = env.from_source(texts, watermark=rf.Watermark("t") if texts.timed else None).uid("read")
    keyed: Any = stream.key_by("k")
    # The base's windows are as short as a batch: rows leave all the while, and wait for the sink.
    share = 1 if distinct == keys else BATCH_ROWS / keys
    rows = keyed if job == "aggregate" else keyed.window(windows(job, share))
    rows.aggregate(text=col("text").last(), n=rf.count()).uid("texts").sink_to(
        Digest(BASE_PAUSE_S if distinct < keys else 0)
    )
    graph = env.plan()
    peak, began = Peak(), time.perf_counter()
    result = run_local(graph, env.config)
    seconds = time.perf_counter() - began
    assert result.failure is None, result.failure
    done = [report for report in result.checkpoints if report["status"] == "completed"]
    full = TextReader.released_by.get(texts.keys, 0)
    return {
        "backend": backend,
        "keys": distinct,
        "seconds": round(seconds, 1),
        "cpu": round(time.process_time(), 1),
        "peak_mib": round(peak.stop() / MIB, 1),
        "rows": Digest.seen["rows"],
        "digest": Digest.seen["digest"],
        "managed_mib": round(rf_managed(env) / MIB, 2),
        "checkpoints": [(r["id"], r["bytes"], r["state_bytes"]) for r in done],
        "full_bytes": max((r["state_bytes"] for r in done if r["id"] == full), default=0),
        "changed_bytes": sum(r["bytes"] for r in done if r["id"] > full),
        "metrics": {k: v for k, v in result.metrics["operators"]["texts"].items() if k.startswith("state_")},
    }


def windows(job: str, share: float) -> rf.Tumbling | rf.Sliding:
    """Return the job's windows, over a share of all rows each."""
    slides = SLIDES_PER_WINDOW[job]
    slide_ms = max(1, int(HOUR_MS * share / slides))
    size, slide = f"{slides * slide_ms}ms", f"{slide_ms}ms"
    return rf.Tumbling(size) if slides == 1 else rf.Sliding(size, slide)


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
    parser.add_argument("--job", choices=["aggregate", *SLIDES_PER_WINDOW], default="aggregate")
    parser.add_argument("--run", nargs="+")
    options = parser.parse_args()
    if options.run:
        keys, distinct, backend, managed, storage, *rest = options.run
        print(json.dumps(run(int(keys), int(distinct), backend, int(managed), storage, *rest)))
        return 0
    keys = options.state * MIB // ROW_BYTES
    with tempfile.TemporaryDirectory(dir=options.storage) as storage:
        managed = options.managed * MIB
        base = in_its_own_process(keys, 1_000, "disk", managed, storage, options.job)
        memory = in_its_own_process(keys, keys, "memory", managed, storage, options.job)
        disk = in_its_own_process(keys, keys, "disk", managed, storage, options.job)
    over = disk["peak_mib"] - base["peak_mib"]
    uploaded, state = disk["changed_bytes"], disk["full_bytes"]
    verdicts = {
        f"results equal: {memory['rows']:,} rows, digest {memory['digest']:x}": (
            (memory["rows"], memory["digest"]) == (disk["rows"], disk["digest"])
        ),
        f"peak resident over the base of {base['peak_mib']:.0f} MiB: {over:.0f} MiB of "
        f"{1.2 * options.managed:.1f} (all in memory: {memory['peak_mib'] - base['peak_mib']:.0f})": (
            over <= 1.2 * options.managed
        ),
    }
    shown = (
        f"uploaded after {CHANGED_SHARE:.0%} of the keys changed: {uploaded / MIB:.1f} MiB of "
        f"{state / MIB:.1f} ({uploaded / max(1, state):.2%})"
    )
    verdicts[shown] = 0 < uploaded < 0.1 * state
    print(f"{keys:,} keys, {options.state} MiB of state, {options.managed} MiB for it")
    print(
        f"seconds (CPU): memory {memory['seconds']} ({memory['cpu']}), disk {disk['seconds']} ({disk['cpu']})"
    )
    for verdict, holds in verdicts.items():
        print(f"{'holds' if holds else 'FAILS'}  {verdict}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
