"""Aggregates over tumbling and sliding windows, of event or of processing time: what both ways to keep them share.

Theory of operation. A row belongs to the windows that hold its time; all arithmetic is on integers of the time's
own unit (see `grid`). Rows are added to the accumulators of their key and pane as they come. When the watermark
(the clock, in windows of processing time) reaches a window's last instant, end − 1 unit, the window is *over*: its
results are emitted, in order of window starts. When it reaches end − 1 + the allowed lateness the window is
closed for good, and what no other window needs of it is forgotten.

Rows may come as partial aggregates of a key and slice (`state.partials`), whose states are merged; all rows of a
slice are late at the same moment.

A row is late once its last window is closed: dropped, or put aside, and counted in `late_rows`. A row that is late
for some of its windows only counts for the others. A row that comes into a window which is over, but not closed,
brings an updated result. Rows without a time are treated as late, and counted in `null_time_rows`. Where windows
leave gaps (slide > size), rows in a gap are dropped and counted in `gap_rows`.

The event time of a result is its window's start. So that no result is late for whoever comes behind, the
watermark passed on is one unit before the start of the earliest window that is not closed. Windows of processing
time pass the watermark on as it is, and are all over at its end.

`PaneWindows` keeps a pane per window: tumbling windows, and sliding ones with early results. The others keep a pane
per slice: `RunningWindows` keep up the results of the present window as it moves on, `SlicedWindows` merge slices when
a window is over, which any aggregate can.

With `state.backend=disk`, panes that are in memory are written out when they outgrow its share (`spilled`), and memory
begins anew. Windows of which something is on disk are shown from there, a part of the keys at a time, in the order of
their hashes; and so are snapshots written. As long as all fits memory, all is as without.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import visible
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.partials import NO_SLICE, is_partial, rows_in, slices_in
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.bounds import I64, WINDOW_END, WINDOW_START, unit_ns
from rayflow.windows.clock_times import ClockTimes, HeldRows, by_writer
from rayflow.windows.grid import WindowGrid
from rayflow.windows.panes import FrozenPanes, Panes
from rayflow.windows.parameters import TimeWindows, check_parameters, parameter_parts
from rayflow.windows.row_times import RowTimes
from rayflow.windows.spilled import SpilledPanes, spilled_panes

PANES = "windows"


class TimeWindowOperator(Operator):
    """Aggregates rows by key and time window; `aggregates` are (output column, expression).

    Emits the key columns, `window_start` and `window_end` of the time column's type, and the results; where
    results are updated also the hidden operation column, and with `emit_before` the old row of an update. Raises
    PlanError where the time column is no timestamp, or a duration is no multiple of its unit.
    """

    _panes: Panes

    def __init__(
        self,
        windows: TimeWindows,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        emit_before: bool = False,
    ) -> None:
        self._windows, self._emit_before = windows, emit_before
        self._keys = list(windows.keys)
        self._times: RowTimes | ClockTimes
        if windows.time_column is None:
            self._times, self._unit_ns = ClockTimes(), 1_000_000
        else:
            self._times = RowTimes(windows.time_column, input_schema, windows.late_to)
            self._unit_ns = unit_ns(windows.time_column, self._times.type)
        units = self._times.in_units
        self.grid = WindowGrid(
            units(windows.size_ns, "size"),
            units(windows.slide_ns, "slide"),
            units(windows.offset_ns, "offset"),
        )
        self._lateness = units(windows.lateness_ns, "allowed lateness")
        self._key_schema = pa.schema([input_schema.field(key) for key in windows.keys])
        self._make_columns = partial(AggregateColumns, aggregates, input_schema)
        self._panes, self._columns = self._make_panes(self._key_schema), self._make_columns()
        bounds = [
            pa.field(name, self._times.type)
            for name in (WINDOW_START, WINDOW_END)
            if name not in windows.keys
        ]
        self._schema = pa.schema([*self._key_schema, *bounds, *self._columns.fields])
        self._held = HeldRows()
        self._spilled: SpilledPanes | None = None
        # Whatever is shown may be looked up again as long as it may be updated.
        self.state_place = "memory" if windows.updates else "disk"

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        check_parameters(ctx, restored, self._windows.parameters_ns)
        self._times.open(ctx, out, restored)
        self._gap_rows = ctx.metrics.counter("gap_rows") if self.grid.has_gaps else None
        self._spilled = self._open_disk()
        if not isinstance(self._times, ClockTimes):
            self._restore(restored)
            return
        # By the clock subtasks are not equally far: what one had not yet shown is shown now; not before the
        # output is open, though.
        self.out = self._held
        for over, parts in by_writer(restored):
            self._advance(over)
            self._restore(parts)
        self.out = out

    def _open_disk(self) -> SpilledPanes | None:
        if self.ctx.disk is None or self._windows.updates:
            return None
        return spilled_panes(self.ctx, self._key_schema, self._make_columns, self._panes_of(0)[1])

    def _restore(self, restored: Sequence[RestoredPart]) -> None:
        """Take up state that was written when time had come as far as it has now."""
        if self._spilled is not None:
            of = lambda rows: self._panes_at(rows.column(len(self._key_schema)))  # noqa: E731
            restored = self._spilled.restore_runs(restored, PANES, of)
        for keys, others in restored_batches(restored, PANES, self._key_schema):
            slots = self._slots_of(keys, others)
            self._columns.merge(others.select(range(1, others.num_columns)), slots, self._panes.slot_limit)
            self._make_room()

    def _slots_of(self, keys: pa.RecordBatch, others: pa.RecordBatch) -> I64:
        return self._panes.slots(keys, self._panes_at(others.column(0)))

    def _panes_at(self, starts: pa.Array) -> I64:
        return self._panes_from(np.array(starts.cast(pa.int64()).to_numpy()))

    # ---------------------------------------------------------------------------------- rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self._held.release(self.out)
        grid = self.grid
        rows, ticks, slices = self._arrived(visible(batch))
        last = grid.last_window(slices)
        if self._gap_rows is not None:
            held = grid.first_window(slices) <= last
            self._gap_rows.inc(rows_in(rows.filter(pa.array(~held))))
            rows, ticks, slices, last = rows.filter(pa.array(held)), ticks[held], slices[held], last[held]
        late = last < self._first_open()
        if late.any():
            self._times.put_aside(rows.filter(pa.array(late)))
            timely = ~late
            rows, ticks, slices = rows.filter(pa.array(timely)), ticks[timely], slices[timely]
        if len(ticks):
            self._add(rows, slices, ticks)
            self._make_room()

    def _arrived(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, I64, I64]:
        """Return the rows that have a time, their times and slices; of partial aggregates the slices only count."""
        grid = self.grid
        if not is_partial(rows.schema):
            rows, ticks = self._times.timely(rows, grid.margin)
            return rows, ticks, grid.slices_of(ticks)
        slices = slices_in(rows)
        untimed = slices == NO_SLICE
        if untimed.any():
            self._times.untimed(rows.filter(pa.array(untimed)))
            rows, slices = rows.filter(pa.array(~untimed)), slices[~untimed]
        return rows, slices, slices

    def _accumulate(self, rows: pa.RecordBatch, slots: I64, ticks: I64) -> None:
        """Add rows, or partial aggregates, to the state in `slots`."""
        if is_partial(rows.schema):
            self._columns.merge(rows, slots, self._panes.slot_limit)
        else:
            self._columns.update(rows, slots, self._panes.slot_limit, ticks)

    @abstractmethod
    def _make_panes(self, key_schema: pa.Schema) -> Panes:
        """Return an empty table of panes by key."""

    @abstractmethod
    def _add(self, rows: pa.RecordBatch, slices: I64, ticks: I64) -> None:
        """Add rows, none of them late."""

    # ---------------------------------------------------------------------------------- room

    def _make_room(self) -> None:
        if self._spilled is None:
            return
        if self._spilled.is_over(self._nbytes()):
            self._spill(self._spilled)

    def _nbytes(self) -> int:
        return self._panes.nbytes + self._columns.nbytes + self._derived_bytes()

    def _spill(self, spilled: SpilledPanes) -> None:
        """Write all panes in memory to disk."""
        if len(self._panes):
            spilled.add(self._panes.view(), self._columns)
            self._panes, self._columns = self._make_panes(self._key_schema), self._make_columns()
            self._renew()
            spilled.measure()

    def _derived_bytes(self) -> int:
        """Return the bytes of memory held beside panes and their states."""
        return 0

    def _renew(self) -> None:
        """Panes and their states are new, and empty."""

    @abstractmethod
    def _panes_of(self, window: int) -> tuple[int, int]:
        """Return the first pane of a window, and the one after the last."""

    @abstractmethod
    def _next_window_of(self, pane: int | None, begin: int) -> int | None:
        """Return the first window from `begin` on that has rows, `pane` being the first pane of that or a later one."""

    def _first_going_on(self) -> int:
        """Return the number of the first window that is not over."""
        return self.grid.first_open(self._times.reached)

    def _first_open(self) -> int:
        """Return the number of the first window that is not closed."""
        return self.grid.first_open(self._times.reached, self._lateness)

    # ---------------------------------------------------------------------------------- time

    def on_watermark(self, watermark: int) -> int | None:
        """Emit the windows that are over."""
        self._held.release(self.out)
        if self._windows.time_column is None:
            if watermark == WATERMARK_MAX:
                self._advance(watermark)
            return watermark
        self._advance(watermark)
        if watermark == WATERMARK_MAX:
            return watermark
        return (self.grid.start_of(self._first_open()) - 1) * self._unit_ns

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        if self._windows.time_column is not None:
            return None
        if self._held.batches:
            return self.ctx.now_ms()
        begin = self._first_going_on()
        windows = [w for w in (self._next_window(begin), self._next_on_disk(begin)) if w is not None]
        return self.grid.start_of(min(windows)) + self.grid.size if windows else None

    def on_timer(self, now_ms: int) -> None:
        """Emit the windows that are over by the clock."""
        self._held.release(self.out)
        if isinstance(self._times, ClockTimes):
            self._advance((now_ms - 1) * self._unit_ns)

    def _advance(self, nanos: int) -> None:
        begin = self._first_going_on()
        self._times.advance(nanos)
        end = self._first_going_on()
        if end > begin:
            self._show_due(begin, end)
        closed = self._first_open()
        self._forget(closed)
        if self._spilled is not None:
            self._spilled.drop_before(self._panes_of(closed)[0])

    @abstractmethod
    def _finish(self, begin: int, end: int) -> None:
        """Emit the results of the windows from `begin` to before `end`, which are over now."""

    @abstractmethod
    def _forget(self, end: int) -> None:
        """Forget what only windows before `end` needed."""

    @abstractmethod
    def _next_window(self, begin: int) -> int | None:
        """Return the first window from `begin` on that has rows."""

    # ------------------------------------------------------------------------------ from disk

    def _next_on_disk(self, begin: int) -> int | None:
        """Return the first window from `begin` on of which something is on disk."""
        if self._spilled is None or not len(self._spilled):
            return None
        return self._next_window_of(self._spilled.next_pane(self._panes_of(begin)[0]), begin)

    def _show_due(self, begin: int, end: int) -> None:
        window, spilled = self._next_on_disk(begin), self._spilled
        if window is None or window >= end or spilled is None:
            self._finish(begin, end)
            return
        self._spill(spilled)
        window = self._next_on_disk(begin)
        while window is not None and window < end:
            for keys, columns, slots in spilled.merged(*self._panes_of(window)):
                for at in range(0, len(slots), self.ctx.batch_rows):
                    piece = slice(at, at + self.ctx.batch_rows)
                    few = keys.slice(at, self.ctx.batch_rows)
                    windows = np.full(few.num_rows, window)
                    self.out.emit(self._rows_of_keys(few, windows, columns, slots[piece]))
            window = self._next_on_disk(window + 1)

    # ------------------------------------------------------------------------------- results

    def _rows(self, key_numbers: I64, windows: I64, columns: AggregateColumns, slots: I64) -> pa.RecordBatch:
        """Return result rows: of the keys and windows given by number, with the values in `slots`."""
        return self._rows_of_keys(self._panes.keys(key_numbers), windows, columns, slots)

    def _rows_of_keys(
        self, keys: pa.RecordBatch, windows: I64, columns: AggregateColumns, slots: I64
    ) -> pa.RecordBatch:
        results = self._results_of(lambda: keys, partial(columns.results, slots))
        starts = self.grid.window_start(windows)
        return self._batch_of(keys.columns, starts, starts + self.grid.size, results)

    def _results_of(
        self, keys: Callable[[], pa.RecordBatch], make: Callable[[], list[pa.Array]]
    ) -> list[pa.Array]:
        """Return what `make` does, for these keys: what it raises is the user's error."""
        try:
            return make()
        except OverflowError as error:
            raise user_error(self.ctx, str(error), keys()) from error

    def _batch_of(
        self, keys: Sequence[pa.Array], starts: I64, ends: I64, results: Sequence[pa.Array]
    ) -> pa.RecordBatch:
        bounds = [
            self._times.column(bound)
            for name, bound in ((WINDOW_START, starts), (WINDOW_END, ends))
            if name not in self._keys
        ]
        return pa.RecordBatch.from_arrays([*keys, *bounds, *results], schema=self._schema)

    # --------------------------------------------------------------------------------- state

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the open panes, and how far time has come."""
        self._held.release(self.out)
        parameters = parameter_parts(self.ctx, self._windows.parameters_ns)
        return (self._pane_part(checkpoint_id), self._times.snapshot(), *parameters)

    def _pane_part(self, checkpoint_id: int) -> StatePart:
        if self._spilled is not None and self._spilled.is_worth(self._nbytes()):
            self._spill(self._spilled)
            times = self._pane_times()
            starts = lambda pane, rows: [(WINDOW_START, times(np.full(rows, pane)))]  # noqa: E731
            return self._spilled.part(PANES, checkpoint_id, starts)
        build = partial(self._pane_table(), self._columns.freeze())
        return StatePart(name=PANES, kind="keyed", build=build)

    def close(self) -> None:
        """See `Operator`."""
        if self._spilled is not None:
            self._spilled.close()

    def _pane_table(self) -> partial[pa.Table]:
        return partial(_pane_table, self._panes.freeze(), self._pane_times(), self.ctx.max_parallelism)

    @abstractmethod
    def _pane_times(self) -> partial[pa.Array]:
        """Return a function of pane numbers that gives the times at which the panes start."""

    @abstractmethod
    def _panes_from(self, starts: I64) -> I64:
        """Return the panes that start at these times; what `_pane_times` gave, read back."""


def pane_times(size: int, offset: int, type_: pa.DataType, panes: I64) -> pa.Array:
    """Return the times `panes · size + offset`."""
    return pa.array(panes * size + offset).cast(type_)


def _pane_table(
    panes: FrozenPanes, times: partial[pa.Array], max_parallelism: int, columns: FrozenAggregates
) -> pa.Table:
    slots = panes.slots
    others = [(WINDOW_START, times(panes.panes_of(slots))), *columns.state_columns(slots)]
    return keyed_table(panes.keys_of(slots), others, max_parallelism)
