from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.runtime.accounting import TimeAccount


def test_ratios_cover_the_last_five_seconds_only() -> None:
    account = TimeAccount(0.0)
    account.switch("busy", 10.0)  # idle 0–10, busy 10–13, back-pressured from 13
    account.switch("backpressured", 13.0)
    ratios = account.ratios(15.0)
    assert ratios == {"idle": 0.0, "busy": pytest.approx(0.6), "backpressured": pytest.approx(0.4)}


def test_a_long_activity_that_has_not_ended_counts() -> None:
    account = TimeAccount(0.0)
    account.switch("busy", 1.0)
    assert account.ratios(100.0)["busy"] == 1.0


def test_before_any_time_has_passed_the_present_activity_is_everything() -> None:
    assert TimeAccount(3.0).ratios(3.0) == {"idle": 1.0, "busy": 0.0, "backpressured": 0.0}


@given(st.lists(st.tuples(st.sampled_from(["busy", "idle", "backpressured"]), st.floats(0.001, 9.0))))
def test_ratios_always_sum_to_one(spans: list[tuple[str, float]]) -> None:
    account, now = TimeAccount(0.0), 0.0
    for activity, seconds in spans:
        account.switch(activity, now)  # type: ignore[arg-type]
        now += seconds
        ratios = account.ratios(now)
        assert sum(ratios.values()) == pytest.approx(1.0, abs=1e-3)
        assert all(0 <= ratio <= 1 for ratio in ratios.values())
