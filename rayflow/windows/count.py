"""Aggregates over count windows: every so many rows of a key, in order of arrival.

Theory of operation. Rows are counted off per key: the first `size` rows of a key are one window, the next another.
A batch may fill several windows of a key; each has a slot of its own, so all are aggregated at once, exactly
whatever the cutting of batches. A window is emitted with the batch that fills it, in order of completion.

No event time is needed, and no row is late. Where the stream has event time, `window_start` and `window_end` are the
smallest and largest one among the rows (see `arrivals`), and `window_end` is the result's event time; the watermark
passes unchanged. The newest row of a window came with it or before, so a result is only late for whoever
comes behind if the row that filled its window was.

A window that is not full when the input ends is not emitted, as in Flink: fewer rows are no window of that many.
They are counted in `unfinished_window_rows`. Restored by a job with another size, windows that already have so
many rows are full with the next one.

With `state.backend=disk` windows of keys that are not in use lie on disk (`state.disk.cached_keys`).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import visible
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.keyed_parts import (
    keyed_table,
    keys_of_operator,
    restored_batches,
    restored_keys,
    stored_part,
)
from rayflow.protocol.commits import CommitPermit
from rayflow.state.accumulators.columns import FrozenAggregates
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.arrivals import columns_with_bounds, order_of
from rayflow.windows.bounds import I64
from rayflow.windows.count_table import ROWS, CountRows, CountTable, FrozenCounts

_WINDOWS = "windows"


class CountWindowOperator(Operator):
    """Aggregates every `size` rows of `keys`. `aggregates` are (output column, expression).

    Emits the key columns, with a `time_column` (of `input_schema`, a timestamp) the bounds, and the results.
    """

    state_place = "disk"

    def __init__(
        self,
        keys: tuple[str, ...],
        size: int,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        time_column: str | None = None,
    ) -> None:
        self._keys, self._time_column = list(keys), time_column
        self._key_schema = pa.schema([input_schema.field(key) for key in keys])
        self._table = CountTable(self._key_schema, size)
        self._columns = columns_with_bounds(aggregates, input_schema, time_column)
        self._stored_rows = CountRows(self._table, self._columns)
        self._schema = pa.schema([*self._key_schema, *self._columns.fields])

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        table, rows = self._table, self._stored_rows
        table.keys = keys_of_operator(ctx, table.keys, lambda: rows)
        for keys, others in restored_batches(restored, _WINDOWS, self._key_schema):
            slots = self._table.restore(keys, others.column(ROWS).to_numpy())
            self._columns.merge(others, slots, self._table.slot_limit)
        restored_keys(ctx, table.keys)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        slots, full = self._table.add(rows.select(self._keys))
        self._columns.update(rows, slots, self._table.slot_limit, order_of(rows, self._time_column))
        if len(full) == 0:
            return
        for begin in range(0, len(full), self.ctx.batch_rows):
            self.out.emit(self._rows(full[begin : begin + self.ctx.batch_rows]))
        self._columns.clear(full)
        self._table.close(full)

    def _rows(self, slots: I64) -> pa.RecordBatch:
        keys = self._table.keys_of(slots)
        try:
            results = self._columns.results(slots)
        except OverflowError as error:
            raise user_error(self.ctx, str(error), keys) from error
        return pa.RecordBatch.from_arrays([*keys.columns, *results], schema=self._schema)

    def end(self) -> None:
        """Say how many rows are in no full window."""
        self.ctx.metrics.counter("unfinished_window_rows").inc(
            self._table.open_rows() + self._stored_rows.away
        )

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the windows that are not full."""
        if isinstance(self._table.keys, CachedKeys):
            return (stored_part(self._table.keys, _WINDOWS, checkpoint_id, self.ctx.max_parallelism),)
        build = partial(_build, self._table.freeze(), self._columns.freeze(), self.ctx.max_parallelism)
        return (StatePart(name=_WINDOWS, kind="keyed", build=build),)

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        if isinstance(self._table.keys, CachedKeys):
            self._table.keys.completed(permit.checkpoint_id)

    def close(self) -> None:
        """See `Operator`."""
        if isinstance(self._table.keys, CachedKeys):
            self._table.keys.close()


def _build(windows: FrozenCounts, columns: FrozenAggregates, max_parallelism: int) -> pa.Table:
    others = [(ROWS, pa.array(windows.counts)), *columns.state_columns(windows.slots)]
    return keyed_table(windows.key_columns(), others, max_parallelism)
