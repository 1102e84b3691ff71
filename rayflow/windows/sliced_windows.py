"""Sliding windows of several slices, for any aggregate: slices are merged when a window is over.

A pane is a slice, under the slice's number; see `slice_tree` for how slices become windows. With allowed lateness, a
row that comes into windows which are over shows these, of its key, anew: what they were is merged before the row is
added, what they are after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import INSERT, with_op
from rayflow.windows.bounds import I64
from rayflow.windows.panes import PaneTable
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.slice_tree import SliceTree
from rayflow.windows.time_windows import TimeWindowOperator, pane_times
from rayflow.windows.updates import updated_rows

_MOST_LATE_PAIRS = 1 << 20


class SlicedWindows(TimeWindowOperator):
    """See `TimeWindowOperator`. No early results."""

    _panes: PaneTable

    def __init__(
        self,
        windows: TimeWindows,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        emit_before: bool = False,
    ) -> None:
        super().__init__(windows, aggregates, input_schema, emit_before)
        self._renew()

    def _renew(self) -> None:
        self._tree = SliceTree(self._panes, self._columns, self._make_columns, self.grid.per_window)

    def _derived_bytes(self) -> int:
        return self._tree.nbytes

    def _make_panes(self, key_schema: pa.Schema) -> PaneTable:
        return PaneTable(key_schema)

    # ---------------------------------------------------------------------------------- rows

    def _add(self, rows: pa.RecordBatch, slices: I64, ticks: I64) -> None:
        if self._lateness:
            over = self._first_window(slices) < self._first_going_on()
            if over.any():
                self._add_late(rows, slices, ticks, over)
                return
        self._insert(rows, slices, ticks)

    def _insert(self, rows: pa.RecordBatch, slices: I64, ticks: I64) -> None:
        slots = self._panes.slots(rows.select(self._keys), slices)
        self._accumulate(rows, slots, ticks)
        self._tree.touched(slices)

    def _first_window(self, slices: I64) -> I64:
        """Return the number of the first window of each slice that is not closed."""
        return np.maximum(self.grid.first_window(slices), self._first_open())

    def _add_late(self, rows: pa.RecordBatch, slices: I64, ticks: I64, over: npt.NDArray[np.bool_]) -> None:
        """Add rows, of which some (`over`) come into windows that were shown."""
        half = len(ticks) // 2
        if half and np.count_nonzero(over) * self.grid.per_window > _MOST_LATE_PAIRS:
            self._add(rows.slice(0, half), slices[:half], ticks[:half])
            self._add(rows.slice(half), slices[half:], ticks[half:])
            return
        keys = self._panes.number_keys(rows.filter(pa.array(over)).select(self._keys))
        windows, only = self._pairs(keys, slices[over])
        # Of the keys so far: those that come with rows which are not late have other numbers.
        keys_limit = self._panes.key_limit
        which, numbers = self._merge(windows, only)
        order, old_pairs = _in_order(which, numbers, keys_limit)
        before = self._take(windows[which[order]], numbers[order], order, self._emit_before)
        self._insert(rows, slices, ticks)
        which, numbers = self._merge(windows, only)
        order, pairs = _in_order(which, numbers, keys_limit)
        after = self._take(windows[which[order]], numbers[order], order, True)
        assert after is not None
        is_new = ~np.isin(pairs, old_pairs, assume_unique=True)
        for batch in updated_rows(after, is_new, before, self.ctx.batch_rows):
            self.out.emit(batch)

    def _pairs(self, keys: I64, slices: I64) -> tuple[I64, list[I64]]:
        """Return the windows that are over which the slices are in, and the keys concerned of each."""
        first = self._first_window(slices)
        counts = np.minimum(self.grid.last_window(slices), self._first_going_on() - 1) - first + 1
        row = np.repeat(np.arange(len(counts)), counts)
        windows = first[row] + np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
        order = np.argsort(windows, kind="stable")
        windows, keys = windows[order], keys[row][order]
        begins = np.flatnonzero(np.diff(windows, prepend=windows[0] - 1))
        return windows[begins], [np.unique(piece) for piece in np.split(keys, begins[1:])]

    def _merge(self, windows: I64, only: Sequence[I64] | None = None) -> tuple[I64, I64]:
        grid = self.grid
        ranges = [(k * grid.step, k * grid.step + grid.per_window) for k in windows.tolist()]
        which, numbers, self._results = self._tree.merge(ranges, only)
        return which, numbers

    def _take(self, windows: I64, numbers: I64, slots: I64, wanted: bool) -> pa.RecordBatch | None:
        """Return what was merged as rows, and make room for the next."""
        rows = self._rows(numbers, windows, self._results, slots) if wanted and len(slots) else None
        self._results.clear(slots)
        return rows

    # ---------------------------------------------------------------------------------- time

    def _finish(self, begin: int, end: int) -> None:
        # All keys may be in every window: so many windows at a time that their results are a batch.
        most = max(1, self.ctx.batch_rows // max(1, self._panes.key_count))
        window = self._next_window(begin)
        while window is not None and window < end:
            due: list[int] = []
            while window is not None and window < end and len(due) < most:
                due.append(window)
                window = self._next_window(window + 1)
            self._show(np.array(due))

    def _show(self, windows: I64) -> None:
        which, numbers = self._merge(windows)
        slots = np.arange(len(numbers))
        for begin in range(0, len(slots), self.ctx.batch_rows):
            piece = slice(begin, begin + self.ctx.batch_rows)
            rows = self._rows(numbers[piece], windows[which[piece]], self._results, slots[piece])
            self.out.emit(with_op(rows, INSERT) if self._windows.updates else rows)
        self._results.clear(slots)

    def _forget(self, end: int) -> None:
        first = end * self.grid.step
        self._tree.drop_before(first)
        slots = self._panes.drop_before(first)
        if len(slots):
            self._columns.clear(slots)

    def _panes_of(self, window: int) -> tuple[int, int]:
        first = window * self.grid.step
        return first, first + self.grid.per_window

    def _next_window_of(self, pane: int | None, begin: int) -> int | None:
        grid = self.grid
        return None if pane is None else max(begin, (pane - grid.per_window) // grid.step + 1)

    def _next_window(self, begin: int) -> int | None:
        return self._next_window_of(self._panes.next_pane(begin * self.grid.step), begin)

    # --------------------------------------------------------------------------------- state

    def _pane_times(self) -> partial[pa.Array]:
        return partial(pane_times, self.grid.slice_size, self.grid.offset, self._times.type)

    def _panes_from(self, starts: I64) -> I64:
        return (starts - self.grid.offset) // self.grid.slice_size


def _in_order(which: I64, numbers: I64, keys_limit: int) -> tuple[I64, I64]:
    """Return an order of results that does not depend on how they were found, and a number for each: the same for
    the same window and key, as long as `keys_limit` is."""
    pairs = which * keys_limit + numbers
    order = np.argsort(pairs)
    return order, pairs[order]
