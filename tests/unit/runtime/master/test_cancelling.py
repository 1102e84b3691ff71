"""A job that is cancelled waits for those who may still act, and for nobody else."""

from __future__ import annotations

from typing import Any

import pytest

from rayflow.model.ids import Attempt, ChannelId, EdgeId
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.master.run import JobRun
from rayflow.runtime.messages import Deployed, PeerLost, Stopped, TaskFailed


class Lab:
    """A job of one subtask whose attempt has failed; the next one is claimed, and not deployed."""

    def __init__(self, pool: Any, ctx: Context) -> None:
        self.ctx = ctx
        (self.subtask,) = ctx.job.subtasks
        self.run = JobRun(ctx, {}, restore_from=None, allow_duplicates=False, document=dict)
        self.run.worker_ready(self.subtask, "address", "node", 1, 0)
        self.run.advance()
        pool.do_all()
        self.run.advance()
        self.failed = ctx.attempt
        self.run.message(Deployed(self.subtask, self.failed))
        self.run.advance()
        assert self.run.phase is Phase.RUNNING
        channel = ChannelId(EdgeId("e"), self.subtask, self.subtask)
        self.run.message(PeerLost(self.subtask, self.failed, channel, "it broke"))
        ctx.now_ms += 200
        self.run.advance()
        ctx.now_ms = self.run.restarts.at_ms
        self.run.advance()
        pool.do_all()
        assert (self.run.phase, ctx.attempt) == (Phase.BEGINNING, self.failed + 1)

    def stopped(self, attempt: Attempt) -> Lab:
        self.run.message(Stopped(self.subtask, attempt, {}))
        return self

    def cancel(self) -> Phase:
        self.run.cancel()
        self.run.advance()
        return self.run.phase


@pytest.fixture
def lab(pool: Any, make_context: Any) -> Lab:
    return Lab(pool, make_context())


def test_who_may_still_work_for_the_attempt_before_is_waited_for(lab: Lab) -> None:
    assert lab.cancel() is Phase.ENDING
    assert lab.stopped(lab.failed).run.phase is Phase.ENDING
    lab.run.advance()
    assert lab.run.phase is Phase.CLOSING


def test_who_closed_the_attempt_before_when_the_next_was_claimed_is_not(lab: Lab) -> None:
    assert lab.stopped(lab.failed).cancel() is Phase.CLOSING


def test_nor_is_who_failed_in_it(lab: Lab) -> None:
    lab.run.message(
        TaskFailed(subtask=lab.subtask, attempt=lab.failed, cause="it broke", operator=None, location=None)
    )
    assert lab.cancel() is Phase.CLOSING


def test_word_of_an_attempt_long_ago_says_nothing(lab: Lab) -> None:
    assert lab.stopped(Attempt(lab.failed - 1)).cancel() is Phase.ENDING
