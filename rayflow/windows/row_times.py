"""The event times of an operator's rows, and how far its watermark has come.

Rows without a time are taken out, and so are times at the far end of what the column can hold. Whoever asks
says which of the rest are late; all of these are counted (`null_time_rows`, `late_rows`) and go to the side output
for late rows where there is one. The watermark is part of the state, with every key group, so that lateness is
judged the same after a restart at whatever parallelism; since barriers are aligned and watermarks are broadcast,
all subtasks wrote the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import OperatorContext, Output
from rayflow.operators.event_ticks import ticks_of
from rayflow.operators.keyed_parts import restored_watermark as restored_watermark
from rayflow.operators.keyed_parts import watermark_part as watermark_part
from rayflow.state.partials import rows_in, whole_rows
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.bounds import I64, in_units, reached, unit_ns


class RowTimes:
    """Times in `column`, a timestamp of `schema`. Late rows go to the side output `late_to`, if any.

    Raises PlanError where the column is no timestamp."""

    def __init__(self, column: str, schema: pa.Schema, late_to: str | None = None) -> None:
        self.type = schema.field(column).type
        self._column, self._late_to = column, late_to
        self._unit_ns = unit_ns(column, self.type)
        self._watermark = WATERMARK_MIN

    def in_units(self, duration_ns: int, what: str) -> int:
        """Return a duration in units of the column. Raises PlanError where it is no multiple."""
        return in_units(duration_ns, self._unit_ns, what, self._column)

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """Take the watermark up again. Called once, first."""
        self._ctx, self._out = ctx, out
        self._late = ctx.metrics.counter("late_rows")
        self._null_times = ctx.metrics.counter("null_time_rows")
        self._watermark = restored_watermark(restored)

    @property
    def reached(self) -> int:
        """The last instant, in units of the column, that the watermark has reached."""
        return reached(self._watermark, self._unit_ns)

    def advance(self, watermark: int) -> None:
        """The watermark came to `watermark` (ns)."""
        self._watermark = max(self._watermark, watermark)

    def timely(self, rows: pa.RecordBatch, margin: int) -> tuple[pa.RecordBatch, I64]:
        """Return the rows that have a time, and their times. A time nearer than `margin` to the end of what
        the column holds is refused, with a user's error."""
        times = rows.column(self._column)
        if times.null_count:
            self.untimed(rows.filter(times.is_null()))
            rows = rows.filter(times.is_valid())
        return rows, ticks_of(self._ctx, rows, self._column, margin)

    def untimed(self, rows: pa.RecordBatch) -> None:
        """These rows (or partial aggregates of rows) have no time."""
        self._null_times.inc(rows_in(rows))
        self._side(rows)

    def put_aside(self, rows: pa.RecordBatch) -> None:
        """These rows (or partial aggregates of rows) are late."""
        self._late.inc(rows_in(rows))
        self._side(rows)

    def _side(self, rows: pa.RecordBatch) -> None:
        if self._late_to is not None:
            self._out.emit_side(self._late_to, whole_rows(rows))

    def column(self, ticks: I64) -> pa.Array:
        """Return numbers as times of the column's type."""
        return pa.array(ticks).view(self.type)

    def snapshot(self) -> StatePart:
        """Return the watermark, with every key group."""
        return watermark_part(self._ctx, self._watermark)
