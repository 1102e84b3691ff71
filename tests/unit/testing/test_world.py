"""The simulated cluster's scheduler."""

from __future__ import annotations

import pytest

from rayflow.runtime.stepping import StepResult
from rayflow.testing.world import Trace, World


def test_who_asks_to_be_stepped_at_once_and_does_nothing_is_found_out() -> None:
    world = World(1)
    spinning = world.spawn("worker/1", "machine-0")
    spinning.step = lambda now_ms: StepResult(False, now_ms)
    with pytest.raises(AssertionError, match="I8: worker/1 spins"):
        world.run(lambda: False, max_turns=100)


def test_who_sleeps_until_a_time_each_time_does_not_spin() -> None:
    world = World(1)
    sleeper = world.spawn("worker/1", "machine-0")
    sleeper.step = lambda now_ms: StepResult(False, now_ms + 10)
    began_ms, steps = world.now, iter(range(100))
    world.run(lambda: next(steps) == 99, max_turns=200)
    assert world.violations == []
    assert world.now - began_ms >= 400


def test_the_digest_is_that_of_all_lines_however_many_are_kept() -> None:
    few, many = Trace(keep=1), Trace(keep=1_000)
    for number in range(1_234):
        few.add(f"line {number}")
        many.add(f"line {number}")
    assert few.digest == many.digest
    assert (len(few.lines), few.count) == (1, 1_234)
    few.add("more")
    assert few.digest != many.digest
