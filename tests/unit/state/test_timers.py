"""Timers fire in order of time, each once, whatever is set and deleted meanwhile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from rayflow.state.timers import Timer, TimerQueue

SLOTS, TIMES = st.integers(0, 3), st.integers(0, 20)


def queue(*timers: Timer) -> TimerQueue:
    made = TimerQueue()
    made.reserve(8)
    for time, slot in timers:
        made.add(time, slot)
    return made


def fire(timers: TimerQueue, limit: int, most: int = 100, on_fire: Any = None) -> list[Timer]:
    """Fire as the operator does."""
    fired: list[Timer] = []

    def one(timer: Timer) -> None:
        if timers.take(timer):
            fired.append(timer)
            if on_fire is not None:
                on_fire(timer)

    while due := timers.due(limit, most):
        for timer in due:
            for earlier in timers.before(timer):
                one(earlier)
            one(timer)
    timers.done()
    return fired


def test_they_fire_once_in_order_of_time() -> None:
    timers = queue((5, 0), (3, 1), (5, 0), (9, 0), (3, 0))
    assert len(timers) == 4
    assert timers.next_time() == 3
    assert fire(timers, 5) == [(3, 0), (3, 1), (5, 0)]
    assert fire(timers, 5) == []
    assert timers.next_time() == 9


def test_one_that_fires_may_delete_another_that_is_due_and_set_one_in_between() -> None:
    timers = queue((1, 0), (5, 0), (7, 0))

    def on_fire(timer: Timer) -> None:
        if timer == (1, 0):
            timers.discard(5, 0)
            timers.add(6, 0)
            timers.add(30, 0)

    assert fire(timers, 10, on_fire=on_fire) == [(1, 0), (6, 0), (7, 0)]
    assert timers.next_time() == 30


def test_one_set_for_the_present_or_the_past_while_firing_waits_for_the_next_time() -> None:
    timers = queue((5, 0))
    assert fire(timers, 10, on_fire=lambda timer: timers.add(timer[0], 0)) == [(5, 0)]
    assert fire(timers, 10, on_fire=lambda timer: timers.add(1, 0)) == [(5, 0)]
    assert fire(timers, 10) == [(1, 0)]


def test_held_ones_wait_whenever_they_are_for() -> None:
    timers = queue((5, 0), (100, 1))
    timers.hold(1 << 90)
    assert fire(timers, 1 << 90, on_fire=lambda timer: timers.add(timer[0] + 1, timer[1])) == [
        (5, 0),
        (100, 1),
    ]
    assert timers.clear() == 2
    assert timers.next_time() is None
    assert not timers.occupied(np.arange(8)).any()


@pytest.mark.parametrize("fired", [False, True])
def test_deleting_and_setting_again_and_again_keeps_no_leftovers(fired: bool) -> None:
    timers = queue()
    for time in range(50_000):
        timers.discard(time - 1 + 10**6, 0)
        timers.add(time + 10**6, 0)
    assert len(timers) == 1
    assert len(timers._heap) < 3000
    assert fire(timers, 1 << 60) == [(10**6 + 49_999, 0)]


class AgainstASet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.timers, self.model = queue(), set[Timer]()

    @rule(time=TIMES, slot=SLOTS)
    def add(self, time: int, slot: int) -> None:
        self.timers.add(time, slot)
        self.model.add((time, slot))

    @rule(time=TIMES, slot=SLOTS)
    def discard(self, time: int, slot: int) -> None:
        self.timers.discard(time, slot)
        self.model.discard((time, slot))

    @rule(limit=TIMES, most=st.integers(1, 4))
    def fire(self, limit: int, most: int) -> None:
        expected = sorted(timer for timer in self.model if timer[0] <= limit)
        assert fire(self.timers, limit, most) == expected
        self.model -= set(expected)

    @rule()
    def restart(self) -> None:
        frozen = self.timers.freeze()
        self.timers = queue()
        self.timers.restore(frozen)

    @invariant()
    def same(self) -> None:
        assert set(self.timers.freeze()) == self.model
        assert self.timers.next_time() == min((time for time, _ in self.model), default=None)
        has = {slot for _, slot in self.model}
        assert self.timers.occupied(np.arange(4)).tolist() == [slot in has for slot in range(4)]


TestAgainstASet = AgainstASet.TestCase


@given(
    st.lists(st.tuples(TIMES, SLOTS), max_size=8), st.dictionaries(st.tuples(TIMES, SLOTS), TIMES, max_size=8)
)
def test_timers_that_set_timers_fire_as_if_one_were_taken_at_a_time(
    given_timers: list[Timer], then: dict[Timer, int]
) -> None:
    timers = queue(*given_timers)
    fired = fire(timers, 15, 2, lambda timer: timers.add(then[timer], timer[1]) if timer in then else None)
    pending, waiting, expected = set(given_timers), set[Timer](), list[Timer]()
    while pending and min(pending)[0] <= 15:
        timer = min(pending)
        pending.remove(timer)
        expected.append(timer)
        if timer in then and (then[timer], timer[1]) not in pending | waiting:
            new = (then[timer], timer[1])
            (pending if new[0] > timer[0] else waiting).add(new)
    assert fired == expected
    assert set(timers.freeze()) == pending | waiting
