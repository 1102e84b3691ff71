"""What was in flight in the checkpoint that is restored: brought into the order in which a task processes it.

Theory of operation. Of each channel of the subtask that was to receive it: what its gate had recorded, then what the
producer's output had. Channels take turns; within each the order is kept. Watermarks, idleness and ends that were in
flight go through a merger that goes on from where the subtask's had come, so that they act after the rows that they
followed. What the merger says holds for all rows that the subtask has yet to get, whoever sends them now, since it
would have held for them without the restart; the sources, which begin anew at the smallest watermark that any of their
subtasks had come to, catch up. So it is with WATERMARK_MAX: there are no rows to come then. Only ends are not acted on,
beyond what they mean for event time: the sources will end once more.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from rayflow.model.errors import CorruptCheckpointError
from rayflow.model.ids import ChannelId
from rayflow.protocol.watermark_merging import (
    ChannelEnded,
    ChannelIdled,
    ChannelResumed,
    MergerEvent,
    WatermarkArrived,
    WatermarkMerger,
)
from rayflow.protocol.watermarks import AdvanceWatermark
from rayflow.state.in_flight import Event, InFlightFile
from rayflow.state.parts import RestoredPart


@dataclass(frozen=True, slots=True)
class RestoredInFlight:
    """A file of what was in flight, to the subtask with index `receiver` of its operator then."""

    receiver: int
    file: InFlightFile

    @property
    def uid(self) -> str:
        """Of the operator that it was in flight to."""
        return self.file.uid


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredState:
    """What a subtask restores: its operators' parts, by uid, and what was in flight to them."""

    parts: dict[str, list[RestoredPart]] = field(default_factory=dict)
    in_flight: tuple[RestoredInFlight, ...] = ()
    rescaled: bool = False

    def receivers(self) -> dict[tuple[str, int], list[RestoredInFlight]]:
        """Return what was in flight by who was to receive it: uid and index."""
        found: dict[tuple[str, int], list[RestoredInFlight]] = {}
        for restored in self.in_flight:
            found.setdefault((restored.uid, restored.receiver), []).append(restored)
        return dict(sorted(found.items()))


class Replay:
    """The steps of one subtask of then: `files` are all that was in flight to it. `own(batch, keys)` are those of
    the rows, which came by these keys, that belong to the subtask of now; None for all."""

    def __init__(
        self,
        files: Sequence[RestoredInFlight],
        own: Callable[[pa.RecordBatch, Sequence[str]], pa.RecordBatch] | None = None,
    ) -> None:
        mergers = [f.file.merger for f in files if f.file.merger is not None]
        if not mergers:
            uids = sorted({f.file.uid for f in files})
            raise CorruptCheckpointError(
                f"of what was in flight to {uids} only what its producers recorded is there"
            )
        self._merger = WatermarkMerger.resumed(mergers[0])
        found: dict[ChannelId, list[tuple[int, int, int, pa.RecordBatch | Event]]] = defaultdict(list)
        for restored in files:
            file = restored.file
            for frame in file.frames:
                order = 0 if file.side == "input" else 1
                content = frame.content
                if own is not None and file.keys and not isinstance(content, Event):
                    content = own(content, file.keys)
                found[frame.channel].append((order, frame.position, file.port, content))
        self._queues = deque(
            (channel, deque(sorted(items, key=lambda item: item[:2])))
            for channel, items in sorted(found.items(), key=lambda pair: str(pair[0]))
        )

    def next(self) -> tuple[int, pa.RecordBatch] | int | None:
        """Return the next rows, with the input they are for, or the next watermark; None when all was taken."""
        while self._queues:
            channel, queue = self._queues[0]
            self._queues.rotate(-1)
            if not queue:
                self._queues.pop()
                continue
            _, _, port, content = queue.popleft()
            if not isinstance(content, Event):
                if self._merger.is_idle(channel):
                    self._told(ChannelResumed(channel))
                if content.num_rows:
                    return port, content
                continue
            watermark = self._told(_event(channel, content))
            if watermark is not None:
                return watermark
        return None

    def _told(self, event: MergerEvent) -> int | None:
        watermarks = [c.watermark for c in self._merger.handle(event) if isinstance(c, AdvanceWatermark)]
        return watermarks[-1] if watermarks else None


def _event(channel: ChannelId, content: Event) -> MergerEvent:
    if content.kind == "watermark":
        return WatermarkArrived(channel, content.watermark)
    return ChannelIdled(channel) if content.kind == "idle" else ChannelEnded(channel)
