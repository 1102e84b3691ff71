"""Which workers are taken for dead, and when."""

from __future__ import annotations

from typing import Any

import rayflow as rf
from rayflow.graph.plan import Resources
from rayflow.model.ids import Attempt, JobId, SubtaskId
from rayflow.runtime.master.fleet import LOADING_FACTOR, Fleet
from rayflow.runtime.master.job import Job
from rayflow.runtime.messages import Heartbeat, HeartbeatAnswered, InputsEnded, Numbered, Start, ToSubtask

INTERVAL_MS, TIMEOUT_MS = 1_000, 5_000
ATTEMPT = Attempt(1)


class Pool:
    """Workers that never answer by themselves."""

    def __init__(self) -> None:
        self.sent: list[ToSubtask] = []

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        pass

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        self.sent.append(message)

    def kill(self, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        pass

    def shutdown(self) -> None:
        pass


def fleet_of_one(pool: Pool | None = None) -> tuple[Fleet, SubtaskId]:
    env = rf.StreamEnvironment(parallelism=1)
    env.from_rows([{"a": 1}]).discard()
    job = Job.of(JobId("job"), env.plan(), {"checkpoint.storage": "memory://fleet"})
    fleet = Fleet(pool or Pool(), job)
    fleet.ensure()
    (subtask,) = job.subtasks
    fleet.worker_ready(subtask, "here", "node", 1, 0)
    return fleet, subtask


def first_overdue_ms(fleet: Fleet, start_ms: int) -> int:
    """Beat every second, unanswered; return when somebody is overdue."""
    now_ms = start_ms
    while not fleet.beat(ATTEMPT, now_ms):
        assert now_ms < start_ms + 100 * TIMEOUT_MS
        now_ms += INTERVAL_MS
    return now_ms


def statistics(state: str) -> dict[str, Any]:
    return {"state": state, "attempt": ATTEMPT}


def test_a_worker_that_has_run_is_overdue_after_the_timeout() -> None:
    fleet, subtask = fleet_of_one()
    fleet.answered(subtask, statistics("RUNNING"), 0)
    assert first_overdue_ms(fleet, 0) == TIMEOUT_MS + INTERVAL_MS


def test_a_worker_that_loads_the_jobs_code_has_longer() -> None:
    fleet, _ = fleet_of_one()
    assert first_overdue_ms(fleet, 0) == LOADING_FACTOR * TIMEOUT_MS + INTERVAL_MS


def test_time_in_which_the_master_stood_still_is_no_credit_to_who_came_or_answered_since() -> None:
    # Simulation seed 69877: a worker that had come up meanwhile had 24 s more, and stood still itself.
    back_ms = 30_000
    fleet, subtask = fleet_of_one()
    fleet.beat(ATTEMPT, 0)
    fleet.worker_lost(subtask)
    fleet.worker_ready(subtask, "elsewhere", "node", 2, back_ms)
    assert first_overdue_ms(fleet, back_ms) == back_ms + LOADING_FACTOR * TIMEOUT_MS + INTERVAL_MS
    fleet, subtask = fleet_of_one()
    fleet.beat(ATTEMPT, 0)
    fleet.answered(subtask, statistics("RUNNING"), back_ms)
    assert first_overdue_ms(fleet, back_ms) == back_ms + TIMEOUT_MS + INTERVAL_MS
    fleet, subtask = fleet_of_one()
    fleet.beat(ATTEMPT, 0)
    fleet.heard(answer(subtask, lacks=True), back_ms)
    overdue_ms = next(
        now_ms
        for now_ms in range(back_ms, back_ms + 10 * TIMEOUT_MS, INTERVAL_MS)
        if (fleet.heard(answer(subtask, lacks=True), now_ms), fleet.beat(ATTEMPT, now_ms))[1]
    )
    assert overdue_ms == back_ms + TIMEOUT_MS + INTERVAL_MS


def test_a_restore_after_the_first_gives_no_time_to_load() -> None:
    fleet, subtask = fleet_of_one()
    for state in ("DEPLOYED", "RUNNING", "DEPLOYING"):
        fleet.answered(subtask, statistics(state), 0)
    assert first_overdue_ms(fleet, 0) == TIMEOUT_MS + INTERVAL_MS


def answer(subtask: SubtaskId, *, sent: int = 0, arrived: int = 0, lacks: bool = False) -> HeartbeatAnswered:
    return HeartbeatAnswered(
        subtask, ATTEMPT, 1, statistics("RUNNING"), sent=sent, arrived=arrived, lacks=lacks
    )


def test_a_worker_that_lacks_a_message_gets_it_again() -> None:
    pool = Pool()
    fleet, subtask = fleet_of_one(pool)
    fleet.send(subtask, Start(ATTEMPT))
    fleet.beat(ATTEMPT, 0)
    assert isinstance(pool.sent[-1], Heartbeat)
    assert pool.sent[-1].sent == 1
    fleet.heard(answer(subtask, lacks=True), 10)
    assert pool.sent[-1] == Start(ATTEMPT)
    fleet.heard(answer(subtask, arrived=1), 20)
    assert sum(message == Start(ATTEMPT) for message in pool.sent) == 2


def test_a_worker_is_told_when_something_of_its_own_is_lost_and_it_counts_once() -> None:
    pool = Pool()
    fleet, subtask = fleet_of_one(pool)
    fleet.heard(answer(subtask, sent=1), 0)
    fleet.beat(ATTEMPT, 0)
    assert pool.sent[-1] == Heartbeat(ATTEMPT, 1, sent=0, arrived=0, lacks=True)
    ended = InputsEnded(subtask, ATTEMPT, number=1)
    assert [fleet.accepts(ended), fleet.accepts(ended)] == [True, False]
    fleet.heard(answer(subtask, sent=1), 500)
    fleet.beat(ATTEMPT, INTERVAL_MS)
    assert pool.sent[-1] == Heartbeat(ATTEMPT, 2, sent=0, arrived=1, lacks=False)


def test_a_worker_whose_heartbeats_pass_and_whose_messages_do_not_is_overdue_after_the_timeout() -> None:
    fleet, subtask = fleet_of_one()
    fleet.send(subtask, Start(ATTEMPT))
    for now_ms in range(0, TIMEOUT_MS + 1, INTERVAL_MS):
        assert not fleet.beat(ATTEMPT, now_ms)
        fleet.heard(answer(subtask, lacks=True), now_ms)
    assert fleet.beat(ATTEMPT, TIMEOUT_MS + INTERVAL_MS) == [subtask]
    assert "other messages have been lost" in fleet.complaint(subtask, TIMEOUT_MS + INTERVAL_MS)


def test_nothing_sent_to_a_worker_is_sent_again_to_the_one_in_its_place() -> None:
    pool = Pool()
    fleet, subtask = fleet_of_one(pool)
    fleet.send(subtask, Start(ATTEMPT))
    fleet.worker_lost(subtask)
    fleet.worker_ready(subtask, "there", "node", 2, 0)
    fleet.beat(ATTEMPT, 0)
    fleet.heard(answer(subtask, lacks=True), 10)
    assert [message for message in pool.sent if isinstance(message, Numbered)] == [Start(ATTEMPT)]
