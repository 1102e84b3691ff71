"""Schedules of faults: the same seed gives the same, files replay them, and what is wrong in a file is named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.client.chaos.schedule import Fault, FaultKind, Schedule, draw
from rayflow.model.errors import ConfigError

SUBTASKS = ("subtask:map[0]", "subtask:map[1]", "subtask:sink[0]")
KILL = FaultKind(action="kill", targets=SUBTASKS)
MANAGER = FaultKind(action="kill", targets=("jobmanager",))
STOP = FaultKind(action="stop", targets=SUBTASKS, for_ms=8_000)
NODE = FaultKind(action="kill")
PART = FaultKind(action="partition", targets=("node:1", "node:2"), peers=("node:1", "node:2"), one_way=True)


def test_a_seed_decides_everything_on_every_python_version() -> None:
    schedule = draw([KILL, MANAGER, STOP], every_ms=1_000, seed=7, times=4)
    assert [str(f) for f in schedule.faults] == [
        "kill subtask:map[1]",
        "kill jobmanager",
        "kill jobmanager",
        "stop subtask:map[0] for 8 s",
    ]
    assert [f.at_ms for f in schedule.faults] == [161, 1267, 2018, 3212]


@given(st.integers(0, 2**40), st.integers(1, 60_000), st.integers(1, 30))
def test_faults_keep_their_order_and_their_pace(seed: int, every_ms: int, times: int) -> None:
    schedule = draw([KILL, STOP, NODE], every_ms=every_ms, seed=seed, times=times)
    assert len(schedule.faults) == times
    for number, fault in enumerate(schedule.faults):
        assert number * every_ms <= fault.at_ms <= (number + 0.5) * every_ms
    assert schedule == draw([KILL, STOP, NODE], every_ms=every_ms, seed=seed, times=times)
    # More of them begin with the same ones.
    assert (
        draw([KILL, STOP, NODE], every_ms=every_ms, seed=seed, times=times + 5).faults[:times]
        == schedule.faults
    )


@given(st.integers(0, 1000))
def test_nobody_is_cut_off_from_himself(seed: int) -> None:
    assert all(f.peer and f.peer != f.target for f in draw([PART], every_ms=10, seed=seed, times=10).faults)


@given(st.integers(0, 1000))
def test_a_file_replays_what_was_written(seed: int) -> None:
    schedule = draw([KILL, STOP, NODE, PART], every_ms=500, seed=seed, times=12)
    assert Schedule.from_text(schedule.to_text()) == schedule


def test_a_file_written_by_hand_may_say_little_and_in_any_order() -> None:
    text = """{"version": 1, "faults": [
        {"at_ms": 900, "action": "stop", "target": "subtask:map[1]", "for_ms": 200},
        {"at_ms": 100, "action": "kill", "target": "jobmanager"}]}"""
    assert Schedule.from_text(text) == Schedule(
        faults=(
            Fault(at_ms=100, action="kill", target="jobmanager"),
            Fault(at_ms=900, action="stop", target="subtask:map[1]", for_ms=200),
        )
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no", "is JSON, and this is not"),
        ("[]", "is an object"),
        ('{"version": 9, "faults": []}', "has version 1; got 9"),
        (
            '{"version": 1, "faults": [{"at_ms": 1}]}',
            "fault 0 of the schedule needs at_ms, action and target",
        ),
        (
            '{"version": 1, "faults": [{"at_ms": 1, "action": "kill", "target": "all", "when": 3}]}',
            "and may have",
        ),
        (
            '{"version": 1, "faults": [{"at_ms": 1, "action": "burn", "target": "all"}]}',
            "action is one of kill",
        ),
        (
            '{"version": 1, "faults": [{"at_ms": 1, "action": "kill", "target": "map"}]}',
            "target is subtask:OPERATOR",
        ),
        (
            '{"version": 1, "faults": [{"at_ms": -1, "action": "kill", "target": "all"}]}',
            "at_ms is a whole number",
        ),
        (
            '{"version": 1, "faults": [{"at_ms": "1s", "action": "kill", "target": "all"}]}',
            "at_ms is a whole",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Schedule.from_text(text)


def test_asking_for_nothing_is_an_error() -> None:
    with pytest.raises(ConfigError, match="no fault was asked for"):
        draw([], every_ms=1, seed=1, times=1)
