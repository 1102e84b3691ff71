"""What is checked of whom a manager gives up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rayflow.model.config import JobConfig
from rayflow.model.ids import Attempt, ChannelId, EdgeId, SubtaskId, VertexId
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.messages import HeartbeatAnswered, PeerLost
from rayflow.testing.patience import Patience
from rayflow.testing.world import World

ONE = Attempt(1)
S = SubtaskId(VertexId("v"), 0)
ANSWER = HeartbeatAnswered(S, ONE, 1, {})
BROKEN = PeerLost(S, ONE, ChannelId(EdgeId("e"), S, S), "it broke")
SILENT = "I8: v[0] has been silent for 14000 ms, and manager/1 still waits for it"
GIVEN_UP = "I8: v[0]/2, which is well, is given up by manager/1"
NOT_CLOSED = "I8: v[0]/2, which is well, has not closed for manager/1"


class Lab:
    """A manager and its worker, heard of now; heartbeats every second, overdue after five."""

    def __init__(self) -> None:
        self.world = World(1)
        self.worker: Any = SimpleNamespace(name="v[0]/2", process=self.world.spawn("v[0]/2", "there"))
        self.world.spawn("manager/1", "here")
        self.faults = SimpleNamespace(lost_call=0.0)
        self.run = SimpleNamespace(phase=Phase.RUNNING)
        fleet = SimpleNamespace(ready={S: SimpleNamespace(address="v[0]/2")})
        master = SimpleNamespace(_run=self.run, _ctx=SimpleNamespace(fleet=fleet))
        sim = SimpleNamespace(world=self.world, faults=self.faults)
        manager: Any = SimpleNamespace(sim=sim, name="manager/1", master=master)
        self.patience = Patience(manager, JobConfig())
        self.patience.heard(self.worker, ANSWER)

    def pass_time(self, ms: int, *, at_once: bool = False) -> Lab:
        for _ in range(1 if at_once else ms // 1_000):
            self.world.now += ms if at_once else 1_000
            self.patience.stepped()
        return self

    def end(self, *, unreachable: bool = True) -> list[str]:
        self.patience.ends(self.worker, unreachable=unreachable)
        return self.world.violations


@pytest.fixture
def lab() -> Lab:
    return Lab()


def test_one_that_has_been_silent_for_too_long_must_be_given_up(lab: Lab) -> None:
    assert lab.pass_time(13_000).world.violations == []
    assert lab.pass_time(1_000).world.violations == [SILENT]


def test_time_in_which_the_manager_stood_still_does_not_count(lab: Lab) -> None:
    lab.pass_time(40_000, at_once=True).pass_time(13_000)
    assert lab.world.violations == []


def test_nobody_is_waited_for_once_the_job_is_closed(lab: Lab) -> None:
    lab.run.phase = Phase.CLOSING
    assert lab.pass_time(60_000).world.violations == []


def test_one_that_is_well_must_not_be_given_up(lab: Lab) -> None:
    assert lab.pass_time(1_000).end() == [GIVEN_UP]


def test_nor_must_it_for_a_stream_that_broke_long_ago(lab: Lab) -> None:
    lab.patience.heard(lab.worker, BROKEN)
    assert lab.pass_time(6_000).end() == [GIVEN_UP]


@pytest.mark.parametrize(
    "why", ["dead", "cut off", "was cut off", "stopped", "was stopped", "losses", "suspect"]
)
def test_one_that_is_not_may(lab: Lab, why: str) -> None:
    match why:
        case "dead":
            lab.world.end(lab.worker.process)
        case "cut off":
            lab.world.cuts.add(("here", "there"))
        case "was cut off":
            lab.world.healed.add("there")
        case "stopped":
            lab.worker.process.frozen = True
        case "was stopped":
            lab.world.thawed.add("v[0]/2")
        case "losses":
            lab.faults.lost_call = 0.1
        case "suspect":
            lab.patience.heard(lab.worker, BROKEN)
    assert lab.pass_time(1_000).end() == []


def test_one_that_is_well_closes_in_time(lab: Lab) -> None:
    lab.run.phase = Phase.ENDING
    assert lab.end(unreachable=False) == [NOT_CLOSED]


@pytest.mark.parametrize("why", ["in a call", "manager stopped", "running"])
def test_unless_something_keeps_it(lab: Lab, why: str) -> None:
    lab.run.phase = Phase.RUNNING if why == "running" else Phase.ENDING
    match why:
        case "in a call":
            lab.worker.process.stalled_until_ms = lab.world.now - 1_000
        case "manager stopped":
            lab.world.thawed.add("manager/1")
    assert lab.end(unreachable=False) == []
