"""What is told of a job's checkpoints goes on where the job manager before this one left it."""

from __future__ import annotations

from collections import Counter

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.testing.faults import Faults, Strike
from rayflow.testing.simulation import Simulation


def numbers(start: int, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"k": [i % 5 for i in range(start, start + count)]})


def test_a_new_manager_counts_on_from_what_the_last_one_had_counted() -> None:
    env = rf.StreamEnvironment(parallelism=2, config={"checkpoint.interval": "100ms"})
    env.generate(numbers, rows=2_000, rate_limit=1_000).key_by("k").aggregate(n=rf.count()).discard()
    strike = Strike(moment="announced", nth=5, action="crash master")
    faults = Faults(strikes=1, aimed=(strike,), active_ms=60_000)
    sim = Simulation(seed=4, faults=faults, storage_url="memory://counting-on")
    outcome = sim.run(env.plan(), env.config)
    reports = Counter(report["status"] for report in sim.master.checkpoints())
    tenures = sim.job.tenures if sim.job is not None else 0
    sim.close()
    assert (outcome.state, tenures) == (JobState.FINISHED, 2)
    assert reports["completed"] > 2
    assert outcome.checkpoints == reports["completed"]


@pytest.mark.parametrize("past", [{}, {"checkpoints": [], "describe": {"checkpoints": {"latest": None}}}])
def test_without_a_past_all_is_counted_from_zero(make_context, past) -> None:  # type: ignore[no-untyped-def]
    assert books(make_context(), past) == (0, 0, None)


def test_the_newest_checkpoint_is_known_before_an_attempt_begins(make_context) -> None:  # type: ignore[no-untyped-def]
    reports = [{"id": n, "status": "completed", "retained": n > 7} for n in (7, 8, 9)]
    past = {"checkpoints": reports, "describe": {"checkpoints": {"completed": 123, "failed": 4, "latest": 9}}}
    assert books(make_context(), past) == (123, 4, 9)


def books(ctx, past):  # type: ignore[no-untyped-def]
    checkpoints = Checkpoints(
        ctx,
        {},
        past=past,
        fail_attempt=pytest.fail,
        superseded=pytest.fail,
        progressed=pytest.fail,
        salted=dict,
    )
    return checkpoints.books.completed, checkpoints.books.failed, checkpoints.latest
