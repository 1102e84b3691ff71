from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.protocol.failover import (
    MAX_WAIT_MS,
    AttemptFailed,
    CheckpointsRefused,
    GiveUp,
    ProgressMade,
    RestartAt,
    RestartPolicy,
    StorageAway,
)


def failed(now_ms, retryable=True, fault=None):
    return AttemptFailed("boom", retryable, now_ms, fault)


def exponential(**changes):
    values = {"max_attempts": 10, "window_ms": 600_000, "delay_ms": 100, "max_delay_ms": 1000}
    return RestartPolicy("exponential", **{**values, **changes})


def test_delay_doubles_up_to_its_maximum():
    policy = exponential()
    delays = [policy.handle(failed(0)) for _ in range(6)]
    assert delays == [(RestartAt(ms),) for ms in (100, 200, 400, 800, 1000, 1000)]


def test_progress_begins_anew_with_the_shortest_delay():
    policy = exponential()
    policy.handle(failed(0))
    policy.handle(failed(0))
    assert policy.handle(ProgressMade()) == ()
    assert policy.handle(failed(500)) == (RestartAt(600),)


def test_stable_running_begins_anew_too():
    policy = exponential()
    policy.handle(failed(0))
    policy.handle(failed(100))  # restarts at 300
    assert policy.handle(failed(1299)) == (RestartAt(1699),)
    assert policy.handle(failed(2699)) == (RestartAt(2799),)


def test_budget_of_a_window_is_not_refilled_by_progress():
    policy = exponential(max_attempts=2, window_ms=10_000)
    for now_ms in (0, 1000):
        policy.handle(failed(now_ms))
        policy.handle(ProgressMade())
    (give_up,) = policy.handle(failed(2000))
    assert isinstance(give_up, GiveUp)
    assert give_up.cause == "boom"
    assert "2 restarts within 10000 ms" in give_up.reason


def test_the_same_fault_three_times_in_a_row_is_given_up():
    policy = exponential()
    for fault in ("map: a", "map: b", "map: a", "map: a"):
        assert isinstance(policy.handle(failed(0, fault=fault))[0], RestartAt)
    (give_up,) = policy.handle(failed(0, fault="map: a"))
    assert isinstance(give_up, GiveUp)
    assert "3 times the same" in give_up.reason


def test_progress_or_another_failure_in_between_lets_a_fault_recur():
    policy = exponential()
    for between in (ProgressMade(), failed(0)):
        for _ in range(2):
            assert isinstance(policy.handle(failed(0, fault="map: a"))[0], RestartAt)
        policy.handle(between)
    assert isinstance(policy.handle(failed(0, fault="map: a"))[0], RestartAt)


def test_what_may_pass_is_not_counted_as_a_fault():
    policy = exponential()
    assert all(isinstance(policy.handle(failed(0))[0], RestartAt) for _ in range(10))


def test_old_restarts_leave_the_window():
    policy = RestartPolicy("fixed", max_attempts=1, window_ms=10_000, delay_ms=50)
    assert policy.handle(failed(0)) == (RestartAt(50),)
    assert policy.handle(failed(10_000)) == (RestartAt(10_050),)


@pytest.mark.parametrize(
    ("policy", "event"),
    [
        (exponential(), failed(0, retryable=False)),
        (RestartPolicy("none", 10, 1000, 10), failed(0)),
        (RestartPolicy("fixed", 0, 1000, 10), failed(0)),
    ],
)
def test_what_cannot_or_shall_not_be_restarted_is_given_up_for_good(policy, event, refused):
    assert isinstance(policy.handle(event)[0], GiveUp)
    refused(policy, failed(1), "invariant 4")


@given(
    st.sampled_from(["exponential", "fixed"]),
    st.integers(0, 4),
    st.sampled_from([1, 500, 5000]),
    st.lists(st.tuples(st.integers(0, 2000), st.booleans()), max_size=30),
)
def test_no_window_has_more_restarts_than_allowed_and_delays_stay_in_their_bounds(
    strategy, most, window_ms, steps
):
    policy = RestartPolicy(strategy, most, window_ms, delay_ms=100, max_delay_ms=800)
    restarts, now_ms = [], 0
    for pause_ms, progress in steps:
        now_ms += pause_ms
        if progress:
            policy.handle(ProgressMade())
        (command,) = policy.handle(failed(now_ms))
        if isinstance(command, GiveUp):
            assert len(restarts) >= most
            break
        assert 100 <= command.at_ms - now_ms <= 800
        restarts.append(command.at_ms)
        assert sum(at_ms > restarts[-1] - window_ms for at_ms in restarts) <= most
        now_ms = command.at_ms


def wait_for_storage(policy, now_ms, tries):
    """Try again and again, each time when the policy says so; return the delays and the last decision."""
    delays = []
    for _ in range(tries):
        (decision,) = policy.handle(StorageAway("no answer", now_ms))
        if isinstance(decision, GiveUp):
            return delays, decision
        delays.append(decision.at_ms - now_ms)
        now_ms = decision.at_ms
    return delays, decision


def test_waiting_for_storage_has_a_delay_of_its_own_and_takes_nothing_from_the_budget():
    policy = exponential(max_attempts=2)
    policy.handle(failed(0))
    delays, decision = wait_for_storage(policy, 100, 50)
    assert delays[:7] == [100, 200, 400, 800, 1600, 3200, MAX_WAIT_MS]
    assert set(delays[6:]) == {MAX_WAIT_MS}
    now_ms = decision.at_ms
    policy.handle(ProgressMade())
    assert policy.handle(failed(now_ms)) == (RestartAt(now_ms + 100),)
    assert isinstance(policy.handle(failed(now_ms))[0], GiveUp)


@pytest.mark.parametrize("strategy", ["none", "fixed", "exponential"])
def test_waiting_for_storage_ends_after_its_timeout_counted_from_the_last_attempt_that_began(strategy):
    policy = RestartPolicy(strategy, 10, 600_000, 0, storage_timeout_ms=60_000)
    wait_for_storage(policy, 0, 5)
    policy.handle(ProgressMade())
    delays, decision = wait_for_storage(policy, 59_000, 1_000)
    assert isinstance(decision, GiveUp)
    assert decision.cause == "no answer"
    assert "restart.storage_timeout" in decision.reason
    assert 60_000 <= sum(delays) < 60_000 + MAX_WAIT_MS


def refused_by_storage(policy, now_ms, tries, runs_ms):
    """Have attempts run for so long, none of which gets a checkpoint; return the delays and the last decision."""
    delays = []
    for _ in range(tries):
        (decision,) = policy.handle(CheckpointsRefused("disk full", now_ms))
        if isinstance(decision, GiveUp):
            break
        delays.append(decision.at_ms - now_ms)
        now_ms = decision.at_ms + runs_ms
    return delays, decision


def test_attempts_of_which_storage_takes_no_checkpoint_take_nothing_from_the_budget():
    policy = exponential(max_attempts=1)
    delays, decision = refused_by_storage(policy, 0, 50, runs_ms=3_000)
    assert delays[:7] == [100, 200, 400, 800, 1600, 3200, MAX_WAIT_MS]
    assert set(delays[6:]) == {MAX_WAIT_MS}
    policy.handle(ProgressMade())
    assert policy.handle(CheckpointsRefused("disk full", decision.at_ms)) == (
        RestartAt(decision.at_ms + 100),
    )
    assert isinstance(policy.handle(failed(decision.at_ms))[0], RestartAt)


def test_storage_that_takes_no_checkpoint_for_too_long_fails_the_job_however_often_attempts_began():
    policy = exponential(storage_timeout_ms=60_000)
    delays, give_up = refused_by_storage(policy, 0, 1_000, runs_ms=10_000)
    assert isinstance(give_up, GiveUp)
    assert give_up.cause == "disk full"
    assert give_up.reason == "restart.storage_timeout: storage has been taking no checkpoint for 60000 ms"
    assert 4 <= len(delays) <= 6


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        (RestartPolicy("none", 10, 1000, 10), "'none'"),
        (RestartPolicy("fixed", 0, 1000, 10), "max_attempts: 0"),
    ],
)
def test_a_job_that_shall_not_be_restarted_is_not_for_its_storage_either(policy, why):
    (give_up,) = policy.handle(CheckpointsRefused("disk full", 0))
    assert isinstance(give_up, GiveUp)
    assert why in give_up.reason
