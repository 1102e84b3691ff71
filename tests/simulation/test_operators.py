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
from rayflow.protocol.lifecycle import JobState
from rayflow.testing.faults import Faults, Strike
from rayflow.testing.simulation import Simulation
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
    faults = Faults(
        strikes=3,
        crash=0.002,
        storage_error=0.005,
        aimed=(Strike(moment="after ack", nth=3, action="crash"),),
    )
    sim = Simulation(seed=seed, faults=faults, storage_url=f"memory://operators-{seed}")
    budget = choice.choice([1 << 12, 1 << 26])
    with patch.object(JobConfig, "network_bytes", property(lambda self: budget)):
        outcome = sim.run(env.plan(), env.config)
    sim.close()
    assert outcome.state is JobState.FINISHED, outcome.failure
    assert outcome.attempts > 1
    for name, rows in operators.expected().items():
        columns = ["k", "v", "r"] if name == "top" else None
        assert operators.committed(tmp_path / name, columns) == rows, name
        assert not list((tmp_path / name / "_rayflow").rglob("*"))
