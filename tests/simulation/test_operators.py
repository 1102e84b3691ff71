"""The operators of event time, windows, joins and state in one simulated job, with its real sources and file sinks.

The same job runs on Ray in `tests/integration/test_operators_on_ray.py`, once; here a seed decides where subtasks die.
"""

from __future__ import annotations

import random
from pathlib import Path
from unittest.mock import patch

import pytest

import rayflow as rf
from rayflow.model.config import JobConfig
from rayflow.model.ids import JobId
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.job_master import JobMaster
from rayflow.state.storage import open_store
from rayflow.testing.cluster import SimCalls, SimPool
from rayflow.testing.world import Faults, Node, World
from tests.integration import test_operators_on_ray as operators

MODES = [
    {"checkpoint.max_concurrent": 2},
    {"checkpoint.mode": "unaligned"},
    {"checkpoint.alignment_timeout": "10ms"},
]


@pytest.mark.parametrize("seed", range(len(MODES)))
def test_every_operator_gives_the_rows_of_plain_python_whoever_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(operators, "ROWS", 120)
    # The job's calls have no timeout.
    monkeypatch.setattr(SimCalls, "HANGING", 1 << 30)
    choice = random.Random(seed)
    config = {
        "checkpoint.storage": f"memory://operators-{seed}",
        "checkpoint.interval": choice.choice(["20ms", "100ms"]),
        "checkpoint.failures_tolerated": 10,
        "batch.rows": choice.choice([1, 7, 100]),
        "batch.linger": choice.choice(["0ms", "5ms"]),
        "restart.delay": "10ms",
        "restart.max_attempts": 100,
        **MODES[seed],
    }
    env = rf.StreamEnvironment(name="operators", parallelism=2, max_parallelism=8, config=config)
    operators.build(env, tmp_path)
    faults = Faults(crashes=3, crash_probability=0.002, io_errors=1, io_error_probability=0.01)
    budget = choice.choice([1 << 12, 1 << 26])
    with patch.object(JobConfig, "network_bytes", property(lambda self: budget)):
        attempts = run(env, World(seed, faults))
    assert attempts > 1
    for name, rows in operators.expected().items():
        columns = ["k", "v", "r"] if name == "top" else None
        assert operators.committed(tmp_path / name, columns) == rows, name
        assert not list((tmp_path / name / "_rayflow").rglob("*"))


def run(env: rf.StreamEnvironment, world: World) -> int:
    """Run the job until it has finished; return how many attempts it took."""
    pool = SimPool(world)
    master = JobMaster(
        job_id=JobId("operators"),
        graph=env.plan(),
        config=env.config,
        workers=pool,
        io=world,
        open_store=open_store,
        wake=lambda: world.wake("master"),
        clock=world,
    )
    pool.events = master
    world.add(Node("master", master.step))
    world.faults_on = lambda: master.state is not JobState.CREATED
    # Who dies before the job runs costs it no attempt.
    world.crash = lambda: master.state is JobState.RUNNING and pool.crash_any()
    world.run(until=lambda: master.state.ended)
    assert master.state is JobState.FINISHED, master.failure
    return int(master.describe()["attempt"])
