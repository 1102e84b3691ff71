"""The temporal (as-of) join: each left row with the version of its key that was valid at its time.

Theory of operation. Right rows are versions: each is valid from its time on, until the next of its key; of several
with one time the last to come counts. A left row waits until the watermark has reached its time, when all versions
up to then are there, and comes out with the latest of them. A left row whose time the watermark has reached already
is late: dropped, and counted in `late_rows`. A version that comes late is valid for the left rows to come (and counted
in `late_versions`). Versions that no left row to come can want are forgotten, now and then, when there are many.

The event time of a result is its left row's; results between two watermarks come in order of time.

The latest version is found by walking the versions of the key, or, where keys have so many that this would take
longer, by sorting all versions first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.joins.columns import LEFT, RIGHT, JoinColumns, JoinSide
from rayflow.operators.joins.sides import SLOT, KeyedSides, without_null_keys
from rayflow.operators.joins.times import EventTimes
from rayflow.operators.keyed_parts import restored_watermark, watermark_part
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.rows import I64

_TIME = "time"
_MIN_VERSIONS_TO_FORGET = 4096
_STEPS_PER_SORTED_VERSION = 16


class TemporalJoinOperator(Operator):
    """Joins `left` (port 0) with the versions in `right` (port 1) on their keys; `times` are the columns of event time.
    With `left.outer` a left row that no version is valid for comes out beside nulls."""

    def __init__(self, left: JoinSide, right: JoinSide, columns: JoinColumns, times: tuple[str, str]) -> None:
        self._inputs = (left, right)
        self._columns = columns
        self._times = EventTimes(times, (left.schema, right.schema))
        self._sides = KeyedSides((left, right), numbers=(_TIME,))
        self._waiting, self._versions = self._sides.stores
        self._forget_at = _MIN_VERSIONS_TO_FORGET
        self._watermark = WATERMARK_MIN

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._watermark = restored_watermark(restored)
        for port in (LEFT, RIGHT):
            for rows, _ in self._sides.restored(port, restored):
                self._keep(port, rows, self._times.ticks(port, rows))

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        times = rows.column(self._times.columns[port])
        if times.null_count:
            self.ctx.metrics.counter("null_time_rows").inc(times.null_count)
            rows = rows.filter(times.is_valid())
        ticks = self._times.ticks(port, rows)
        late = ticks <= self._times.reached(self._watermark)
        if late.any():
            name = "late_rows" if port == LEFT else "late_versions"
            self.ctx.metrics.counter(name).inc(int(np.count_nonzero(late)))
            if port == LEFT:
                rows = rows.filter(pa.array(~late))
        if port == RIGHT or not self._inputs[LEFT].outer:
            rows = without_null_keys(rows, self._inputs[port].keys)
        self._keep(port, rows, self._times.ticks(port, rows))

    def _keep(self, port: int, rows: pa.RecordBatch, times: I64) -> None:
        if rows.num_rows:
            slots = self._sides.slots(port, rows)
            self._sides.stores[port].add(rows, **{SLOT: slots, _TIME: times})

    def on_watermark(self, watermark: int) -> int | None:
        """Emit the rows that waited for it, in order of time."""
        self._watermark = max(self._watermark, watermark)
        reached = self._times.reached(self._watermark)
        live = self._waiting.live()
        times = self._waiting.numbers(_TIME)[live]
        due = times <= reached
        if due.any():
            rows = live[due][np.argsort(times[due], kind="stable")]
            for begin in range(0, len(rows), self.ctx.batch_rows):
                self._emit(rows[begin : begin + self.ctx.batch_rows])
            self._waiting.remove(rows)
        if len(self._versions) >= self._forget_at:
            self._forget_versions(reached)
        self._sides.tidy()
        return watermark

    def _emit(self, rows: I64) -> None:
        slots, times = self._waiting.numbers(SLOT)[rows], self._waiting.numbers(_TIME)[rows]
        found = self._valid_versions(slots, times)
        has = found >= 0
        right = self._columns.right_others
        if not self._inputs[LEFT].outer:
            rows, found = rows[has], found[has]
            has = np.ones(len(rows), np.bool_)
        if len(rows) == 0:
            return
        lefts = self._waiting.take(rows)
        if has.all():
            self.out.emit(self._columns.pairs(lefts, self._versions.take(found, right)))
            return
        # One row more, of nulls, for those without a version.
        versions = self._versions.take(found[has], right)
        places = pa.array(np.cumsum(has) - 1, mask=~has)
        self.out.emit(self._columns.pairs(lefts, versions.take(places)))

    def _valid_versions(self, slots: I64, times: I64) -> I64:
        steps = int(self._versions.counts(SLOT, slots).sum())
        if steps <= _STEPS_PER_SORTED_VERSION * len(self._versions):
            return self._versions.latest(SLOT, slots, _TIME, times)
        return self._versions.latest_sorted(SLOT, slots, _TIME, times)

    def _forget_versions(self, reached: int) -> None:
        """Keep, of each key, the version that is valid now and those to come."""
        live = self._versions.live()
        past = live[self._versions.numbers(_TIME)[live] <= reached]
        slots = np.unique(self._versions.numbers(SLOT)[past])
        limits = np.full(len(slots), reached, np.int64)
        valid = self._versions.latest(SLOT, slots, _TIME, limits)
        self._versions.remove(np.setdiff1d(past, valid, assume_unique=True))
        self._forget_at = 2 * len(self._versions) + _MIN_VERSIONS_TO_FORGET

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the waiting rows, the versions, and the watermark."""
        parts = self._sides.snapshot(self.ctx.max_parallelism)
        return [*parts, watermark_part(self.ctx, self._watermark)]
