"""Sliding windows of several slices for aggregates whose state is lanes: results are kept up as the window moves on.

A pane is a slice, under the slice's number, and its slots are entries of a `SliceTable`; see `running` for how they
become results. What is written into snapshots is that of `SlicedWindows`, and either restores what the other wrote.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.state.parts import RestoredPart
from rayflow.windows.bounds import I64
from rayflow.windows.running import Results, RunningResults
from rayflow.windows.slice_table import SliceTable
from rayflow.windows.time_windows import TimeWindowOperator, TimeWindows, pane_times


class RunningWindows(TimeWindowOperator):
    """See `TimeWindowOperator`. No early results, and no allowed lateness; all aggregates must have lanes."""

    _panes: SliceTable

    def __init__(
        self,
        windows: TimeWindows,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        emit_before: bool = False,
    ) -> None:
        super().__init__(windows, aggregates, input_schema, emit_before)
        lanes = self._columns.lanes()
        assert lanes is not None
        assert not windows.updates
        self._running = RunningResults(self._panes, lanes, self._grid.per_window)
        # Key columns of the last windows shown, and their version.
        self._shown_keys: tuple[int, pa.RecordBatch] | None = None

    # ---------------------------------------------------------------------------------- rows

    def _make_panes(self, key_schema: pa.Schema) -> SliceTable:
        return SliceTable(key_schema)

    def _add(self, rows: pa.RecordBatch, slices: I64, ticks: I64) -> None:
        slots = self._panes.slots(rows.select(self._keys), slices)
        self._columns.update(rows, slots, self._panes.slot_limit, ticks)
        self._running.touched(slices)

    def _restore(self, restored: Sequence[RestoredPart]) -> None:
        super()._restore(restored)
        self._running.reset()

    # ---------------------------------------------------------------------------------- time

    def _finish(self, begin: int, end: int) -> None:
        # All keys may be in every window: so many windows at a time that their results are a batch.
        most = max(1, self.ctx.batch_rows // max(1, self._panes.key_count))
        for first, last in self._due(begin, end):
            for at in range(first, last, most):
                self._show(np.arange(at, min(at + most, last)))

    def _due(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the windows from `begin` to before `end` that have rows, in stretches: first, and after the last."""
        grid = self._grid
        since = until = begin
        for slice_ in self._panes.open_from(grid.first_slice(begin)).tolist():
            first = max(begin, (slice_ - grid.per_window) // grid.step + 1)
            if first >= end or until >= end:
                break
            if first > until:
                if until > since:
                    yield since, until
                since = first
            until = min(end, max(until, slice_ // grid.step + 1))
        if until > since:
            yield since, until

    def _show(self, windows: I64) -> None:
        results = self._running.show(windows * self._grid.step)
        keys = self._key_columns(results)
        starts, ends = self._running.bounds(results, self._grid.window_start(windows), self._grid.size)
        rows = self._rows_of_keys(keys, starts, ends, partial(self._columns.results_of, results.numbers))
        for at in range(0, rows.num_rows, self.ctx.batch_rows):
            self.out.emit(rows.slice(at, self.ctx.batch_rows))

    def _key_columns(self, results: Results) -> pa.RecordBatch:
        """Return the keys of results; where they are those of the last ones, in the same order, what that were."""
        count = len(results.keys)
        if self._shown_keys is not None and self._shown_keys[0] == results.version:
            known = self._shown_keys[1]
            if known.num_rows >= count:
                return known.slice(0, count)
        keys = self._panes.keys(results.keys)
        self._shown_keys = None if results.version is None else (results.version, keys)
        return keys

    def _forget(self, end: int) -> None:
        first = self._grid.first_slice(end)
        self._running.leave(first)
        slots = self._panes.drop_before(first)
        if len(slots):
            self._columns.clear(slots)

    def _next_window(self, begin: int) -> int | None:
        slices = self._panes.open_from(self._grid.first_slice(begin))
        return None if len(slices) == 0 else max(begin, int(self._grid.first_window(slices[:1])[0]))

    # --------------------------------------------------------------------------------- state

    def _pane_times(self) -> partial[pa.Array]:
        return partial(pane_times, self._grid.slice_size, self._grid.offset, self._times.type)

    def _panes_from(self, starts: I64) -> I64:
        return (starts - self._grid.offset) // self._grid.slice_size
