from __future__ import annotations

from collections import deque
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.credit import (
    Credit,
    CreditGranted,
    CreditReceiver,
    CreditSender,
    FloatingResumed,
    FloatingStopped,
    FrameConsumed,
    FrameReceived,
    FrameSent,
    GateOpened,
    GrantCredit,
)


def opened(channels, budget_bytes, **kwargs):
    receiver = CreditReceiver(channels, budget_bytes, **kwargs)
    return receiver, receiver.handle(GateOpened())


def test_half_of_the_budget_is_dealt_out_in_equal_shares_when_the_gate_opens(channels):
    a, b = channels(2)
    receiver, grants = opened((a, b), 4000)
    assert grants == (GrantCredit(a, 4, 1000), GrantCredit(b, 4, 1000))
    assert receiver.floating == Credit(16, 2000)


def test_backlog_is_answered_with_floating_credit(channels):
    # B3: a batch with a backlog is answered with a credit, although nothing was consumed yet.
    a, b = channels(2)
    receiver, _ = opened((a, b), 4000)
    assert receiver.handle(FrameReceived(a, 1000, backlog=2)) == (GrantCredit(a, 0, 1000),)
    assert receiver.granted(a) == Credit(3, 1000)
    assert receiver.queued(a) == Credit(1, 1000)
    assert receiver.floating == Credit(16, 1000)


def test_without_backlog_nothing_floats_and_consuming_gives_the_share_back(channels):
    a, _ = inputs = channels(2)
    receiver, _ = opened(inputs, 4000)
    assert receiver.handle(FrameReceived(a, 1000, backlog=0)) == ()
    assert receiver.handle(FrameConsumed(a, 1000)) == (GrantCredit(a, 1, 1000),)


def test_floating_credit_returns_when_the_queue_is_consumed_and_the_backlog_is_gone(channels):
    a, _ = inputs = channels(2)
    receiver, _ = opened(inputs, 4000)
    for backlog in (2, 1, 0):
        receiver.handle(FrameReceived(a, 1000, backlog))
    assert receiver.floating == Credit(16, 0)
    for _ in range(3):
        receiver.handle(FrameConsumed(a, 1000))
    assert receiver.floating == Credit(16, 2000)
    assert receiver.granted(a) == Credit(4, 1000)


def test_sender_with_one_byte_left_may_send_one_frame_and_then_owes(channels):
    sender = CreditSender()
    assert not sender.can_send()
    sender.handle(CreditGranted(2, 1))
    assert sender.can_send()
    sender.handle(FrameSent(500))
    assert sender.outstanding == Credit(1, -499)
    assert not sender.can_send()
    sender.handle(CreditGranted(0, 499))
    assert not sender.can_send()
    sender.handle(CreditGranted(0, 1))
    assert sender.can_send()


def test_frame_larger_than_the_whole_budget_passes_and_its_debt_is_made_good(channels):
    (a,) = channels(1)
    receiver, _ = opened((a,), 100)
    assert receiver.handle(FrameReceived(a, 10_000, backlog=1)) == ()
    assert receiver.handle(FrameConsumed(a, 10_000)) == (GrantCredit(a, 1, 10_000),)
    assert receiver.granted(a) == Credit(4, 50)


def test_what_floats_is_not_wasted_on_a_debt_it_cannot_cover(channels):
    a, b = channels(2)
    receiver, _ = opened((a, b), 400)
    receiver.handle(FrameReceived(a, 5000, backlog=3))
    assert receiver.floating == Credit(16, 200)
    assert receiver.handle(FrameReceived(b, 100, backlog=3)) == (GrantCredit(b, 0, 100),)


def test_nothing_floats_while_memory_is_short(channels):
    a, _ = inputs = channels(2)
    receiver, _ = opened(inputs, 4000)
    assert receiver.handle(FloatingStopped()) == ()
    assert receiver.handle(FrameReceived(a, 1000, backlog=2)) == ()
    assert receiver.handle(FrameConsumed(a, 1000)) == (GrantCredit(a, 1, 1000),)
    receiver.handle(FloatingResumed())
    assert receiver.handle(FrameReceived(a, 1000, backlog=2)) == (GrantCredit(a, 0, 1000),)


def test_small_grants_are_held_back_until_they_are_worth_a_message(channels):
    (a,) = channels(1)
    receiver, _ = opened((a,), 100_000)
    grants = 0
    for _ in range(1000):
        grants += len(receiver.handle(FrameReceived(a, 10, backlog=0)))
        grants += len(receiver.handle(FrameConsumed(a, 10)))
    assert grants == 500


def test_frame_without_credit_is_refused(channels, refused):
    (a,) = channels(1)
    receiver, _ = opened((a,), 100)
    receiver.handle(FrameReceived(a, 50, backlog=0))
    refused(receiver, FrameReceived(a, 1, backlog=0), "invariant 1")
    sender = CreditSender()
    refused(sender, FrameSent(1), "invariant 1")


def test_consuming_what_is_not_queued_is_refused(channels, refused):
    (a,) = channels(1)
    receiver, _ = opened((a,), 1000)
    refused(receiver, FrameConsumed(a, 0), "invariant 6")
    receiver.handle(FrameReceived(a, 50, backlog=0))
    refused(receiver, FrameConsumed(a, 51), "invariant 6")
    refused(receiver, FrameConsumed(a, 49), "invariant 6")


def test_gate_opens_once_and_first(channels, refused):
    a, b = channels(2)
    receiver = CreditReceiver((a,), 1000)
    refused(receiver, FrameReceived(a, 1, backlog=0), "not open")
    receiver.handle(GateOpened())
    refused(receiver, GateOpened(), "twice")
    refused(receiver, FrameReceived(b, 1, backlog=0), "no such channel")


def test_budget_below_a_byte_per_channel_is_refused(channels):
    with pytest.raises(ProtocolViolation):
        CreditReceiver(channels(3), 2)


def test_a_channel_whose_producer_can_have_less_under_way_gets_a_smaller_share_and_more_floats(channels):
    a, b = channels(2)
    receiver, grants = opened((a, b), 4000, most_bytes={a: 300, b: 5000})
    assert grants == (GrantCredit(a, 4, 300), GrantCredit(b, 4, 1000))
    assert receiver.floating == Credit(16, 2700)
    assert receiver.handle(FrameReceived(a, 1200, backlog=1)) == (GrantCredit(a, 0, 1200),)
    assert receiver.granted(a).nbytes == 300


class Link:
    """A gate, its senders, and between them queues that deliver in order whenever the test says so."""

    def __init__(self, channels, budget_bytes, frames, **kwargs) -> None:
        self.channels, self.budget = channels, budget_bytes
        self.receiver = CreditReceiver(channels, budget_bytes, **kwargs)
        self.share = {c: self.receiver.share_bytes(c) for c in channels}
        assert all(1 <= share <= max(1, budget_bytes // (2 * len(channels))) for share in self.share.values())
        self.float_limit = self.receiver.floating
        self.senders = {c: CreditSender() for c in channels}
        self.unsent = {c: deque(frames[c]) for c in channels}
        self.largest = {c: max(frames[c], default=0) for c in channels}
        self.flying = {c: deque() for c in channels}
        self.queued = {c: deque() for c in channels}
        self.credits = {c: deque() for c in channels}
        self.consumed = dict.fromkeys(channels, 0)
        self.stalled: set = set()
        self.obey(self.receiver.handle(GateOpened()))

    def obey(self, commands) -> None:
        for grant in commands:
            assert (grant.batches, grant.nbytes) > (0, 0) or grant.nbytes > 0
            self.credits[grant.channel].append(grant)

    def act(self, action: str, c) -> bool:
        """Do one thing to channel `c`; return whether there was anything to do."""
        if action in ("stop", "resume"):
            self.obey(self.receiver.handle(FloatingStopped() if action == "stop" else FloatingResumed()))
        elif action == "send" and self.unsent[c] and self.senders[c].can_send():
            nbytes = self.unsent[c].popleft()
            self.senders[c].handle(FrameSent(nbytes))
            self.flying[c].append((nbytes, len(self.unsent[c])))
        elif action == "receive" and self.flying[c]:
            nbytes, backlog = self.flying[c].popleft()
            self.queued[c].append(nbytes)
            self.obey(self.receiver.handle(FrameReceived(c, nbytes, backlog)))
        elif action == "consume" and self.queued[c] and c not in self.stalled:
            self.consumed[c] += 1
            self.obey(self.receiver.handle(FrameConsumed(c, self.queued[c].popleft())))
        elif action == "credit" and self.credits[c]:
            grant = self.credits[c].popleft()
            self.senders[c].handle(CreditGranted(grant.batches, grant.nbytes))
        else:
            return False
        self.check(c)
        return True

    def check(self, c) -> None:
        granted, floating = self.receiver.granted(c), self.receiver.floating
        balance = self.senders[c].outstanding
        # Conservation: what the receiver believes granted is at the sender, or under way either way.
        assert granted.batches == balance.batches + len(self.flying[c]) + sum(
            g.batches for g in self.credits[c]
        )
        in_flight = sum(n for n, _ in self.flying[c])
        assert granted.nbytes == balance.nbytes + in_flight + sum(g.nbytes for g in self.credits[c])
        assert self.receiver.queued(c) == Credit(len(self.queued[c]), sum(self.queued[c]))
        assert granted.batches >= 0  # 1
        assert granted.nbytes <= self.share[c]  # 2
        assert floating.batches >= 0  # 3
        assert floating.nbytes >= 0
        over = [self.receiver.granted(x).nbytes + sum(self.queued[x]) - self.share[x] for x in self.channels]
        assert floating.nbytes == self.float_limit.nbytes - sum(max(0, o) for o in over)
        memory = sum(sum(q) for q in self.queued.values()) + sum(
            n for f in self.flying.values() for n, _ in f
        )
        assert memory <= self.budget + sum(self.largest.values())
        if not self.queued[c]:
            assert granted.nbytes > 0  # 5
            assert granted.batches >= 1
            assert max(0, granted.nbytes - self.share[c]) == 0  # 4

    def run_dry(self, order: Random) -> None:
        """Do everything there is to do, until nothing is left."""
        todo = [(a, c) for a in ("send", "receive", "consume", "credit") for c in self.channels]
        progressed = True
        while progressed:
            order.shuffle(todo)
            progressed = any([self.act(action, c) for action, c in todo])


LINKS = st.tuples(
    st.integers(1, 6),  # channels
    st.integers(6, 3000),  # budget
    st.integers(1, 5),  # exclusive batches
    st.integers(0, 8),  # floating batches
    st.sampled_from([0, 1, 40, 400, 4000]),  # largest frame
    st.integers(0, 2**32),
)


@given(LINKS)
def test_over_any_link_nothing_deadlocks_and_memory_stays_within_the_budget(channels, case):
    width, budget, exclusive, floating, largest, seed = case
    order, inputs = Random(seed), channels(width)
    frames = {c: [order.randint(0, largest) for _ in range(order.randint(0, 25))] for c in inputs}
    most = {c: order.randint(1, 2 * budget) for c in inputs if order.random() < 0.5}
    link = Link(
        inputs, budget, frames, exclusive_batches=exclusive, floating_batches=floating, most_bytes=most
    )
    actions = ["send", "receive", "consume", "credit"] * 5 + ["send"] * 5 + ["stop", "resume"]
    for _ in range(300):
        link.act(order.choice(actions), order.choice(inputs))
    link.run_dry(order)
    assert link.consumed == {c: len(frames[c]) for c in inputs}
    assert all(sender.can_send() for sender in link.senders.values())
    assert link.receiver.floating == link.float_limit


@given(LINKS)
def test_stalled_channels_do_not_stop_the_others(channels, case):
    width, budget, exclusive, floating, largest, seed = case
    order, inputs = Random(seed), channels(width)
    frames = {c: [order.randint(0, largest) for _ in range(25)] for c in inputs}
    link = Link(inputs, budget, frames, exclusive_batches=exclusive, floating_batches=floating)
    link.stalled = {c for c in inputs if order.random() < 0.5}
    link.run_dry(order)
    for c in inputs:
        assert link.consumed[c] == (0 if c in link.stalled else 25)
    link.stalled = set()
    link.run_dry(order)
    assert set(link.consumed.values()) == {25}


def test_128_channels_on_a_budget_smaller_than_one_frame_all_finish(channels):
    inputs = channels(128)
    link = Link(inputs, 200, {c: [4096] * 3 for c in inputs})
    link.run_dry(Random(1))
    assert set(link.consumed.values()) == {3}
    assert link.receiver.floating == link.float_limit
