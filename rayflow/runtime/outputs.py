"""Output edges: gather rows into large batches, partition them, and queue them per channel under credit.

Theory of operation
-------------------
An operator's rows are gathered *before* they are partitioned, until there are `batch_rows` or `gather_bytes` of them or
the oldest has waited `linger_ms`: hashing, splitting and sending cost the same for a small batch as for a large
one. The newest watermark waits with them. Anything else that is sent (barrier, end) flushes first, so that
order within a channel is the order of emission.

A flushed frame joins its channel's queue and leaves when the channel has credit; frames without cost leave as
soon as they are at the head. When the queue of any channel holds `limit_bytes`, the edge is full and the task
stops taking input (B3) until that channel drains; other channels' queues go on draining meanwhile.

The barrier of an unaligned checkpoint overtakes what is queued, which is handed over to be recorded, and leaves as
ever. On a *pinned* edge (broadcast; see `protocol.alignment`) it queues nevertheless.

Invariants
  O1  per channel, frames leave in emission order, data frames numbered from 0 without gaps (I4); barriers apart.
  O2  a data frame leaves only with credit (I7).
  O3  rows emitted before a barrier precede it on every channel, or are recorded for its checkpoint.
  O4  per channel, barriers leave in the order of their numbers: one that is overtaken by a newer one is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import pyarrow as pa

from rayflow.batch.partition import Partitioner
from rayflow.batch.tables import concat, nbytes, sized_pieces
from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.protocol.credit import CreditGranted, CreditSender, FrameSent
from rayflow.runtime.messages import BarrierFrame, CreditFrame, DataFrame, Frame, WatermarkFrame

Overtaken: TypeAlias = pa.RecordBatch | Frame
"""Rows or a frame that a barrier overtook."""

Send = Callable[[ChannelId, Frame], None]


class OutputChannel:
    """One channel's queue and its credit. Task thread only."""

    def __init__(self, channel: ChannelId, send: Send) -> None:
        self.id = channel
        self.queued_bytes = 0
        self.bytes_sent = 0
        self.rows_queued = 0
        self._credit = CreditSender()
        self._queue: deque[tuple[pa.RecordBatch, int] | Frame] = deque()
        self._send = send
        self._next_seq = 0
        self._queued_batches = 0
        # The newest barrier in the queue.
        self.queued_barrier: CheckpointId | None = None

    @property
    def queued_frames(self) -> int:
        """Frames that have not left yet."""
        return len(self._queue)

    def push_rows(self, batch: pa.RecordBatch, size: int) -> None:
        """Queue one frame of rows, which take `size` bytes."""
        self.rows_queued += batch.num_rows
        self._queue.append((batch, size))
        self.queued_bytes += size
        self._queued_batches += 1

    def push(self, frame: Frame) -> None:
        """Queue a frame that costs no credit. Of watermarks in a row only the newest is kept, so that a
        channel without credit does not gather them."""
        if isinstance(frame, WatermarkFrame) and self._queue and isinstance(self._queue[-1], WatermarkFrame):
            self._queue[-1] = frame
            return
        self._queue.append(frame)
        if isinstance(frame, BarrierFrame):
            self.queued_barrier = frame.checkpoint_id

    def overtake(self, barrier: BarrierFrame) -> list[Overtaken]:
        """Send the barrier at once. Return what of the queue is before its place, which is the end unless it is in the
        queue already; all of that still leaves in its turn."""
        queued = self.queued_barrier == barrier.checkpoint_id
        self.pump()
        if queued and self.queued_barrier is None:
            return []  # it has just left in its turn
        ahead: list[tuple[pa.RecordBatch, int] | Frame] = []
        while self._queue:
            item = self._queue.popleft()
            if not isinstance(item, BarrierFrame):
                ahead.append(item)
            elif item.checkpoint_id >= barrier.checkpoint_id:
                break
        self._queue.extendleft(reversed(ahead))
        self.queued_barrier = None
        self._send(self.id, barrier)
        return [item[0] if isinstance(item, tuple) else item for item in ahead]

    def on_credit(self, credit: CreditFrame) -> None:
        """The consumer granted more."""
        self._credit.handle(CreditGranted(credit.batches, credit.nbytes))

    def pump(self) -> bool:
        """Send what may leave; return whether anything did."""
        sent = False
        while self._queue:
            head = self._queue[0]
            if isinstance(head, tuple):
                if not self._credit.can_send():
                    return sent
                self._queue.popleft()
                self._send_rows(*head)
            else:
                self._queue.popleft()
                self._send(self.id, head)
                if isinstance(head, BarrierFrame) and head.checkpoint_id == self.queued_barrier:
                    self.queued_barrier = None
            sent = True
        return sent

    def _send_rows(self, batch: pa.RecordBatch, size: int) -> None:
        self._queued_batches -= 1
        self.queued_bytes -= size
        self._credit.handle(FrameSent(size))
        self._send(self.id, DataFrame(self._next_seq, batch, size, self._queued_batches))
        self._next_seq += 1
        self.bytes_sent += size


class OutputEdge:
    """One edge of the job graph as its producing subtask sees it. Task thread only.

    `frame_bytes` cuts frames, `limit_bytes` bounds each channel's queue, `batch_rows`, `gather_bytes` and `linger_ms`
    bound gathering.
    """

    def __init__(
        self,
        *,
        channels: Sequence[OutputChannel],
        partitioner: Partitioner,
        tag: str | None,
        batch_rows: int,
        linger_ms: int,
        gather_bytes: int,
        frame_bytes: int,
        limit_bytes: int,
        pinned: bool = False,
    ) -> None:
        self.pinned = pinned
        self.channels = tuple(channels)
        self.tag = tag
        self._partitioner = partitioner
        self._traffic = partitioner.traffic
        self._batch_rows = batch_rows
        self._linger_ms = linger_ms
        self._gather_bytes = gather_bytes
        self._frame_bytes = frame_bytes
        self._limit_bytes = limit_bytes
        self._gathered: list[pa.RecordBatch] = []
        self._gathered_rows = 0
        self.gathered_bytes = 0
        self._watermark: int | None = None
        self._since_ms: int | None = None

    def emit(self, batch: pa.RecordBatch, now_ms: int) -> None:
        """Gather rows; flush when there are enough."""
        if self._gathered and batch.schema != self._gathered[0].schema:
            self.flush()
        self._gathered.append(batch)
        self._gathered_rows += batch.num_rows
        self.gathered_bytes += nbytes(batch)
        self._wait_from(now_ms)
        if self._gathered_rows >= self._batch_rows or self.gathered_bytes >= self._gather_bytes:
            self.flush()

    def emit_watermark(self, watermark: int, now_ms: int) -> None:
        """Have `watermark` follow what was emitted so far; only the newest is sent."""
        self._watermark = watermark
        self._wait_from(now_ms)

    def broadcast(self, frame: Frame) -> None:
        """Queue a frame without cost on every channel, behind all rows emitted so far."""
        self.flush()
        for channel in self.channels:
            channel.push(frame)

    def overtake(self, barrier: BarrierFrame) -> dict[ChannelId, list[Overtaken]]:
        """Send the barrier ahead of all that is queued; return that by channel, where there is anything."""
        self.flush()
        overtaken = {channel.id: channel.overtake(barrier) for channel in self.channels}
        return {channel: frames for channel, frames in overtaken.items() if frames}

    def flush(self) -> None:
        """Partition and queue what was gathered."""
        self._since_ms = None
        if self._gathered:
            batch = concat(self._gathered)
            self._gathered, self._gathered_rows, self.gathered_bytes = [], 0, 0
            for channel, part in zip(self.channels, self._partitioner.split(batch), strict=True):
                if part is not None:
                    for piece, size in sized_pieces(part, self._frame_bytes):
                        channel.push_rows(piece, size)
        if self._watermark is not None:
            frame, self._watermark = WatermarkFrame(self._watermark), None
            for channel in self.channels:
                channel.push(frame)

    def pump(self, now_ms: int) -> bool:
        """Flush what has waited long enough, send what has credit; return whether anything was sent."""
        deadline = self.deadline_ms
        if deadline is not None and now_ms >= deadline:
            self.flush()
        if self._traffic is not None:
            self._traffic.tick(now_ms)
        sent = False
        for channel in self.channels:
            sent |= channel.pump()
        return sent

    @property
    def deadline_ms(self) -> int | None:
        """When gathered rows or a watermark have waited long enough."""
        return None if self._since_ms is None else self._since_ms + self._linger_ms

    @property
    def full(self) -> bool:
        """Whether some channel's queue has reached its bound."""
        # Asked several times a step: a loop, not a generator.
        for channel in self.channels:  # noqa: SIM110
            if channel.queued_bytes >= self._limit_bytes:
                return True
        return False

    def keyed_traffic(self) -> dict[str, Any] | None:
        """Return which subtasks and keys the rows of a keyed exchange went to; None of another. On any thread.

        `edge`: its id; `rows`: what was queued for each consumer so far; and, where keys are watched, what
        `KeyTraffic.statistics` says."""
        if not self._partitioner.keyed:
            return None
        rows = [channel.rows_queued for channel in self.channels]
        watched = {} if self._traffic is None else self._traffic.statistics()
        return {"edge": self.channels[0].id.edge, "rows": rows, **watched}

    def _wait_from(self, now_ms: int) -> None:
        if self._since_ms is None:
            self._since_ms = now_ms
