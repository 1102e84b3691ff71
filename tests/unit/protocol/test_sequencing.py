from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.sequencing import Accept, AttemptFence, ChannelSequence, DropDuplicate, FrameArrived


def test_messages_of_older_attempts_are_turned_away_and_counted():
    fence = AttemptFence(2)
    assert fence.accepts(2)
    assert not fence.accepts(1)
    assert not fence.accepts(1)
    assert fence.stale == 2


def test_newer_attempt_is_a_violation_until_the_fence_was_advanced():
    fence = AttemptFence(1)
    with pytest.raises(ProtocolViolation):
        fence.accepts(2)
    fence.advance(2)
    assert fence.accepts(2)
    assert not fence.accepts(1)
    assert (fence.attempt, fence.stale) == (2, 1)


@pytest.mark.parametrize("attempt", [1, 2])
def test_attempt_never_goes_back(attempt):
    fence = AttemptFence(2)
    with pytest.raises(ProtocolViolation, match="invariant 1"):
        fence.advance(attempt)


def test_gap_is_a_violation_and_the_missing_frame_may_still_come(channels, refused):
    sequence = ChannelSequence(channels(1)[0])
    sequence.handle(FrameArrived(0))
    refused(sequence, FrameArrived(2), "invariant 3")
    refused(sequence, FrameArrived(-1), "invariant 3")
    assert sequence.handle(FrameArrived(1)) == (Accept(),)


@given(st.lists(st.integers(0, 3), max_size=50))
def test_each_frame_is_accepted_once_in_order_however_often_older_ones_repeat(channels, repeats):
    sequence, accepted = ChannelSequence(channels(1)[0]), []
    for next_seq, back in enumerate(repeats):
        for seq in [*range(max(0, next_seq - back), next_seq), next_seq]:
            match sequence.handle(FrameArrived(seq)):
                case (Accept(),):
                    accepted.append(seq)
                case (DropDuplicate(),):
                    assert seq in accepted
    assert accepted == list(range(len(repeats))) == list(range(sequence.expected))
