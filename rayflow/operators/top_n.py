"""The first rows of every key, kept up to date as rows come (and, of an upsert stream, go), as an upsert stream.

Per batch only what changed is emitted. How, depends on what tells the rows apart:

* by key and rank (with a rank column), or by key alone (n = 1): every rank whose row is another one now gives
  an update, so a row that comes in above others moves them all down;
* by all columns (n > 1 without a rank column; a stream of *whole rows*): the rows that dropped out are deleted, those
  that came in are inserted, the others are not mentioned.

Rows of an append stream never leave, so no more than n a key are kept. Of an upsert stream all rows are kept, since
the next best must come back when one goes: memory grows with the stream's rows, not with its keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import DELETE, INSERT, comes, ops, visible, with_op
from rayflow.batch.ordering import SortKey
from rayflow.batch.tables import slice_rows
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.key_index import KeyIndex
from rayflow.state.key_table import grown
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.top_rows import FrozenRows, Merged, TopRows

_PART = "rows"


class TopNOperator(Operator):
    """Keeps the first `n` rows per `keys` in the order of `order_by`, of rows of `input_schema`.

    Emits rows with, if `rank` names it, a column of their rank from 1, and the hidden operation column. Of equal
    rows the one that arrived first is first (last, with `last_wins`). `identity`: columns that tell the rows of an
    upsert stream apart; None for an append stream. `emit_before`: also emit the old row of an updated key.
    Raises TypeError for columns that have no order, or cannot be a key.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        n: int,
        order_by: Sequence[SortKey],
        input_schema: pa.Schema,
        rank: str | None,
        last_wins: bool,
        identity: tuple[str, ...] | None,
        emit_before: bool,
    ) -> None:
        self._keys = list(keys)
        self._n = n
        self._schema = input_schema
        self._rank = rank
        self._emit_before = emit_before
        self._whole_rows = n > 1 and rank is None
        self._index = KeyIndex(pa.schema([input_schema.field(key) for key in keys]))
        self._rows = TopRows(input_schema, order_by, None if identity else n, last_wins=last_wins)
        self._identities = None
        if identity is not None:
            self._identities = KeyIndex(pa.schema([input_schema.field(name) for name in identity]))
        self._before: Any = np.zeros(0, np.bool_)
        self._after: Any = np.zeros(0, np.bool_)

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        for keys, others in restored_batches(restored, _PART, self._index.schema):
            columns = [*keys.columns, *others.columns]
            by_name = dict(zip([*keys.schema.names, *others.schema.names], columns, strict=True))
            rows = pa.RecordBatch.from_arrays(
                [by_name[name] for name in self._schema.names], schema=self._schema
            )
            merged = self._merge(rows, np.ones(rows.num_rows, np.bool_), restoring=True)
            self._rows.forget(merged.left)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        merged = self._merge(visible(batch), comes(ops(batch)))
        if len(merged.slots) == 0:
            return
        changed = self._by_row(merged) if self._whole_rows else self._by_rank(merged)
        for piece in slice_rows(changed, max_rows=self.ctx.batch_rows):
            self.out.emit(piece)
        self._forget(merged)

    def _merge(self, rows: pa.RecordBatch, coming: Any, *, restoring: bool = False) -> Merged:
        slots = self._index.slots(rows.select(self._keys))
        limit = self._index.slot_limit
        if self._identities is None:
            return self._rows.enter(rows, slots, limit, first=self._n, restoring=restoring)
        idents = self._identities.slots(rows.select(self._identities.schema.names))
        merged = self._rows.change(rows, slots, limit, coming, idents, first=self._n, restoring=restoring)
        self._identities.remove(np.unique(idents[self._rows.is_gone(idents)]))
        if merged.missed:
            self.ctx.metrics.counter("unmatched_retractions").inc(merged.missed)
        return merged

    def _by_rank(self, merged: Merged) -> pa.RecordBatch:
        before, after = merged.before, merged.after
        most = len(before.ids) + len(after.ids)
        ids, operations, ranks = np.empty(most, np.int64), np.empty(most, np.int8), np.empty(most, np.int64)
        from rayflow.state.top_kernels import rank_changes

        count = rank_changes(
            before.offsets, before.ids, after.offsets, after.ids, self._emit_before, ids, operations, ranks
        )
        rows = self._rows.rows(ids[:count])
        if self._rank is not None:
            rows = rows.append_column(pa.field(self._rank, pa.int64()), pa.array(ranks[:count]))
        return with_op(rows, operations[:count])

    def _by_row(self, merged: Merged) -> pa.RecordBatch:
        old, new = merged.before.ids, merged.after.ids
        limit = int(max(old.max(initial=-1), new.max(initial=-1))) + 1
        self._before, self._after = grown(self._before, limit), grown(self._after, limit)
        self._before[old] = True
        self._after[new] = True
        gone, came = old[~self._after[old]], new[~self._before[new]]
        self._before[old] = False
        self._after[new] = False
        operations = np.repeat(np.array([DELETE, INSERT], np.int8), [len(gone), len(came)])
        return with_op(self._rows.rows(np.concatenate([gone, came])), operations)

    def _forget(self, merged: Merged) -> None:
        self._rows.forget(merged.left)
        if self._identities is not None:
            self._index.remove(merged.slots[self._rows.counts[merged.slots] == 0])

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return all rows, each key's in order, as one keyed part."""
        build = partial(_build, self._rows.freeze(), self._keys, self._schema, self.ctx.max_parallelism)
        return (StatePart(name=_PART, kind="keyed", build=build),)


def _build(rows: FrozenRows, keys: Sequence[str], schema: pa.Schema, max_parallelism: int) -> pa.Table:
    others = [name for name in schema.names if name not in keys]
    empty = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)
    tables = [
        keyed_table(batch.select(keys), [(name, batch.column(name)) for name in others], max_parallelism)
        for batch in rows.batches() or [empty]
    ]
    return pa.concat_tables(tables)
