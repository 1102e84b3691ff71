"""Warm spares: taken only when they live, replaced when it is quiet, ended with the job."""

from __future__ import annotations

import pytest

from rayflow.actors.spares import ANSWER_S, DEAD_S, QUIET_S, Spares


class FakeCrew:
    """Processes are numbers. Those in `silent` do not answer, those in `dead` fail their pings."""

    def __init__(self):
        self.launched = 0
        self.discarded = []
        self.silent = set()
        self.dead = set()
        self.pings = []

    def launch(self):
        self.launched += 1
        return self.launched

    def ping(self, process):
        self.pings.append(process)
        return len(self.pings) - 1

    def answered(self, pings):
        came = {ping: self.pings[ping] for ping in pings}
        return {p: process not in self.dead for p, process in came.items() if process not in self.silent}

    def discard(self, process, *, dead):
        self.discarded.append((process, dead))


@pytest.fixture
def crew():
    return FakeCrew()


@pytest.fixture
def spares(crew):
    """One spare is wanted; workers came up at 0."""
    made = Spares(crew, 1)
    made.busy(0)
    return made


def until(spares, start_s, end_s):
    """Let time pass, in steps of 100 ms."""
    for tenth in range(round(start_s * 10), round(end_s * 10) + 1):
        spares.tick(tenth / 10)


def test_a_spare_is_started_only_when_no_worker_came_up_for_a_while(spares, crew):
    until(spares, 0, QUIET_S - 0.1)
    assert crew.launched == 0
    spares.busy(QUIET_S - 0.1)
    until(spares, QUIET_S, 2 * QUIET_S - 0.2)
    assert crew.launched == 0
    until(spares, 2 * QUIET_S, 3 * QUIET_S)
    assert crew.launched == 1


def test_a_living_spare_is_taken_once_and_replaced_when_it_is_quiet_again(spares, crew):
    until(spares, 0, 10)
    spares.lost(10.05)
    spares.busy(10.05)
    # The ping that the loss brings on is answered by the next tick.
    assert spares.take(10.05) == (None, False)
    assert spares.take(10.1) == (1, True)
    assert spares.take(10.1) == (None, True)
    until(spares, 10.2, 10 + QUIET_S - 0.1)
    assert crew.launched == 1
    until(spares, 10 + QUIET_S, 20)
    assert crew.launched == 2


def test_a_spare_that_does_not_answer_after_a_loss_may_be_on_the_dying_node_and_is_not_waited_for_long(
    spares, crew
):
    until(spares, 0, 10)
    crew.silent = {1}
    spares.lost(10.05)
    assert spares.take(10.05) == (None, False)
    assert spares.take(10 + ANSWER_S / 2) == (None, False)
    assert spares.take(10 + 1.1 * ANSWER_S) == (None, True)
    assert len(spares) == 1, "it may only be slow"
    crew.silent = set()
    assert spares.take(12) == (1, True)


def test_a_spare_that_is_still_starting_is_not_waited_for(spares, crew):
    crew.silent = {1}
    until(spares, 0, QUIET_S)
    assert crew.launched == 1
    spares.lost(QUIET_S)
    assert spares.take(QUIET_S) == (None, True)


def test_dead_spares_are_ended_and_replaced(spares, crew):
    until(spares, 0, 10)
    crew.dead = {1}
    until(spares, 10, 10 + QUIET_S + 2)
    assert crew.discarded == [(1, True)]
    assert crew.launched == 2
    crew.silent = {2}
    until(spares, 16, 16 + DEAD_S + 1)
    assert crew.discarded == [(1, True), (2, True)]


def test_the_spare_of_an_earlier_manager_is_used_and_none_started_beside_it(spares, crew):
    spares.add(77, 0)
    until(spares, 0, 10)
    assert crew.launched == 0
    spares.lost(10.05)
    spares.take(10.05)
    assert spares.take(10.1) == (77, True)


def test_all_are_ended_with_the_job_and_none_follows(spares, crew):
    until(spares, 0, 10)
    spares.stop()
    assert crew.discarded == [(1, False)]
    until(spares, 10, 20)
    assert crew.launched == 1


def test_without_spares_wanted_none_is_started(crew):
    spares = Spares(crew, 0)
    spares.busy(0)
    until(spares, 0, 20)
    assert crew.launched == 0
