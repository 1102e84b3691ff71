from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.rate import RateLimiter


def test_producer_sends_a_batch_and_sleeps_rows_over_rate():
    # 100 rows/s: a batch of 50 beyond the burst costs half a second.
    limiter = RateLimiter(100, burst_rows=1)
    assert limiter.wait_ms(0) == 0
    limiter.take(50, 0)
    assert limiter.wait_ms(0) == 500
    assert limiter.wait_ms(499) == 1
    assert limiter.wait_ms(500) == 0


@pytest.mark.parametrize(("pause_ms", "saved"), [(10, 0), (15, 5), (30, 20), (1000, 20)])
def test_what_is_saved_up_grows_with_time_up_to_the_burst(pause_ms, saved):
    limiter = RateLimiter(1000, burst_rows=20)
    limiter.take(30, 0)
    for _ in range(saved):
        assert limiter.wait_ms(pause_ms) == 0
        limiter.take(1, pause_ms)
    assert limiter.wait_ms(pause_ms) == 1


def test_rates_below_a_row_a_second_work():
    limiter = RateLimiter(0.5, burst_rows=1)
    limiter.take(1, 0)
    assert limiter.wait_ms(0) == 2000


def test_clock_that_was_set_back_gives_nothing_and_does_not_stop_the_producer():
    limiter = RateLimiter(1000, burst_rows=10)
    limiter.take(10, 1_000_000)
    assert limiter.wait_ms(0) == 1
    limiter.take(10, 0)
    assert limiter.wait_ms(0) == 11
    assert limiter.wait_ms(11) == 0


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (-1, 1), (float("inf"), 1), (float("nan"), 1), (1, 0)])
def test_impossible_limits_are_refused(rate, burst):
    with pytest.raises(ProtocolViolation):
        RateLimiter(rate, burst)


def test_negative_rows_are_refused_and_change_nothing():
    limiter = RateLimiter(1, 1)
    before = pickle.dumps(limiter)
    with pytest.raises(ProtocolViolation):
        limiter.take(-1, 0)
    assert pickle.dumps(limiter) == before


@given(
    st.floats(0.1, 1e6),
    st.integers(1, 1000),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 300)), min_size=1, max_size=60),
)
def test_rate_is_kept_over_any_stretch_and_waiting_as_told_is_enough(rate, burst, steps):
    limiter, now_ms, taken, largest = RateLimiter(rate, burst), 0, [], 0
    for rows, pause_ms in steps:
        now_ms += pause_ms + limiter.wait_ms(now_ms + pause_ms)
        assert limiter.wait_ms(now_ms) == 0
        limiter.take(rows, now_ms)
        taken.append((now_ms, rows))
        largest = max(largest, rows)
        for first in range(len(taken)):
            stretch_s = (now_ms - taken[first][0]) / 1000
            total = sum(r for _, r in taken[first:])
            assert total <= rate * stretch_s + burst + largest + 1e-3
