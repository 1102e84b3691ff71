from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rayflow.protocol.alignment import (
    AbandonCheckpoint,
    BarrierAligner,
    BarrierArrived,
    BlockChannel,
    CheckpointCancelled,
    StartSnapshot,
    UnblockChannels,
)


def test_channel_is_blocked_until_all_barriers_have_come(channels):
    # a: …|1·   b: ……|1·   c: ……………|1·
    a, b, c = channels(3)
    aligner = BarrierAligner((a, b, c))
    assert aligner.handle(BarrierArrived(a, 1, 1000)) == (BlockChannel(a),)
    assert aligner.handle(BarrierArrived(b, 1, 1010)) == (BlockChannel(b),)
    assert (aligner.aligning, aligner.since_ms, aligner.blocked) == (1, 1000, (a, b))
    assert aligner.handle(BarrierArrived(c, 1, 1050)) == (StartSnapshot(1, 50), UnblockChannels((a, b)))
    assert (aligner.aligning, aligner.since_ms, aligner.blocked) == (None, None, ())


def test_single_channel_is_never_blocked(channels):
    (a,) = channels(1)
    aligner = BarrierAligner((a,))
    assert aligner.handle(BarrierArrived(a, 1, 0)) == (StartSnapshot(1, 0),)
    assert aligner.handle(BarrierArrived(a, 2, 5)) == (StartSnapshot(2, 0),)


def test_cancelled_checkpoint_lets_its_channels_go_and_its_late_barriers_are_ignored(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierArrived(a, 1, 0))
    assert aligner.handle(CheckpointCancelled(1)) == (UnblockChannels((a,)),)
    assert aligner.handle(BarrierArrived(b, 1, 9)) == ()
    assert aligner.handle(CheckpointCancelled(1)) == ()


def test_checkpoint_cancelled_before_its_first_barrier_never_starts(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    assert aligner.handle(CheckpointCancelled(2)) == ()
    assert aligner.handle(BarrierArrived(a, 1, 0)) == (BlockChannel(a),)
    assert aligner.handle(BarrierArrived(b, 1, 3)) == (StartSnapshot(1, 3), UnblockChannels((a,)))
    assert aligner.handle(BarrierArrived(a, 2, 4)) == ()
    assert aligner.handle(BarrierArrived(b, 2, 5)) == ()


def test_newer_barrier_abandons_the_alignment_under_way(channels):
    # Checkpoint 1 was cancelled before b's producer sent its barrier: b goes straight to 2.
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierArrived(a, 1, 0))
    assert aligner.handle(BarrierArrived(b, 2, 1)) == (
        AbandonCheckpoint(1),
        UnblockChannels((a,)),
        BlockChannel(b),
    )
    assert aligner.handle(BarrierArrived(a, 2, 8)) == (StartSnapshot(2, 7), UnblockChannels((b,)))


def test_newer_barrier_of_a_cancelled_checkpoint_abandons_too(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierArrived(a, 1, 0))
    aligner.handle(CheckpointCancelled(2))
    assert aligner.handle(BarrierArrived(b, 2, 1)) == (AbandonCheckpoint(1), UnblockChannels((a,)))
    assert aligner.aligning is None


def test_clock_that_was_set_back_gives_no_negative_alignment(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierArrived(a, 1, 1000))
    assert aligner.handle(BarrierArrived(b, 1, 400))[0] == StartSnapshot(1, 0)


def test_blocked_channel_delivers_nothing(channels, refused):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierArrived(a, 1, 0))
    refused(aligner, BarrierArrived(a, 2, 0), "invariant 2")


def test_barriers_of_a_channel_never_repeat_or_go_back(channels, refused):
    (a,) = channels(1)
    aligner = BarrierAligner((a,))
    aligner.handle(BarrierArrived(a, 2, 0))
    refused(aligner, BarrierArrived(a, 2, 0), "invariant 1")
    refused(aligner, BarrierArrived(a, 1, 0), "invariant 1")


def test_unknown_channel_is_refused(channels, refused):
    a, b = channels(2)
    refused(BarrierAligner((a,)), BarrierArrived(b, 1, 0), "no such input channel")


@given(st.data(), st.integers(1, 4), st.integers(1, 6))
def test_any_interleaving_of_barriers_and_cancellations_equals_the_naive_model(
    channels, data, width, checkpoints
):
    """Naive: nothing but the newest barrier delivered counts. It is aligning unless cancelled or complete, and
    blocks the channels that delivered it; it is complete when all have."""
    inputs = channels(width)
    aligner = BarrierAligner(inputs)
    to_come = {
        c: sorted(data.draw(st.sets(st.integers(1, checkpoints), min_size=checkpoints // 2))) for c in inputs
    }
    last, cancelled, started, blocked = dict.fromkeys(inputs, 0), set(), [], set()
    for now_ms in range(5 * width * checkpoints):
        ready = [c for c in inputs if c not in blocked and to_come[c]]
        cancel = data.draw(st.integers(0, 4)) == 0
        if not cancel and not ready:
            break
        before = max(last.values())
        if cancel:
            event = CheckpointCancelled(data.draw(st.integers(1, checkpoints)))
            cancelled.add(event.checkpoint_id)
        else:
            channel = data.draw(st.sampled_from(ready))
            event = BarrierArrived(channel, to_come[channel].pop(0), now_ms)
            last[channel] = event.checkpoint_id
        commands = aligner.handle(event)
        for command in commands:
            match command:
                case BlockChannel(channel):
                    assert channel not in blocked
                    blocked.add(channel)
                case UnblockChannels(released):
                    assert set(released) <= blocked
                    blocked -= set(released)
                case AbandonCheckpoint(checkpoint_id):
                    assert checkpoint_id == before < max(last.values())
                case StartSnapshot(checkpoint_id):
                    started.append(checkpoint_id)
        newest = max(last.values())
        complete = not cancel and all(seen == newest for seen in last.values()) and newest not in cancelled
        assert any(isinstance(c, StartSnapshot) for c in commands) == complete
        aligning = newest > 0 and newest not in cancelled and newest not in started
        assert aligner.aligning == (newest if aligning else None)
        assert blocked == set(aligner.blocked) == {c for c in inputs if aligning and last[c] == newest}
        assert started == sorted(set(started))
