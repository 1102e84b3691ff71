"""Sliding windows of several slices for aggregates whose state is lanes: results are kept up as the window moves on.

A pane is a slice, under the slice's number, and its slots are entries of a `SliceTable`; see `running` for how they
become results. What is written into snapshots is that of `SlicedWindows`, and either restores what the other wrote.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.memory import empty
from rayflow.state.parts import RestoredPart
from rayflow.windows.bounds import I64
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.running import Results, RunningResults
from rayflow.windows.slice_table import SliceTable
from rayflow.windows.time_windows import TimeWindowOperator, pane_times

_FEW_WINDOWS, _MOST_BATCHES = 8, 16


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
        assert not windows.updates
        self._renew()

    def _renew(self) -> None:
        lanes = self._columns.lanes()
        assert lanes is not None
        self._running = RunningResults(self._panes, lanes, self.grid.per_window)
        # Key columns of the last windows shown, and in which order these have which keys.
        self._shown_keys: tuple[int, list[pa.Array]] | None = None

    def _derived_bytes(self) -> int:
        return self._running.nbytes

    # ---------------------------------------------------------------------------------- rows

    def _make_panes(self, key_schema: pa.Schema) -> SliceTable:
        return SliceTable(key_schema)

    def _add(self, rows: pa.RecordBatch, slices: I64, ticks: I64) -> None:
        slots = self._panes.slots(rows.select(self._keys), slices)
        self._accumulate(rows, slots, ticks)
        self._running.touched(slices)

    def _restore(self, restored: Sequence[RestoredPart]) -> None:
        super()._restore(restored)
        self._running.reset()

    # ---------------------------------------------------------------------------------- time

    def _finish(self, begin: int, end: int) -> None:
        most = _windows_at_once(self._panes.key_count, self.ctx.batch_rows)
        for first, last in self._due(begin, end):
            for at in range(first, last, most):
                self._show(np.arange(at, min(at + most, last)))

    def _due(self, begin: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the windows from `begin` to before `end` that have rows, in stretches: first, and after the last."""
        grid = self.grid
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
        results = self._running.show(windows * self.grid.step)
        keys = cache(partial(self._panes.keys, results.owners))
        columns = self._results_of(keys, partial(self._columns.results_of, results.numbers))
        starts = self.grid.window_start(windows)
        for piece in _pieces(results.offsets, self.ctx.batch_rows):
            rows = pa.array(results.rows[piece.begin : piece.end])
            begins, ends = _bounds_of(piece, results.offsets, starts, self.grid.size)
            mine = [pc.take(column, rows, boundscheck=False) for column in columns]
            of_rows = self._keys_of_rows(keys, rows, results, piece)
            self.out.emit(self._batch_of(of_rows, begins, ends, mine))

    def _keys_of_rows(
        self, keys: Callable[[], pa.RecordBatch], rows: pa.Array, results: Results, piece: _Piece
    ) -> list[pa.Array]:
        """Return the key columns of a piece. Where that is windows of the same keys as the last ones shown, in the
        same order, it is the columns that were made for those."""
        orders = results.orders[piece.first : piece.last]
        order = int(orders[0]) if piece.is_whole and orders[0] == orders[-1] else None
        if order is not None and self._shown_keys is not None and self._shown_keys[0] == order:
            known = self._shown_keys[1]
            if len(known[0]) >= len(rows):
                return [column.slice(0, len(rows)) for column in known]
        columns = [pc.take(column, rows, boundscheck=False) for column in keys().columns]
        self._shown_keys = None if order is None else (order, columns)
        return columns

    def _forget(self, end: int) -> None:
        first = self.grid.first_slice(end)
        self._running.leave(first)
        slots = self._panes.drop_before(first)
        if len(slots):
            self._columns.clear(slots)

    def _panes_of(self, window: int) -> tuple[int, int]:
        first = self.grid.first_slice(window)
        return first, first + self.grid.per_window

    def _next_window_of(self, pane: int | None, begin: int) -> int | None:
        grid = self.grid
        return None if pane is None else max(begin, (pane - grid.per_window) // grid.step + 1)

    def _next_window(self, begin: int) -> int | None:
        slices = self._panes.open_from(self.grid.first_slice(begin))
        return self._next_window_of(int(slices[0]) if len(slices) else None, begin)

    # --------------------------------------------------------------------------------- state

    def _pane_times(self) -> partial[pa.Array]:
        return partial(pane_times, self.grid.slice_size, self.grid.offset, self._times.type)

    def _panes_from(self, starts: I64) -> I64:
        return (starts - self.grid.offset) // self.grid.slice_size


def _bounds_of(piece: _Piece, offsets: I64, starts: I64, size: int) -> tuple[I64, I64]:
    """Return the start and end of each row's window; `starts` are those of the windows."""
    begins, ends = empty(piece.end - piece.begin, np.int64), empty(piece.end - piece.begin, np.int64)
    for window in range(piece.first, piece.last):
        rows = slice(max(0, int(offsets[window]) - piece.begin), int(offsets[window + 1]) - piece.begin)
        begins[rows], ends[rows] = starts[window], starts[window] + size
    return begins, ends


def _windows_at_once(keys: int, batch_rows: int) -> int:
    """Return how many windows to show together: as all keys may be in every window, so many that their results are a
    batch; or a few more, since the state of a key to which nothing happens is then read only once."""
    keys = max(1, keys)
    in_batch = batch_rows // keys
    if in_batch == 0:
        return max(1, min(_FEW_WINDOWS, _MOST_BATCHES * batch_rows // keys))
    return in_batch * -(-_FEW_WINDOWS // in_batch)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Result rows `begin` to before `end`, of windows `first` to before `last`; `is_whole`: and all of these."""

    begin: int
    end: int
    first: int
    last: int
    is_whole: bool


def _pieces(offsets: I64, most: int) -> Iterator[_Piece]:
    """Cut the results of windows (window w: `offsets[w]` to before `offsets[w + 1]`) into pieces of at most `most`
    rows, between windows where it can be done."""
    first, windows = 0, len(offsets) - 1
    while first < windows:
        begin = int(offsets[first])
        last = int(np.searchsorted(offsets, begin + most, "right")) - 1
        if last > first:
            yield _Piece(begin=begin, end=int(offsets[last]), first=first, last=last, is_whole=True)
            first = last
            continue
        end = int(offsets[first + 1])
        for at in range(begin, end, most):
            yield _Piece(begin=at, end=min(at + most, end), first=first, last=first + 1, is_whole=False)
        first += 1
