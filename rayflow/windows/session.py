"""Aggregates over session windows: rows of a key that are at most a gap apart.

Theory of operation. A row joins the session of its key whose first or last time is at most the gap away
(exactly the gap joins, as in Flink), makes two sessions one where it lies between them, or opens a session; this
goes row by row in order of arrival, so results do not depend on how rows come in batches. Accumulators hold the
aggregates by session; when sessions become one, so do their states. A session ends the gap after its last
row; when the watermark reaches the instant before, it is emitted. Sessions come in order of their ends.

A row is late if the session that it would be in could not change any more: it joins no open session, and the one
it would open by itself has ended, by the allowed lateness or more. Late rows, and rows without a time, are dropped
and counted (`late_rows`, `null_time_rows`), or put aside.

A result's event time is `window_end`, and the watermark passes unchanged: a session that goes on and on holds
nobody up, and its result is not late for whoever comes behind.

With an allowed lateness, or a trigger for early results, the output is an upsert stream by key and window: sessions
stay open, and one whose result is out and that takes in another row is emitted again. Where that moves a bound,
or makes two sessions one, the rows that are out no longer hold: they are deleted when the row comes, and the new
session is emitted when it is due.

By processing time the clock, in milliseconds, takes the place of the time column and of the watermark. What is
still open when the input ends is emitted then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, visible, with_op
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.bounds import I64, WINDOW_END, WINDOW_START
from rayflow.windows.clock_times import ClockTimes
from rayflow.windows.parameters import check_parameters, parameter_parts
from rayflow.windows.row_times import RowTimes
from rayflow.windows.session_table import Assigned, FrozenSessions, SessionTable

_SESSIONS = "sessions"
_LAST_TIME, _SHOWN, _ROWS_SINCE = "last_time", "shown", "rows_since"
_INT64 = np.iinfo(np.int64)
_NANOS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """Durations in nanoseconds. `late_to`: the side output for late rows. `early_rows`: show a session whenever
    so many rows have come into it; `early_ns`: every so often, where it changed."""

    gap_ns: int
    lateness_ns: int = 0
    late_to: str | None = None
    early_rows: int | None = None
    early_ns: int | None = None

    @property
    def parameters_ns(self) -> dict[str, int]:
        """What state of one such operator must have in common with another."""
        return {"gap": self.gap_ns, "allowed lateness": self.lateness_ns}

    @property
    def updates(self) -> bool:
        """Whether a session may be shown more than once."""
        return self.lateness_ns > 0 or self.early_rows is not None or self.early_ns is not None


class SessionWindowOperator(Operator):
    """Aggregates rows by `keys` and session.

    `aggregates` are (output column, expression); `time_column` is a timestamp column of `input_schema`, None for
    processing time. Emits the key columns, `window_start` (the first row's time) and `window_end` (the last one's
    plus the gap), and the results; with the hidden operation column where `spec.updates`, and then an update as
    deletion and insertion where `emit_before`. Raises PlanError where a duration is no multiple of the column's unit.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        spec: SessionSpec,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        time_column: str | None,
        emit_before: bool = False,
    ) -> None:
        self._keys, self._spec, self._emit_before = list(keys), spec, emit_before
        self._by_clock = time_column is None
        self._times = (
            ClockTimes() if time_column is None else RowTimes(time_column, input_schema, spec.late_to)
        )
        self._gap = self._times.in_units(spec.gap_ns, "gap")
        self._lateness = self._times.in_units(spec.lateness_ns, "allowed lateness")
        self._key_schema = pa.schema([input_schema.field(key) for key in keys])
        self._table = SessionTable(self._key_schema, self._gap, self._lateness)
        self._columns = AggregateColumns(aggregates, input_schema)
        bounds = [pa.field(name, self._times.type) for name in (WINDOW_START, WINDOW_END)]
        self._schema = pa.schema([*self._key_schema, *bounds, *self._columns.fields])
        # By slot: the bounds of the result that is out, and how many rows came since.
        self._shown_starts, self._shown_lasts = SlotArray(np.int64), SlotArray(np.int64)
        self._rows_since = SlotArray(np.int64)
        self._early_due_ms: int | None = None

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        check_parameters(ctx, restored, self._spec.parameters_ns)
        self._times.open(ctx, out, restored)
        for keys, others in restored_batches(restored, _SESSIONS, self._key_schema):
            starts, lasts = (_numbers(others.column(name)) for name in (WINDOW_START, _LAST_TIME))
            shown = others.column(_SHOWN).to_numpy(zero_copy_only=False)
            slots = self._table.restore(keys, starts, lasts, shown)
            self._reserve()
            self._shown_starts.values[slots], self._shown_lasts.values[slots] = starts, lasts
            self._rows_since.values[slots] = others.column(_ROWS_SINCE).to_numpy()
            self._columns.merge(others, slots, self._table.slot_limit)
        self._table.restored()

    def _reserve(self) -> None:
        for part in (self._shown_starts, self._shown_lasts, self._rows_since):
            part.reserve(self._table.slot_limit)

    # ------------------------------------------------------------------------------------ rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows, ticks = self._times.timely(visible(batch), self._gap + self._lateness)
        if len(ticks) == 0:
            return
        late_until = max(_INT64.min, self._times.reached - self._gap + 1 - self._lateness)
        assigned = self._table.assign(rows.select(self._keys), ticks, late_until)
        self._reserve()
        if self._spec.updates:
            self._withdraw(assigned)
        if len(assigned.absorbed):
            self._absorb(assigned)
        slots, late = assigned.slots, assigned.slots < 0
        if late.any():
            self._times.put_aside(rows.filter(pa.array(late)))
            kept = ~late
            rows, slots, ticks = rows.filter(pa.array(kept)), slots[kept], ticks[kept]
        self._columns.update(rows, slots, self._table.slot_limit, ticks)
        if self._spec.updates:
            np.add.at(self._rows_since.values, slots, 1)
            self._show_complete()
            self._show_early(slots)

    def _withdraw(self, assigned: Assigned) -> None:
        """Delete results that are out and no longer hold, but for those about to be replaced: unless old rows
        are wanted, that is their update. So a session is shown exactly if no rows came since, between batches."""
        slots = np.unique(np.concatenate([assigned.reopened, assigned.absorbed]))
        slots = slots[self._table.shown(slots)]
        if len(slots) == 0:
            return
        starts, lasts = self._table.bounds(slots)
        was_starts, was_lasts = self._shown_starts.values[slots], self._shown_lasts.values[slots]
        replaced = (starts == was_starts) & (lasts == was_lasts)
        replaced &= (lasts + (self._gap - 1) <= self._times.reached) & (not self._emit_before)
        gone = np.isin(slots, assigned.absorbed) | ~replaced
        self._emit(
            slots[gone], was_starts[gone], was_lasts[gone], np.full(np.count_nonzero(gone), DELETE, np.int8)
        )
        self._table.set_hidden(slots[gone])

    def _absorb(self, assigned: Assigned) -> None:
        self._columns.merge_slots(assigned.absorbers, assigned.absorbed, self._table.slot_limit)
        np.add.at(self._rows_since.values, assigned.absorbers, self._rows_since.values[assigned.absorbed])
        self._forget(assigned.absorbed)
        self._table.release(assigned.absorbed)

    def _forget(self, slots: I64) -> None:
        self._columns.clear(slots)
        self._rows_since.clear(slots)

    # --------------------------------------------------------------------------------- results

    def on_watermark(self, watermark: int) -> int | None:
        """Emit the sessions that are complete. By the clock, only the end of the input tells something."""
        if not self._by_clock or watermark >= WATERMARK_MAX:
            self._times.advance(watermark)
            self._show_complete()
        if watermark >= WATERMARK_MAX:
            self._early_due_ms = None
        return watermark

    def _show_complete(self) -> None:
        while True:
            fired, closed = self._table.complete(self._times.reached, self.ctx.batch_rows)
            if len(fired) == 0 and len(closed) == 0:
                return
            self._show(fired)
            self._forget(closed)
            self._table.close(closed)

    def _show_early(self, slots: I64) -> None:
        if self._spec.early_ns is not None and self._early_due_ms is None:
            self._early_due_ms = self.ctx.now_ms() + max(1, self._spec.early_ns // _NANOS_PER_MS)
        if self._spec.early_rows is None:
            return
        # Of what was complete, and may be closed by now, no rows are left to show.
        due = self._rows_since.values[slots] >= self._spec.early_rows
        self._show(np.unique(slots[due]))

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        instant = self._table.next_instant() if self._by_clock else None
        due = [self._early_due_ms, None if instant is None else instant + 1]
        return min((ms for ms in due if ms is not None), default=None)

    def on_timer(self, now_ms: int) -> None:
        """Show the sessions that the clock ends, and those that changed where results are shown every so often."""
        if isinstance(self._times, ClockTimes):
            self._times.tick(now_ms)
            self._show_complete()
        if self._early_due_ms is not None and now_ms >= self._early_due_ms:
            self._early_due_ms = None
            self._show(self._table.dirty())

    def drained(self) -> bool:
        """See `Operator`. Early results that the clock will show are owed."""
        return self._early_due_ms is None

    def _show(self, slots: I64) -> None:
        starts, lasts = self._table.bounds(slots)
        operations = np.where(self._table.shown(slots), UPDATE_AFTER, INSERT).astype(np.int8)
        self._emit(slots, starts, lasts, operations)
        if self._spec.updates:
            self._shown_starts.values[slots], self._shown_lasts.values[slots] = starts, lasts
            self._rows_since.clear(slots)
            self._table.set_shown(slots)

    def _emit(self, slots: I64, starts: I64, lasts: I64, operations: npt.NDArray[np.int8]) -> None:
        for begin in range(0, len(slots), self.ctx.batch_rows):
            piece = slice(begin, begin + self.ctx.batch_rows)
            rows = self._rows(slots[piece], starts[piece], lasts[piece])
            self.out.emit(with_op(rows, operations[piece]) if self._spec.updates else rows)

    def _rows(self, slots: I64, starts: I64, lasts: I64) -> pa.RecordBatch:
        keys = self._table.keys_of(slots)
        try:
            results = self._columns.results(slots)
        except OverflowError as error:
            raise user_error(self.ctx, str(error), keys) from error
        bounds = [self._times.column(starts), self._times.column(lasts + self._gap)]
        return pa.RecordBatch.from_arrays([*keys.columns, *bounds, *results], schema=self._schema)

    # ----------------------------------------------------------------------------------- state

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the open sessions, and the watermark."""
        sessions = self._table.freeze()
        since = self._rows_since.values[sessions.slots]
        build = partial(
            _build, sessions, since, self._columns.freeze(), self._times.type, self.ctx.max_parallelism
        )
        parameters = parameter_parts(self.ctx, self._spec.parameters_ns)
        return (StatePart(name=_SESSIONS, kind="keyed", build=build), self._times.snapshot(), *parameters)


def _numbers(times: pa.Array) -> I64:
    numbers: I64 = np.array(times.cast(pa.int64()).to_numpy())
    return numbers


def _build(
    sessions: FrozenSessions,
    rows_since: I64,
    columns: FrozenAggregates,
    time_type: pa.DataType,
    max_parallelism: int,
) -> pa.Table:
    others = [
        (WINDOW_START, pa.array(sessions.starts).cast(time_type)),
        (_LAST_TIME, pa.array(sessions.lasts).cast(time_type)),
        (_SHOWN, pa.array(sessions.shown)),
        (_ROWS_SINCE, pa.array(rows_since)),
        *columns.state_columns(sessions.slots),
    ]
    return keyed_table(sessions.key_columns(), others, max_parallelism)
