"""A worker that does not answer is ended as one whose node others had better avoid; others are not."""

from __future__ import annotations

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.model.ids import SubtaskId
from rayflow.protocol.lifecycle import JobState
from rayflow.testing.faults import Faults, Strike
from rayflow.testing.simulation import Simulation
from rayflow.testing.workers import SimPool


def numbers(start: int, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"k": [i % 5 for i in range(start, start + count)]})


@pytest.mark.parametrize(("action", "given_up"), [("freeze", 1), ("crash", 0)])
def test_who_is_given_up_for_want_of_an_answer_is_unreachable(
    action: str, given_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[SubtaskId] = []
    kill = SimPool.kill

    def noted(pool: SimPool, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        if unreachable:
            killed.append(subtask)
        kill(pool, subtask, unreachable=unreachable)

    monkeypatch.setattr(SimPool, "kill", noted)
    env = rf.StreamEnvironment(parallelism=2, config={"checkpoint.interval": "100ms"})
    env.generate(numbers, rows=400).key_by("k").aggregate(n=rf.count()).discard()
    strike = Strike(moment="after ack", nth=1, action=action)  # type: ignore[arg-type]
    faults = Faults(strikes=1, aimed=(strike,), longest_ms=40_000, active_ms=60_000)
    sim = Simulation(seed=4, faults=faults, storage_url=f"memory://unreachable-{action}")
    outcome = sim.run(env.plan(), env.config)
    sim.close()
    assert outcome.state is JobState.FINISHED
    assert outcome.attempts == 2
    assert len(killed) == given_up
