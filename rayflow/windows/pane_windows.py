"""Time windows with a pane each: tumbling ones, and sliding ones whose results are shown early.

A key's slot in a pane is its window's state, so a result can be read, and shown, at any time. Sliding windows with
early results are kept this way because a row changes the result of every window it is in: each row is added to
all of them, size/slide updates a row.

Where results are updated, three flags say per slot whether it was shown, whether it changed since, and how many
rows came since; with old rows (-U) asked for, a second set of accumulators keeps the state as it was last shown.
Early results by count come at the end of a batch: a batch that brings a window several times `n` rows shows it
once. When a window is over, what changed since it was last shown is shown.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.contracts import OperatorContext, Output
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.partials import counts_of_rows
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.bounds import I64, WINDOW_START
from rayflow.windows.panes import FrozenPanes, PaneTable
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.time_windows import PANES, TimeWindowOperator, pane_times
from rayflow.windows.updates import updated_rows

_FLAGS, _SHOWN = "flags", "shown"


class PaneWindows(TimeWindowOperator):
    """See `TimeWindowOperator`. A pane is a window, under the window's number."""

    _panes: PaneTable

    def __init__(
        self,
        windows: TimeWindows,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        emit_before: bool = False,
    ) -> None:
        super().__init__(windows, aggregates, input_schema, emit_before)
        self._shown, self._changed = SlotArray(np.bool_), SlotArray(np.bool_)
        self._rows_since = SlotArray(np.int64)
        self._before: AggregateColumns | None = self._make_columns() if emit_before else None
        self._early_at_ms: int | None = None

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._arm()

    def _restore(self, restored: Sequence[RestoredPart]) -> None:
        super()._restore(restored)
        if not self._windows.updates:
            return
        self._reserve()
        # Where no flags were written, since the job had no early results then, nothing was shown yet.
        for keys, states in restored_batches(restored, PANES, self._key_schema):
            self._changed.values[self._slots_of(keys, states)] = True
        for keys, flags in restored_batches(restored, _FLAGS, self._key_schema):
            slots = self._slots_of(keys, flags)
            for array, column in zip(self._flags(), flags.columns[1:]):
                array.values[slots] = column.to_numpy(zero_copy_only=False)
        for keys, states in restored_batches(restored, _SHOWN, self._key_schema):
            if self._before is not None:
                slots = self._slots_of(keys, states)
                states = states.select(range(1, states.num_columns))
                self._before.merge(states, slots, self._panes.slot_limit)

    def _flags(self) -> tuple[SlotArray, ...]:
        return self._shown, self._changed, self._rows_since

    def _reserve(self) -> None:
        for array in self._flags():
            array.reserve(self._panes.slot_limit)

    def _make_panes(self, key_schema: pa.Schema) -> PaneTable:
        return PaneTable(key_schema)

    # ---------------------------------------------------------------------------------- rows

    def _add(self, rows: pa.RecordBatch, slices: I64, ticks: I64) -> None:
        for piece, windows, times in self._spread(rows, slices, ticks):
            slots = self._panes.slots(piece.select(self._keys), windows)
            self._accumulate(piece, slots, times)
            if self._windows.updates:
                self._note(slots, counts_of_rows(piece))

    def _spread(
        self, rows: pa.RecordBatch, slices: I64, ticks: I64
    ) -> Iterator[tuple[pa.RecordBatch, I64, I64]]:
        """Yield rows, a window for each, and their times, such that each row comes with all of its windows."""
        grid = self.grid
        last = grid.last_window(slices)
        if grid.per_window == 1:
            yield rows, last, ticks
            return
        first = np.maximum(grid.first_window(slices), self._first_open())
        most = max(1, self.ctx.batch_rows // (grid.per_window // grid.step + 1))
        for begin in range(0, len(ticks), most):
            piece = slice(begin, begin + most)
            counts = last[piece] - first[piece] + 1
            row = np.repeat(np.arange(len(counts)), counts)
            windows = first[piece][row] + np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
            yield rows.slice(begin, most).take(pa.array(row)), windows, ticks[piece][row]

    def _note(self, slots: I64, counts: I64 | int) -> None:
        """So many rows came into each of `slots`: show what is to be shown at once."""
        self._reserve()
        touched = np.unique(slots)
        self._changed.values[touched] = True
        due = self._panes.panes_of(touched) < self._first_going_on()
        if self._windows.early_rows is not None:
            np.add.at(self._rows_since.values, slots, counts)
            full = self._rows_since.values[touched] >= self._windows.early_rows
            self._rows_since.values[touched[full]] %= self._windows.early_rows
            due |= full
        self._show(touched[due])
        self._arm()

    # ---------------------------------------------------------------------------------- time

    def _finish(self, begin: int, end: int) -> None:
        panes = self._panes.open_panes(None if not self._windows.updates else begin, end)
        if not panes:
            return
        slots = np.concatenate([self._panes.members(pane) for pane in panes])
        self._show(slots[self._changed.values[slots]] if self._windows.updates else slots)

    def _forget(self, end: int) -> None:
        slots = self._panes.drop_before(end)
        if len(slots) == 0:
            return
        self._columns.clear(slots)
        if self._windows.updates:
            if self._before is not None:
                self._before.clear(slots[self._shown.values[slots]])
            for array in self._flags():
                array.clear(slots)

    def _panes_of(self, window: int) -> tuple[int, int]:
        return window, window + 1

    def _next_window_of(self, pane: int | None, begin: int) -> int | None:
        return pane

    def _next_window(self, begin: int) -> int | None:
        return self._panes.next_pane(begin)

    def on_watermark(self, watermark: int) -> int | None:
        """See `TimeWindowOperator`. At the end all has been shown."""
        passed_on = super().on_watermark(watermark)
        if watermark == WATERMARK_MAX:
            self._early_at_ms = None
        return passed_on

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        times = (super().next_timer_ms(), self._early_at_ms)
        return min((time for time in times if time is not None), default=None)

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        super().on_timer(now_ms)
        if self._early_at_ms is not None and now_ms >= self._early_at_ms:
            self._early_at_ms = None
            slots = np.flatnonzero(self._changed.values)
            self._show(slots[np.argsort(self._panes.panes_of(slots), kind="stable")])

    def drained(self) -> bool:
        """See `Operator`. Early results that the clock will show are owed."""
        return self._early_at_ms is None

    def _arm(self) -> None:
        every = self._windows.early_ms
        if every is not None and self._early_at_ms is None and self._changed.values.any():
            self._early_at_ms = (self.ctx.now_ms() // every + 1) * every

    # ------------------------------------------------------------------------------- results

    def _show(self, slots: I64) -> None:
        for begin in range(0, len(slots), self.ctx.batch_rows):
            piece = slots[begin : begin + self.ctx.batch_rows]
            after = self._rows_of(piece, self._columns)
            if not self._windows.updates:
                self.out.emit(after)
                continue
            known = piece[self._shown.values[piece]]
            before = self._rows_of(known, self._before) if self._before is not None and len(known) else None
            is_new = ~self._shown.values[piece]
            for batch in updated_rows(after, is_new, before, self.ctx.batch_rows):
                self.out.emit(batch)
            self._remember(piece, known)

    def _remember(self, slots: I64, known: I64) -> None:
        """What `slots` are now was shown; `known` are those of them that were shown before."""
        if self._before is not None:
            self._before.clear(known)
            self._before.merge_slots(slots, slots, self._panes.slot_limit, self._columns)
        self._shown.values[slots] = True
        self._changed.values[slots] = False

    def _rows_of(self, slots: I64, columns: AggregateColumns) -> pa.RecordBatch:
        return self._rows(self._panes.key_numbers(slots), self._panes.panes_of(slots), columns, slots)

    # --------------------------------------------------------------------------------- state

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """See `Operator`."""
        parts = [*super().snapshot(checkpoint_id)]
        if self._windows.updates:
            panes, times, most = self._panes.freeze(), self._pane_times(), self.ctx.max_parallelism
            flags = [array.freeze() for array in self._flags()]
            parts.append(
                StatePart(name=_FLAGS, kind="keyed", build=partial(_flag_table, panes, times, most, flags))
            )
            if self._before is not None:
                build = partial(_shown_table, panes, times, most, flags[0], self._before.freeze())
                parts.append(StatePart(name=_SHOWN, kind="keyed", build=build))
        return parts

    def _pane_times(self) -> partial[pa.Array]:
        return partial(pane_times, self.grid.slide, self.grid.offset, self._times.type)

    def _panes_from(self, starts: I64) -> I64:
        return (starts - self.grid.offset) // self.grid.slide


def _flag_table(
    panes: FrozenPanes, times: partial[pa.Array], max_parallelism: int, flags: Sequence[SlotArray]
) -> pa.Table:
    slots = panes.slots
    names = ("shown", "changed", "rows_since")
    values = [(name, pa.array(array.values[slots])) for name, array in zip(names, flags)]
    others = [(WINDOW_START, times(panes.panes_of(slots))), *values]
    return keyed_table(panes.keys_of(slots), others, max_parallelism)


def _shown_table(
    panes: FrozenPanes,
    times: partial[pa.Array],
    max_parallelism: int,
    shown: SlotArray,
    before: FrozenAggregates,
) -> pa.Table:
    slots = panes.slots[shown.values[panes.slots]]
    others = [(WINDOW_START, times(panes.panes_of(slots))), *before.state_columns(slots)]
    return keyed_table(panes.keys_of(slots), others, max_parallelism)
