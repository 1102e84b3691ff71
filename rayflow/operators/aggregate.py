"""Running aggregates: one row per key, updated as rows come, as an upsert stream.

Per input batch every key that it touches gives one row: `INSERT` when the key is new, else `UPDATE_AFTER`,
with, where asked for, an `UPDATE_BEFORE` just before it that shows the row as it was; an update that changes nothing
is then left out.

Rows may come as partial aggregates (`state.partials`), whose states are merged.

Of an upsert stream, rows that go are taken back from their key's aggregates. A key without rows is deleted and
forgotten; whether its old values come with the deletion depends on whether old rows were asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import (
    DELETE,
    INSERT,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    comes,
    is_changelog,
    ops,
    visible,
    with_op,
)
from rayflow.batch.tables import slice_rows
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
from rayflow.state.accumulators.base import I64
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.accumulators.parts import SlotGroups
from rayflow.state.accumulators.slot_rows import AggregateRows
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.partials import is_partial
from rayflow.state.parts import RestoredPart, StatePart

_PART = "aggregates"

Bools = npt.NDArray[np.bool_]


class RunningAggregateOperator(Operator):
    """Aggregates rows by `keys`; `aggregates` are (output column, expression).

    Emits the key columns, the results and the hidden operation column. `emit_before`: also emit the old row
    of an updated key. `retracts`: the input is an upsert stream that carries old rows. `first`, `last` and
    `collect_list` go by `time_column` (a timestamp), nulls before all others; without one by arrival. Raises
    PlanError for aggregates that do not fit `input_schema`, or cannot take rows back.
    """

    state_place = "disk"

    def __init__(
        self,
        keys: tuple[str, ...],
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        emit_before: bool,
        time_column: str | None = None,
        retracts: bool = False,
    ) -> None:
        self._keys = list(keys)
        self._emit_before = emit_before
        self._time_column = time_column
        self._retracts = retracts
        self._index = KeyIndex(pa.schema([input_schema.field(key) for key in keys]))
        self._columns = AggregateColumns(aggregates, input_schema, retractable=retracts)
        self._schema = pa.schema([*self._index.schema, *self._columns.fields])
        self._groups = SlotGroups()

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._index = keys_of_operator(ctx, self._index, lambda: AggregateRows(self._columns))
        for keys, states in restored_batches(restored, _PART, self._index.schema):
            slots = self._index.slots(keys)
            self._columns.merge(states, slots, self._index.slot_limit)
        restored_keys(ctx, self._index)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        slots, fresh = self._index.insert(rows.select(self._keys))
        self._groups.reserve(self._index.slot_limit)
        touched, _ = self._groups.group(slots)
        existed = ~np.isin(touched, slots[fresh], assume_unique=True)
        old = None
        if self._emit_before and existed.any():
            old = self._rows(touched[existed], rows)
        self._update(batch, rows, slots)
        if self._retracts:
            exists = self._columns.row_counts(touched) > 0
        else:
            exists = np.ones(len(touched), np.bool_)
        self._emit(touched, existed, exists, old, rows)
        if not exists.all():
            self._columns.clear(touched[~exists])
            self._index.remove(touched[~exists])

    def _update(self, batch: pa.RecordBatch, rows: pa.RecordBatch, slots: I64) -> None:
        limit = self._index.slot_limit
        if is_partial(rows.schema):
            self._columns.merge(rows, slots, limit, by_arrival=self._time_column is None)
            return
        coming = comes(ops(batch)) if is_changelog(batch.schema) else None
        if coming is None or coming.all():
            self._columns.update(rows, slots, limit, self._times(rows))
            return
        come, gone = rows.filter(pa.array(coming)), rows.filter(pa.array(~coming))
        # What goes was added before, perhaps in this very batch: so first all that comes.
        if come.num_rows:
            self._columns.update(come, slots[coming], limit, self._times(come))
        self._columns.retract(gone, slots[~coming], limit, self._times(gone))

    def _times(self, rows: pa.RecordBatch) -> Any:
        if self._time_column is None:
            return None
        times = rows.column(self._time_column).cast(pa.int64())
        return times.fill_null(np.iinfo(np.int64).min).to_numpy()

    def _emit(
        self, touched: I64, existed: Bools, exists: Bools, old: pa.RecordBatch | None, given: pa.RecordBatch
    ) -> None:
        """Emit what became of the keys; `old` are the rows of those that existed, where wanted."""
        new = self._rows(touched[exists], given)
        operations = np.where(existed, UPDATE_AFTER, INSERT)[exists].astype(np.int8)
        updated, deleted = existed & exists, existed & ~exists
        changes = with_op(new, operations)
        if old is not None:
            before = with_op(old, np.where(exists, UPDATE_BEFORE, DELETE)[existed].astype(np.int8))
            told = np.ones(len(touched), np.bool_)
            told[updated] = _differ(
                old.filter(pa.array(exists[existed])), new.filter(pa.array(existed[exists]))
            )
            changes = _interleaved(before, existed & told, existed, changes, exists & told, exists)
        elif deleted.any():
            changes = _interleaved(self._tombs(touched[deleted]), deleted, deleted, changes, exists, exists)
        if changes.num_rows:
            for piece in slice_rows(changes, max_rows=self.ctx.batch_rows):
                self.out.emit(piece)

    def _rows(self, slots: I64, given: pa.RecordBatch) -> pa.RecordBatch:
        try:
            results = self._columns.results(slots)
        except OverflowError as error:
            raise user_error(self.ctx, str(error), given) from error
        return pa.RecordBatch.from_arrays([*self._index.keys(slots).columns, *results], schema=self._schema)

    def _tombs(self, slots: I64) -> pa.RecordBatch:
        """Return deletions that say no more than the keys."""
        nulls = [pa.nulls(len(slots), field.type) for field in self._columns.fields]
        keys = self._index.keys(slots).columns
        return with_op(pa.RecordBatch.from_arrays([*keys, *nulls], schema=self._schema), DELETE)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return keys and accumulators as one keyed part."""
        if isinstance(self._index, CachedKeys):
            return (stored_part(self._index, _PART, checkpoint_id, self.ctx.max_parallelism),)
        build = partial(
            _build, self._index.freeze(), self._columns.freeze(), self._index.live(), self.ctx.max_parallelism
        )
        return (StatePart(name=_PART, kind="keyed", build=build),)

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        if isinstance(self._index, CachedKeys):
            self._index.completed(permit.checkpoint_id)

    def close(self) -> None:
        """See `Operator`."""
        if isinstance(self._index, CachedKeys):
            self._index.close()


def _interleaved(
    old: pa.RecordBatch, tell_old: Bools, has_old: Bools, new: pa.RecordBatch, tell_new: Bools, has_new: Bools
) -> pa.RecordBatch:
    """Return for each key its old row, then its new one, of those it has (a row in `old`, `new`) and is to tell."""
    old_at = np.where(tell_old, np.cumsum(has_old) - 1, -1)
    new_at = np.where(tell_new, np.cumsum(has_new) - 1 + old.num_rows, -1)
    order = np.stack([old_at, new_at], axis=1).ravel()
    return pa.concat_batches([old, new]).take(pa.array(order[order >= 0]))


def _differ(old: pa.RecordBatch, new: pa.RecordBatch) -> Bools:
    """Return which rows differ; nulls and NaN equal themselves. Nested columns are taken to differ."""
    differ = np.zeros(old.num_rows, np.bool_)
    for before, after in zip(old.columns, new.columns, strict=True):
        if pa.types.is_dictionary(before.type):
            before, after = before.dictionary_decode(), after.dictionary_decode()
        if pa.types.is_nested(before.type):
            return np.ones(old.num_rows, np.bool_)
        unequal = pc.not_equal(before, after)
        if pa.types.is_floating(before.type):
            unequal = pc.and_(unequal, pc.invert(pc.and_(pc.is_nan(before), pc.is_nan(after))))
        nulls = pc.xor(before.is_null(), after.is_null())
        differ |= pc.or_(unequal.fill_null(False), nulls).to_numpy(zero_copy_only=False)
    return differ


def _build(keys: FrozenKeys, columns: FrozenAggregates, slots: Any, max_parallelism: int) -> pa.Table:
    return keyed_table(keys.keys(slots), columns.state_columns(slots), max_parallelism)
