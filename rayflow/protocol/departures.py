"""Barriers at a task's outputs: when those of a snapshot overtake what is queued, and when all have left.

Theory of operation. The barriers of an aligned snapshot queue behind the rows that were emitted before it. Of a TIMED
one they may be stuck there, where consumers give no credit: when the task has known of the checkpoint for
`timeout_ms`, each overtakes what is queued on its channel, which is recorded as part of the snapshot. (The barriers of
a snapshot that switched overtake at once: see `protocol.alignment`.) Until the last has left, nobody knows what will
have to be recorded, so the snapshot is not whole.

Invariants:

1. One checkpoint at a time: a newer one ends the wait for an older one, which will not complete.
2. `AllBarriersLeft` is said once, when every channel waited for has been told of, or was told to overtake; never
   after the checkpoint was cancelled.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.protocol.alignment import CheckpointCancelled, TimePassed
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True)
class BarriersQueued:
    """The barriers of a TIMED snapshot wait in the queues of `channels` (perhaps none), on none of which it could
    not overtake. `since_ms`: when the task came to know of the checkpoint."""

    checkpoint_id: CheckpointId
    channels: tuple[ChannelId, ...]
    since_ms: int


@dataclass(frozen=True, slots=True)
class BarrierLeft:
    """The barrier has left its queue."""

    channel: ChannelId
    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class Overtake:
    """Let the checkpoint's barrier go ahead of what is queued on the channel, and record that."""

    channel: ChannelId
    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class AllBarriersLeft:
    """The snapshot has all that it needs of the outputs."""

    checkpoint_id: CheckpointId


DepartureEvent = BarriersQueued | BarrierLeft | TimePassed | CheckpointCancelled
DepartureCommand = Overtake | AllBarriersLeft
_Commands = tuple[DepartureCommand, ...]


class BarrierDepartures:
    """Watches the barriers that wait at the outputs of one task."""

    def __init__(self, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._checkpoint_id: CheckpointId | None = None
        self._since_ms = 0
        # A dict for its order.
        self._waiting: dict[ChannelId, None] = {}

    @property
    def waiting(self) -> tuple[ChannelId, ...]:
        """The channels whose barrier has not left."""
        return tuple(self._waiting)

    @property
    def checkpoint_id(self) -> CheckpointId | None:
        """The checkpoint whose barriers have not all left, None without one."""
        return self._checkpoint_id

    @property
    def deadline_ms(self) -> int | None:
        """When the barriers may overtake, None where none waits."""
        return None if self._checkpoint_id is None else self._since_ms + self._timeout_ms

    def handle(self, event: DepartureEvent) -> _Commands:
        """Take note of `event`; return what to do, in order."""
        match event:
            case BarriersQueued():
                self._checkpoint_id, self._since_ms = event.checkpoint_id, event.since_ms
                self._waiting = dict.fromkeys(event.channels)
                return self._settle()
            case BarrierLeft():
                if event.checkpoint_id != self._checkpoint_id:
                    return ()
                self._waiting.pop(event.channel, None)
                return self._settle()
            case TimePassed():
                deadline_ms, checkpoint_id = self.deadline_ms, self._checkpoint_id
                if checkpoint_id is None or deadline_ms is None or event.now_ms < deadline_ms:
                    return ()
                overtaking = tuple(Overtake(channel, checkpoint_id) for channel in self._waiting)
                self._waiting.clear()
                return (*overtaking, *self._settle())
            case CheckpointCancelled():
                if event.checkpoint_id == self._checkpoint_id:
                    self._checkpoint_id = None
                    self._waiting.clear()
                return ()
            case _:
                unhandled(event)

    def _settle(self) -> _Commands:
        checkpoint_id = self._checkpoint_id
        if self._waiting or checkpoint_id is None:
            return ()
        self._checkpoint_id = None
        return (AllBarriersLeft(checkpoint_id),)
