"""The times of an operator's rows where they go by the clock: a row's time is the moment at which it comes.

The clock is the engine's (`OperatorContext.now_ms`). For windows it never goes back, over restarts too: how far it
has come is part of the state, and a row is at least 1 ms later than what is already over, so none is late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import OperatorContext, Output
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.bounds import I64, PROCESSING_TIME_TYPE, in_units, reached
from rayflow.windows.row_times import restored_watermark, watermark_part

_NANOS_PER_MS = 1_000_000


class ClockTimes:
    """Processing time, in milliseconds; see `RowTimes`, which it stands in for."""

    type: pa.DataType = PROCESSING_TIME_TYPE

    def __init__(self) -> None:
        self._over = WATERMARK_MIN

    def in_units(self, duration_ns: int, what: str) -> int:
        """Return a duration in milliseconds. Raises PlanError where it is no multiple."""
        return in_units(duration_ns, _NANOS_PER_MS, what, None)

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """Take up where the clock had come, at the subtask that was least far (see `by_writer`). Called once, first."""
        self._ctx = ctx
        self._over = restored_watermark(restored)

    @property
    def reached(self) -> int:
        """The last millisecond that is over."""
        return reached(self._over, _NANOS_PER_MS)

    def advance(self, nanos: int) -> None:
        """All up to `nanos` is over."""
        self._over = max(self._over, nanos)

    def tick(self, now_ms: int) -> None:
        """It is `now_ms`."""
        self.advance((now_ms - 1) * _NANOS_PER_MS)

    def timely(self, rows: pa.RecordBatch, margin: int) -> tuple[pa.RecordBatch, I64]:
        """Return the rows, and their times."""
        return rows, np.full(rows.num_rows, max(self._ctx.now_ms(), self.reached + 1))

    def put_aside(self, rows: pa.RecordBatch) -> None:
        """No row is late."""
        raise AssertionError("a row came late by the clock")

    def untimed(self, rows: pa.RecordBatch) -> None:
        """Every row has a time."""
        raise AssertionError("a row without a time by the clock")

    def column(self, ticks: I64) -> pa.Array:
        """Return numbers as times."""
        return pa.array(ticks).view(self.type)

    def snapshot(self) -> StatePart:
        """Return how far the clock has come, with every key group."""
        return watermark_part(self._ctx, self._over)


def by_writer(restored: Sequence[RestoredPart]) -> list[tuple[int, list[RestoredPart]]]:
    """Return, for each subtask that wrote some of `restored`, how far its clock had come (ns) and its parts; the
    one least far first."""
    writers = sorted({part.writer_index for part in restored})
    parts = [[part for part in restored if part.writer_index == writer] for writer in writers]
    return sorted(((restored_watermark(own), own) for own in parts), key=lambda pair: pair[0])


class HeldRows(Output):
    """An output for rows only, which keeps them until they are released."""

    def __init__(self) -> None:
        self.batches: list[pa.RecordBatch] = []

    def emit(self, batch: pa.RecordBatch) -> None:
        """See `Output`."""
        self.batches.append(batch)

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None:
        """Not here."""
        raise AssertionError(f"rows for side output {tag!r} before the operator is open")

    def emit_watermark(self, watermark: int) -> None:
        """Not here."""
        raise AssertionError("a watermark before the operator is open")

    def emit_idle(self) -> None:
        """Not here."""
        raise AssertionError("idleness before the operator is open")

    def release(self, out: Output) -> None:
        """Pass on what was kept."""
        batches, self.batches = self.batches, []
        for batch in batches:
            out.emit(batch)
