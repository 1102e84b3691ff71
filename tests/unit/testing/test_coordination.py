"""What is checked of how a manager coordinates checkpoints."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rayflow.model.config import JobConfig
from rayflow.model.ids import Attempt, CheckpointId, SubtaskId, VertexId
from rayflow.runtime.correspondence import numbered
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.messages import (
    CheckpointAborted,
    CheckpointCompleted,
    Start,
    TriggerCheckpoint,
)
from rayflow.testing.coordination import Coordination
from rayflow.testing.world import World

ONE = Attempt(1)
A, B = (SubtaskId(VertexId("v"), i) for i in range(2))
CONFIG = JobConfig.from_flat(
    {
        "checkpoint.interval": "100ms",
        "checkpoint.min_pause": "20ms",
        "checkpoint.max_concurrent": 2,
        "checkpoint.timeout": "1s",
        "checkpoint.failures_tolerated": 1,
    }
)


class Lab:
    """A manager of two workers."""

    def __init__(self) -> None:
        self.world = World(1)
        self.run: Any = SimpleNamespace(
            phase=Phase.RUNNING,
            restarts=SimpleNamespace(_cause=None, at_ms=0),
            checkpoints=SimpleNamespace(final_completed=None),
        )
        self.watched = Coordination(self.world, "manager/1", CONFIG)
        self.number = 0

    def tell(self, message: Any) -> Lab:
        """Send the message to both."""
        self.number += 1
        for subtask in (A, B):
            self.watched.sent(subtask, numbered(message, self.number), self.run)
        return self

    def trigger(self, number: int, *, after_ms: int = 100, aligned: bool = False) -> Lab:
        self.world.now += after_ms
        return self.tell(TriggerCheckpoint(ONE, CheckpointId(number), aligned))

    def complete(self, number: int) -> Lab:
        return self.tell(CheckpointCompleted(ONE, CheckpointId(number)))

    def abort(self, number: int) -> Lab:
        return self.tell(CheckpointAborted(ONE, CheckpointId(number)))

    @property
    def violations(self) -> list[str]:
        self.watched.stepped(self.run)
        return self.world.violations


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_checkpoints_that_complete_or_are_aborted_in_order_are_fine(lab: Lab) -> None:
    lab.trigger(1).trigger(2).abort(1).complete(2).trigger(3).complete(3)
    assert not lab.violations


def test_what_is_sent_again_is_passed_over(lab: Lab) -> None:
    lab.trigger(1).complete(1)
    lab.watched.sent(A, numbered(TriggerCheckpoint(ONE, CheckpointId(1)), 1), lab.run)
    assert not lab.violations


@pytest.mark.parametrize(
    "said",
    [
        pytest.param("I8: checkpoint 3 is triggered while", id="too many at a time"),
        pytest.param("I5: checkpoint 2 completes: [1] under way", id="an older one is not aborted"),
        pytest.param("I5: checkpoint 1 is triggered after 2", id="ids go back"),
        pytest.param("I5: checkpoint 2 completes, which is not under way", id="completed without a trigger"),
        pytest.param("I8: checkpoint 2 is triggered 50 ms after the last", id="too soon"),
        pytest.param("I8: checkpoint 2 is triggered 10 ms after one ended", id="no pause"),
        pytest.param(
            "I8: checkpoint 3 is triggered after 2 failed in a row", id="more failed than tolerated"
        ),
        pytest.param("I8: checkpoint 2 is triggered after the final one", id="after the final one"),
        pytest.param("I8: checkpoint 1 is under way for 1000 ms", id="no timeout"),
        pytest.param("I5: checkpoint 1 completes when the job's end is decided", id="announced at the end"),
        pytest.param("I8: 1 checkpoints failed, 1 are tolerated, and yet", id="given up too soon"),
    ],
)
def test_a_broken_rule_is_a_violation(lab: Lab, said: str, request: pytest.FixtureRequest) -> None:
    match request.node.callspec.id:
        case "too many at a time":
            lab.trigger(1).trigger(2).trigger(3)
        case "an older one is not aborted":
            lab.trigger(1).trigger(2).complete(2)
        case "ids go back":
            lab.trigger(2).complete(2).trigger(1)
        case "completed without a trigger":
            lab.trigger(1).complete(1).complete(2)
        case "too soon":
            lab.trigger(1).trigger(2, after_ms=50)
        case "no pause":
            lab.trigger(1)
            lab.world.now += 95
            lab.complete(1).trigger(2, after_ms=10)
        case "more failed than tolerated":
            lab.trigger(1).abort(1).trigger(2).abort(2).trigger(3)
        case "after the final one":
            lab.trigger(1, aligned=True).complete(1)
            lab.run.checkpoints.final_completed = CheckpointId(1)
            lab.trigger(2, aligned=True)
        case "no timeout":
            lab.trigger(1)
            lab.world.now += 1_000
        case "announced at the end":
            lab.trigger(1)
            lab.run.phase = Phase.ENDING
            lab.complete(1)
        case "given up too soon":
            lab.trigger(1).abort(1)
            lab.run.restarts._cause = "2 checkpoints failed in a row; the last, 1: torn"
    assert len(lab.violations) == 1
    assert lab.violations[0].startswith(said)


def test_since_when_a_checkpoint_is_of_no_use(lab: Lab) -> None:
    start_ms = lab.world.now
    lab.trigger(1).trigger(2)
    assert lab.watched.useless_ms(1) == -1
    lab.abort(1)
    assert lab.watched.useless_ms(1) == start_ms + 199, "in that millisecond it may have come behind"
    lab.world.now += 10
    lab.run.phase = Phase.ENDING
    assert not lab.violations
    assert [lab.watched.useless_ms(n) for n in (1, 2, 3)] == [start_ms + 199, start_ms + 209, -1]


def test_what_there_was_when_an_attempt_was_claimed_is_of_no_use_once_that_runs(lab: Lab) -> None:
    lab.watched.claimed()
    claimed_ms = lab.world.now
    lab.world.now += 10
    assert lab.watched.useless_ms(7) == -1
    lab.tell(Start(ONE))
    assert lab.watched.useless_ms(7) == claimed_ms
