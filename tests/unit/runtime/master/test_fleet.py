"""Which workers are taken for dead, and when."""

from __future__ import annotations

from typing import Any

import rayflow as rf
from rayflow.graph.plan import Resources
from rayflow.model.ids import Attempt, JobId, SubtaskId
from rayflow.runtime.master.fleet import LOADING_FACTOR, Fleet
from rayflow.runtime.master.job import Job
from rayflow.runtime.messages import ToSubtask

INTERVAL_MS, TIMEOUT_MS = 1_000, 5_000
ATTEMPT = Attempt(1)


class Pool:
    """Workers that never answer by themselves."""

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        pass

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        pass

    def kill(self, subtask: SubtaskId) -> None:
        pass

    def shutdown(self) -> None:
        pass


def fleet_of_one() -> tuple[Fleet, SubtaskId]:
    env = rf.StreamEnvironment(parallelism=1)
    env.from_rows([{"a": 1}]).discard()
    job = Job.of(JobId("job"), env.plan(), {"checkpoint.storage": "memory://fleet"})
    fleet = Fleet(Pool(), job)
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


def test_a_restore_after_the_first_gives_no_time_to_load() -> None:
    fleet, subtask = fleet_of_one()
    for state in ("DEPLOYED", "RUNNING", "DEPLOYING"):
        fleet.answered(subtask, statistics(state), 0)
    assert first_overdue_ms(fleet, 0) == TIMEOUT_MS + INTERVAL_MS
