"""The regular join: every pair of rows of the same key, whenever they come.

Theory of operation. A row meets the rows of the other side that are there, and is kept for those to come; so each
pair comes once, from whichever of its rows is later. On append streams the inner join is an append stream.

All other joins change their mind: an outer join shows a row *alone* (beside nulls) until its first match comes, and a
join of upsert streams takes pairs back when a row of theirs changes. Then the result is a changelog of insertions
and deletions of whole rows, whose sum, as a multiset, is SQL's result; no key tells its rows apart, since
equal rows may come any number of times.

Changes of an upsert stream. Within a batch only what counts at its end is looked at: of each identity (the
stream's upsert key) the row that was kept goes, and the last one comes unless it is a deletion. Of a changelog
without a key, equal rows are counted, insertions less deletions; a deletion of what is not there is counted apart.

Expiry. With a time to live, rows older than that (processing time, from their arrival) are forgotten, an eighth
late at most; what they were part of in the result stays, as it was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.changelog import DELETE, INSERT, comes, ops, visible, with_op
from rayflow.batch.tables import slice_rows, take
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.joins.columns import LEFT, RIGHT, JoinColumns, JoinSide
from rayflow.operators.joins.sides import SLOT, KeyedSides, without_null_keys
from rayflow.state.accumulators.parts import SlotGroups
from rayflow.state.key_index import KeyIndex
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.rows import I64, RowStore

_ALONE, _SEEN, _ID = "alone", "seen", "id"
_TICKS_PER_TTL = 8
_MIN_UNUSED_IDS = 1024


@dataclass(frozen=True, slots=True)
class Changes:
    """What the batches of an input are. `identity` None: rows that are only added; else columns that identify a
    row of a changelog: with `counted` all of them, and equal rows are counted, else its upsert key."""

    identity: tuple[str, ...] | None = None
    counted: bool = False


class RegularJoinOperator(Operator):
    """Joins `left` (port 0) and `right` (port 1) on their keys. `changes` says for each what its batches are;
    the result is a changelog where a side is outer or changes. `ttl_ms` None keeps rows for ever."""

    def __init__(
        self,
        left: JoinSide,
        right: JoinSide,
        columns: JoinColumns,
        changes: tuple[Changes, Changes] = (Changes(), Changes()),
        ttl_ms: int | None = None,
    ) -> None:
        self._inputs = (left, right)
        self._columns = columns
        self._ttl_ms = ttl_ms
        numbers = tuple(
            [*([_ALONE] if side.outer else []), *([_SEEN] if ttl_ms is not None else [])]
            for side in self._inputs
        )
        listed = tuple([_ID] if change.identity is not None else [] for change in changes)
        self._sides = KeyedSides(self._inputs, (numbers[0], numbers[1]), (listed[0], listed[1]))
        self._identities = tuple(
            None if change.identity is None else _Identity(side, self._sides.stores[port], change)
            for port, (side, change) in enumerate(zip(self._inputs, changes))
        )
        self._is_changelog = left.outer or right.outer or any(self._identities)
        self._tick_ms = 0

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        for port in (LEFT, RIGHT):
            for rows, numbers in self._sides.restored(port, restored):
                self._keep(port, rows, self._sides.slots(port, rows), numbers)

    # ---------------------------------------------------------------------------------------- rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        identity = self._identities[port]
        if identity is None:
            self._add(port, visible(batch))
        else:
            if not self._inputs[port].outer:
                batch = without_null_keys(batch, self._inputs[port].keys)
            removed, added, unknown = identity.net(batch)
            if unknown:
                self.ctx.metrics.counter("unknown_deletions").inc(unknown)
            self._remove(port, removed)
            self._add(port, added)
        self._tidy()

    def _add(self, port: int, rows: pa.RecordBatch) -> None:
        own, other = self._inputs[port], self._inputs[1 - port]
        slots = self._sides.slots(port, rows)
        if self._identities[port] is None and (null := slots < 0).any():
            # Nothing will ever match them, nor take them back.
            if own.outer:
                self._emit_alone(port, rows.filter(pa.array(null)), INSERT)
            rows, slots = rows.filter(pa.array(~null)), slots[~null]
        if rows.num_rows == 0:
            return
        if other.outer:
            self._show_alone(1 - port, slots, False)
        self._emit_pairs(port, rows, slots, INSERT)
        numbers = {}
        if own.outer:
            alone = self._sides.stores[1 - port].counts(SLOT, slots) == 0
            self._emit_alone(port, rows.filter(pa.array(alone)), INSERT)
            numbers[_ALONE] = alone.astype(np.int64)
        if self._ttl_ms is not None:
            numbers[_SEEN] = np.full(rows.num_rows, self.ctx.now_ms(), np.int64)
        self._keep(port, rows, slots, numbers)

    def _keep(self, port: int, rows: pa.RecordBatch, slots: I64, numbers: dict[str, I64]) -> None:
        identity = self._identities[port]
        if identity is not None:
            numbers = {**numbers, _ID: identity.ids(rows)}
        self._sides.stores[port].add(rows, **{SLOT: slots, **numbers})

    def _remove(self, port: int, removed: I64) -> None:
        if len(removed) == 0:
            return
        store = self._sides.stores[port]
        for begin in range(0, len(removed), self.ctx.batch_rows):
            piece = removed[begin : begin + self.ctx.batch_rows]
            rows = store.take(piece)
            self._emit_pairs(port, rows, store.numbers(SLOT)[piece], DELETE)
            if self._inputs[port].outer:
                alone = store.numbers(_ALONE)[piece] != 0
                self._emit_alone(port, rows.filter(pa.array(alone)), DELETE)
        slots = store.numbers(SLOT)[removed]
        store.remove(removed)
        if self._inputs[1 - port].outer:
            self._show_alone(1 - port, slots[store.counts(SLOT, slots) == 0], True)

    def _show_alone(self, port: int, slots: I64, shown: bool) -> None:
        """From now on the rows of side `port` under these slots are shown alone, or not any more."""
        store = self._sides.stores[port]
        alone = store.numbers(_ALONE)
        distinct = np.unique(slots[slots >= 0])
        for _, rows in store.match(SLOT, distinct, self.ctx.batch_rows):
            changed = rows[alone[rows] != shown]
            if len(changed):
                self._emit_alone(port, store.take(changed), INSERT if shown else DELETE)
                alone[changed] = shown

    def _tidy(self) -> None:
        moved = self._sides.tidy()
        for identity in self._identities:
            if identity is not None and (moved or identity.wasteful):
                identity.forget()

    # ------------------------------------------------------------------------------------- results

    def _emit_pairs(self, port: int, rows: pa.RecordBatch, slots: I64, operation: int) -> None:
        others, right = self._sides.stores[1 - port], self._columns.right_others
        own = rows if port == LEFT else rows.select(right)
        for probes, found in others.match(SLOT, slots, self.ctx.batch_rows):
            mine = take(own, probes)
            pairs = (
                self._columns.pairs(mine, others.take(found, right))
                if port == LEFT
                else self._columns.pairs(others.take(found), mine)
            )
            self._emit(pairs, operation)

    def _emit_alone(self, port: int, rows: pa.RecordBatch, operation: int) -> None:
        for piece in slice_rows(rows, max_rows=self.ctx.batch_rows):
            if piece.num_rows:
                self._emit(self._columns.alone(port, piece), operation)

    def _emit(self, rows: pa.RecordBatch, operation: int) -> None:
        self.out.emit(with_op(rows, operation) if self._is_changelog else rows)

    # -------------------------------------------------------------------------------------- expiry

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return None if self._ttl_ms is None else self._tick_ms

    def on_timer(self, now_ms: int) -> None:
        """Forget old rows."""
        if self._ttl_ms is None:
            return
        self._tick_ms = now_ms + max(1, self._ttl_ms // _TICKS_PER_TTL)
        for store in self._sides.stores:
            live = store.live()
            expired = live[store.numbers(_SEEN)[live] + self._ttl_ms <= now_ms]
            if len(expired):
                self.ctx.metrics.counter("expired_rows").inc(len(expired))
                store.remove(expired)
        self._tidy()

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the rows of both sides."""
        return self._sides.snapshot(self.ctx.max_parallelism)


class _Identity:
    """Which kept row is which row of a changelog."""

    def __init__(self, side: JoinSide, store: RowStore, changes: Changes) -> None:
        assert changes.identity is not None
        self._numbers = [side.schema.get_field_index(name) for name in changes.identity]
        self._index = KeyIndex(pa.schema([side.schema.field(i) for i in self._numbers]))
        self._store = store
        self._counted = changes.counted
        self._groups = SlotGroups()

    def ids(self, rows: pa.RecordBatch) -> I64:
        """Return the number of each row's identity."""
        return self._index.slots(rows.select(self._numbers))

    def net(self, batch: pa.RecordBatch) -> tuple[I64, pa.RecordBatch, int]:
        """Return what a batch of changes comes to: kept rows to be removed, rows to be added, and how many
        deletions were of rows that are not there."""
        operations, rows = ops(batch), visible(batch)
        ids = self.ids(rows)
        self._groups.reserve(self._index.slot_limit)
        distinct, places = self._groups.group(ids)
        positive = comes(operations)
        if self._counted:
            return self._net_counted(rows, distinct, places, positive)
        last = np.empty(len(distinct), np.int64)
        last[places] = np.arange(len(ids))
        kept = self._store.first(_ID, distinct)
        return kept[kept >= 0], take(rows, np.sort(last[positive[last]])), 0

    def _net_counted(
        self, rows: pa.RecordBatch, distinct: I64, places: I64, positive: npt.NDArray[np.bool_]
    ) -> tuple[I64, pa.RecordBatch, int]:
        sums = np.zeros(len(distinct), np.int64)
        np.add.at(sums, places, np.where(positive, 1, -1))
        last = np.empty(len(distinct), np.int64)
        last[places] = np.arange(len(places))
        added = take(rows, np.repeat(last, np.maximum(sums, 0)))
        fewer = np.flatnonzero(sums < 0)
        wanted = -sums[fewer]
        removed = [
            found[_ranks(positions) < wanted[positions]]
            for positions, found in self._whole_lists(distinct[fewer])
        ]
        gone = np.concatenate([np.zeros(0, np.int64), *removed])
        return gone, added, int(wanted.sum()) - len(gone)

    def _whole_lists(self, ids: I64) -> Iterator[tuple[I64, I64]]:
        longest = int(self._store.counts(_ID, ids).max(initial=0))
        # A list that were cut in two would be ranked twice.
        step = max(1, (1 << 16) // max(1, longest))
        for begin in range(0, len(ids), step):
            part = ids[begin : begin + step]
            for positions, found in self._store.match(_ID, part, longest * len(part) + 1):
                yield positions + begin, found

    @property
    def wasteful(self) -> bool:
        """Whether most identities have no rows."""
        return len(self._index) > 2 * len(self._store) + _MIN_UNUSED_IDS

    def forget(self) -> None:
        """Forget the identities without rows."""
        live = self._index.live()
        self._index.remove(live[self._store.counts(_ID, live) == 0])


def _ranks(positions: I64) -> I64:
    """Return how many equal positions (which are ascending) come before each."""
    starts = np.flatnonzero(np.diff(positions, prepend=-1))
    return np.arange(len(positions)) - np.repeat(starts, np.diff([*starts.tolist(), len(positions)]))
