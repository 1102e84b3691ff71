"""Aggregates over tumbling windows of event time.

Theory of operation. A row belongs to the window [start, start + size) that holds its timestamp, where starts
are multiples of the size (plus the offset) from the UTC epoch; all arithmetic is on integers of the column's
own unit, with floor division, so times before the epoch fall into the right window. Rows are added to the
accumulators of (key, window) as they come. When the watermark reaches a window's last instant (end − 1 unit)
its rows are emitted, in order of window starts, and forgotten.

A row whose window's last instant the operator's watermark has already reached is late: dropped, and counted
in `late_rows`. A row without a time is dropped and counted in `null_time_rows`. The watermark is part of the
state, with every key group, so that lateness is judged the same after a restart at whatever parallelism; since
barriers are aligned and watermarks are broadcast, all subtasks wrote the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import visible
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart, StatePart
from rayflow.windows.bounds import WINDOW_END, WINDOW_START, in_units, reached, unit_ns
from rayflow.windows.panes import FrozenPanes, PaneTable

I64 = npt.NDArray[np.int64]

_WINDOWS, _WATERMARK = "windows", "watermark"
_INT64 = np.iinfo(np.int64)


class TumblingWindowOperator(Operator):
    """Aggregates rows by `keys` and windows of `size_ns`, starting at multiples of it plus `offset_ns`.

    `aggregates` are (output column, expression); `time_column` is a timestamp column of `input_schema`. Emits the
    key columns, `window_start` and `window_end` of the time column's type, and the results. Raises PlanError
    where the time column is no timestamp, or a duration is no multiple of its unit.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        size_ns: int,
        offset_ns: int,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        time_column: str,
    ) -> None:
        self._keys = list(keys)
        self._time_column = time_column
        self._time_type = input_schema.field(time_column).type
        self._unit_ns = unit_ns(time_column, self._time_type)
        self._size = in_units(size_ns, self._unit_ns, "size", time_column)
        self._offset = in_units(offset_ns, self._unit_ns, "offset", time_column)
        key_schema = pa.schema([input_schema.field(key) for key in keys])
        self._panes = PaneTable(key_schema)
        self._columns = AggregateColumns(aggregates, input_schema)
        bounds = [pa.field(name, self._time_type) for name in (WINDOW_START, WINDOW_END) if name not in keys]
        self._key_schema = key_schema
        self._schema = pa.schema([*key_schema, *bounds, *self._columns.fields])
        self._watermark = WATERMARK_MIN

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._late = ctx.metrics.counter("late_rows")
        self._null_times = ctx.metrics.counter("null_time_rows")
        known = [
            int(value)
            for part in restored
            if part.name == _WATERMARK
            for value in part.table.column("watermark").unique().to_pylist()
        ]
        self._watermark = min(known, default=WATERMARK_MIN)
        for keys, others in restored_batches(restored, _WINDOWS, self._key_schema):
            starts = others.column(0).cast(pa.int64()).to_numpy()
            slots = self._panes.slots(keys, np.array(starts))
            self._columns.merge(others.select(range(1, others.num_columns)), slots, self._panes.slot_limit)

    # ---------------------------------------------------------------------------------- rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        times = rows.column(self._time_column)
        if times.null_count:
            self._null_times.inc(times.null_count)
            rows = rows.filter(times.is_valid())
            times = rows.column(self._time_column)
        ticks: I64 = times.cast(pa.int64()).to_numpy()
        if len(ticks) == 0:
            return
        starts = self._window_starts(ticks, rows)
        late = starts + (self._size - 1) <= reached(self._watermark, self._unit_ns)
        if late.any():
            self._late.inc(int(np.count_nonzero(late)))
            timely = ~late
            rows, ticks, starts = rows.filter(pa.array(timely)), ticks[timely], starts[timely]
            if len(ticks) == 0:
                return
        slots = self._panes.slots(rows.select(self._keys), starts)
        self._columns.update(rows, slots, self._panes.slot_limit, ticks)

    def _window_starts(self, ticks: I64, rows: pa.RecordBatch) -> I64:
        margin = self._size + self._offset
        if int(ticks.min()) < _INT64.min + margin or int(ticks.max()) > _INT64.max - margin:
            raise user_error(
                self.ctx,
                f"column {self._time_column!r}: a timestamp is so near the end of what {self._time_type} can "
                "hold that its window is not; filter such rows out",
                rows,
            )
        starts: I64 = (ticks - self._offset) // self._size * self._size + self._offset
        return starts

    # ------------------------------------------------------------------------------- results

    def on_watermark(self, watermark: int) -> int | None:
        """Emit the windows that are complete."""
        self._watermark = max(self._watermark, watermark)
        now = reached(self._watermark, self._unit_ns)
        due: list[tuple[int, I64]] = []
        while (start := self._panes.first_start()) is not None and start + self._size - 1 <= now:
            due.append(self._panes.pop_first())
        if due:
            self._fire(due)
        return watermark

    def _fire(self, due: list[tuple[int, I64]]) -> None:
        windows = np.array([start for start, _ in due])
        slots = np.concatenate([members for _, members in due])
        starts = np.repeat(windows, [len(members) for _, members in due])
        for begin in range(0, len(slots), self.ctx.batch_rows):
            piece = slice(begin, begin + self.ctx.batch_rows)
            self.out.emit(self._rows(slots[piece], starts[piece]))
        self._columns.clear(slots)
        self._panes.drop(windows, slots)

    def _rows(self, slots: I64, starts: I64) -> pa.RecordBatch:
        keys = self._panes.keys_of(slots)
        try:
            results = self._columns.results(slots)
        except OverflowError as error:
            raise user_error(self.ctx, str(error), keys) from error
        bounds = [
            pa.array(bound).cast(self._time_type)
            for name, bound in ((WINDOW_START, starts), (WINDOW_END, starts + self._size))
            if name not in self._keys
        ]
        return pa.RecordBatch.from_arrays([*keys.columns, *bounds, *results], schema=self._schema)

    # --------------------------------------------------------------------------------- state

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the open windows, and the watermark with every key group."""
        groups = np.arange(self.ctx.key_groups.start, self.ctx.key_groups.stop, dtype=np.int32)
        build = partial(
            _build, self._panes.freeze(), self._columns.freeze(), self._time_type, self.ctx.max_parallelism
        )
        return (
            StatePart(name=_WINDOWS, kind="keyed", build=build),
            StatePart(name=_WATERMARK, kind="keyed", build=partial(_watermarks, groups, self._watermark)),
        )


def _build(
    panes: FrozenPanes, columns: FrozenAggregates, time_type: pa.DataType, max_parallelism: int
) -> pa.Table:
    slots = panes.slots
    starts = pa.array(panes.starts_of(slots)).cast(time_type)
    others = [(WINDOW_START, starts), *columns.state_columns(slots)]
    return keyed_table(panes.keys_of(slots), others, max_parallelism)


def _watermarks(groups: Any, watermark: int) -> pa.Table:
    # A decimal, since WATERMARK_MAX is beyond 64 bits.
    values = pa.array([Decimal(watermark)] * len(groups), pa.decimal128(38, 0))
    return pa.table({"watermark": values, KEY_GROUP_COLUMN: pa.array(groups, pa.int32())})
