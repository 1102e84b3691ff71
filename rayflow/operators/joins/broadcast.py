"""The broadcast join: rows meet a table that every subtask has.

Theory of operation. The right side comes whole to every subtask, the left side's rows stay where they are. If the
right side ends, left rows are held until it has: what they match does not depend on what came first. They are held as
state, not by holding the input back: both sides may come from one source, which would then wait for itself.
If the right side never ends, the latest row of each key counts, as of when the left row comes.

All subtasks have the same table, so one of them writes it at a barrier, and on restore every subtask gets it. The
watermark waits with the rows that are held.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.tables import take
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.joins.columns import LEFT, RIGHT, JoinColumns, JoinSide
from rayflow.operators.joins.sides import SLOT, Keys, without_null_keys
from rayflow.operators.joins.stored import restored_rows
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.rows import FrozenRows, RowStore

_TABLE, _HELD = "table", "held"


class BroadcastJoinOperator(Operator):
    """Joins `left` (port 0) with the table of `right` (port 1) on their keys. With `left.outer` a left row without a
    match comes out beside nulls. `latest`: the right side never ends, and has one row a key."""

    def __init__(self, left: JoinSide, right: JoinSide, columns: JoinColumns, latest: bool) -> None:
        self._left, self._right = left, right
        self._columns = columns
        self._latest = latest
        self._holding = not latest
        self._keys = Keys(right.key_schema)
        self._table = RowStore(right.schema, (SLOT,), (SLOT,))
        self._table.warm_up()
        self._held = RowStore(left.schema)
        self._watermark: int | None = None

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        for rows, _ in restored_rows(restored, _TABLE, self._right.schema, ()):
            self._add(rows)
        for rows, _ in restored_rows(restored, _HELD, self._left.schema, ()):
            self._held.add(rows)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        if port == RIGHT:
            self._add(without_null_keys(rows, self._right.keys))
        elif self._holding:
            self._held.add(rows)
        else:
            self._join(rows)

    def _add(self, rows: pa.RecordBatch) -> None:
        slots = self._keys.slots(rows.select(self._right.key_numbers))
        if self._latest and len(slots):
            distinct, at = np.unique(slots[::-1], return_index=True)
            old = self._table.first(SLOT, distinct)
            self._table.remove(old[old >= 0])
            rows, slots = take(rows, len(slots) - 1 - at), distinct
        self._table.add(rows, **{SLOT: slots})
        self._table.tidy()

    def _join(self, rows: pa.RecordBatch) -> None:
        slots = self._keys.find(rows.select(self._left.key_numbers))
        for probes, found in self._table.match(SLOT, slots, self.ctx.batch_rows):
            rights = self._table.take(found, self._columns.right_others)
            self.out.emit(self._columns.pairs(take(rows, probes), rights))
        if self._left.outer:
            alone = rows.filter(pa.array(self._table.counts(SLOT, slots) == 0))
            for begin in range(0, alone.num_rows, self.ctx.batch_rows):
                self.out.emit(self._columns.alone(LEFT, alone.slice(begin, self.ctx.batch_rows)))

    def end_input(self, port: int) -> None:
        """The table is complete: let the held rows go, and the watermark after them."""
        if port != RIGHT or not self._holding:
            return
        self._holding = False
        for rows, _ in self._held.freeze().batches():
            self._join(rows)
        self._held = RowStore(self._left.schema)
        if self._watermark is not None:
            self.out.emit_watermark(self._watermark)

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`."""
        self._watermark = watermark
        return None if self._holding else watermark

    def drained(self) -> bool:
        """See `Operator`. What waits for the end of the right side needs no further rows."""
        return not self._holding or (self._watermark is None and len(self._held) == 0)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the held rows, and on one subtask the table."""
        held, table = self._held.freeze(), self._table.freeze()
        parts = [StatePart(name=_HELD, kind="list", build=lambda: _as_table(held, self._left.schema))]
        if self.ctx.subtask_index == 0:
            schema = self._right.schema
            parts.append(StatePart(name=_TABLE, kind="broadcast", build=lambda: _as_table(table, schema)))
        return parts


def _as_table(frozen: FrozenRows, schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([rows for rows, _ in frozen.batches()], schema=schema)
