"""The breakdown of a recovery's time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rayflow.runtime.master.recovery import Recovery


@pytest.fixture
def ctx():
    events = []
    sink = SimpleNamespace(uid="sink")
    return SimpleNamespace(
        now_ms=0,
        attempt=1,
        events=events,
        note=lambda type, message, **fields: events.append((type, message, fields)),
        job=SimpleNamespace(sinks=[(None, sink)]),
        fleet=SimpleNamespace(hurry=lambda until_ms: None),
    )


def at(ctx, recovery, steps):
    """Do each of the steps at its time."""
    for now_ms, step, *args in steps:
        ctx.now_ms = now_ms
        getattr(recovery, step)(*args)


def told(rows, attempt=1):
    return {"attempt": attempt, "operators": {"sink": {"rows_in": rows}, "map": {"rows_in": 5}}}


def test_each_part_ends_where_the_next_begins_and_they_add_up(ctx):
    recovery = Recovery(ctx, recovered=False)
    steps = [(1_000, "trouble", 900), (1_200, "failed"), (1_500, "deployed"), (1_700, "running")]
    at(ctx, recovery, steps)
    ctx.now_ms = 2_000
    assert recovery.heard(told(0)) is None
    assert recovery.heard(told(3, attempt=0)) is None
    ctx.now_ms = 2_100
    times = {"detect_ms": 300, "reset_ms": 300, "restore_ms": 200, "replay_ms": 400, "total_ms": 1_200}
    assert recovery.heard(told(3)) == times
    ((kind, message, fields),) = ctx.events
    assert kind == "recovered"
    assert "1200 ms after the fault (detect 300, reset 300, restore 200, replay 400)" in message
    assert fields == {"attempt": 1, **times}
    assert recovery.heard(told(4)) is None, "once"


def test_a_failure_that_a_subtask_reports_is_detected_at_once(ctx):
    recovery = Recovery(ctx, recovered=False)
    at(ctx, recovery, [(1_000, "failed"), (1_100, "deployed"), (1_200, "running")])
    ctx.now_ms = 1_300
    assert recovery.recovered()["detect_ms"] == 0


def test_a_failure_during_the_recovery_belongs_to_it(ctx):
    recovery = Recovery(ctx, recovered=False)
    at(ctx, recovery, [(1_000, "trouble", 1_000), (1_010, "failed"), (1_100, "deployed"), (1_200, "failed")])
    at(ctx, recovery, [(2_000, "deployed"), (2_100, "running"), (2_200, "recovered")])
    assert ctx.events[0][2]["detect_ms"] == 10
    assert ctx.events[0][2]["reset_ms"] == 990
    assert ctx.events[0][2]["total_ms"] == 1_200


def test_one_before_rows_came_out_again_begins_another_recovery(ctx):
    recovery = Recovery(ctx, recovered=False)
    at(ctx, recovery, [(1_000, "failed"), (1_100, "deployed"), (1_200, "running"), (5_000, "failed")])
    at(ctx, recovery, [(5_100, "deployed"), (5_200, "running"), (5_300, "recovered")])
    assert [fields["total_ms"] for _, _, fields in ctx.events] == [300]


def test_old_trouble_is_forgotten_with_the_attempt_it_was_in(ctx):
    recovery = Recovery(ctx, recovered=False)
    at(ctx, recovery, [(500, "trouble", 400), (600, "failed"), (700, "deployed"), (800, "running")])
    at(ctx, recovery, [(900, "recovered"), (9_000, "failed"), (9_100, "deployed"), (9_200, "running")])
    ctx.now_ms = 9_300
    assert recovery.recovered()["total_ms"] == 300


def test_a_dead_managers_time_counts_from_what_its_workers_last_heard(ctx):
    ctx.now_ms = 10_000
    recovery = Recovery(ctx, recovered=True)
    at(ctx, recovery, [(10_100, "manager_silent", 2_100), (10_150, "manager_silent", 900)])
    at(ctx, recovery, [(10_300, "deployed"), (10_400, "running"), (10_500, "recovered")])
    fields = ctx.events[0][2]
    assert (fields["detect_ms"], fields["reset_ms"], fields["total_ms"]) == (2_000, 300, 2_500)


def test_the_first_start_of_a_job_is_no_recovery(ctx):
    recovery = Recovery(ctx, recovered=False)
    at(ctx, recovery, [(100, "deployed"), (200, "running"), (300, "recovered")])
    assert ctx.events == []
