"""The interval join: pairs of rows of the same key whose times lie close.

Theory of operation. A pair comes as soon as both rows are there: left.time + lower ≤ right.time ≤ left.time + upper,
both ends included. A row whose time is before the watermark is late: dropped and counted in `late_rows`, as Flink
does. So a row is of no more use when no row from the watermark on can pair with it, and such rows are forgotten,
now and then, when there are many.

The event time of a result is its left row's. A left row may be as old as the watermark less `upper` when its last
right row comes, so the watermark is passed on that much earlier (and a unit more), lest results were late.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.tables import take
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.joins.columns import LEFT, RIGHT, JoinColumns, JoinSide
from rayflow.operators.joins.sides import SLOT, KeyedSides, without_null_keys
from rayflow.operators.joins.times import EventTimes, shifted
from rayflow.operators.keyed_parts import restored_watermark, watermark_part
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.rows import I64

_TIME = "time"
_MIN_ROWS_TO_FORGET = 4096


class IntervalJoinOperator(Operator):
    """Joins `left` (port 0) and `right` (port 1) on their keys, where the time in `times[1]` lies within `lower_ns` and
    `upper_ns` (of any sign, lower ≤ upper) of that in `times[0]`."""

    def __init__(
        self,
        left: JoinSide,
        right: JoinSide,
        columns: JoinColumns,
        times: tuple[str, str],
        lower_ns: int,
        upper_ns: int,
    ) -> None:
        self._inputs = (left, right)
        self._columns = columns
        self._times = EventTimes(times, (left.schema, right.schema))
        # Times differ by whole ticks.
        lower, upper = -(-lower_ns // self._times.tick_ns), upper_ns // self._times.tick_ns
        # Of the other side's time less a row's own.
        self._ranges = ((lower, upper), (-upper, -lower))
        self._held_back_ns = max(0, upper_ns) + self._times.units_ns[LEFT]
        self._sides = KeyedSides((left, right), numbers=(_TIME,))
        self._forget_at = [_MIN_ROWS_TO_FORGET, _MIN_ROWS_TO_FORGET]
        self._watermark = WATERMARK_MIN

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._late = ctx.metrics.counter("late_rows")
        self._null_times = ctx.metrics.counter("null_time_rows")
        self._watermark = restored_watermark(restored)
        for port in (LEFT, RIGHT):
            for rows, _ in self._sides.restored(port, restored):
                self._keep(port, rows, self._sides.slots(port, rows), self._times.ticks(port, rows))

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = self._with_time(visible(batch), port)
        times = self._times.ticks(port, rows)
        late = times < self._times.not_before(self._watermark)
        if late.any():
            self._late.inc(int(np.count_nonzero(late)))
            rows = rows.filter(pa.array(~late))
        rows = without_null_keys(rows, self._inputs[port].keys)
        if rows.num_rows:
            times = self._times.ticks(port, rows)
            slots = self._sides.slots(port, rows)
            self._emit_pairs(port, rows, slots, times)
            self._keep(port, rows, slots, times)

    def _with_time(self, rows: pa.RecordBatch, port: int) -> pa.RecordBatch:
        times = rows.column(self._times.columns[port])
        if not times.null_count:
            return rows
        self._null_times.inc(times.null_count)
        return rows.filter(times.is_valid())

    def _keep(self, port: int, rows: pa.RecordBatch, slots: I64, times: I64) -> None:
        self._sides.stores[port].add(rows, **{SLOT: slots, _TIME: times})

    def _emit_pairs(self, port: int, rows: pa.RecordBatch, slots: I64, times: I64) -> None:
        others, right = self._sides.stores[1 - port], self._columns.right_others
        own = rows if port == LEFT else rows.select(right)
        least, most = (shifted(times, by) for by in self._ranges[port])
        for probes, found in others.match(SLOT, slots, self.ctx.batch_rows, (_TIME, least, most)):
            mine = take(own, probes)
            self.out.emit(
                self._columns.pairs(mine, others.take(found, right))
                if port == LEFT
                else self._columns.pairs(others.take(found), mine)
            )

    def on_watermark(self, watermark: int) -> int | None:
        """Forget rows that nothing can pair with any more; see the module for what is passed on."""
        self._watermark = max(self._watermark, watermark)
        first = self._times.not_before(self._watermark)
        for port in (LEFT, RIGHT):
            store = self._sides.stores[port]
            if len(store) >= self._forget_at[port]:
                live = store.live()
                last_partner = shifted(store.numbers(_TIME)[live], self._ranges[port][1])
                store.remove(live[last_partner < first])
                self._forget_at[port] = 2 * len(store) + _MIN_ROWS_TO_FORGET
        self._sides.tidy()
        return watermark if watermark == WATERMARK_MAX else watermark - self._held_back_ns

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the rows of both sides, and the watermark."""
        parts = self._sides.snapshot(self.ctx.max_parallelism)
        return [*parts, watermark_part(self.ctx, self._watermark)]
