"""Two hundred seeds of whole small jobs; every seed that ever failed stays in REGRESSIONS."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.simulate import simulate

REGRESSIONS: list[int] = []
BLOCK = 20


@pytest.mark.parametrize("first", range(0, 200, BLOCK))
def test_jobs_are_exactly_once_under_seeded_crashes_and_delays(first: int) -> None:
    for seed in range(first, first + BLOCK):
        simulate(seed)


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_seeds_that_once_failed_stay_green(seed: int) -> None:
    assert simulate(seed).seed == seed


def test_some_seeds_restart_and_some_complete_several_checkpoints() -> None:
    outcomes = [simulate(seed) for seed in range(20)]
    assert any(o.attempts > 1 for o in outcomes)
    assert any(o.checkpoints > 2 for o in outcomes)
    assert {o.kind for o in outcomes} == {"passthrough", "running", "windowed", "looked_up"}


def test_a_seed_gives_the_same_trace_under_any_hash_seed() -> None:
    root = Path(__file__).resolve().parents[2]
    digests = {
        subprocess.run(
            [sys.executable, "-m", "tests.simulation", "--seed", "3"],
            cwd=root,
            env={**os.environ, "PYTHONHASHSEED": str(hash_seed), "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in (0, 1, 4242)
    }
    assert len(digests) == 1
    assert "trace" in digests.pop()
