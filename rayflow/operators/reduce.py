"""Reduction by a user's function: one row per key, which the function makes of it and each further row.

State is the current row of every key, in columns (`ReducedRows`; with `state.backend=disk` of the keys in use, see
`state.disk.cached_keys`). Per input batch every key that it touches gives one row, as in a running aggregate
(`operators.aggregate`): `INSERT` when the key is new, else `UPDATE_AFTER`, with, where asked for, an `UPDATE_BEFORE`
just before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.changelog import INSERT, UPDATE_AFTER, UPDATE_BEFORE, visible, with_op
from rayflow.batch.tables import slice_rows
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import ResultShape, UserFunction
from rayflow.operators.keyed_parts import (
    keyed_table,
    keys_of_operator,
    restored_batches,
    restored_keys,
    stored_part,
)
from rayflow.protocol.commits import CommitPermit
from rayflow.state.accumulators.base import I64
from rayflow.state.accumulators.parts import SlotGroups, ValuesBySlot, values_by_slot
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.parts import RestoredPart, StatePart

_PART = "rows"


class ReduceOperator(Operator):
    """Keeps `fn(row so far, next row)` per key; rows are dicts of all columns of `schema`.

    What `fn` returns is a dict with the columns of `schema`, in which the keys may be missing but not different.
    `emit_before`: also emit the old row of an updated key.
    """

    state_place = "disk"

    def __init__(
        self, fn: Callable[[Any, Any], Any], keys: tuple[str, ...], schema: pa.Schema, emit_before: bool
    ) -> None:
        self._rows = ReducedRows(fn, keys, schema)
        self._emit_before = emit_before

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        rows = self._rows
        rows.fn.open(ctx)
        rows.index = keys_of_operator(ctx, rows.index, lambda: rows.values)
        for keys, others in restored_batches(restored, _PART, rows.index.schema):
            rows.put(keys, others)
        restored_keys(ctx, rows.index)

    def close(self) -> None:
        """See `Operator`."""
        try:
            self._rows.fn.close()
        finally:
            if isinstance(self._rows.index, CachedKeys):
                self._rows.index.close()

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        before, after, is_new = self._rows.reduce(visible(batch))
        changes = with_op(after, np.where(is_new, INSERT, UPDATE_AFTER).astype(np.int8))
        if self._emit_before and before.num_rows:
            changes = _interleaved(with_op(before, UPDATE_BEFORE), changes, is_new)
        for piece in slice_rows(changes, max_rows=self.ctx.batch_rows):
            self.out.emit(piece)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return keys and rows as one keyed part."""
        rows = self._rows
        if isinstance(rows.index, CachedKeys):
            return (stored_part(rows.index, _PART, checkpoint_id, self.ctx.max_parallelism),)
        build = partial(
            _build, rows.index.freeze(), rows.values.freeze(), rows.index.live(), self.ctx.max_parallelism
        )
        return (StatePart(name=_PART, kind="keyed", build=build),)

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        if isinstance(self._rows.index, CachedKeys):
            self._rows.index.completed(permit.checkpoint_id)


class ReducedRows:
    """One row per key, in columns: what `fn` has made of all rows of the key. Arguments as of `ReduceOperator`."""

    def __init__(self, fn: Callable[[Any, Any], Any], keys: tuple[str, ...], schema: pa.Schema) -> None:
        self.fn = UserFunction(fn)
        self._shape = ResultShape(self.fn, schema)
        self._keys, self._schema = list(keys), schema
        self.clear()

    def clear(self) -> None:
        """Begin with new, small tables."""
        self.index = KeyIndex(pa.schema([self._schema.field(key) for key in self._keys]))
        self.values = RowsBySlot(self._schema, self._keys)
        self._groups = SlotGroups()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.index.nbytes + self.values.nbytes + self._groups.nbytes

    def put(self, keys: pa.RecordBatch, rows: pa.RecordBatch) -> None:
        """Take over rows that another one had; none twice."""
        self.values.put(self.index.slots(keys), rows, self.index.slot_limit)

    def reduce(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch, npt.NDArray[np.bool_]]:
        """Take in rows. Return the old rows of the keys among them that were known, the new row of every key among
        them, in order of first appearance, and which of these are of keys that were not known."""
        slots, fresh = self.index.insert(rows.select(self._keys))
        self._groups.reserve(self.index.slot_limit)
        touched, places = self._groups.group(slots)
        is_new = np.isin(touched, slots[fresh], assume_unique=True)
        before = self.rows(touched[~is_new])
        after = self._reduced(rows, places, is_new, before)
        self.values.put(touched, after, self.index.slot_limit)
        return before, after, is_new

    def rows(self, slots: I64) -> pa.RecordBatch:
        """Return the rows of `slots`."""
        keys = self.index.keys(slots)
        others = dict(self.values.get(slots))
        columns = [others[name] if name in others else keys.column(name) for name in self._schema.names]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _reduced(
        self, rows: pa.RecordBatch, places: I64, is_new: Any, before: pa.RecordBatch
    ) -> pa.RecordBatch:
        """Return the new row of every touched key; `before` are those of the known ones."""
        kept = iter(before.to_pylist())
        reduced = [None if new else next(kept) for new in is_new]
        with self.fn.blamed(rows):
            for place, row in zip(places.tolist(), rows.to_pylist()):
                old = reduced[place]
                reduced[place] = row if old is None else self._called(old, row, rows)
        after = self._shape.batch_of_rows(reduced, rows)
        assert after is not None
        return after

    def _called(self, old: dict[str, Any], row: dict[str, Any], given: pa.RecordBatch) -> dict[str, Any]:
        keys = {key: row[key] for key in self._keys}
        result = self.fn(old, row)
        if not isinstance(result, dict):
            expected = ", ".join(map(repr, self._schema.names))
            raise self.fn.error(
                f"the function returned {result!r} ({type(result).__name__}), expected a dict with {expected}",
                given,
            )
        for key, value in keys.items():
            # A NaN is not equal to itself, but the same key.
            if key in result and result[key] != value and result[key] == result[key]:
                raise self.fn.error(
                    f"the function returned {result[key]!r} for key column {key!r}, expected {value!r}: a row stays "
                    "with its key",
                    given,
                )
        return {**result, **keys}


def _interleaved(before: pa.RecordBatch, after: pa.RecordBatch, is_new: Any) -> pa.RecordBatch:
    """Return all rows, each old row just before its new one."""
    after_at = np.arange(after.num_rows) + before.num_rows
    before_at = np.where(is_new, -1, np.cumsum(~is_new) - 1)
    order = np.stack([before_at, after_at], axis=1).ravel()
    return pa.concat_batches([before, after]).take(pa.array(order[order >= 0]))


def _build(keys: FrozenKeys, values: RowsBySlot, slots: Any, max_parallelism: int) -> pa.Table:
    return keyed_table(keys.keys(slots), values.get(slots), max_parallelism)


class RowsBySlot:
    """The columns of a row per slot, but for its keys. They are the `SlotRows` of keys on disk."""

    kinds_of_due = 0

    def __init__(self, schema: pa.Schema, keys: Sequence[str]) -> None:
        fields = [field for field in schema if field.name not in keys]
        self.schema = pa.schema([(field.name, field.type) for field in fields])
        self._parts = [(field.name, values_by_slot(field.type)) for field in fields]

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        for _, part in self._parts:
            part.reserve(slot_limit)

    def put(self, slots: I64, rows: pa.RecordBatch, slot_limit: int) -> None:
        """Assign the columns of `rows` to `slots` (none twice)."""
        self.reserve(slot_limit)
        self.restore(slots, rows)

    def restore(self, slots: I64, rows: pa.RecordBatch) -> None:
        """As `put`, where there is room."""
        for name, part in self._parts:
            _put(part, slots, rows.column(name))

    def rows(self, slots: I64) -> pa.RecordBatch:
        """As `get`, as one batch."""
        columns = [column for _, column in self.get(slots)]
        return pa.RecordBatch.from_arrays(
            [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in columns], schema=self.schema
        )

    def clear(self, slots: I64) -> None:
        """Forget `slots` (none twice)."""
        for _, part in self._parts:
            part.clear(slots)

    def pinned(self) -> list[int]:
        """No slot must stay in memory."""
        return []

    def due(self, kind: int, slots: I64) -> dict[int, int]:
        """Rows have no timers."""
        return {}

    def get(self, slots: I64) -> list[tuple[str, pa.Array]]:
        """Return the columns of `slots`."""
        return [(name, part.get(slots)) for name, part in self._parts]

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(part.nbytes for _, part in self._parts)

    def freeze(self) -> RowsBySlot:
        """Return a copy that later changes do not touch."""
        frozen = RowsBySlot(pa.schema([]), ())
        frozen._parts = [(name, part.freeze()) for name, part in self._parts]
        return frozen


def _put(part: ValuesBySlot, slots: I64, column: pa.Array) -> None:
    if column.null_count:
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        part.clear(slots[~valid])
        slots, column = slots[valid], column.drop_null()
    part.put(slots, column)
