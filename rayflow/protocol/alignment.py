"""Barrier alignment: when a task with several input channels may snapshot.

Theory of operation (Carbone et al., "Lightweight Asynchronous Snapshots for Distributed Dataflows", 2015).
A barrier separates, on each channel, what belongs to a checkpoint from what comes after. A channel whose
barrier has come is blocked until the barriers of all channels have come; at that moment everything before the
checkpoint, and nothing after it, has been processed: the task snapshots and goes on. Ended channels carry no
rows but still deliver barriers, so they count.

Several checkpoints may be in flight, and any of them may be cancelled at any time, or never reach some
channel because a producer heard of its end first. On each channel barriers come in the order of their
numbers. So a barrier newer than the alignment under way proves that the older checkpoint will not complete
here: it is abandoned. Whatever is not newer than the last alignment that ended, or was cancelled, is
ignored.

Invariants:

1. On each channel, barrier numbers strictly grow.
2. A blocked channel delivers nothing, hence no barrier.
3. A channel is blocked exactly while an alignment is under way and its barrier has come.
4. Snapshots start in the order of their numbers, at most once each, and only with the barriers of all
   channels.
5. No snapshot starts for a checkpoint after it was cancelled or abandoned.
6. While no alignment is under way no channel is blocked; with one channel none ever is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True)
class BarrierArrived:
    """The barrier is next in line on the channel: everything before it has been processed."""

    channel: ChannelId
    checkpoint_id: CheckpointId
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
    """Snapshot now, and forward the barrier. `alignment_ms`: from the first barrier to the last."""

    checkpoint_id: CheckpointId
    alignment_ms: int


@dataclass(frozen=True, slots=True)
class AbandonCheckpoint:
    """The checkpoint cannot complete here; the coordinator may be told so."""

    checkpoint_id: CheckpointId


AlignmentEvent = BarrierArrived | CheckpointCancelled
AlignmentCommand = BlockChannel | UnblockChannels | StartSnapshot | AbandonCheckpoint


class BarrierAligner:
    """Aligns the barriers of one task's input channels (at least one, not empty)."""

    def __init__(self, channels: Sequence[ChannelId]) -> None:
        self._last_barrier = dict.fromkeys(channels, CheckpointId(0))
        self._aligning: CheckpointId | None = None
        self._since_ms = 0
        # A dict for its order. Its keys are the blocked channels (invariant 3).
        self._blocked: dict[ChannelId, None] = {}
        # Checkpoints up to here have been snapshotted, cancelled or abandoned here.
        self._settled = CheckpointId(0)
        # Cancelled ones above that: at most as many as were aborted before any barrier of theirs came.
        self._cancelled: set[CheckpointId] = set()

    @property
    def aligning(self) -> CheckpointId | None:
        """The checkpoint whose alignment is under way."""
        return self._aligning

    @property
    def since_ms(self) -> int | None:
        """When the first barrier of the alignment under way came, None without one."""
        return None if self._aligning is None else self._since_ms

    @property
    def blocked(self) -> tuple[ChannelId, ...]:
        """The channels that are held back, in the order in which their barriers came."""
        return tuple(self._blocked)

    def handle(self, event: AlignmentEvent) -> tuple[AlignmentCommand, ...]:
        """Take note of `event`; return what to do, in order."""
        match event:
            case BarrierArrived():
                return self._on_barrier(event)
            case CheckpointCancelled():
                return self._on_cancelled(event.checkpoint_id)
            case _:
                unhandled(event)

    def _on_barrier(self, event: BarrierArrived) -> tuple[AlignmentCommand, ...]:
        self._check(event)
        self._last_barrier[event.channel] = event.checkpoint_id
        if event.checkpoint_id <= self._settled:
            return ()
        commands: tuple[AlignmentCommand, ...] = ()
        if event.checkpoint_id != self._aligning:
            # A newer one, for older ones are settled. This channel will not deliver older ones any more.
            if self._aligning is not None:
                commands = (AbandonCheckpoint(self._aligning), *self._unblock())
            cancelled = event.checkpoint_id in self._cancelled
            self._settle(event.checkpoint_id if cancelled else CheckpointId(event.checkpoint_id - 1))
            if cancelled:
                return commands
            self._aligning = event.checkpoint_id
            self._since_ms = event.now_ms
        if len(self._blocked) + 1 < len(self._last_barrier):
            self._blocked[event.channel] = None
            return (*commands, BlockChannel(event.channel))
        snapshot = StartSnapshot(event.checkpoint_id, max(0, event.now_ms - self._since_ms))
        self._settle(event.checkpoint_id)
        return (*commands, snapshot, *self._unblock())

    def _on_cancelled(self, checkpoint_id: CheckpointId) -> tuple[AlignmentCommand, ...]:
        if checkpoint_id <= self._settled:
            return ()
        if checkpoint_id != self._aligning:
            # Older than the alignment under way would be settled: it is one whose barriers are to come.
            self._cancelled.add(checkpoint_id)
            return ()
        self._settle(checkpoint_id)
        return self._unblock()

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

    def _unblock(self) -> tuple[AlignmentCommand, ...]:
        channels = tuple(self._blocked)
        self._blocked.clear()
        return (UnblockChannels(channels),) if channels else ()
