"""An I/O pool whose work is done when a test says so, and a job on it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rayflow as rf
from rayflow.model.ids import Attempt, JobId
from rayflow.runtime.master.background import Background, WorkEnded
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.events import EventLog
from rayflow.runtime.master.fleet import Fleet
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.storage import JobStorage
from rayflow.state.storage import open_store

Done = Callable[[Any, BaseException | None], None]


class Pool:
    """`IoPool`, and the mailbox of the master that uses it."""

    def __init__(self) -> None:
        self.mailbox: list[WorkEnded] = []
        self.work: list[tuple[Callable[[], Any], Done]] = []
        self.background = Background(self, self.mailbox.append)

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        self.work.append((work, done))

    def do_one(self) -> None:
        """Do what was asked for first, and tell."""
        work, done = self.work.pop(0)
        try:
            result, error = work(), None
        except Exception as raised:
            result, error = None, raised
        done(result, error)
        self.background.settle(self.mailbox.pop())

    def do_all(self) -> None:
        """Do all work, also what that leads to."""
        while self.work:
            self.do_one()


class NoWorkers:
    """Nobody to send anything to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


@pytest.fixture
def pool() -> Pool:
    return Pool()


@pytest.fixture
def make_context(pool: Pool, tmp_path: Path) -> Callable[..., Context]:
    """Make the context of a master of "job", whose attempt is 2 and whose rows go to `sink`."""

    def make(sink: rf.Sink | None = None) -> Context:
        env = rf.StreamEnvironment(max_parallelism=8)
        rows = env.from_rows([{"a": 1}])
        rows.discard() if sink is None else rows.sink_to(sink)
        job = Job.of(JobId("job"), env.plan(), {"checkpoint.storage": str(tmp_path)})
        return Context(
            job=job,
            background=pool.background,
            storage=JobStorage(open_store, str(tmp_path), {}, JobId("job")),
            fleet=Fleet(NoWorkers(), job),
            log=EventLog(),
            now_ms=0,
            attempt=Attempt(2),
        )

    return make
