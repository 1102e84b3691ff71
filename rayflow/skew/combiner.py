"""The combiner: rows of one key (and slice) become one partial aggregate before they travel.

Theory of operation
-------------------
It is the MapReduce combiner, chained to whoever sends, and the middle stage of salted keys. Rows, or partial
aggregates that others made (`state.partials`), are added to accumulators of their key and slice, and held for a while
(`holding`): at most one row per key, slice and flush leaves a subtask.

*Event time.* As watermarks wait behind what is held, for the operator behind the exchange a partial aggregate stands
where its rows would have stood with regard to this channel's watermarks. Whether it is late depends on the other
channels too, and on how long this one was idle; only that operator knows. The combiner drops nothing and judges
nothing: all rows of a slice are late at the same moment, so a partial aggregate is late as a whole, or not at all.
Rows without a time have a slice of their own. Where late rows are wanted as they came, they travel in the partial
aggregate.

*Order.* Where there is no event time `first`, `last` and `collect_list` go by arrival: rows are numbered, on and on,
and whoever merges puts what comes behind what is there. So a producer's rows of a key stay in their order.

*Keys that hardly repeat.* Where that does not pay (see `reduction`) rows are not held: each becomes a partial
aggregate of its own, without looking at keys, unless states are objects (sketches, users' aggregates), which would
cost more than combining, or are numbered by arrival.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.tables import slice_rows
from rayflow.operators.contracts import OperatorContext, Output
from rayflow.operators.event_ticks import ticks_of
from rayflow.skew.combining import Combination
from rayflow.skew.entries import Entries
from rayflow.skew.holding import HoldingOperator
from rayflow.skew.reduction import Reduction
from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.partials import NO_SLICE, counts_of_rows, is_partial, slices_in
from rayflow.state.parts import RestoredPart

I64 = npt.NDArray[np.int64]

_INT64 = np.iinfo(np.int64)


class CombineOperator(HoldingOperator):
    """Makes partial aggregates of `combination`; emits batches of its `partial_schema()`."""

    def __init__(self, combination: Combination) -> None:
        super().__init__()
        self._combination = combination
        self._keys = list(combination.keys)
        self._schema = combination.partial_schema()
        self._reduction = Reduction()
        # For rows that are passed on, each in a slot of its own.
        self._alone = combination.columns()
        self._columns = combination.columns()
        self._shrink()

    def _shrink(self) -> None:
        self._entries = Entries(self._combination.key_schema, sliced=self._combination.slices is not None)
        before, self._columns = self._columns, self._combination.columns()
        self._columns.come_after(before)
        self._counts = SlotArray(np.int64)
        self._held: list[I64] = []
        self._held_inputs = 0

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._combined = ctx.metrics.counter("rows_combined")
        self._passed = ctx.metrics.counter("rows_passed_on")

    # ------------------------------------------------------------------------------------ rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Hold rows or partial aggregates, or pass them on."""
        rows = visible(batch)
        if self._reduction.passes and self._may_pass(rows):
            self._reduction.passed(rows.num_rows)
            self._pass_on(rows)
            return
        self._hold(rows)
        self._held_more()

    def _hold(self, rows: pa.RecordBatch) -> None:
        slices, ticks = self._times(rows)
        entries, fresh = self._entries.of(rows.select(self._keys), slices)
        limit = self._entries.limit
        self._counts.reserve(limit)
        np.add.at(self._counts.values, entries, counts_of_rows(rows))
        if is_partial(rows.schema):
            self._columns.merge(rows, entries, limit, by_arrival=self._combination.numbers_arrivals)
        else:
            self._columns.update(rows, entries, limit, ticks)
        self._held.append(entries[fresh])
        self._held_entries += len(fresh)
        self._held_inputs += rows.num_rows

    def _may_pass(self, rows: pa.RecordBatch) -> bool:
        if self._combination.numbers_arrivals:
            return False
        return is_partial(rows.schema) or self._alone.is_columnar

    def _nbytes(self) -> int:
        return self._columns.nbytes + self._entries.nbytes + self._counts.nbytes

    def _times(self, rows: pa.RecordBatch) -> tuple[I64 | None, I64 | None]:
        """Return the slice of every row, and its time; None where there are none. Partial aggregates have their times
        in their states."""
        slices, column = self._combination.slices, self._combination.time_column
        if is_partial(rows.schema):
            return None if slices is None else slices_in(rows), None
        if column is None:
            return None, None
        times = rows.column(column)
        if slices is None:
            return None, times.cast(pa.int64()).fill_null(_INT64.min).to_numpy()
        if not times.null_count:
            ticks = ticks_of(self.ctx, rows, column, slices.margin)
            return slices.of(ticks), ticks
        valid = times.is_valid()
        ticks = np.zeros(rows.num_rows, np.int64)
        there = valid.to_numpy(zero_copy_only=False)
        ticks[there] = ticks_of(self.ctx, rows.filter(valid), column, slices.margin)
        return np.where(there, slices.of(ticks), NO_SLICE), ticks

    def _pass_on(self, rows: pa.RecordBatch) -> None:
        self._flush()
        self._passed.inc(rows.num_rows)
        if is_partial(rows.schema):
            self.out.emit(rows)
            return
        slices, ticks = self._times(rows)
        keys = rows.select(self._keys).columns
        numbers = [] if slices is None else [pa.array(slices)]
        ones = pa.array(np.ones(rows.num_rows, np.int64))
        states = self._alone.states_of_rows(rows, np.arange(rows.num_rows) if ticks is None else ticks)
        columns = [*keys, *numbers, ones, *(column for _, column in states)]
        self.out.emit(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    # ------------------------------------------------------------------------------------- out

    def _let_go(self) -> None:
        entries = np.concatenate(self._held)
        self._combined.inc(self._held_inputs)
        self._reduction.combined(self._held_inputs, len(entries))
        self._emit(entries)
        self._columns.clear(entries)
        self._counts.clear(entries)
        self._entries.forget(entries)
        self._held, self._held_inputs = [], 0

    def _emit(self, entries: I64) -> None:
        keys, slices = self._entries.columns(entries)
        counts = pa.array(self._counts.values[entries])
        states = [column for _, column in self._columns.state_columns(entries)]
        batch = pa.RecordBatch.from_arrays([*keys, *slices, counts, *states], schema=self._schema)
        for piece in slice_rows(batch, max_rows=self.ctx.batch_rows):
            self.out.emit(piece)
