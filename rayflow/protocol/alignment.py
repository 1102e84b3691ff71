"""Barriers of checkpoints at a task's inputs and outputs: when it may snapshot, and what has to be recorded.

Theory of operation (Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015; Flink's
FLIP-76 for what overtakes). A barrier separates, on each channel, what belongs to a checkpoint from what comes after.

*Aligned.* A channel whose barrier has come is blocked until the barriers of all channels have come; at that moment
everything before the checkpoint, and nothing after it, has been processed: the task snapshots and goes on. Ended
channels carry no rows but still deliver barriers, so they count.

*Unaligned.* Under back-pressure barriers wait behind rows that nobody takes. So the task may *switch*: it snapshots at
once, and what stands before the barriers on the channels that are not blocked is recorded as part of the checkpoint,
and processed after it: what is queued, and what still arrives until the channel's barrier does. When that is
everywhere, the snapshot is whole. The barriers of that snapshot leave ahead of all that is queued at the outputs,
which is recorded likewise.

A barrier's kind says when. ALIGNED: never (savepoints, final checkpoints, and all where the job does not want it).
TIMED: when the task has known of the checkpoint for `timeout_ms`. URGENT: at once, for it has overtaken others;
the kind spreads. *Pinned* channels (broadcasts: their rows must have had the same effect in all subtasks) record
nothing: the switch waits until their barriers have come in line.

Several aligned checkpoints may be in flight, but only one that may switch; and any of them may be cancelled at any
time, or never reach some channel because a producer heard of its end first. On each channel barriers come in the order
of their numbers. So a barrier newer than what is under way proves that the older checkpoint will not complete
here: it is abandoned. Whatever is not newer than the last alignment that ended, or was cancelled, is ignored.

Invariants:

1. On each channel, barrier numbers strictly grow.
2. A blocked channel delivers nothing, hence no barrier.
3. A channel is blocked exactly while an alignment is under way and its barrier has come in line.
4. Snapshots start in the order of their numbers, at most once each: aligned ones with the barriers of all
   channels; others only where a barrier allowed it, and with those of all pinned channels.
5. No snapshot starts for a checkpoint after it was cancelled or abandoned, and no recording is finished.
6. While no alignment is under way no channel is blocked; with one channel none ever is.
7. Recording goes on exactly on the channels whose barrier a snapshot that was started has yet to get; it is finished
   when there are none.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.protocol.unhandled import unhandled


class BarrierKind(enum.IntEnum):
    """Whether the barrier of a checkpoint may be followed by a switch; see the module's theory."""

    ALIGNED = 0
    TIMED = 1
    URGENT = 2


@dataclass(frozen=True, slots=True)
class BarrierAnnounced:
    """The barrier arrived; rows may be queued before it. Need not be told of ALIGNED ones."""

    channel: ChannelId
    checkpoint_id: CheckpointId
    kind: BarrierKind
    now_ms: int


@dataclass(frozen=True, slots=True)
class BarrierArrived:
    """The barrier is next in line on the channel: everything before it has been processed."""

    channel: ChannelId
    checkpoint_id: CheckpointId
    now_ms: int


@dataclass(frozen=True, slots=True)
class TimePassed:
    """Due at `deadline_ms`."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class CheckpointCancelled:
    """The coordinator aborted the checkpoint. Harmless when told twice, or late."""

    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class BlockChannel:
    """Take nothing more from the channel until it is unblocked."""

    channel: ChannelId


@dataclass(frozen=True, slots=True)
class UnblockChannels:
    """Take from these channels again."""

    channels: tuple[ChannelId, ...]


@dataclass(frozen=True, slots=True)
class StartSnapshot:
    """Snapshot now, and forward the barrier, of that kind: an URGENT one ahead of all that is queued.
    `alignment_ms`: from the first barrier until now. With `recording`, `RecordChannel`s follow, and at last, unless it
    is abandoned, `FinishRecording`; without, the snapshot has all that it needs of the inputs."""

    checkpoint_id: CheckpointId
    alignment_ms: int
    kind: BarrierKind = BarrierKind.ALIGNED
    recording: bool = False


@dataclass(frozen=True, slots=True)
class RecordChannel:
    """Add to the snapshot what is queued on the channel before the checkpoint's barrier, and take that barrier
    out; where it has not come, go on recording what arrives until `StopRecording`."""

    channel: ChannelId
    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class StopRecording:
    """The barrier that was just announced ends the recording of the channel, and has no other effect."""

    channel: ChannelId


@dataclass(frozen=True, slots=True)
class FinishRecording:
    """The snapshot has all that it needs of the inputs. `alignment_ms`: from the first barrier to the last."""

    checkpoint_id: CheckpointId
    alignment_ms: int


@dataclass(frozen=True, slots=True)
class AbandonCheckpoint:
    """The checkpoint cannot complete here; the coordinator may be told so. Stop recording for it."""

    checkpoint_id: CheckpointId


AlignmentEvent = BarrierAnnounced | BarrierArrived | TimePassed | CheckpointCancelled
AlignmentCommand = (
    BlockChannel
    | UnblockChannels
    | StartSnapshot
    | RecordChannel
    | StopRecording
    | FinishRecording
    | AbandonCheckpoint
)
_Commands = tuple[AlignmentCommand, ...]


@dataclass(slots=True)
class _Recording:
    """A snapshot that was started before the barriers of `waiting` (a dict for its order) had come."""

    id: CheckpointId
    since_ms: int
    waiting: dict[ChannelId, None]


class BarrierAligner:
    """Aligns the barriers of one task's input channels (at least one, not empty), or lets it switch."""

    def __init__(
        self,
        channels: Sequence[ChannelId],
        *,
        timeout_ms: int = 0,
        pinned: Collection[ChannelId] = (),
    ) -> None:
        self._timeout_ms = timeout_ms
        self._pinned = tuple(channel for channel in channels if channel in pinned)
        # The newest barrier of each channel that was in line, and the newest announced. One that was announced and
        # taken out of the line may be followed in line by older ones, which are settled by then.
        self._last_barrier = dict.fromkeys(channels, CheckpointId(0))
        self._announced = dict.fromkeys(channels, CheckpointId(0))
        self._aligning: CheckpointId | None = None
        self._kind = BarrierKind.ALIGNED
        self._since_ms = 0
        # The channels that announced the barrier of the alignment under way.
        self._heard: set[ChannelId] = set()
        # A dict for its order. Its keys are the blocked channels (invariant 3).
        self._blocked: dict[ChannelId, None] = {}
        self._recording: _Recording | None = None
        # Checkpoints up to here have been snapshotted, cancelled or abandoned here.
        self._settled = CheckpointId(0)
        # Cancelled ones above that: at most as many as were aborted before any barrier of theirs came.
        self._cancelled: set[CheckpointId] = set()

    @property
    def aligning(self) -> CheckpointId | None:
        """The checkpoint whose alignment is under way."""
        return self._aligning

    @property
    def recording(self) -> CheckpointId | None:
        """The checkpoint whose snapshot was started and has yet to get barriers."""
        return None if self._recording is None else self._recording.id

    @property
    def since_ms(self) -> int | None:
        """When the first barrier of the alignment under way came, None without one."""
        return None if self._aligning is None else self._since_ms

    @property
    def deadline_ms(self) -> int | None:
        """When the alignment under way may be given up, None if never."""
        if self._aligning is None or self._kind is not BarrierKind.TIMED:
            return None
        return self._since_ms + self._timeout_ms

    @property
    def blocked(self) -> tuple[ChannelId, ...]:
        """The channels that are held back, in the order in which their barriers came."""
        return tuple(self._blocked)

    def handle(self, event: AlignmentEvent) -> tuple[AlignmentCommand, ...]:
        """Take note of `event`; return what to do, in order."""
        match event:
            case BarrierArrived():
                return self._on_barrier(event)
            case BarrierAnnounced():
                return self._on_announced(event)
            case TimePassed():
                deadline_ms = self.deadline_ms
                if deadline_ms is None or event.now_ms < deadline_ms:
                    return ()
                self._kind = BarrierKind.URGENT
                return self._switch(event.now_ms)
            case CheckpointCancelled():
                return self._on_cancelled(event.checkpoint_id)
            case _:
                unhandled(event)

    # ------------------------------------------------------------------------------- in line

    def _on_barrier(self, event: BarrierArrived) -> _Commands:
        self._check(event)
        self._last_barrier[event.channel] = event.checkpoint_id
        if event.checkpoint_id <= self._settled:
            return ()
        commands = self._begin(event.checkpoint_id, event.now_ms)
        if event.checkpoint_id != self._aligning:
            return commands  # it was cancelled
        if len(self._blocked) + 1 < len(self._last_barrier):
            self._blocked[event.channel] = None
            return (*commands, BlockChannel(event.channel), *self._switch(event.now_ms))
        return (*commands, self._start(event.now_ms), *self._unblock())

    def _begin(self, checkpoint_id: CheckpointId, now_ms: int) -> _Commands:
        """Make a checkpoint that is not settled the one that is aligned, unless it was cancelled."""
        if checkpoint_id == self._aligning:
            return ()
        # A newer one, for older ones are settled. This channel will not deliver older ones any more.
        commands = (*self._abandon_recording(), *self._abandon_alignment())
        cancelled = checkpoint_id in self._cancelled
        self._settle(checkpoint_id if cancelled else CheckpointId(checkpoint_id - 1))
        if not cancelled:
            self._aligning, self._since_ms, self._kind = checkpoint_id, now_ms, BarrierKind.ALIGNED
            self._heard = set()
        return commands

    def _start(self, now_ms: int) -> StartSnapshot:
        assert self._aligning is not None
        alignment_ms = max(0, now_ms - self._since_ms)
        started = StartSnapshot(self._aligning, alignment_ms, self._kind)
        self._settle(self._aligning)
        return started

    # ------------------------------------------------------------------------------- out of line

    def _on_announced(self, event: BarrierAnnounced) -> _Commands:
        checkpoint_id, channel = event.checkpoint_id, event.channel
        last = self._announced.get(channel)
        if last is None or checkpoint_id <= last:
            raise ProtocolViolation(f"{event} after barrier {last} (invariant 1)")
        self._announced[channel] = checkpoint_id
        commands: _Commands = ()
        recording = self._recording
        if recording is not None and channel in recording.waiting:
            if checkpoint_id == recording.id:
                return self._stop_recording(recording, channel, event.now_ms)
            if checkpoint_id > recording.id:
                commands = self._abandon_recording()
        if self._kind is not BarrierKind.ALIGNED and self._is_skipped_by(event):
            commands = (*commands, *self._abandon_alignment())
            self._settle(CheckpointId(checkpoint_id - 1))
        if event.kind is BarrierKind.ALIGNED or checkpoint_id <= self._settled:
            return commands
        if self._aligning is not None and checkpoint_id < self._aligning:
            return commands
        commands = (*commands, *self._begin(checkpoint_id, event.now_ms))
        if checkpoint_id != self._aligning:
            return commands  # it was cancelled
        self._kind = max(self._kind, event.kind)
        self._heard.add(channel)
        return (*commands, *self._switch(event.now_ms))

    def _is_skipped_by(self, event: BarrierAnnounced) -> bool:
        """Whether the channel will not deliver the barrier of the alignment under way."""
        aligning = self._aligning
        return aligning is not None and event.checkpoint_id > aligning and event.channel not in self._heard

    def _switch(self, now_ms: int) -> _Commands:
        """Start the snapshot of the alignment under way before its barriers have come, if that may be."""
        checkpoint_id = self._aligning
        if checkpoint_id is None or self._kind is not BarrierKind.URGENT:
            return ()
        if any(channel not in self._blocked for channel in self._pinned):
            return ()
        since_ms = self._since_ms
        started = self._start(now_ms)
        open_channels = [channel for channel in self._last_barrier if channel not in self._blocked]
        waiting = [channel for channel in open_channels if channel not in self._heard]
        commands = (
            replace(started, recording=True),
            *(RecordChannel(channel, checkpoint_id) for channel in open_channels),
            *self._unblock(),
        )
        if not waiting:
            return (*commands, FinishRecording(checkpoint_id, started.alignment_ms))
        self._recording = _Recording(checkpoint_id, since_ms, dict.fromkeys(waiting))
        return commands

    def _stop_recording(self, recording: _Recording, channel: ChannelId, now_ms: int) -> _Commands:
        del recording.waiting[channel]
        if recording.waiting:
            return (StopRecording(channel),)
        self._recording = None
        alignment_ms = max(0, now_ms - recording.since_ms)
        return (StopRecording(channel), FinishRecording(recording.id, alignment_ms))

    # ------------------------------------------------------------------------------- ends

    def _on_cancelled(self, checkpoint_id: CheckpointId) -> _Commands:
        if checkpoint_id == self.recording:
            return self._abandon_recording()
        if checkpoint_id <= self._settled:
            return ()
        if checkpoint_id != self._aligning:
            # Older than the alignment under way would be settled: it is one whose barriers are to come.
            self._cancelled.add(checkpoint_id)
            return ()
        self._settle(checkpoint_id)
        return self._unblock()

    def _abandon_recording(self) -> _Commands:
        recording, self._recording = self._recording, None
        return () if recording is None else (AbandonCheckpoint(recording.id),)

    def _abandon_alignment(self) -> _Commands:
        return () if self._aligning is None else (AbandonCheckpoint(self._aligning), *self._unblock())

    def _check(self, event: BarrierArrived) -> None:
        last = self._last_barrier.get(event.channel)
        if last is None:
            raise ProtocolViolation(f"{event}: the task has no such input channel")
        if event.checkpoint_id <= last:
            raise ProtocolViolation(
                f"barrier {event.checkpoint_id} on {event.channel} after barrier {last} (invariant 1)"
            )
        if event.channel in self._blocked:
            raise ProtocolViolation(
                f"barrier {event.checkpoint_id} on {event.channel}, which is blocked for checkpoint "
                f"{self._aligning} (invariant 2)"
            )

    def _settle(self, checkpoint_id: CheckpointId) -> None:
        self._settled = max(self._settled, checkpoint_id)
        self._cancelled = {c for c in self._cancelled if c > self._settled}
        self._aligning = None

    def _unblock(self) -> _Commands:
        channels = tuple(self._blocked)
        self._blocked.clear()
        return (UnblockChannels(channels),) if channels else ()
