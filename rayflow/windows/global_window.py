"""Aggregates over one window per key for all time.

Theory of operation. Without a trigger every key gives one row, when the input ends. With one it is an upsert stream
by key: a key's row is shown early, and again when it has changed, whenever `early_rows` or more rows have come
since it was shown (looked at once per batch, so of several occasions within a batch the last is shown), or every
`early_ns` of processing time; and in the end, where it changed since.

Where the stream has event time, `window_start` and `window_end` are the smallest and the largest one among the rows
(see `arrivals`). Results have no event time: they may come long after the watermark has passed their rows.

With `state.backend=disk`, and no trigger, keys in memory are written out when they outgrow its share (as the one pane
of `spilled`), and merged when the input ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, visible, with_op
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import user_error
from rayflow.operators.keyed_parts import keyed_table, restored_batches
from rayflow.state.accumulators.columns import AggregateColumns, FrozenAggregates
from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.partials import counts_of_rows, is_partial
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.arrivals import columns_with_bounds, order_of
from rayflow.windows.bounds import I64
from rayflow.windows.spilled import SpilledPanes, spilled_panes

_KEYS = "keys"
_SHOWN, _ROWS_SINCE = "shown", "rows_since"
_NANOS_PER_MS = 1_000_000


class GlobalWindowOperator(Operator):
    """Aggregates all rows of `keys`. `aggregates` are (output column, expression).

    Emits the key columns, with a `time_column` (of `input_schema`, a timestamp) the bounds, and the results; with
    `early_rows` or `early_ns` the hidden operation column too. `emit_before`: a row that has been shown is deleted,
    in full, as soon as it no longer holds, instead of being replaced later.
    """

    def __init__(
        self,
        keys: tuple[str, ...],
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        time_column: str | None = None,
        early_rows: int | None = None,
        early_ns: int | None = None,
        emit_before: bool = False,
    ) -> None:
        self._keys, self._time_column = list(keys), time_column
        self._early_rows, self._early_ns, self._emit_before = early_rows, early_ns, emit_before
        self._updates = early_rows is not None or early_ns is not None
        self._index = KeyIndex(pa.schema([input_schema.field(key) for key in keys]))
        self._make_columns = partial(columns_with_bounds, aggregates, input_schema, time_column)
        self._columns = self._make_columns()
        self._schema = pa.schema([*self._index.schema, *self._columns.fields])
        self._shown, self._rows_since = SlotArray(np.bool_), SlotArray(np.int64)
        self._early_due_ms: int | None = None
        self._spilled: SpilledPanes | None = None
        # What is shown early may change, and is looked up then.
        self.state_place = "memory" if self._updates else "disk"

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        if ctx.disk is not None and not self._updates:
            self._spilled = spilled_panes(ctx, self._index.schema, self._make_columns, 1)
        # In order of arrival, merging what is restored tells where to go on counting.
        if self._spilled is not None and self._time_column is not None:
            restored = self._spilled.restore_runs(restored, _KEYS, lambda rows: np.zeros(len(rows), np.int64))
        for keys, others in restored_batches(restored, _KEYS, self._index.schema):
            slots = self._slots(keys)
            self._shown.values[slots] = others.column(_SHOWN).to_numpy(zero_copy_only=False)
            self._rows_since.values[slots] = others.column(_ROWS_SINCE).to_numpy()
            self._columns.merge(others, slots, self._index.slot_limit)
            self._make_room()
        self._set_timer()

    def _slots(self, keys: pa.RecordBatch) -> I64:
        slots = self._index.slots(keys)
        self._shown.reserve(self._index.slot_limit)
        self._rows_since.reserve(self._index.slot_limit)
        return slots

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        slots = self._slots(rows.select(self._keys))
        if self._emit_before:
            self._withdraw(np.unique(slots[self._shown.values[slots]]))
        limit = self._index.slot_limit
        if is_partial(rows.schema):
            self._columns.merge(rows, slots, limit, by_arrival=self._time_column is None)
        else:
            self._columns.update(rows, slots, limit, order_of(rows, self._time_column))
        np.add.at(self._rows_since.values, slots, counts_of_rows(rows))
        self._set_timer()
        self._make_room()
        if self._early_rows is not None:
            self._show(np.unique(slots[self._rows_since.values[slots] >= self._early_rows]))

    def _make_room(self) -> None:
        if self._spilled is not None and self._spilled.is_over(self._nbytes()):
            self._spill(self._spilled)

    def _nbytes(self) -> int:
        return self._index.nbytes + self._columns.nbytes + self._rows_since.nbytes

    def _spill(self, spilled: SpilledPanes) -> None:
        """Write all keys in memory to disk, as they came after those that are there."""
        if len(self._index):
            spilled.add(_OnePane(self._index.live(), self._index.view()), self._columns)
            columns = self._make_columns()
            columns.come_after(self._columns)
            self._columns, self._index = columns, KeyIndex(self._index.schema)
            self._shown, self._rows_since = SlotArray(np.bool_), SlotArray(np.int64)
            spilled.measure()

    def _withdraw(self, slots: I64) -> None:
        self._emit(slots, np.full(len(slots), DELETE, np.int8))
        self._shown.clear(slots)

    def _show(self, slots: I64) -> None:
        shown = self._shown.values[slots]
        self._emit(slots, np.where(shown, UPDATE_AFTER, INSERT).astype(np.int8))
        self._shown.values[slots] = True
        self._rows_since.clear(slots)

    def _emit(self, slots: I64, operations: npt.NDArray[np.int8]) -> None:
        for begin in range(0, len(slots), self.ctx.batch_rows):
            piece = slice(begin, begin + self.ctx.batch_rows)
            rows = self._rows(slots[piece])
            self.out.emit(with_op(rows, operations[piece]) if self._updates else rows)

    def _rows(self, slots: I64) -> pa.RecordBatch:
        return self._rows_of(self._index.keys(slots), self._columns, slots)

    def _rows_of(self, keys: pa.RecordBatch, columns: AggregateColumns, slots: I64) -> pa.RecordBatch:
        try:
            results = columns.results(slots)
        except OverflowError as error:
            raise user_error(self.ctx, str(error), keys) from error
        return pa.RecordBatch.from_arrays([*keys.columns, *results], schema=self._schema)

    # ------------------------------------------------------------------------------------ time

    def _set_timer(self) -> None:
        if self._early_ns is not None and self._early_due_ms is None and len(self._index):
            self._early_due_ms = self.ctx.now_ms() + max(1, self._early_ns // _NANOS_PER_MS)

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return self._early_due_ms

    def on_timer(self, now_ms: int) -> None:
        """Show the keys that changed, where results are shown every so often."""
        if self._early_due_ms is not None and now_ms >= self._early_due_ms:
            self._early_due_ms = None
            self._show(self._changed())

    def drained(self) -> bool:
        """See `Operator`. Early results that the clock will show are owed."""
        return self._early_due_ms is None

    def _changed(self) -> I64:
        slots = self._index.live()
        return slots[self._rows_since.values[slots] > 0]

    def on_watermark(self, watermark: int) -> int | None:
        """At the end of the input emit what has not been shown, and forget everything."""
        if watermark >= WATERMARK_MAX:
            self._show_from_disk()
            self._show(self._changed())
            slots = self._index.live()
            self._columns.clear(slots)
            self._shown.clear(slots)
            self._index.remove(slots)
            self._early_due_ms = None
        return watermark

    def _show_from_disk(self) -> None:
        spilled = self._spilled
        if spilled is None or not len(spilled):
            return
        self._spill(spilled)
        for keys, columns, slots in spilled.merged(0, 1):
            for begin in range(0, len(slots), self.ctx.batch_rows):
                piece = slice(begin, begin + self.ctx.batch_rows)
                self.out.emit(self._rows_of(keys.slice(begin, self.ctx.batch_rows), columns, slots[piece]))
        spilled.drop_before(1)

    # ----------------------------------------------------------------------------------- state

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return keys and accumulators, with what has been shown of them, as one keyed part."""
        if self._spilled is not None and self._spilled.is_worth(self._nbytes()):
            self._spill(self._spilled)
            return (self._spilled.part(_KEYS, checkpoint_id, _nothing_shown),)
        slots = self._index.live()
        shown, since = self._shown.values[slots], self._rows_since.values[slots]
        build = partial(
            _build,
            self._index.freeze(),
            self._columns.freeze(),
            slots,
            shown,
            since,
            self.ctx.max_parallelism,
        )
        return (StatePart(name=_KEYS, kind="keyed", build=build),)

    def close(self) -> None:
        """See `Operator`."""
        if self._spilled is not None:
            self._spilled.close()


@dataclass(frozen=True, slots=True)
class _OnePane:
    """All keys as the `FrozenPanes` of one pane."""

    slots: I64
    keys: FrozenKeys

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """See `FrozenPanes`."""
        return self.keys.keys(slots)

    def panes_of(self, slots: I64) -> I64:
        """See `FrozenPanes`."""
        return np.zeros(len(slots), np.int64)


def _nothing_shown(pane: int, rows: int) -> list[tuple[str, pa.Array]]:
    """Return what is written of keys of which nothing was shown, but some rows came."""
    return [(_SHOWN, pa.repeat(False, rows)), (_ROWS_SINCE, pa.array(np.ones(rows, np.int64)))]


def _build(
    keys: FrozenKeys,
    columns: FrozenAggregates,
    slots: I64,
    shown: npt.NDArray[np.bool_],
    rows_since: I64,
    max_parallelism: int,
) -> pa.Table:
    others = [
        (_SHOWN, pa.array(shown)),
        (_ROWS_SINCE, pa.array(rows_since)),
        *columns.state_columns(slots),
    ]
    return keyed_table(keys.keys(slots), others, max_parallelism)
