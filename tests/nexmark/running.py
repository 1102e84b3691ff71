"""Runs NEXMark queries as `--local` does, with data sets to run them on, and subtasks that die on the way."""

from __future__ import annotations

import random
import sys
import threading
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.local import LocalJob, run_local

ROOT = Path(__file__).parents[2]
_SHARED = [folder / "shared" / "nexmark" for folder in ROOT.parents[:2]]
SHARED = next((folder for folder in _SHARED if folder.exists()), _SHARED[0])
"""The shared data set: beside the repository, or beside the folder it is in."""

sys.path.insert(0, str(ROOT / "jobs"))  # as a job file's own folder is, when it runs
nexmark = import_module("nexmark")
nexmark_events = import_module("nexmark_events")
nexmark_queries = import_module("nexmark_queries")

STREAMS = tuple(nexmark_events.STREAMS)
QUERIES = tuple(nexmark_queries.QUERIES)

_PARTITIONS = {"q10": ds.partitioning(pa.schema([("dt", pa.string()), ("hm", pa.string())]), flavor="hive")}


@dataclass(frozen=True, slots=True)
class Outcome:
    """The rows of a job that finished, and how often it was restarted."""

    rows: pa.Table
    restarts: int


def run(
    query: str,
    data: Path,
    output: Path,
    *,
    parallelism: int,
    side: Path | None = None,
    delay: str = "4s",
    kills: int = 0,
    seed: int = 0,
    **settings: Any,
) -> Outcome:
    """Run `query` over the files under `data` (q12 by event time); `kills` subtasks die, each after a checkpoint."""
    config = {key.replace("__", "."): value for key, value in settings.items()}
    if kills:
        config = {"checkpoint.interval": "50ms", "restart.delay": "1ms", **config}
    env = rf.StreamEnvironment(name=query, parallelism=parallelism, config=config)
    nexmark.build(
        env,
        query=query,
        input=str(data),
        output=str(output),
        delay=delay,
        side=None if side is None else str(side),
        time="event",
    )
    killer = _Killer(kills, seed, output.with_suffix(".killed"))
    if kills:
        env.from_source(_Open(str(killer.all_dead))).uid("open").discard()
    result = run_local(env.plan(), env.config, on_start=killer.begin)
    killer.end()
    if result.state is not JobState.FINISHED:
        raise AssertionError(f"{query} ended as {result.state}: {result.failure}")
    return Outcome(rows=read(query, output), restarts=len(result.describe["restarts"]))


def read(query: str, output: Path) -> pa.Table:
    """Return the committed rows."""
    return ds.dataset(output, format="parquet", partitioning=_PARTITIONS.get(query)).to_table()


class _Open(rf.Source):
    """A source without rows that keeps its job running until the file `until` exists."""

    def __init__(self, until: str) -> None:
        self._until = until

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"never": pa.null()})

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id="open")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return _Waiting(Path(self._until), self.schema)


class _Waiting(rf.SplitReader):
    def __init__(self, until: Path, schema: pa.Schema) -> None:
        self._until, self._nothing = until, pa.RecordBatch.from_pylist([], schema)

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        return None if self._until.exists() else self._nothing

    def position(self) -> None:
        return None


class _Killer:
    """Makes random subtasks die, as if by SIGKILL, whenever one more checkpoint has completed; then makes the
    file `all_dead`."""

    def __init__(self, kills: int, seed: int, all_dead: Path) -> None:
        self.all_dead = all_dead
        all_dead.unlink(missing_ok=True)
        self._kills = kills
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def begin(self, job: LocalJob) -> None:
        if self._kills:
            self._thread = threading.Thread(target=self._watch, args=(job,), daemon=True)
            self._thread.start()

    def end(self) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(10)

    def _watch(self, job: LocalJob) -> None:
        try:
            self._kill(job)
        finally:
            self.all_dead.touch()  # whatever happened here: without it the job would not end

    def _kill(self, job: LocalJob) -> None:
        survived = 0
        while self._kills and not job.master.closed and not self._over.wait(0.01):
            completed = int(job.master.describe()["checkpoints"]["completed"])
            subtasks = sorted((s for s in list(job.cluster._workers) if s.vertex != "open"), key=str)
            if completed > survived and subtasks and job.cluster.crash(self._random.choice(subtasks)):
                survived, self._kills = completed, self._kills - 1
