"""Running aggregates: one row per key, updated as rows come, as an upsert stream.

Per input batch every key that it touches gives one row: `INSERT` when the key is new, else `UPDATE_AFTER`,
with, where asked for, an `UPDATE_BEFORE` just before it that shows the row as it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import INSERT, UPDATE_AFTER, UPDATE_BEFORE, visible, with_op
from rayflow.batch.tables import slice_rows
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.accumulators.parts import SlotGroups
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.parts import RestoredPart, StatePart

_PART = "aggregates"


class RunningAggregateOperator(Operator):
    """Aggregates rows by `keys`; `aggregates` are (output column, expression).

    Emits the key columns, the results and the hidden operation column. `emit_before`: also emit the old row
    of an updated key. `first`, `last` and `collect_list` go by `time_column` (a timestamp), nulls before all
    others; without one by arrival. Raises PlanError for aggregates that do not fit `input_schema`.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        emit_before: bool,
        time_column: str | None = None,
    ) -> None:
        self._keys = list(keys)
        self._emit_before = emit_before
        self._time_column = time_column
        self._index = KeyIndex(pa.schema([input_schema.field(key) for key in keys]))
        self._columns = AggregateColumns(aggregates, input_schema)
        self._groups = SlotGroups()

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        for keys, states in restored_batches(restored, _PART, self._index.schema):
            slots = self._index.slots(keys)
            self._columns.merge(states, slots, self._index.slot_limit)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        slots, fresh = self._index.insert(rows.select(self._keys))
        limit = self._index.slot_limit
        self._groups.reserve(limit)
        touched, _ = self._groups.group(slots)
        is_new = np.isin(touched, slots[fresh], assume_unique=True)
        known = touched[~is_new]
        before = self._rows(known, UPDATE_BEFORE, rows) if self._emit_before and len(known) else None
        self._columns.update(rows, slots, limit, self._times(rows))
        operations = np.where(is_new, INSERT, UPDATE_AFTER).astype(np.int8)
        after = self._rows(touched, operations, rows)
        if before is not None:
            after = _interleaved(before, after, is_new)
        for piece in slice_rows(after, max_rows=self.ctx.batch_rows):
            self.out.emit(piece)

    def _times(self, rows: pa.RecordBatch) -> Any:
        if self._time_column is None:
            return None
        times = rows.column(self._time_column).cast(pa.int64())
        return times.fill_null(np.iinfo(np.int64).min).to_numpy()

    def _rows(self, slots: Any, operations: Any, given: pa.RecordBatch) -> pa.RecordBatch:
        try:
            results = self._columns.results(slots)
        except OverflowError as error:
            raise user_error(self.ctx, str(error), given) from error
        keys = self._index.keys(slots)
        schema = pa.schema([*self._index.schema, *self._columns.fields])
        return with_op(pa.RecordBatch.from_arrays([*keys.columns, *results], schema=schema), operations)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return keys and accumulators as one keyed part."""
        build = partial(
            _build, self._index.freeze(), self._columns.freeze(), self._index.live(), self.ctx.max_parallelism
        )
        return (StatePart(name=_PART, kind="keyed", build=build),)


def _interleaved(before: pa.RecordBatch, after: pa.RecordBatch, is_new: Any) -> pa.RecordBatch:
    """Return all rows, each old row just before its new one."""
    after_rows = np.arange(after.num_rows) + before.num_rows
    old_rows = np.cumsum(~is_new) - 1
    pairs = np.stack([np.where(is_new, -1, old_rows), after_rows], axis=1).ravel()
    order = pairs[pairs >= 0]
    return pa.concat_batches([before, after]).take(pa.array(order))


def _build(keys: FrozenKeys, columns: FrozenAggregates, slots: Any, max_parallelism: int) -> pa.Table:
    return keyed_table(keys.keys(slots), columns.state_columns(slots), max_parallelism)
