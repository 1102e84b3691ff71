"""When rows lie unevenly, and when that is worth a warning."""

from __future__ import annotations

import pytest

from rayflow.observe.imbalance import MIN_ROWS_PER_SUBTASK, MIN_SPAN_MS, WINDOW_MS, Imbalance, RecentRows

ENOUGH = MIN_ROWS_PER_SUBTASK


def test_ratios_set_the_busiest_beside_the_mean_and_the_least() -> None:
    found = Imbalance((10, 60, 20, 30), 1_000)
    assert (found.busiest, found.to_mean, found.to_least) == (1, 2.0, 6.0)


def test_a_subtask_without_rows_has_no_ratio() -> None:
    assert Imbalance((10, 0), 1_000).to_least is None


def test_even_rows_have_ratio_one() -> None:
    found = Imbalance((7, 7, 7), 1_000)
    assert (found.to_mean, found.to_least) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("rows", "span_ms", "ended", "skewed"),
    [
        ((ENOUGH * 3, ENOUGH), MIN_SPAN_MS, False, True),
        ((ENOUGH * 3, ENOUGH), MIN_SPAN_MS - 1, False, False),  # a burst
        ((ENOUGH * 3, ENOUGH), 5, True, True),  # that was all
        ((ENOUGH + 800, ENOUGH - 801), MIN_SPAN_MS, True, False),  # too few
        ((ENOUGH * 12, ENOUGH * 10), MIN_SPAN_MS, False, False),  # costs nothing to speak of
        ((ENOUGH * 9,), MIN_SPAN_MS, False, False),  # nobody to share with
    ],
)
def test_a_warning_takes_rows_time_and_an_imbalance_that_costs(
    rows: tuple[int, ...], span_ms: int, ended: bool, skewed: bool
) -> None:
    assert Imbalance(rows, span_ms).is_skewed(ended=ended) is skewed


def test_only_the_last_seconds_count() -> None:
    recent = RecentRows(2, 0)
    for now_ms in range(0, 60_001, 250):
        # The first half minute all rows go to subtask 0, then all to subtask 1.
        before = min(now_ms, 30_000)
        recent.note((before, now_ms - before), now_ms)
    found = recent.imbalance()
    assert found is not None
    assert found.rows[0] == 0
    assert found.rows[1] == found.span_ms
    assert WINDOW_MS <= found.span_ms <= WINDOW_MS + 1_000


def test_a_report_that_comes_after_a_later_one_takes_no_rows_back() -> None:
    recent = RecentRows(2, 0)
    recent.note((0, 4), 10)
    recent.note((4, 0), 20)
    assert recent.imbalance() == Imbalance((4, 4), 20)
    recent.note((4, 4), WINDOW_MS * 2)
    recent.note((0, 4), WINDOW_MS * 3)
    recent.note((4, 4), WINDOW_MS * 4)
    assert recent.imbalance() is None


def test_samples_are_bounded_however_often_rows_are_noted() -> None:
    recent = RecentRows(1, 0)
    for now_ms in range(0, 100_000, 7):
        recent.note((now_ms,), now_ms)
    assert len(recent._samples) <= 2 + WINDOW_MS // 250


def test_no_rows_no_imbalance() -> None:
    recent = RecentRows(2, 0)
    assert recent.imbalance() is None
    recent.note((5, 5), 1_000)
    for now_ms in range(2_000, 14_000, 1_000):
        recent.note((5, 5), now_ms)
    assert recent.imbalance() is None
