"""The first rows of every key in an order: bounded to the best `limit`, or all rows, for when some may go.

Theory of operation. A row that is kept has an *id*, under which its columns lie in a pool of Arrow chunks, and its
place in the order in an array of codes (`sort_codes`). Per slot there is a list of ids in order (`top_kernels`).
A batch is merged in compiled loops. With a limit, rows that are worse than the worst of a full list are dropped first,
without looking at their other columns, and the rest enter one by one. Without, rows may go: which, their *ident* says,
a number that rows equal in identity share. The result does not depend on how rows are cut into batches. Only rows that
are still there at the end of the batch go into the pool.

Where codes are not stable (strings), those of the slots' stored rows are computed anew, together with those of the
batch.

Invariants:

1. A list is in order; of rows with equal codes the one that came first is first (last, with `last_wins`).
2. An id is in exactly one list (`alive`), or free, or left its list in the last merge and waits for `forget`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.ordering import SortKey
from rayflow.batch.tables import take
from rayflow.state.accumulators.parts import PooledValues, SlotGroups
from rayflow.state.key_table import grown
from rayflow.state.sort_codes import Codes, SortCodes

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SNAPSHOT_ROWS = 65_536


@dataclass(frozen=True, slots=True)
class Lists:
    """Lists of row ids, one after another: list i is `ids[offsets[i]:offsets[i + 1]]`."""

    offsets: I64
    ids: I64


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge did: the slots whose lists may have changed, and their first rows before and after. `left` are
    the rows that went, which keep their columns until `forget`; `missed` counts those that should have gone and
    were not there."""

    slots: I64
    before: Lists
    after: Lists
    left: I64
    missed: int = 0


class TopRows:
    """Rows of `schema` by slot, ordered by `keys`; `limit` None keeps all. `last_wins`: of equal rows the one that came
    last is better. Raises TypeError for a key without an order."""

    def __init__(
        self, schema: pa.Schema, keys: Sequence[SortKey], limit: int | None, *, last_wins: bool = False
    ) -> None:
        from rayflow.state import top_kernels

        self._kernels: Any = top_kernels
        self._schema = schema
        self._order = SortCodes(keys, schema)
        self._bounded = limit is not None
        self._limit = 2**62 if limit is None else limit
        self._last_wins = last_wins
        self._groups = SlotGroups()
        self._start, self._count, self._cap = (np.zeros(0, np.int64) for _ in range(3))
        self._entries: I64 = np.zeros(0, np.int64)
        self._free_segments: I64 = np.full(top_kernels.SIZES, -1, np.int64)
        self._meta: I64 = np.zeros(1, np.int64)
        self._codes: Codes = np.zeros((0, self._order.width), np.uint64)
        self._newest, self._older = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._alive: Bools = np.zeros(0, np.bool_)
        self._ids = _Ids()
        # A stream's batches may say "nullable" where its schema does not.
        self._rows = PooledValues(pa.struct([field.with_nullable(True) for field in schema]))
        self._compile()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        lists = (self._start, self._count, self._cap, self._entries, self._codes, self._alive)
        idents = self._newest.nbytes + self._older.nbytes
        return sum(part.nbytes for part in lists) + idents + self._rows.nbytes

    @property
    def counts(self) -> I64:
        """How many rows each slot has. Valid until the next change."""
        return self._count

    def enter(
        self, rows: pa.RecordBatch, slots: I64, slot_limit: int, *, first: int, restoring: bool = False
    ) -> Merged:
        """Let rows enter the lists of their slots (all below `slot_limit`), and return the lists' `first` rows before
        and after. `restoring`: equal rows come best first."""
        last_wins = self._last_wins and not restoring
        codes = self._coded(rows, slots, slot_limit)
        can = np.empty(len(slots), np.bool_)
        self._kernels.can_enter(
            slots, codes, self._start, self._count, self._entries, self._codes, self._limit, last_wins, can
        )
        if not can.all():
            chosen = np.flatnonzero(can)
            rows, slots, codes = take(rows, chosen), slots[chosen], codes[chosen]
        touched, _ = self._groups.group(slots)
        before = self.lists(touched, first)
        ids = self._new_ids(codes)
        row = 0
        while row < len(slots):
            row = self._kernels.enter(
                slots, ids, row, self._start, self._count, self._cap, self._entries, self._free_segments,
                self._meta, self._codes, self._alive, self._limit, last_wins,
            )  # fmt: skip
            if row < len(slots):
                self._make_room(slots[row])
        self._store(ids, rows)
        left = before.ids[~self._alive[before.ids]]
        return Merged(touched, before, self.lists(touched, first), left)

    def change(
        self,
        rows: pa.RecordBatch,
        slots: I64,
        slot_limit: int,
        comes: Bools,
        idents: I64,
        *,
        first: int,
        restoring: bool = False,
    ) -> Merged:
        """As `enter`, of lists without limit; but where not `comes`, a row with this ident goes instead."""
        last_wins = self._last_wins and not restoring
        codes = self._coded(rows, slots, slot_limit)
        touched, places = self._groups.group(slots)
        before = self.lists(touched, first)
        coming = np.flatnonzero(comes)
        new = self._new_ids(codes[coming])
        ids, gone = np.full(len(slots), -1, np.int64), np.empty(len(slots), np.int64)
        ids[coming] = new
        self._newest = grown(self._newest, int(idents.max(initial=-1)) + 1, -1)
        self._kernels.match(ids, comes, idents, self._newest, self._older, self._alive, gone)
        left = gone[gone >= 0]
        order = np.argsort(places, kind="stable")
        bounds = np.searchsorted(places[order], np.arange(len(touched) + 1))
        spare, more, at = np.empty(len(slots), np.int64), np.empty(len(slots), np.int64), 0
        while at < len(touched):
            at = self._kernels.merge(
                touched, order, bounds, ids, at, self._start, self._count, self._cap, self._entries,
                self._free_segments, self._meta, self._codes, self._alive, last_wins, spare, more,
            )  # fmt: skip
            if at < len(touched):
                self._make_room(touched[at])
        missed = len(slots) - len(coming) - len(left)
        # What came and went within the batch was never stored.
        left = left[np.isin(left, new[~self._alive[new]], invert=True)]
        self._store(new, take(rows, coming))
        return Merged(touched, before, self.lists(touched, first), left, missed)

    def is_gone(self, idents: I64) -> Bools:
        """Return which idents have no row."""
        gone: Bools = self._newest[idents] < 0
        return gone

    def _coded(self, rows: pa.RecordBatch, slots: I64, slot_limit: int) -> Codes:
        for name in ("_start", "_count", "_cap"):
            setattr(self, name, grown(getattr(self, name), slot_limit))
        self._groups.reserve(slot_limit)
        return self._order.of(rows) if self._order.stable else self._ranked(rows, slots)

    def _new_ids(self, codes: Codes) -> I64:
        ids = self._ids.take(len(codes))
        limit = self._ids.limit
        for name in ("_codes", "_older", "_alive"):
            setattr(self, name, grown(getattr(self, name), limit))
        self._codes[ids] = codes
        return ids

    def _make_room(self, slot: int) -> None:
        self._entries = grown(self._entries, int(self._meta[0]) + max(1, 2 * int(self._cap[slot])))

    def _store(self, ids: I64, rows: pa.RecordBatch) -> None:
        """Keep the rows that are in a list."""
        stays = self._alive[ids]
        if stays.any():
            self._rows.reserve(len(self._alive))
            kept = rows if stays.all() else take(rows, np.flatnonzero(stays))
            self._rows.put(ids[stays], kept.to_struct_array())
        self._ids.give_back(ids[~stays])

    def _compile(self) -> None:
        nothing, none = np.zeros(0, np.int64), np.zeros(0, np.bool_)
        rows = pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in self._schema], schema=self._schema)
        if self._bounded:
            self.enter(rows, nothing, 0, first=1)
            self._kernels.enter(
                nothing, nothing, 0, self._start, self._count, self._cap, self._entries, self._free_segments,
                self._meta, self._codes, self._alive, self._limit, self._last_wins,
            )  # fmt: skip
            return
        self.change(rows, nothing, 0, none, nothing, first=1)
        self._kernels.merge(
            nothing, nothing, nothing, nothing, 0, self._start, self._count, self._cap, self._entries,
            self._free_segments, self._meta, self._codes, self._alive, self._last_wins, nothing, nothing,
        )  # fmt: skip

    def _ranked(self, rows: pa.RecordBatch, slots: I64) -> Codes:
        """Return codes of `rows`, and give the rows stored under their slots codes that compare with these."""
        touched, _ = self._groups.group(slots)
        stored = self.lists(touched).ids
        if len(stored) == 0:
            return self._order.of(rows)
        both = pa.concat_batches([self.rows(stored), rows.cast(self._schema)])
        codes = self._order.of(both)
        self._codes[stored] = codes[: len(stored)]
        return np.ascontiguousarray(codes[len(stored) :])

    def lists(self, slots: I64, first: int | None = None) -> Lists:
        """Return the ids of the slots' rows, in order, at most `first` of each."""
        lengths = self._count[slots]
        if first is not None:
            lengths = np.minimum(lengths, first)
        offsets = np.zeros(len(slots) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        ids = np.empty(int(offsets[-1]), np.int64)
        self._kernels.list_ids(slots, self._start, self._entries, offsets, ids)
        return Lists(offsets, ids)

    def rows(self, ids: I64) -> pa.RecordBatch:
        """Return the rows with these ids."""
        return _as_batch(self._rows.get(ids), self._schema)

    def forget(self, ids: I64) -> None:
        """Let go of the columns of rows that left (none twice)."""
        if len(ids):
            self._rows.clear(ids)
            self._ids.give_back(ids)

    def all_rows(self) -> I64:
        """Return the ids of all rows, those of a slot side by side and in order."""
        return self.lists(np.flatnonzero(self._count)).ids

    def freeze(self) -> FrozenRows:
        """Return all rows as they are now, for building a snapshot on another thread."""
        return FrozenRows(self._rows.freeze(), self.all_rows(), self._schema)


class FrozenRows:
    """All rows of a `TopRows` at one moment. Immutable: may be read on any thread."""

    def __init__(self, rows: PooledValues, ids: I64, schema: pa.Schema) -> None:
        self._rows, self._ids, self._schema = rows, ids, schema

    def batches(self) -> list[pa.RecordBatch]:
        """Return the rows of every slot, side by side and in order."""
        pieces = [self._ids[at : at + _SNAPSHOT_ROWS] for at in range(0, len(self._ids), _SNAPSHOT_ROWS)]
        return [_as_batch(self._rows.get(piece), self._schema) for piece in pieces]


class _Ids:
    """Numbers from 0, used again after they are given back."""

    def __init__(self) -> None:
        self.limit = 0
        self._free: I64 = np.zeros(0, np.int64)
        self._frees = 0

    def take(self, count: int) -> I64:
        reused = min(count, self._frees)
        self._frees -= reused
        again = self._free[self._frees : self._frees + reused].copy()
        fresh = np.arange(self.limit, self.limit + count - reused)
        self.limit += count - reused
        return np.concatenate([again, fresh])

    def give_back(self, ids: I64) -> None:
        self._free = grown(self._free, self._frees + len(ids))
        self._free[self._frees : self._frees + len(ids)] = ids
        self._frees += len(ids)


def _as_batch(rows: pa.StructArray, schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(rows.flatten(), schema=schema)
