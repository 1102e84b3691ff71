"""Checkpoints are deleted one after the other: what goes is told by the manifests of what stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import rayflow as rf
from rayflow.model.errors import StorageError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.master.background import Background, InTurn, WorkEnded
from rayflow.runtime.master.beginning import Beginning
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.events import EventLog
from rayflow.runtime.master.fleet import Fleet
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.storage import JobStorage
from rayflow.state.storage import open_store

Done = Callable[[Any, BaseException | None], None]


class Pool:
    """An I/O pool whose work is done when a test says so."""

    def __init__(self) -> None:
        self.mailbox: list[WorkEnded] = []
        self.work: list[tuple[Callable[[], Any], Done]] = []
        self.background = Background(self, self.mailbox.append)

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        self.work.append((work, done))

    def do_one(self) -> None:
        work, done = self.work.pop(0)
        try:
            result, error = work(), None
        except Exception as raised:
            result, error = None, raised
        done(result, error)
        self.background.settle(self.mailbox.pop())


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_work_in_turn_waits_for_the_one_before_whatever_became_of_it(pool: Pool) -> None:
    turns, answers = InTurn(pool.background), []

    def fail() -> None:
        raise StorageError("away")

    for work in (fail, lambda: "second"):
        turns.run(work, lambda result, error: answers.append(result or str(error)))
    assert (len(pool.work), pool.background.critical) == (1, 2)
    pool.do_one()
    assert (answers, len(pool.work), pool.background.critical) == (["away"], 1, 1)
    pool.do_one()
    assert (answers, len(pool.work), pool.background.critical) == (["away", "second"], 0, 0)


class NoWorkers:
    """Nobody to send anything to."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **kwargs: None


def test_two_checkpoints_are_never_deleted_at_a_time(pool: Pool, tmp_path: Path) -> None:
    env = rf.StreamEnvironment(max_parallelism=8)
    env.from_rows([{"a": 1}]).discard()
    job = Job.of(JobId("job"), env.plan(), {"checkpoint.storage": str(tmp_path)})
    store, storage = open_store(str(tmp_path), {}), JobStorage(open_store, str(tmp_path), {}, JobId("job"))
    for number in (1, 2, 3):
        store.write(f"job/chk-{number}/x-a1.arrow", b"state")
    ctx = Context(
        job=job,
        background=pool.background,
        storage=storage,
        fleet=Fleet(NoWorkers(), job),
        log=EventLog(),
        now_ms=0,
        attempt=Attempt(2),
    )
    checkpoints = Checkpoints(
        ctx,
        {},
        earlier_reports=(),
        fail_attempt=pytest.fail,
        superseded=pytest.fail,
        progressed=pytest.fail,
        salted=dict,
    )
    left = tuple(CheckpointId(number) for number in (1, 2, 3))
    checkpoints.begin_attempt(
        Beginning(
            attempt=ctx.attempt, restore=None, highest=left[-1], complete=(), incomplete=left, passed_over=()
        )
    )
    for number in (1, 2, 3):
        assert len(pool.work) == 1
        # The next attempt waits for all of them.
        assert pool.background.critical == 4 - number
        pool.do_one()
    assert (store.list("job"), pool.background.critical) == ([], 0)
