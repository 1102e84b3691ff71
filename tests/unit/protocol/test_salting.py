from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.protocol.salting import (
    COOL_MS,
    FRESH_MS,
    HOT_PART,
    LEAST_ROWS,
    MOST_KEYS,
    UNEVEN_PART,
    HotKeysTold,
    KeyCount,
    SaltedKeys,
    SeenKeys,
    SendersBegan,
    SetRestored,
    TellSender,
    keys_to_salt,
    together,
)

CONSUMERS = 4
HOT = HOT_PART / CONSUMERS


def seen(shares: dict[int, float], rows: float = 1e6, consumers: int = CONSUMERS) -> SeenKeys:
    """Keys belong to consumer key % consumers; all other rows are spread evenly."""
    counts = [KeyCount(key, key % consumers, share * rows) for key, share in shares.items()]
    others = max(0.0, 1 - sum(shares.values())) * rows / consumers
    belonging = [others + sum(c.rows for c in counts if c.consumer == i) for i in range(consumers)]
    return SeenKeys(tuple(belonging), tuple(counts))


def told(
    now_ms: int, shares: dict[int, float], salted: set[int] | None = None, sender: int = 0, rows: float = 1e6
) -> HotKeysTold:
    return HotKeysTold(sender=sender, now_ms=now_ms, seen=seen(shares, rows), salted=frozenset(salted or ()))


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


@given(
    st.sets(st.integers(0, 2**64 - 1), max_size=MOST_KEYS + 20),
    st.dictionaries(st.integers(0, 200), st.floats(0, 0.3), max_size=3),
    st.integers(1, 6),
)
@settings(max_examples=100, deadline=None)
def test_a_machine_goes_on_with_the_set_of_a_checkpoint_whatever_the_parallelism(
    keys: set[int], shares: dict[int, float], consumers: int
) -> None:
    machine, other = SaltedKeys(consumers), SaltedKeys(consumers)
    assert machine.handle(SetRestored(tuple(sorted(keys)))) == other.handle(SetRestored(tuple(keys))) == ()
    # Every restore of it begins in the same way; K1, K4.
    restored = set(machine.keys)
    assert machine.keys == other.keys
    assert restored <= keys
    assert len(restored) == (0 if consumers == 1 else min(len(keys), MOST_KEYS))
    # Who begins with it and has seen no rows is told nothing (K3); nor does it go at once where it is not hot (K2).
    assert machine.handle(told(0, {}, restored, rows=0)) == ()
    machine.handle(told(1, shares, restored))
    assert restored <= set(machine.keys) or len(machine.keys) == MOST_KEYS
    # As all that is not hot, it goes in the end.
    for now_ms in range(1_000, 1_000 + 2 * COOL_MS, 1_000):
        machine.handle(told(now_ms, {}, set(machine.keys)))
    assert machine.keys == ()


def test_for_one_consumer_there_is_nothing_to_spread() -> None:
    assert SaltedKeys(1).handle(told(0, {7: 0.9})) == ()


def without_place(found: SeenKeys) -> SeenKeys:
    """The same keys and rows, where every consumer has as many: nothing to level."""
    n = len(found.consumers)
    return SeenKeys((found.rows / n,) * n, found.keys)


def left_after(found: SeenKeys, chosen: set[int]) -> list[float]:
    left = list(found.consumers)
    for count in found.keys:
        if count.key in chosen:
            left[count.consumer] -= count.rows
    return left


@pytest.mark.parametrize("consumers", [2, 4, 16])
@pytest.mark.parametrize("exponent", [1.1, 1.5, 2.0])
def test_what_is_left_of_zipf_keys_is_level(consumers: int, exponent: float) -> None:
    shares = [n**-exponent for n in range(1, 4_000)]
    scale = 1e6 / sum(shares)
    for seed in range(8):
        owners = random.Random(seed)
        counts = [KeyCount(n, owners.randrange(consumers), scale * share) for n, share in enumerate(shares)]
        belonging = [0.0] * consumers
        for count in counts:
            belonging[count.consumer] += count.rows
        found = SeenKeys(tuple(belonging), tuple(counts[:256]))
        left = left_after(found, keys_to_salt(found))
        # Where next to nothing is left, it does not matter where it lies.
        assert max(left) / min(left) < 1.2 or sum(left) < 0.01 * found.rows


def test_keys_that_are_not_hot_are_salted_where_they_lie_badly_only() -> None:
    # Twenty keys, each below the measure, all of one consumer: they come down to what the others have.
    lumps = {4 * n: 0.9 * HOT for n in range(1, 21)}
    found = seen(lumps)
    chosen = keys_to_salt(found)
    assert 0 < len(chosen) <= 20
    left = left_after(found, chosen)
    assert max(left) <= min(left) * (1 + UNEVEN_PART) + 0.9 * HOT * 1e6
    # As many, dealt out evenly, are left alone.
    assert keys_to_salt(seen({n: 0.9 * HOT for n in range(20)})) == set()


def test_rare_keys_do_not_level() -> None:
    shares = {4 * n: HOT / 400 for n in range(1, 101)}
    found = seen(shares)
    lopsided = SeenKeys((found.consumers[0] * 2, *found.consumers[1:]), found.keys)
    assert keys_to_salt(lopsided) == set()


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1e5)), max_size=200),
    st.sets(st.integers(0, 200)),
)
@settings(max_examples=150, deadline=None)
def test_levelling_takes_nobody_below_the_least(
    others: list[float], drawn: list[tuple[int, float]], salted: set[int]
) -> None:
    counts = [KeyCount(n, to % len(others), rows) for n, (to, rows) in enumerate(drawn)]
    belonging = [other + sum(c.rows for c in counts if c.consumer == i) for i, other in enumerate(others)]
    found = SeenKeys(tuple(belonging), tuple(counts))
    chosen = keys_to_salt(found, salted)
    assert len(chosen) <= MOST_KEYS
    assert len(others) > 1 or not chosen
    # K5. Hot keys are chosen whoever has them, so also where all consumers have as many rows.
    left = left_after(found, chosen)
    hot = {key for key in chosen if key in keys_to_salt(without_place(found), salted)}
    assert min(left) >= min(left_after(found, hot)) - 1e-6 * (1 + found.rows)


def test_what_several_senders_see_is_added() -> None:
    one = SeenKeys((3.0, 1.0), (KeyCount(7, 1, 1.0), KeyCount(8, 0, 2.0)))
    two = SeenKeys((0.0, 5.0), (KeyCount(7, 1, 5.0),))
    assert together([one, two]) == SeenKeys((3.0, 6.0), (KeyCount(7, 1, 6.0), KeyCount(8, 0, 2.0)))
    assert together([]) == SeenKeys(())


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
