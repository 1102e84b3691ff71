"""Whole jobs on the local engine, run as users do, with the run at hand: to crash subtasks, to look in."""

from __future__ import annotations

import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.local import LocalJob, LocalResult, run_local

OnStart = Callable[[LocalJob], None]


class Watcher:
    """Calls `look(job)` again and again, on a thread of its own, while the job runs; keeps what it returns. If it
    raises the job is cancelled, and `stop` raises the same."""

    def __init__(self, look: Callable[[LocalJob], Any], every_s: float) -> None:
        self.seen: list[Any] = []
        self._look, self._every_s = look, every_s
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __call__(self, job: LocalJob) -> None:
        """Begin; to be given as `on_start`."""
        self._thread = threading.Thread(target=self._watch, args=(job,), daemon=True)
        self._thread.start()

    def stop(self) -> list[Any]:
        """Stop, and return all that was seen."""
        self._over.set()
        if self._thread is not None:
            self._thread.join(10)
        if self._error is not None:
            raise self._error
        return self.seen

    def _watch(self, job: LocalJob) -> None:
        try:
            while not self._over.wait(self._every_s) and not job.master.closed:
                if (found := self._look(job)) is not None:
                    self.seen.append(found)
        except BaseException as error:
            self._error = error
            # The job may wait for something that only `look` would have done.
            job.master.cancel()


class Open(rf.Source):
    """A source without rows that keeps its job running until `until` is set. Copies of it find that by its number."""

    schema = pa.schema({"never": pa.null()})

    def __init__(self, until: threading.Event) -> None:
        self.number = id(until)
        AWAITED[self.number] = until

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id="open")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return Waiting(AWAITED[self.number])


AWAITED: dict[int, threading.Event] = {}


class Waiting(rf.SplitReader):
    def __init__(self, until: threading.Event) -> None:
        self.until = until

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        return None if self.until.is_set() else pa.RecordBatch.from_pylist([], Open.schema)

    def position(self) -> None:
        return None


class Lab:
    """Runs jobs and looks at what they wrote."""

    def __init__(self) -> None:
        self._watchers: list[Watcher] = []

    def run(
        self,
        env: rf.StreamEnvironment,
        *,
        on_start: OnStart | None = None,
        restore_from: str | Path | None = None,
        allow_duplicates: bool = False,
        **settings: Any,
    ) -> LocalResult:
        """Execute the environment's sinks; `checkpoint__interval="20ms"` sets `checkpoint.interval`."""
        # Before the plan is made: the sources' rate limit is part of it.
        env.config.update({key.replace("__", "."): value for key, value in settings.items()})
        return run_local(
            env.plan(),
            env.config,
            on_start=on_start,
            restore_from=None if restore_from is None else str(restore_from),
            allow_duplicates=allow_duplicates,
        )

    def finish(self, env: rf.StreamEnvironment, **options: Any) -> LocalResult:
        """Run a job that must finish."""
        result = self.run(env, **options)
        assert result.state is JobState.FINISHED, result.failure
        return result

    def fail(self, env: rf.StreamEnvironment, **options: Any) -> rf.JobFailed:
        """Run a job that must fail, and return what `execute` would raise."""
        result = self.run(env, **options)
        assert result.state is JobState.FAILED
        assert result.failure is not None
        return rf.JobFailed(*result.failure)

    def watch(self, look: Callable[[LocalJob], Any], every_s: float = 0.02) -> Watcher:
        """Return a watcher, to be given as `on_start`."""
        self._watchers.append(Watcher(look, every_s))
        return self._watchers[-1]

    @staticmethod
    def held_open(env: rf.StreamEnvironment) -> threading.Event:
        """Keep the environment's job running until the returned event is set."""
        over = threading.Event()
        env.from_source(Open(over)).with_parallelism(1).discard()
        return over

    def crashing(self, env: rf.StreamEnvironment, times: int, seed: int, every: int = 1) -> Watcher:
        """Return a watcher that makes a random subtask die `times` times, each after `every` more checkpoints have
        completed. The job does not end before; `stop()` returns who died."""
        rng, dead = random.Random(seed), 0
        seen_at = 0
        over = self.held_open(env) if times else threading.Event()

        def look(job: LocalJob) -> str | None:
            nonlocal dead, seen_at
            completed = self.completed(job)
            # Between two attempts there may be nobody to die.
            name = self.crash(job, rng) if dead < times and completed >= seen_at + every else ""
            if name:
                dead, seen_at = dead + 1, completed
            if dead == times:
                over.set()
            return name or None

        return self.watch(look)

    def close(self) -> None:
        for watcher in self._watchers:
            watcher.stop()

    # ------------------------------------------------------------------------------------ output

    @staticmethod
    def files(path: Path, suffix: str = "parquet") -> list[Path]:
        """Return the committed files: those with the format's suffix, at any depth. While a job runs, folders of its
        pending files come and go: `os.walk` passes over one that has just gone, `Path.rglob` raises."""
        found = ((Path(folder), name) for folder, _, names in os.walk(path) for name in names)
        return sorted(folder / name for folder, name in found if name.endswith(f".{suffix}"))

    @classmethod
    def read(cls, path: Path, suffix: str = "parquet", **options: Any) -> pa.Table:
        """Return all committed rows."""
        formats = {"parquet": "parquet", "csv": "csv", "jsonl": "json"}
        found = [str(file) for file in cls.files(path, suffix)]
        return ds.dataset(found, format=formats[suffix], **options).to_table()

    @classmethod
    def rows(cls, path: Path, suffix: str = "parquet") -> Counter[tuple[Any, ...]]:
        """Return the committed rows as a multiset of tuples."""
        return cls.bag(cls.read(path, suffix))

    @staticmethod
    def bag(table: pa.Table) -> Counter[tuple[Any, ...]]:
        """Return the rows as a multiset of tuples; NaN is a text, so that it equals itself."""
        columns = [column.to_pylist() for column in table.columns]
        return Counter(tuple(map(_comparable, row)) for row in zip(*columns, strict=True))

    @staticmethod
    def leftovers(path: Path) -> list[Path]:
        """Return what is under `_rayflow/`: nothing, once a job has finished."""
        return sorted((path / "_rayflow").rglob("*"))

    # ----------------------------------------------------------------------------------- running

    @staticmethod
    def completed(job: LocalJob) -> int:
        """Return how many checkpoints of the running job are complete."""
        return int(job.master.describe()["checkpoints"]["completed"])

    @staticmethod
    def subtasks(job: LocalJob) -> list[Any]:
        """Return the ids of the running job's subtasks."""
        return sorted(job.cluster._workers, key=str)

    @classmethod
    def crash(cls, job: LocalJob, rng: random.Random) -> str:
        """Make a random subtask die, as if by SIGKILL; return its name, empty if there was none."""
        subtasks = cls.subtasks(job)
        if not subtasks:
            return ""
        chosen = rng.choice(subtasks)
        return str(chosen) if job.cluster.crash(chosen) else ""


def _comparable(value: Any) -> Any:
    if isinstance(value, float) and value != value:
        return "NaN"
    if isinstance(value, list):
        return tuple(map(_comparable, value))
    if isinstance(value, dict):
        return tuple((k, _comparable(v)) for k, v in value.items())
    return value


@pytest.fixture
def lab() -> Iterator[Lab]:
    """Runs jobs and looks at what they wrote."""
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's top level."""
    return Path(__file__).parents[3]
