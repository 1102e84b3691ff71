"""Control messages over calls that are lost, repeated and late."""

from __future__ import annotations

import random
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.ids import Attempt
from rayflow.protocol import delivery
from rayflow.protocol.delivery import Incoming, Outgoing

ONE, TWO = Attempt(1), Attempt(2)


def numbered(message, number):
    return (message, number)


@pytest.fixture
def outgoing():
    return Outgoing(numbered)


def test_what_is_lost_is_sent_again_with_all_that_follows_once_the_other_end_lacks_it(outgoing):
    incoming = Incoming()
    first, lost, after = (outgoing.add(ONE, name) for name in ("first", "lost", "after"))
    assert incoming.accepts(ONE, first[1])
    assert not incoming.accepts(ONE, after[1])
    assert incoming.lacks(ONE, outgoing.sent(ONE))
    again = outgoing.arrived(ONE, incoming.arrived(ONE), True)
    assert again == (lost, after)
    assert [incoming.accepts(ONE, number) for _, number in again] == [True, True]
    assert not incoming.lacks(ONE, outgoing.sent(ONE))


def test_what_is_only_under_way_is_not_sent_again(outgoing):
    outgoing.add(ONE, "under way")
    assert outgoing.arrived(ONE, 0, False) == ()


def test_numbers_begin_anew_with_an_attempt_and_nothing_of_the_one_before_is_sent_again(outgoing):
    incoming = Incoming()
    outgoing.add(ONE, "old")
    assert incoming.accepts(TWO, outgoing.add(TWO, "new")[1])
    assert outgoing.arrived(ONE, 0, True) == ()
    assert outgoing.add(ONE, "older than all") == "older than all"
    # Whoever judges by attempt gets to see it.
    assert incoming.accepts(ONE, 7)
    assert incoming.arrived(TWO) == 1


def test_who_missed_the_beginning_of_an_attempt_lacks_it_and_takes_nothing_before_it():
    incoming = Incoming()
    assert incoming.accepts(ONE, 1)
    assert not incoming.accepts(TWO, 2)
    assert incoming.lacks(TWO, 2)
    assert incoming.accepts(TWO, 1)


def test_a_message_without_a_number_is_let_through():
    incoming = Incoming()
    assert incoming.accepts(ONE, 0)
    assert incoming.arrived(ONE) == 0


def test_what_is_kept_is_bounded_and_what_was_dropped_stays_lacking(outgoing, monkeypatch):
    monkeypatch.setattr(delivery, "MAX_KEPT", 3)
    outgoing, incoming = Outgoing(numbered), Incoming()
    for number in range(5):
        outgoing.add(ONE, number)
    again = outgoing.arrived(ONE, 0, True)
    assert [number for _, number in again] == [3, 4, 5]
    assert not any(incoming.accepts(ONE, number) for _, number in again)
    assert incoming.lacks(ONE, outgoing.sent(ONE))


@given(
    messages=st.lists(st.integers(1, 3), max_size=60),
    loss=st.floats(0, 0.9),
    repeat=st.floats(0, 0.5),
    seed=st.integers(0, 2**32),
)
def test_all_arrives_in_order_and_once_whatever_the_calls_do_until_they_work_again(
    messages, loss, repeat, seed
):
    """One end sends (the numbers say how many before each heartbeat) over a line that loses and repeats."""
    rng = random.Random(seed)
    outgoing, incoming = Outgoing(numbered), Incoming()
    wire, got, count = deque(), [], 0

    def call(item, works):
        if works or rng.random() >= loss:
            wire.append(item)
            if not works and rng.random() < repeat:
                wire.insert(rng.randrange(len(wire) + 1), item)

    def heartbeat(works):
        call(("beat", outgoing.sent(ONE)), works)
        while wire:
            kind, value = wire.popleft()
            if kind == "beat":
                lacks = incoming.lacks(ONE, value)
                for message in outgoing.arrived(ONE, incoming.arrived(ONE), lacks):
                    call(message, works)
            elif incoming.accepts(ONE, value):
                got.append(kind)

    for burst in messages:
        for _ in range(burst):
            call(outgoing.add(ONE, count), works=False)
            count += 1
        heartbeat(works=False)
        assert got == list(range(len(got)))
    heartbeat(works=True)
    assert got == list(range(count))
