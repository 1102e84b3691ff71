"""Storage that is away for long costs no restarts while it is away, and the job once its patience is over."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.testing.faults import Faults, Injector
from rayflow.testing.simulation import CancelWhen, Outcome, Simulation


def numbers(start: int, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"k": [i % 5 for i in range(start, start + count)]})


def run(
    seed: int, away_ms: int, cancel_when: CancelWhen | None = None, **config: Any
) -> tuple[Outcome, Simulation]:
    env = rf.StreamEnvironment(parallelism=2, config={"checkpoint.interval": "100ms", **config})
    env.generate(numbers, rows=400).key_by("k").aggregate(n=rf.count()).discard()
    sim = Simulation(
        seed=seed,
        faults=Faults(storage_error=1.0, active_ms=away_ms),
        storage_url=f"memory://storage-away-{seed}",
    )
    outcome = sim.run(env.plan(), env.config, cancel_when=cancel_when, fails_only_for_damage=False)
    sim.close()
    return outcome, sim


@pytest.mark.parametrize("seed", range(4))
def test_ten_minutes_without_storage_cost_one_restart_of_the_default_budget(seed: int) -> None:
    outcome, sim = run(seed, 600_000)
    assert outcome.state is JobState.FINISHED, outcome.failure
    described = sim.master.describe()
    assert described["restarts_total"] <= 2
    awaited = [event for event in sim.master.events() if event["type"] == "storage_awaited"]
    assert len(awaited) == 1
    assert awaited[0]["message"].startswith("the next attempt waits for storage: ")


def test_a_job_that_waits_for_storage_can_be_cancelled() -> None:
    outcome, _ = run(1, 600_000, cancel_when=lambda master, _: master.state is JobState.RESTARTING)
    assert outcome.state is JobState.CANCELLED
    assert outcome.virtual_ms < 60_000


def test_a_job_fails_once_storage_was_away_for_longer_than_it_may_be() -> None:
    outcome, _ = run(1, 300_000, **{"restart.storage_timeout": "60s"})
    assert outcome.state is JobState.FAILED
    assert outcome.failure is not None
    assert "restart.storage_timeout" in outcome.failure[1]


def nearly_full(monkeypatch: pytest.MonkeyPatch, until_ms: int) -> None:
    """Small files can be written, and no state."""

    def storage(self: Injector, verb: str, path: str) -> str | None:
        full = self.began_ms is not None and self.world.now - self.began_ms < until_ms
        return "error" if full and verb == "write" and path.endswith(".arrow") else None

    monkeypatch.setattr(Injector, "storage", storage)


@pytest.mark.parametrize("seed", range(3))
def test_a_nearly_full_disk_takes_nothing_from_the_budget(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Attempts begin, since what that takes is small, and none gets a checkpoint stored.
    nearly_full(monkeypatch, until_ms=60_000)
    outcome, sim = run(seed, 80_000, **{"restart.max_attempts": 1, "checkpoint.failures_tolerated": 1})
    assert outcome.state is JobState.FINISHED, outcome.failure
    assert sim.master.describe()["restarts_total"] > 5
    assert "checkpoints failed in a row; the last" in sim.master.describe()["restarts"][0]["cause"]


def test_a_disk_that_stays_nearly_full_fails_the_job_once_its_patience_is_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nearly_full(monkeypatch, until_ms=100_000)
    outcome, _ = run(1, 100_000, **{"restart.storage_timeout": "60s", "checkpoint.failures_tolerated": 1})
    assert outcome.state is JobState.FAILED
    assert outcome.failure is not None
    assert "checkpoints failed in a row" in outcome.failure[1]
    assert "restart.storage_timeout" in outcome.failure[1]
