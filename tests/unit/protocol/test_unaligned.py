"""Switching from aligned to unaligned: `protocol.alignment` beyond the aligned case, and `protocol.departures`."""

from __future__ import annotations

from collections import deque

from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.protocol.alignment import (
    AbandonCheckpoint,
    BarrierAligner,
    BarrierAnnounced,
    BarrierArrived,
    BarrierKind,
    BlockChannel,
    CheckpointCancelled,
    FinishRecording,
    RecordChannel,
    StartSnapshot,
    StopRecording,
    TimePassed,
    UnblockChannels,
)
from rayflow.protocol.departures import (
    AllBarriersLeft,
    BarrierDepartures,
    BarrierLeft,
    BarriersQueued,
    Overtake,
)

ALIGNED, TIMED, URGENT = BarrierKind.ALIGNED, BarrierKind.TIMED, BarrierKind.URGENT


def test_an_urgent_barrier_starts_the_snapshot_at_once_and_the_other_channels_are_recorded(channels):
    # a: ……1   b: …………1
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    assert aligner.handle(BarrierAnnounced(a, 1, URGENT, 100)) == (
        StartSnapshot(1, 0, URGENT, recording=True),
        RecordChannel(a, 1),
        RecordChannel(b, 1),
    )
    assert (aligner.recording, aligner.aligning) == (1, None)
    assert aligner.handle(BarrierAnnounced(b, 1, URGENT, 130)) == (StopRecording(b), FinishRecording(1, 30))
    assert aligner.recording is None


def test_a_timed_alignment_switches_when_its_time_is_over(channels):
    a, b, c = channels(3)
    aligner = BarrierAligner((a, b, c), timeout_ms=50)
    assert aligner.handle(BarrierAnnounced(a, 1, TIMED, 100)) == ()
    assert aligner.handle(BarrierArrived(a, 1, 110)) == (BlockChannel(a),)
    assert aligner.handle(BarrierAnnounced(b, 1, TIMED, 120)) == ()
    assert aligner.deadline_ms == 150
    assert aligner.handle(TimePassed(149)) == ()
    # a is done, b has its barrier in the queue, c has none yet.
    assert aligner.handle(TimePassed(150)) == (
        StartSnapshot(1, 50, URGENT, recording=True),
        RecordChannel(b, 1),
        RecordChannel(c, 1),
        UnblockChannels((a,)),
    )
    assert aligner.deadline_ms is None
    assert aligner.handle(BarrierAnnounced(c, 1, TIMED, 170)) == (StopRecording(c), FinishRecording(1, 70))


def test_a_timed_alignment_that_is_quick_stays_aligned(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b), timeout_ms=50)
    for channel in (a, b):
        aligner.handle(BarrierAnnounced(channel, 1, TIMED, 100))
    assert aligner.handle(BarrierArrived(a, 1, 110)) == (BlockChannel(a),)
    assert aligner.handle(BarrierArrived(b, 1, 120)) == (StartSnapshot(1, 20, TIMED), UnblockChannels((a,)))
    assert aligner.handle(TimePassed(1_000)) == ()


def test_barriers_of_a_savepoint_never_switch(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b), timeout_ms=50)
    assert aligner.handle(BarrierAnnounced(a, 1, ALIGNED, 0)) == ()
    assert aligner.handle(BarrierArrived(a, 1, 0)) == (BlockChannel(a),)
    assert (aligner.deadline_ms, aligner.handle(TimePassed(1_000_000))) == (None, ())


def test_the_switch_waits_for_pinned_channels_to_come_in_line(channels):
    a, b, pinned = channels(3)
    aligner = BarrierAligner((a, b, pinned), pinned={pinned})
    assert aligner.handle(BarrierAnnounced(a, 1, URGENT, 0)) == ()
    assert aligner.handle(BarrierAnnounced(pinned, 1, URGENT, 5)) == ()
    assert aligner.handle(BarrierArrived(pinned, 1, 9)) == (
        BlockChannel(pinned),
        StartSnapshot(1, 9, URGENT, recording=True),
        RecordChannel(a, 1),
        RecordChannel(b, 1),
        UnblockChannels((pinned,)),
    )
    assert aligner.handle(BarrierAnnounced(b, 1, URGENT, 11)) == (StopRecording(b), FinishRecording(1, 11))


def test_a_cancelled_recording_stops_and_its_late_barriers_are_ignored(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierAnnounced(a, 1, URGENT, 0))
    assert aligner.handle(CheckpointCancelled(1)) == (AbandonCheckpoint(1),)
    assert aligner.handle(CheckpointCancelled(1)) == ()
    assert aligner.handle(BarrierAnnounced(b, 1, URGENT, 5)) == ()
    assert aligner.handle(BarrierArrived(b, 1, 6)) == ()


def test_a_newer_barrier_abandons_the_recording_under_way(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierAnnounced(a, 1, URGENT, 0))
    # b's producer heard of the end of 1 before it sent its barrier.
    assert aligner.handle(BarrierAnnounced(b, 2, URGENT, 9)) == (
        AbandonCheckpoint(1),
        StartSnapshot(2, 0, URGENT, recording=True),
        RecordChannel(a, 2),
        RecordChannel(b, 2),
    )
    assert aligner.handle(BarrierAnnounced(a, 2, URGENT, 9)) == (StopRecording(a), FinishRecording(2, 0))


def test_a_savepoint_behind_a_cancelled_recording_ends_it(channels):
    a, b = channels(2)
    aligner = BarrierAligner((a, b))
    aligner.handle(BarrierAnnounced(a, 1, URGENT, 0))
    assert aligner.handle(BarrierAnnounced(b, 2, ALIGNED, 9)) == (AbandonCheckpoint(1),)


def test_barriers_are_announced_in_order(channels, refused):
    (a,) = channels(1)
    aligner = BarrierAligner((a,))
    aligner.handle(BarrierAnnounced(a, 2, TIMED, 0))
    refused(aligner, BarrierAnnounced(a, 2, TIMED, 0), "invariant 1")


def test_barriers_that_are_stuck_at_outputs_overtake_when_time_is_over(channels):
    a, b, c = channels(3)
    machine = BarrierDepartures(timeout_ms=50)
    assert machine.handle(BarriersQueued(1, (a, b, c), 100)) == ()
    assert machine.handle(BarrierLeft(b, 1)) == ()
    assert machine.deadline_ms == 150
    assert machine.handle(TimePassed(149)) == ()
    assert machine.handle(TimePassed(150)) == (Overtake(a, 1), Overtake(c, 1), AllBarriersLeft(1))
    assert (machine.handle(TimePassed(200)), machine.deadline_ms) == ((), None)


def test_barriers_that_left_at_once_or_one_after_the_other_make_the_snapshot_whole_once(channels):
    a, b = channels(2)
    machine = BarrierDepartures(timeout_ms=50)
    assert machine.handle(BarriersQueued(1, (), 0)) == (AllBarriersLeft(1),)
    machine.handle(BarriersQueued(2, (a, b), 0))
    assert machine.handle(BarrierLeft(a, 1)) == ()
    assert machine.handle(BarrierLeft(a, 2)) == ()
    assert machine.handle(BarrierLeft(b, 2)) == (AllBarriersLeft(2),)
    assert machine.handle(BarrierLeft(b, 2)) == ()


def test_departures_of_a_cancelled_checkpoint_say_nothing(channels):
    (a,) = channels(1)
    machine = BarrierDepartures(timeout_ms=50)
    machine.handle(BarriersQueued(1, (a,), 0))
    machine.handle(CheckpointCancelled(1))
    assert machine.handle(TimePassed(99)) == ()
    assert machine.handle(BarrierLeft(a, 1)) == ()


class Gate:
    """A gate in the small: queues of rows (numbers) and barriers, whatever the aligner asks for, and what each
    snapshot consists of: rows processed before it, and rows recorded."""

    def __init__(self, inputs, aligner):
        self.aligner = aligner
        self.queues = {c: deque() for c in inputs}
        self.blocked, self.recorded, self.recording = set(), {c: [] for c in inputs}, None
        self.processed = {c: [] for c in inputs}
        self.open_channels, self.snapshots, self.whole = set(), {}, []

    def obey(self, commands):
        for command in commands:
            match command:
                case BlockChannel(c):
                    self.blocked.add(c)
                case UnblockChannels(cs):
                    self.blocked -= set(cs)
                case StartSnapshot(number, _, _, recording):
                    self.snapshots[number] = {c: list(rows) for c, rows in self.processed.items()}
                    self.recorded = {c: [] for c in self.queues}
                    if not recording:
                        self.whole.append(number)
                case RecordChannel(c, number):
                    queue = self.queues[c]
                    if ("barrier", number) in queue:
                        at = queue.index(("barrier", number))
                        self.recorded[c] = [x for x in list(queue)[:at] if isinstance(x, int)]
                        del queue[at]
                    else:
                        self.recorded[c] = [x for x in queue if isinstance(x, int)]
                        self.open_channels.add(c)
                case StopRecording(c):
                    assert self.queues[c].pop()[0] == "barrier"
                    self.open_channels.remove(c)
                case FinishRecording(number):
                    assert not self.open_channels
                    for c, rows in self.recorded.items():
                        self.snapshots[number][c] += rows
                    self.whole.append(number)
                case AbandonCheckpoint():
                    self.open_channels.clear()


@settings(max_examples=50, deadline=None)
@given(st.data(), st.integers(1, 3), st.integers(1, 3), st.booleans())
def test_whatever_is_processed_before_or_recorded_is_exactly_what_came_before_the_barriers(
    channels, data, width, checkpoints, with_pinned
):
    inputs = channels(width)
    pinned = {inputs[-1]} if with_pinned else set()
    aligner = BarrierAligner(inputs, timeout_ms=3, pinned=pinned)
    gate = Gate(inputs, aligner)
    kinds = {n: data.draw(st.sampled_from([ALIGNED, TIMED, URGENT])) for n in range(1, checkpoints + 1)}
    streams, before = {}, {c: {} for c in inputs}
    for c in inputs:
        stream, number = deque(), 0
        for checkpoint in range(1, checkpoints + 1):
            for _ in range(data.draw(st.integers(0, 3))):
                stream.append(number)
                number += 1
            if data.draw(st.integers(0, 9)) > 0:  # else its producer heard that it was aborted
                stream.append(("barrier", checkpoint))
                before[c][checkpoint] = list(range(number))
        streams[c] = stream
    cancelled, now_ms = set(), 0
    for now_ms in range(120):
        actions = [("arrive", c) for c in inputs if streams[c]]
        actions += [("process", c) for c in inputs if gate.queues[c] and c not in gate.blocked]
        if not actions and aligner.deadline_ms is None:
            break
        action, c = data.draw(st.sampled_from([*actions, ("tick", None), ("cancel", None)]))
        if action == "arrive":
            item = streams[c].popleft()
            gate.queues[c].append(item)
            if isinstance(item, tuple):
                gate.obey(aligner.handle(BarrierAnnounced(c, item[1], kinds[item[1]], now_ms)))
            elif c in gate.open_channels:
                gate.recorded[c].append(item)
        elif action == "process":
            item = gate.queues[c].popleft()
            if isinstance(item, tuple):
                gate.obey(aligner.handle(BarrierArrived(c, item[1], now_ms)))
            else:
                gate.processed[c].append(item)
        elif action == "tick":
            gate.obey(aligner.handle(TimePassed(now_ms)))
        elif data.draw(st.integers(0, 4)) == 0:
            number = data.draw(st.integers(1, checkpoints))
            cancelled.add(number) if number not in gate.whole else None
            gate.obey(aligner.handle(CheckpointCancelled(number)))
        assert bool(gate.open_channels) == (aligner.recording is not None)
        assert gate.blocked == set(aligner.blocked)
    assert gate.whole == sorted(set(gate.whole))
    for number in gate.whole:
        assert number not in cancelled
        assert gate.snapshots[number] == {c: before[c][number] for c in inputs}
    for c in pinned:
        assert not gate.open_channels & {c}
