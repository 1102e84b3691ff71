"""The window join: pairs of rows of the same key and the same window of event time.

Theory of operation. Rows of both sides are kept, once however many windows they are in, until the watermark has
reached the last instant of their last window. When it reaches that of a window, the window's rows are joined: rows
that are due are sorted by time, so that each window's lie side by side, and keys are numbered anew for as many windows
as make a batch. Windows are final, so outer joins append too: a row without a match in a window comes out beside nulls.

A row whose last window has closed is late: dropped, and counted in `late_rows`. The event time of a result is its
`window_start`, so the watermark is passed on up to the start of the next window that may close, less one unit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.joins.columns import LEFT, RIGHT, JoinColumns, JoinSide
from rayflow.operators.joins.sides import Keys, without_null_keys
from rayflow.operators.joins.stored import restored_rows, rows_part
from rayflow.operators.joins.times import EventTimes
from rayflow.operators.keyed_parts import restored_watermark, watermark_part
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.rows import I64, RowStore
from rayflow.windows.bounds import in_units

_PARTS = ("left", "right")
_TIME = "time"
_INT64 = np.iinfo(np.int64)


class WindowJoinOperator(Operator):
    """Joins `left` (port 0) and `right` (port 1) on their keys within windows of `size_ns` every `slide_ns`, starting
    at multiples of that plus `offset_ns`; `times` are the columns of event time. `bounds` says which of the
    window's start and end are columns. Raises PlanError where a duration is no multiple of the left times' unit."""

    def __init__(
        self,
        left: JoinSide,
        right: JoinSide,
        columns: JoinColumns,
        times: tuple[str, str],
        windows: tuple[int, int, int],
        bounds: tuple[bool, bool] = (True, True),
    ) -> None:
        self._inputs = (left, right)
        self._columns = columns
        self._times = EventTimes(times, (left.schema, right.schema))
        self._time_type = left.schema.field(times[LEFT]).type
        self._unit_ns = self._times.units_ns[LEFT]
        tick, per_unit = self._times.tick_ns, self._unit_ns // self._times.tick_ns
        self._per_unit = per_unit
        self._size, self._slide, self._offset = (
            in_units(ns, self._unit_ns, what, times[LEFT]) * per_unit
            for ns, what in zip(windows, ("size", "slide", "offset"))
        )
        self._tick_ns = tick
        self._bounds = bounds
        self._stores = tuple(RowStore(side.schema, (_TIME,)) for side in self._inputs)
        self._earliest: int | None = None
        self._watermark = WATERMARK_MIN

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._late = ctx.metrics.counter("late_rows")
        self._null_times = ctx.metrics.counter("null_time_rows")
        self._watermark = restored_watermark(restored)
        for port, side in enumerate(self._inputs):
            for rows, _ in restored_rows(restored, _PARTS[port], side.schema, ()):
                self._keep(port, rows, self._times.ticks(port, rows))

    # ---------------------------------------------------------------------------------- rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows, side = visible(batch), self._inputs[port]
        times = rows.column(self._times.columns[port])
        if times.null_count:
            self._null_times.inc(times.null_count)
            rows = rows.filter(times.is_valid())
        ticks = self._times.ticks(port, rows)
        self._check_range(ticks, rows)
        if self._slide > self._size:
            gap = ticks - self._last_windows(ticks) >= self._size
            self.ctx.metrics.counter("gap_rows").inc(int(np.count_nonzero(gap)))
            rows, ticks = rows.filter(pa.array(~gap)), ticks[~gap]
        late = self._last_windows(ticks) <= self._closed(self._watermark)
        if late.any():
            self._late.inc(int(np.count_nonzero(late)))
            rows = rows.filter(pa.array(~late))
        if not side.outer:
            rows = without_null_keys(rows, side.keys)
        self._keep(port, rows, self._times.ticks(port, rows))

    def _check_range(self, ticks: I64, rows: pa.RecordBatch) -> None:
        margin = self._size + self._slide + self._offset
        if len(ticks) and (int(ticks.min()) < _INT64.min + margin or int(ticks.max()) > _INT64.max - margin):
            raise user_error(
                self.ctx,
                f"event-time columns {' and '.join(map(repr, self._times.columns))}: a timestamp is so near the end of "
                "what they can hold that its window is not; filter such rows out",
                rows,
            )

    def _keep(self, port: int, rows: pa.RecordBatch, ticks: I64) -> None:
        if rows.num_rows:
            self._stores[port].add(rows, **{_TIME: ticks})
            first = self._first_window(int(ticks.min()))
            self._earliest = first if self._earliest is None else min(first, self._earliest)

    def _last_windows(self, ticks: I64) -> I64:
        """Return the start of the last window that each time is in."""
        starts: I64 = (ticks - self._offset) // self._slide * self._slide + self._offset
        return starts

    def _first_window(self, tick: int) -> int:
        """Return the start of the first window that is open, and at `tick` or later."""
        return max(self._next_start(tick - self._size), self._next_start(self._closed(self._watermark)))

    def _next_start(self, tick: int) -> int:
        return (tick - self._offset) // self._slide * self._slide + self._offset + self._slide

    def _closed(self, watermark: int) -> int:
        """Windows that start here or before have closed."""
        reached = watermark // self._tick_ns - self._size + 1
        return max(_INT64.min, min(_INT64.max, reached))

    # ------------------------------------------------------------------------------- results

    def on_watermark(self, watermark: int) -> int | None:
        """Emit what the windows that are complete now hold."""
        watermark = max(self._watermark, watermark)
        if self._earliest is not None and self._earliest <= self._closed(watermark):
            self._fire(self._earliest, self._closed(watermark))
        self._watermark = watermark
        self._forget()
        if watermark == WATERMARK_MAX:
            return watermark
        following = self._next_start(watermark // self._tick_ns - self._size + 1)
        return following * self._tick_ns - self._unit_ns

    def _fire(self, start: int, last: int) -> None:
        """Emit the windows from `start` on that start at `last` at the latest."""
        rows, times = [], []
        for store in self._stores:
            live = store.live()
            ticks = store.numbers(_TIME)[live]
            live, ticks = live[ticks < last + self._size], ticks[ticks < last + self._size]
            order = np.argsort(ticks, kind="stable")
            rows.append(live[order])
            times.append(ticks[order])
        for windows in self._groups(start, last, times):
            self._join(windows, *(self._members(windows, *side) for side in zip(rows, times)))

    def _groups(self, start: int, last: int, times: list[I64]) -> Iterator[I64]:
        """Yield the starts of windows that have rows, as many at a time as make a batch."""
        group: list[int] = []
        members, window = 0, start
        while window <= last:
            begins = [int(np.searchsorted(side, window)) for side in times]
            ends = [int(np.searchsorted(side, window + self._size)) for side in times]
            if (found := sum(ends) - sum(begins)) == 0:
                following = [int(side[begin]) for side, begin in zip(times, begins) if begin < len(side)]
                if not following:
                    break
                window = max(window + self._slide, self._next_start(min(following) - self._size))
                continue
            group.append(window)
            members += found
            window += self._slide
            if members >= self.ctx.batch_rows:
                yield np.array(group, np.int64)
                group, members = [], 0
        if group:
            yield np.array(group, np.int64)

    def _members(self, windows: I64, rows: I64, times: I64) -> tuple[I64, I64]:
        """Return (row, position of its window) of all rows in `windows`, window after window."""
        begins = np.searchsorted(times, windows)
        counts = np.searchsorted(times, windows + self._size) - begins
        which = np.repeat(np.arange(len(windows)), counts)
        within = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows[begins[which] + within], which

    def _join(self, windows: I64, lefts: tuple[I64, I64], rights: tuple[I64, I64]) -> None:
        keys = Keys(self._inputs[LEFT].key_schema)
        slots = [
            keys.slots(store.take(rows, side.key_numbers))
            for store, side, (rows, _) in zip(self._stores, self._inputs, (lefts, rights))
        ]
        limit = max(1, keys.index.slot_limit)
        # One number for key and window; null keys (slot −1) get numbers that the other side has not.
        left = np.where(slots[LEFT] < 0, -1, lefts[1] * limit + slots[LEFT])
        right = np.where(slots[RIGHT] < 0, -2, rights[1] * limit + slots[RIGHT])
        order = np.argsort(right, kind="stable")
        begins = np.searchsorted(right[order], left, "left")
        counts = np.searchsorted(right[order], left, "right") - begins
        ends = np.cumsum(counts)
        total = int(ends[-1]) if len(ends) else 0
        for begin in range(0, total, self.ctx.batch_rows):
            pairs = np.arange(begin, min(total, begin + self.ctx.batch_rows))
            probe = np.searchsorted(ends, pairs, "right")
            found = order[begins[probe] + pairs - (ends[probe] - counts[probe])]
            self._emit_pairs(lefts[0][probe], rights[0][found], windows[lefts[1][probe]])
        for port, alone, (rows, which) in (
            (LEFT, counts == 0, lefts),
            (RIGHT, ~np.isin(right, left), rights),
        ):
            if self._inputs[port].outer:
                self._emit_alone(port, rows[alone], windows[which[alone]])

    def _emit_pairs(self, left: I64, right: I64, starts: I64) -> None:
        lefts = self._stores[LEFT].take(left)
        rights = self._stores[RIGHT].take(right, self._columns.right_others)
        self.out.emit(self._columns.pairs(lefts, rights, self._bound_columns(starts)))

    def _emit_alone(self, port: int, rows: I64, starts: I64) -> None:
        for begin in range(0, len(rows), self.ctx.batch_rows):
            part = slice(begin, begin + self.ctx.batch_rows)
            bounds = self._bound_columns(starts[part])
            self.out.emit(self._columns.alone(port, self._stores[port].take(rows[part]), bounds))

    def _bound_columns(self, starts: I64) -> list[pa.Array]:
        columns = [
            pa.array(ticks // self._per_unit).cast(self._time_type) for ticks in (starts, starts + self._size)
        ]
        return [column for column, shown in zip(columns, self._bounds) if shown]

    # --------------------------------------------------------------------------------- state

    def _forget(self) -> None:
        """Forget the rows whose last window has closed."""
        closed = self._closed(self._watermark)
        if self._earliest is None or self._earliest > closed:
            return
        self._earliest = None
        for store in self._stores:
            live = store.live()
            ticks = store.numbers(_TIME)[live]
            gone = self._last_windows(ticks) <= closed
            store.remove(live[gone])
            if not gone.all():
                first = self._first_window(int(ticks[~gone].min()))
                self._earliest = first if self._earliest is None else min(first, self._earliest)
            store.tidy()

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the rows of both sides, and the watermark."""
        parts = [
            rows_part(name, store.freeze(), side.keys, (), self.ctx.max_parallelism)
            for name, store, side in zip(_PARTS, self._stores, self._inputs)
        ]
        return [*parts, watermark_part(self.ctx, self._watermark)]
