"""Watermarks made in the middle of a stream, in place of those that come in.

After each batch the watermark is the largest event time so far − `delay` − 1 unit, decided by the machine
that sources use, with the operator's input as the only split. Of the watermarks that come in only the last,
the end of all input, is passed on.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

import pyarrow as pa

from rayflow.batch.event_times import believed_times
from rayflow.model.errors import PlanError
from rayflow.model.times import NANOS_PER_UNIT, WATERMARK_MAX, WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.protocol.split_watermarks import (
    CapMoved,
    ReadingResumed,
    RowsRead,
    SplitOpened,
    SplitWatermarks,
    Ticked,
)
from rayflow.protocol.watermarks import (
    AdvanceWatermark,
    GoIdle,
    WatermarkCommand,
)
from rayflow.state.parts import RestoredPart, StatePart

_INPUT = "input"
_TICKS_PER_IDLE_TIME = 4
_SLACK_MS = 50
_NANOS_PER_MS = 1_000_000


class AssignWatermarksOperator(Operator):
    """Makes `column` (a timestamp) the event time. Durations in nanoseconds; None turns one off.

    `delay`: how far out of order rows may come. `idle_after`: processing time without rows after which the
    subtask steps aside; noticed up to a quarter late. `max_ahead`: a time further ahead of the watermark than
    this becomes null and is counted in `far_future_rows` (see `batch.event_times`). Times that are null before
    are counted in `null_time_rows`.
    """

    state_place = "little"

    def __init__(self, column: str, delay: int, idle_after: int | None, max_ahead: int | None) -> None:
        self._column, self._delay = column, delay
        self._idle_after, self._max_ahead = idle_after, max_ahead
        self._machine: SplitWatermarks | None = None
        self._restored = WATERMARK_MIN
        self._tick_ms = 0
        # When the last tick was due at the latest, had nothing held the task up.
        self._expected_ms: int | None = None
        # Without any row yet: since when, and whether that was told.
        self._quiet_since_ms: int | None = None
        self._stepped_aside = False

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        known = [int(value) for part in restored for value in part.table.column("watermark").to_pylist()]
        self._restored = min(known, default=WATERMARK_MIN)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        column = batch.column(self._column)
        unit = NANOS_PER_UNIT[column.type.unit] if pa.types.is_timestamp(column.type) else None
        if unit is None:
            raise PlanError(
                f"assign_watermarks: column {self._column!r} is {column.type}, expected a timestamp; cast it",
                self.ctx.location,
            )
        machine = self._machine or self._start(unit)
        found = believed_times(batch, self._column, unit, machine.limit(_INPUT), machine.step)
        self.ctx.metrics.counter("null_time_rows").inc(found.nulls)
        self.ctx.metrics.counter("far_future_rows").inc(found.future)
        self.out.emit(found.batch)
        self._obey(machine.handle(RowsRead(_INPUT, found.newest, self.ctx.now_ms())))

    def _start(self, unit: int) -> SplitWatermarks:
        # The unit is the column's, so the machine starts with the first rows.
        machine = SplitWatermarks(self._delay, unit, self._idle_after, self._max_ahead, self._restored)
        lag = self._delay + unit
        seen = None if self._restored == WATERMARK_MIN else self._restored + lag
        self._obey(machine.handle(SplitOpened(_INPUT, seen)))
        self._obey(machine.handle(CapMoved(WATERMARK_MAX)))
        self._machine = machine
        self._stepped_aside = False
        return machine

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`."""
        return watermark if watermark == WATERMARK_MAX else None

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return None if self._idle_after is None or self._stepped_aside else self._tick_ms

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`. A tick that comes late shows that the task was held up: who was not given the rows that
        wait for it is not idle."""
        if self._idle_after is None:
            return
        idle_after_ms = max(1, self._idle_after // _NANOS_PER_MS)
        pause_ms = max(1, idle_after_ms // _TICKS_PER_IDLE_TIME)
        held_up = self._expected_ms is not None and now_ms > self._expected_ms
        self._tick_ms, self._expected_ms = now_ms + pause_ms, now_ms + 2 * pause_ms + _SLACK_MS
        if self._machine is not None:
            if held_up:
                self._obey(self._machine.handle(ReadingResumed(now_ms)))
            self._obey(self._machine.handle(Ticked(now_ms)))
        elif self._quiet_since_ms is None or held_up:
            self._quiet_since_ms = now_ms
        elif now_ms - self._quiet_since_ms >= idle_after_ms:
            self._stepped_aside = True
            self.out.emit_idle()

    def _obey(self, commands: tuple[WatermarkCommand, ...]) -> None:
        for command in commands:
            match command:
                case AdvanceWatermark(watermark):
                    self.out.emit_watermark(watermark)
                case GoIdle():
                    self.out.emit_idle()

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the watermark, so that a restored operator judges far-future rows as before."""
        watermark = self._restored if self._machine is None else self._machine.watermark
        if watermark == WATERMARK_MIN:
            return ()
        value = pa.array([Decimal(watermark)], pa.decimal128(38, 0))
        return (StatePart(name="watermark", kind="list", build=lambda: pa.table({"watermark": value})),)
