from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.protocol.salting import (
    COOL_MS,
    FRESH_MS,
    HOT_PART,
    LEAST_ROWS,
    MOST_KEYS,
    HotKeysTold,
    SaltedKeys,
    SendersBegan,
    TellSender,
)

CONSUMERS = 4
HOT = HOT_PART / CONSUMERS


def told(
    now_ms: int, shares: dict[int, float], salted: set[int] | None = None, sender: int = 0, rows: float = 1e6
) -> HotKeysTold:
    return HotKeysTold(
        sender=sender,
        now_ms=now_ms,
        rows=rows,
        counts=tuple((key, share * rows) for key, share in shares.items()),
        salted=frozenset(salted or ()),
    )


def test_a_hot_key_is_salted_by_whoever_tells_of_it_and_by_the_others_when_they_next_tell() -> None:
    machine = SaltedKeys(CONSUMERS)
    assert machine.handle(told(0, {7: 2 * HOT, 8: HOT / 2})) == (TellSender(0, (7,)),)
    assert machine.handle(told(10, {}, sender=1)) == (TellSender(1, (7,)),)
    # K3
    assert machine.handle(told(20, {7: 2 * HOT}, salted={7})) == ()


def test_shares_are_those_of_all_senders_together() -> None:
    machine = SaltedKeys(CONSUMERS)
    machine.handle(told(0, {}, sender=1, rows=3e6))
    # A quarter of the rows has it often: not enough of all.
    assert machine.handle(told(0, {7: 3 * HOT})) == ()
    assert machine.handle(told(1, {7: 5 * HOT})) == (TellSender(0, (7,)),)


def test_a_key_that_cools_stays_for_a_while_and_one_at_the_edge_stays() -> None:
    machine = SaltedKeys(CONSUMERS)
    machine.handle(told(0, {7: 2 * HOT}))
    assert machine.handle(told(1_000, {7: 0.6 * HOT}, {7})) == ()
    assert machine.handle(told(2_000, {7: 0.4 * HOT}, {7})) == ()
    assert machine.handle(told(2_000 + COOL_MS - 1, {7: 0.4 * HOT}, {7})) == ()
    assert machine.handle(told(2_000 + COOL_MS, {}, {7})) == (TellSender(0, ()),)


def test_a_hot_key_that_changes_is_followed_within_seconds() -> None:
    machine = SaltedKeys(CONSUMERS)
    machine.handle(told(0, {7: 0.5}))
    assert machine.handle(told(1_000, {7: 0.25, 8: 0.25}, {7})) == (TellSender(0, (7, 8)),)
    for now_ms in range(2_000, 9_000, 1_000):
        machine.handle(told(now_ms, {8: 0.5}, {7, 8}))
    assert machine.keys == (8,)


def test_what_was_told_long_ago_and_few_rows_say_nothing() -> None:
    machine = SaltedKeys(CONSUMERS)
    assert machine.handle(told(0, {7: 0.9}, rows=LEAST_ROWS - 1)) == ()
    machine.handle(told(0, {}, sender=1, rows=1e9))
    assert machine.handle(told(FRESH_MS, {7: 0.9})) == ()
    assert machine.handle(told(FRESH_MS + 1, {7: 0.9})) == (TellSender(0, (7,)),)


def test_a_sender_that_begins_anew_gets_the_set_back() -> None:
    machine = SaltedKeys(CONSUMERS)
    machine.handle(told(0, {7: 0.9}))
    assert machine.handle(SendersBegan()) == ()
    assert machine.handle(told(10, {}, rows=0)) == (TellSender(0, (7,)),)


def test_a_machine_that_is_new_takes_over_what_its_senders_salt() -> None:
    machine = SaltedKeys(CONSUMERS)
    assert machine.handle(told(0, {}, {7, 9}, rows=0)) == ()
    assert machine.handle(told(0, {}, {9}, sender=1, rows=0)) == (TellSender(1, (7, 9)),)
    # Later on the machine decides.
    assert machine.handle(told(1, {}, {7, 9, 11}, rows=0)) == (TellSender(0, (7, 9)),)


def test_for_one_consumer_there_is_nothing_to_spread() -> None:
    assert SaltedKeys(1).handle(told(0, {7: 0.9})) == ()


@given(
    st.lists(
        st.tuples(
            st.integers(0, 2),
            st.integers(0, 3_000),
            st.dictionaries(st.integers(0, 200), st.floats(0, 0.02), max_size=90),
            st.booleans(),
        ),
        max_size=20,
    )
)
@settings(max_examples=60, deadline=None)
def test_invariants_hold_whatever_is_told(steps: list[tuple[int, int, dict[int, float], bool]]) -> None:
    machine, now_ms = SaltedKeys(CONSUMERS), 0
    salted: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    last_hot: dict[int, int] = {}
    for sender, passed_ms, shares, begins in steps:
        now_ms += passed_ms
        if begins:
            machine.handle(SendersBegan())
            salted = {sender: set() for sender in salted}
        before = set(machine.keys)
        for command in machine.handle(told(now_ms, shares, salted[sender], sender)):
            assert command.sender == sender
            assert list(command.keys) == sorted(command.keys)
            salted[sender] = set(command.keys)
        after = set(machine.keys)
        assert salted[sender] == after
        assert len(after) <= MOST_KEYS
        for key, share in shares.items():
            if share >= HOT / 2:
                last_hot[key] = now_ms
        # K2: it was hot with some sender when it came, and none had it for long when it went.
        assert all(key in last_hot for key in after - before)
        if len(after) < MOST_KEYS:
            for key in before - after:
                assert shares.get(key, 0) < HOT / 2 * 3
