"""What is kept of a job's restarts, however many there are."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rayflow.model.config import JobConfig
from rayflow.runtime.master.events import EventLog
from rayflow.runtime.master.restarts import FIRST_KEPT, LAST_KEPT, Restarts


@pytest.fixture
def ctx():
    return SimpleNamespace(
        job=SimpleNamespace(config=JobConfig()), now_ms=0, attempt=1, note=lambda *a, **k: None
    )


def restart(restarts, ctx, times):
    for _ in range(times):
        ctx.attempt += 1
        restarts.plan(f"failure before {ctx.attempt}", 0)
        restarts.deployed(None)


def attempts(restarts):
    return [record["attempt"] for record in restarts.records()]


def test_the_first_restarts_and_the_last_are_kept_and_all_are_counted(ctx):
    restarts = Restarts(ctx, {}, None)
    restart(restarts, ctx, 1_000)
    assert attempts(restarts) == [*range(2, FIRST_KEPT + 2), *range(1_002 - LAST_KEPT, 1_002)]
    assert restarts.total == 1_000


@pytest.mark.parametrize("before", [3, FIRST_KEPT, FIRST_KEPT + 1, 500])
def test_a_successor_goes_on_with_what_a_dead_master_described(ctx, before):
    first, alone = Restarts(ctx, {}, None), Restarts(ctx, {}, None)
    restart(first, ctx, before)
    described = {"restarts": first.records(), "restarts_total": first.total}
    second = Restarts(ctx, described, None)
    restart(second, ctx, 200)
    ctx.attempt = 1
    restart(alone, ctx, before + 200)
    assert second.records() == alone.records()
    assert second.total == alone.total == before + 200


def test_times_of_a_recovery_belong_to_the_last_restart(ctx):
    restarts = Restarts(ctx, {}, None)
    restarts.recovered({"total_ms": 1})
    assert restarts.records() == []
    for count in (1, FIRST_KEPT + LAST_KEPT + 5):
        restart(restarts, ctx, count)
        restarts.recovered({"total_ms": count})
        records = restarts.records()
        assert records[-1]["recovery"] == {"total_ms": count}
        assert all(record["recovery"] is None for record in records[1:-1])


def test_events_of_years_of_restarts_stay_bounded_and_the_newest_are_there():
    log = EventLog(max_events=100)
    for number in range(5_000):
        log.add(number, "recovered", f"recovery {number}")
        log.add(number, "checkpoint_completed", f"checkpoint {number}")
    kept = log.since(0)
    assert len(kept) == 100
    assert [event["message"] for event in kept[-2:]] == ["recovery 4999", "checkpoint 4999"]
    # What a dead master left does not add to the bound.
    after = EventLog(max_events=100)
    after.add(0, "job_recovered", "a new master")
    after.restore(kept)
    assert len(after.since(0)) == 100
    assert after.since(0)[-1]["seq"] == kept[-1]["seq"] + 1
