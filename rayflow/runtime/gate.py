"""The input gate: per channel a queue of frames that have arrived, and the credit that bounds them.

Theory of operation
-------------------
Network threads hand frames to the engine's inbox; the task thread moves them here (`accept`) and takes them
out again (`poll`) round-robin over the channels that are neither empty nor blocked by barrier alignment.
Data frames of one channel that wait one behind the other are merged up to `batch_rows` rows and `budget.taken_bytes`,
since every kernel costs the same for few rows as for many. Taking data out frees credit, which goes back to producers.

For an unaligned checkpoint a channel is *recorded*: its frames before the checkpoint's barrier, whether queued or
still to come, are kept beside the queue, which goes on as ever. What is kept is bounded too: from
then on channels that are being recorded give no more rows, so that their producers run out of credit. Barriers need
none, but where they wait in line behind rows upstream, at whom broadcasts go to: of who comes after those all is taken,
or both would wait for each other. What they still send is made of what was queued there.

Invariants
  G1  per channel, frames leave in the order they came (I4); a gap in sequence numbers is a violation.
  G2  bytes queued never exceed what was granted, plus one frame a channel (I7, see `protocol.credit`).
  G3  a blocked channel gives no frame.
  G4  frames recorded of all but `never_held_back` never exceed `budget.recorded_bytes`, plus what is taken once, plus
      what may be queued (G2).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from rayflow.batch.tables import concat
from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.protocol.credit import (
    CreditReceiver,
    FloatingResumed,
    FloatingStopped,
    FrameConsumed,
    FrameReceived,
    GateOpened,
    GrantCredit,
)
from rayflow.protocol.network_budget import NetworkBudget
from rayflow.protocol.sequencing import Accept, ChannelSequence, FrameArrived
from rayflow.runtime.messages import (
    BarrierFrame,
    CreditFrame,
    DataFrame,
    Frame,
    OpenFrame,
    WatermarkFrame,
)


@dataclass(slots=True)
class _Queue:
    """Frames of one input channel; `port` is the operator input it feeds."""

    port: int
    sequence: ChannelSequence
    frames: deque[Frame] = field(default_factory=deque)
    blocked: bool = False
    recording: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """What `poll` gives: merged rows, and the bytes of the frames they came in; or one frame that is not data."""

    channel: ChannelId
    port: int
    batch: pa.RecordBatch | None
    frame: Frame | None
    nbytes: int = 0


class InputGate:
    """All input channels of a subtask. Task thread only.

    `outputs` counts the output channels of each channel's producer (see `protocol.network_budget`); `never_held_back`
    are those whose producers may have to send rows before they get to a barrier.
    """

    def __init__(
        self,
        ports: dict[ChannelId, int],
        budget: NetworkBudget,
        batch_rows: int,
        grant: Callable[[ChannelId, CreditFrame], None],
        outputs: Mapping[ChannelId, int],
        never_held_back: Collection[ChannelId] = (),
    ) -> None:
        self.channels: tuple[ChannelId, ...] = tuple(ports)
        self._queues = {c: _Queue(port, ChannelSequence(c)) for c, port in ports.items()}
        self._credit = CreditReceiver(
            self.channels,
            budget.gate_bytes,
            most_bytes={c: budget.share_bytes(len(ports), outputs[c]) for c in ports},
        )
        self.budget = budget
        self._batch_rows = batch_rows
        self._grant = grant
        self.never_held_back = frozenset(never_held_back)
        self._recorded: dict[ChannelId, list[Frame]] = {}
        self._recorded_bytes = 0
        self._ring: deque[ChannelId] = deque(self.channels)
        self.queued_frames = 0
        # A channel gets its first credit when its producer shows up.
        self._first_grants = {g.channel: g for g in self._credit.handle(GateOpened())}

    def accept(self, channel: ChannelId, frame: Frame) -> None:
        """Queue a frame that has arrived."""
        queue = self._queues[channel]
        if isinstance(frame, OpenFrame):
            first = self._first_grants.pop(channel, None)
            self._send_grants(() if first is None else (first,))
            return
        if isinstance(frame, DataFrame):
            for verdict in queue.sequence.handle(FrameArrived(frame.seq)):
                if not isinstance(verdict, Accept):
                    return
            self._send_grants(self._credit.handle(FrameReceived(channel, frame.nbytes, frame.backlog)))
        elif (
            isinstance(frame, WatermarkFrame)
            and queue.frames
            and isinstance(queue.frames[-1], WatermarkFrame)
        ):
            # Watermarks cost no credit; keeping only the newest bounds what a stalled task gathers.
            queue.frames[-1] = frame
            self._record(channel, queue, frame)
            return
        queue.frames.append(frame)
        self.queued_frames += 1
        self._record(channel, queue, frame)

    def poll(self, *, rows: bool = True) -> Arrival | None:
        """Take the next rows or frame, None if no channel can give one. Without `rows` only a frame that no rows
        precede."""
        for _ in range(len(self._ring)):
            channel = self._ring[0]
            self._ring.rotate(-1)
            queue = self._queues[channel]
            if not queue.frames or queue.blocked:
                continue
            if isinstance(queue.frames[0], DataFrame) and (not rows or self._holds_back(channel, queue)):
                continue
            return self._take(channel, queue)
        return None

    def restrain(self, restrained: bool) -> None:
        """Memory is short: give no channel more than its own share, until there is room again."""
        self._credit.handle(FloatingStopped() if restrained else FloatingResumed())

    @property
    def buffered_bytes(self) -> int:
        """Bytes that are queued. Any thread."""
        return self._credit.queued_bytes

    def port(self, channel: ChannelId) -> int:
        """Return the operator input that the channel feeds."""
        return self._queues[channel].port

    def block(self, channel: ChannelId) -> None:
        """Hold the channel's frames back until `unblock`."""
        self._queues[channel].blocked = True

    def unblock(self, channels: Sequence[ChannelId]) -> None:
        """Let the channels' frames flow again."""
        for channel in channels:
            self._queues[channel].blocked = False

    @property
    def blocked_channels(self) -> list[ChannelId]:
        """Channels held back by alignment."""
        return [c for c, q in self._queues.items() if q.blocked]

    # ------------------------------------------------------------------------------- recording

    def record(self, channel: ChannelId, checkpoint_id: CheckpointId) -> None:
        """Record what is queued before the checkpoint's barrier, and take that out of the queue; where it has not come,
        record what arrives too, until `stop_recording`."""
        queue = self._queues[channel]
        queue.recording = True
        for position, frame in enumerate(queue.frames):
            if isinstance(frame, BarrierFrame) and frame.checkpoint_id == checkpoint_id:
                del queue.frames[position]
                self.queued_frames -= 1
                queue.recording = False
                return
            self._record(channel, queue, frame)

    def stop_recording(self, channel: ChannelId) -> None:
        """The frame that was accepted last is the barrier that ends the recording: take it out."""
        queue = self._queues[channel]
        assert isinstance(queue.frames[-1], BarrierFrame), channel
        queue.frames.pop()
        self.queued_frames -= 1
        queue.recording = False

    def take_recorded(self) -> dict[ChannelId, list[Frame]]:
        """Return what was recorded, in order; recording ends on every channel."""
        recorded, self._recorded, self._recorded_bytes = self._recorded, {}, 0
        for queue in self._queues.values():
            queue.recording = False
        return recorded

    def _record(self, channel: ChannelId, queue: _Queue, frame: Frame) -> None:
        if not queue.recording or isinstance(frame, BarrierFrame):
            return
        frames = self._recorded.setdefault(channel, [])
        if isinstance(frame, DataFrame):
            self._recorded_bytes += 0 if channel in self.never_held_back else frame.nbytes
        elif isinstance(frame, WatermarkFrame) and frames and isinstance(frames[-1], WatermarkFrame):
            frames.pop()
        frames.append(frame)

    def _holds_back(self, channel: ChannelId, queue: _Queue) -> bool:
        full = queue.recording and self._recorded_bytes >= self.budget.recorded_bytes
        return full and channel not in self.never_held_back

    # ------------------------------------------------------------------------------- taking

    def _take(self, channel: ChannelId, queue: _Queue) -> Arrival:
        first = queue.frames[0]
        if not isinstance(first, DataFrame):
            queue.frames.popleft()
            self.queued_frames -= 1
            return Arrival(channel, queue.port, None, first)
        batches: list[pa.RecordBatch] = []
        rows = nbytes = 0
        while queue.frames:
            frame = queue.frames[0]
            if not isinstance(frame, DataFrame):
                break
            if batches and (
                rows + frame.batch.num_rows > self._batch_rows
                or nbytes + frame.nbytes > self.budget.taken_bytes
                or frame.batch.schema != batches[0].schema
            ):
                break
            queue.frames.popleft()
            self.queued_frames -= 1
            batches.append(frame.batch)
            rows += frame.batch.num_rows
            nbytes += frame.nbytes
            self._send_grants(self._credit.handle(FrameConsumed(channel, frame.nbytes)))
        return Arrival(channel, queue.port, concat(batches), None, nbytes)

    def _send_grants(self, grants: Sequence[GrantCredit]) -> None:
        for grant in grants:
            self._grant(grant.channel, CreditFrame(grant.batches, grant.nbytes))
