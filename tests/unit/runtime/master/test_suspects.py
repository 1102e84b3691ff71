"""Workers that answer, that do not, and that are suspected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rayflow.model.config import JobConfig
from rayflow.model.ids import Attempt, SubtaskId, VertexId
from rayflow.runtime.master.fleet import SUSPECT_MS, Fleet
from rayflow.runtime.messages import Heartbeat

ONE = Attempt(1)
A, B = (SubtaskId(VertexId("v"), i) for i in range(2))


class Pool:
    def __init__(self):
        self.sent = []

    def send(self, subtask, message):
        self.sent.append((subtask, message))

    def kill(self, subtask, *, unreachable=False):
        pass

    def shutdown(self):
        pass


@pytest.fixture
def pool():
    return Pool()


@pytest.fixture
def fleet(pool):
    """Two workers, ready at 0; heartbeats every second, overdue after five."""
    made = Fleet(pool, SimpleNamespace(config=JobConfig(), subtasks=(A, B)))
    for subtask in (A, B):
        made.worker_ready(subtask, "address", "node", 1, 0)
        made.answered(subtask, {"state": "RUNNING"}, 0)
    made.beat(ONE, 0)
    return made


def last_sequence(pool):
    return next(m.sequence for _, m in reversed(pool.sent) if isinstance(m, Heartbeat))


def pass_time(fleet, start_ms, end_ms, *, answers=()):
    """Beat as the master does; `answers` are the workers that answer at once. Return who was overdue, when."""
    overdue = {}
    for now_ms in range(start_ms, end_ms + 1, 100):
        for subtask in answers:
            fleet.answered(subtask, {}, now_ms)
        for subtask in fleet.beat(ONE, now_ms):
            overdue.setdefault(subtask, now_ms)
    return overdue


def test_a_worker_that_does_not_answer_is_overdue_after_the_timeout(fleet):
    assert pass_time(fleet, 100, 7_000, answers=[A]) == {B: 6_000}


def test_a_suspect_is_asked_at_once_counts_as_missing_and_is_overdue_soon(fleet, pool):
    before = len(pool.sent)
    fleet.suspect(B, ONE, 500)
    assert len(pool.sent) > before
    assert fleet.missing == [B]
    assert fleet.next_beat_ms == 1_000
    assert pass_time(fleet, 500, 3_000, answers=[A]) == {B: 500 + SUSPECT_MS}


def test_a_suspect_that_answers_is_cleared_but_not_by_an_answer_to_an_earlier_question(fleet, pool):
    earlier = last_sequence(pool)
    fleet.suspect(B, ONE, 500)
    fleet.answered(B, {}, 510, earlier)
    assert fleet.missing == [B]
    fleet.answered(B, {}, 520, last_sequence(pool))
    assert fleet.missing == []
    assert pass_time(fleet, 600, 4_000, answers=[A]) == {}


def test_time_in_which_the_master_stood_still_counts_against_no_suspect(fleet):
    fleet.suspect(B, ONE, 500)
    # The master is stopped from 600 to 60 000.
    assert pass_time(fleet, 60_000, 60_400, answers=[A]) == {}


def test_nor_does_it_count_for_one_whose_stream_broke_since(fleet):
    fleet.suspect(B, ONE, 60_000)
    assert pass_time(fleet, 60_000, 63_000, answers=[A]) == {B: 60_000 + SUSPECT_MS}


def test_a_suspect_that_is_lost_is_a_suspect_no_more(fleet):
    fleet.suspect(B, ONE, 500)
    fleet.end(B)
    fleet.worker_ready(B, "elsewhere", "node", 2, 600)
    assert fleet.missing == []
    assert fleet.beat(ONE, 2_000) == []


def test_heartbeats_hurry_for_a_while_and_then_no_more(fleet, pool):
    fleet.hurry(1_000)
    pass_time(fleet, 100, 4_000, answers=[A, B])
    beats = sum(subtask == A for subtask, _ in pool.sent)
    # One at 0, one at 1000 when the first was due before the hurry began, then every second.
    assert beats == 1 + 4
    fleet.hurry(6_000)
    fleet.beat(ONE, 5_000)
    assert fleet.next_beat_ms == 5_100
