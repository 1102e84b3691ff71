"""Deduplication: of the rows of a key the first is passed on, unchanged, and the others are dropped.

Without a time to live every key is remembered for ever. With one it is remembered for as long after its row was kept
(a duplicate does not prolong it): by event time if the stream has one, else by the clock. What exactly is a duplicate
then, `state.dedup.times` says; bitmaps and Bloom filters, which forget by periods, remember up to a quarter longer.

A row that the clock has passed by the time to live when it comes cannot be told from a first one any more: it is
passed on, and counted (`rows_past_ttl`). A row without event time counts as of now (`null_time_rows`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.batch.tables import take
from rayflow.model.errors import PlanError
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.dedup.bitmap import BitmapMemory
from rayflow.operators.dedup.bloom import BloomMemory
from rayflow.operators.dedup.exact import ExactMemory
from rayflow.operators.dedup.memories import CHUNK_COLUMN, Deduplication, Memory, Method
from rayflow.operators.keyed_parts import restored_watermark, watermark_part
from rayflow.protocol.commits import CommitPermit
from rayflow.state.dedup.times import I64
from rayflow.state.parts import RestoredPart, StatePart

_NANOS_PER_MS = 1_000_000
_EXPIRIES_PER_TTL = 8

_MEMORIES: dict[Method, type[Memory]] = {"exact": ExactMemory, "bitmap": BitmapMemory, "bloom": BloomMemory}


class DeduplicateOperator(Operator):
    """Does what `todo` says."""

    def __init__(self, todo: Deduplication) -> None:
        self._todo = todo
        self._ttl = todo.ttl
        self._by_clock = todo.ttl_ns is not None and todo.time_column is None
        self._watermark = WATERMARK_MIN
        self._next_expiry = WATERMARK_MIN
        # Bitmaps and filters are small for what they remember, and looked at everywhere.
        self.state_place = "disk" if todo.method == "exact" else "memory"
        self._opened: list[Memory] = []

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._memory = _MEMORIES[self._todo.method](self._todo, ctx)
        self._opened = [self._memory]
        self._watermark = restored_watermark(restored)
        self._restore(restored)
        metrics = ctx.metrics
        self._dropped = metrics.counter("rows_deduplicated")
        self._past_ttl = metrics.counter("rows_past_ttl") if self._ttl else None
        self._null_times = metrics.counter("null_time_rows") if self._ttl and not self._by_clock else None
        self._keys, self._bytes = metrics.gauge("state_keys"), metrics.gauge("state_bytes")
        if self._todo.method == "bloom":
            self._false_positives = metrics.gauge("false_positives_estimated")
        self._measure(0)

    def _restore(self, restored: Sequence[RestoredPart]) -> None:
        for memory in _MEMORIES.values():
            if memory.part != self._memory.part and any(part.name == memory.part for part in restored):
                method = next(name for name, each in _MEMORIES.items() if each is memory)
                raise PlanError(
                    f"operator {self.ctx.name!r}: its state in the checkpoint is of method={method!r}, and in this job "
                    f"it is {self._todo.method!r}; keep the method, or start with fresh state under another .uid()",
                    self.ctx.location,
                )
        try:
            self._memory.restore([part for part in restored if part.name == self._memory.part])
        except ValueError as error:
            raise PlanError(
                f"operator {self.ctx.name!r}: its state in the checkpoint is of other columns: {error}; keep them, or "
                "start with fresh state under another .uid()",
                self.ctx.location,
            ) from None

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        clock = self._clock()
        times = self._times(batch, clock)
        first = self._memory.first(batch, times, clock)
        if self._ttl is not None and self._past_ttl is not None and times is not None:
            self._past_ttl.inc(int(np.count_nonzero(times[first] + self._ttl.ttl_ns <= clock)))
        self._dropped.inc(batch.num_rows - len(first))
        self._measure(len(first))
        if len(first):
            rows = batch.select([name for name in batch.schema.names if name != CHUNK_COLUMN])
            self.out.emit(rows if len(first) == batch.num_rows else take(rows, first))

    def _clock(self) -> int:
        """Return the time that it is, in nanoseconds."""
        if self._ttl is None:
            return 0
        now = self.ctx.now_ms() * _NANOS_PER_MS if self._by_clock else self._watermark
        return self._ttl.clamped(now)

    def _times(self, batch: pa.RecordBatch, clock: int) -> I64 | None:
        if self._ttl is None:
            return None
        if self._todo.time_column is None:
            return np.full(batch.num_rows, clock, np.int64)
        column = batch.column(self._todo.time_column)
        assert self._null_times is not None
        self._null_times.inc(column.null_count)
        return self._ttl.of_column(column, clock)

    def _measure(self, kept: int) -> None:
        self._keys.set(len(self._memory))
        self._bytes.set(self._memory.nbytes)
        if self._todo.method == "bloom":
            rate = self._memory.false_positive_rate()
            # Of the new keys that came, the share `rate` is not among those kept.
            self._false_positives.set(self._false_positives.value + kept * rate / (1 - rate))

    # --------------------------------------------------------------------------------------- forgetting

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`."""
        self._watermark = max(self._watermark, watermark)
        if self._ttl is not None and not self._by_clock and self._watermark >= self._next_expiry:
            self._expire(self._watermark)
        return watermark

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        if not self._by_clock:
            return None
        return max(0, -(-self._next_expiry // _NANOS_PER_MS))

    def on_timer(self, now_ms: int) -> None:
        """Forget what the clock has passed, though no rows come."""
        self._expire(now_ms * _NANOS_PER_MS)

    def _expire(self, now: int) -> None:
        assert self._ttl is not None
        self._next_expiry = now + max(_NANOS_PER_MS, self._ttl.ttl_ns // _EXPIRIES_PER_TTL)
        self._memory.expire(self._ttl.clamped(now))
        self._measure(0)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return what is remembered, and the watermark by which it is forgotten."""
        parts = [self._memory.snapshot(checkpoint_id)]
        if self._ttl is not None and not self._by_clock:
            parts.append(watermark_part(self.ctx, self._watermark))
        return parts

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        self._memory.completed(permit.checkpoint_id)

    def close(self) -> None:
        """See `Operator`."""
        for memory in self._opened:
            memory.close()
