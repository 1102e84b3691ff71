"""State by key and slice: which entry belongs to a key in a slice, and which entries a slice has.

Theory of operation. As `panes`, for many slices of which one after the other is opened, gets rows and is dropped. A key
has a number, a slice that is open a small one (its *home*), and an *entry* is the slot of the pair of both, under which
accumulators keep the aggregate. The entries of a slice are a linked list, and open slices are kept in order.

Rows are nearly in order of time. So each key remembers its latest entry: a row of the same slice has that one, a
row of a later slice makes a new one, and neither has anything to look for. Only rows that are behind their key's latest
entry need a search, in a hash table of the slice. These tables are not kept until a first such row comes, and given up
when as many rows have come without one as there are entries: so they cost no more than to have them always.

Slices are dropped earliest first, so a key whose latest entry goes has no other: the key is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.memory import empty
from rayflow.state.key_codec import WordKeys
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.key_table import StoredWords, WordTable, grown

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_NO_NULLS = np.zeros(0, np.uint8)
_MIN_ENTRIES = 512
_MAX_ENTRIES = 2**31 - 1


@dataclass(frozen=True, slots=True)
class FrozenSlices:
    """The entries of a `SliceTable` at one moment. Immutable: may be read on any thread."""

    slots: I64
    keys: FrozenKeys
    homes: StoredWords
    key_of: I32
    home_of: I32

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self.keys.keys(self.key_of[slots].astype(np.int64))

    def panes_of(self, slots: I64) -> I64:
        """Return the slices of `slots`."""
        slices: I64 = self.homes.words[self.home_of[slots]].view(np.int64)
        return slices


@dataclass(frozen=True, slots=True)
class OpenSlices:
    """Open slices in order of time: their numbers, and where the list of entries of each begins."""

    numbers: I64
    heads: I32


class SliceTable:
    """Entries of (key, slice) for key columns of `key_schema`."""

    def __init__(self, key_schema: pa.Schema) -> None:
        self._keys = KeyIndex(key_schema)
        self._homes = WordTable()
        self._homes.warm_up()
        self._entries = _EntryTable()
        self._open = _OrderedSlices()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def slot_limit(self) -> int:
        """All entries ever given out are below this."""
        return self._entries.slot_limit

    @property
    def key_limit(self) -> int:
        """All key numbers ever given out are below this."""
        return self._keys.slot_limit

    @property
    def key_count(self) -> int:
        """How many keys are in some slice."""
        return len(self._keys)

    @property
    def key_of(self) -> I32:
        """Key numbers by entry. Valid until the next change."""
        return self._entries.key_of

    @property
    def following(self) -> I32:
        """By entry, the next of the same slice; -1 after the last. Valid until the next change."""
        return self._entries.following

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._keys.nbytes + self._homes.nbytes + self._entries.nbytes

    def slots(self, keys: pa.RecordBatch, slices: I64) -> I64:
        """Return the entry of every row's key in slice `slices[row]`, adding new ones."""
        numbers = self._keys.slots(keys)
        begins = self._entries.runs(slices)
        run_slices = slices[begins]
        homes, new = self._homes.insert(WordKeys(run_slices.view(np.uint64), _NO_NULLS))
        self._open.add(run_slices[new], homes[new])
        self._entries.reserve(self._keys.slot_limit, self._homes.slot_limit)
        return self._entries.insert(numbers, begins, run_slices, homes)

    def open_from(self, begin: int) -> I64:
        """Return the open slices from `begin` on, in order. Valid until the next change."""
        return self._open.between(begin, None)[0]

    def between(self, begin: int, end: int) -> OpenSlices:
        """Return the open slices from `begin` to before `end`. Valid until the next change."""
        numbers, homes = self._open.between(begin, end)
        return OpenSlices(numbers, self._entries.heads[homes])

    def keys(self, key_numbers: I64) -> pa.RecordBatch:
        """Return the key columns of keys given by number."""
        return self._keys.keys(key_numbers)

    def drop_before(self, end: int) -> I64:
        """Forget the slices before `end`; return what were their entries."""
        homes = self._open.drop_before(end)
        if len(homes) == 0:
            return homes
        entries, gone = self._entries.drop(homes)
        self._keys.remove(gone)
        self._homes.remove(homes)
        return entries

    def view(self) -> FrozenSlices:
        """Return the table as it is now: valid until the next change."""
        entries = self._entries
        return FrozenSlices(
            entries.live(), self._keys.view(), self._homes.stored(), entries.key_of, entries.home_of
        )

    def freeze(self) -> FrozenSlices:
        """Return the table as it is now, for building a snapshot on another thread."""
        limit = self.slot_limit
        return FrozenSlices(
            self._entries.live(),
            self._keys.freeze(),
            self._homes.freeze(),
            self._entries.key_of[:limit].copy(),
            self._entries.home_of[:limit].copy(),
        )


class _OrderedSlices:
    """Numbers of slices in order, each with its home: appended at the end, as a rule, and dropped at the beginning."""

    def __init__(self) -> None:
        self._numbers: I64 = np.zeros(0, np.int64)
        self._homes: I64 = np.zeros(0, np.int64)
        self._first = self._end = 0

    def between(self, begin: int | None, end: int | None) -> tuple[I64, I64]:
        """Return numbers and homes from `begin` (None: the first) to before `end` (None: to the last)."""
        numbers, homes = self._numbers[self._first : self._end], self._homes[self._first : self._end]
        low = 0 if begin is None else int(np.searchsorted(numbers, begin))
        high = len(numbers) if end is None else int(np.searchsorted(numbers, end))
        return numbers[low:high], homes[low:high]

    def add(self, numbers: I64, homes: I64) -> None:
        """Add slices that are not there."""
        if len(numbers) == 0:
            return
        order = np.argsort(numbers, kind="stable")
        numbers, homes = numbers[order], homes[order]
        old_numbers, old_homes = self.between(None, None)
        if len(old_numbers) and old_numbers[-1] > numbers[0]:
            at = np.searchsorted(old_numbers, numbers)
            self._first, self._end = 0, len(old_numbers) + len(numbers)
            self._numbers = np.insert(old_numbers, at, numbers)
            self._homes = np.insert(old_homes, at, homes)
            return
        if self._end + len(numbers) > len(self._numbers):
            self._first, self._end = 0, len(old_numbers)
            # Twice what is open: so what was dropped is moved over as seldom as slices are many.
            size = max(16, 2 * (self._end + len(numbers)))
            self._numbers = grown(old_numbers.copy(), size)
            self._homes = grown(old_homes.copy(), size)
        into = slice(self._end, self._end + len(numbers))
        self._numbers[into], self._homes[into] = numbers, homes
        self._end = into.stop

    def drop_before(self, end: int) -> I64:
        """Take out the slices before `end`; return their homes, in order."""
        homes: I64 = self.between(None, end)[1].copy()
        self._first += len(homes)
        return homes


class _EntryTable:
    """The entries themselves. Slots of those that are gone are used again.

    Invariant: where hash tables are kept (`_searchable`), a live entry is in that of its slice, once."""

    def __init__(self) -> None:
        from rayflow.state import key_kernels
        from rayflow.windows import slice_table_kernels

        self._fields: Any = key_kernels
        self._kernels: Any = slice_table_kernels
        self._meta: I64 = np.zeros(key_kernels.META_FIELDS, np.int64)
        # By entry.
        self.key_of: I32 = np.zeros(_MIN_ENTRIES, np.int32)
        self.home_of: I32 = np.zeros(_MIN_ENTRIES, np.int32)
        self.following: I32 = np.zeros(_MIN_ENTRIES, np.int32)
        self._live: npt.NDArray[np.bool_] = np.zeros(_MIN_ENTRIES, np.bool_)
        self._free: I32 = np.zeros(0, np.int32)
        # By home.
        self.heads: I32 = np.zeros(0, np.int32)
        self._tails: I32 = np.zeros(0, np.int32)
        self._counts: I64 = np.zeros(0, np.int64)
        self._blocks: I64 = np.zeros(0, np.int64)
        self._masks: I64 = np.zeros(0, np.int64)
        # By key number.
        self._latest: I32 = np.zeros(0, np.int32)
        self._latest_slice: I64 = np.zeros(0, np.int64)
        self._cells: I32 = np.zeros(0, np.int32)
        self._searchable = False
        self._rows_unsearched = 0
        self._warm_up()

    def __len__(self) -> int:
        return int(self._meta[self._fields.NEXT] - self._meta[self._fields.FREE])

    @property
    def slot_limit(self) -> int:
        """All entries ever given out are below this."""
        return int(self._meta[self._fields.NEXT])

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        by_entry = (self.key_of, self.home_of, self.following, self._live, self._free)
        by_home = (self.heads, self._tails, self._counts, self._blocks, self._masks)
        others = (self._latest, self._latest_slice, self._cells)
        return sum(array.nbytes for array in (*by_entry, *by_home, *others))

    def live(self) -> I64:
        """Return the entries in use, ascending."""
        return np.flatnonzero(self._live[: self.slot_limit])

    def reserve(self, key_limit: int, home_limit: int) -> None:
        """Make room for keys and homes below these."""
        self._latest = grown(self._latest, key_limit, -1)
        self._latest_slice = grown(self._latest_slice, key_limit)
        self.heads, self._tails = grown(self.heads, home_limit, -1), grown(self._tails, home_limit, -1)
        self._counts, self._blocks = grown(self._counts, home_limit), grown(self._blocks, home_limit)
        self._masks = grown(self._masks, home_limit, -1)

    def runs(self, numbers: I64) -> I64:
        """Return where a number differs from the one before."""
        begins = empty(len(numbers), np.int64)
        count: int = self._kernels.runs(numbers, begins)
        return begins[:count]

    def insert(self, keys: I64, begins: I64, run_slices: I64, run_homes: I64) -> I64:
        """Return the entry of every row, by number of key, adding new ones. Rows come in runs of one slice: run i
        begins at row `begins[i]`."""
        if self._searchable:
            self._rows_unsearched += len(keys)
            if self._rows_unsearched > len(self):
                self._set_searchable(False)
        out = empty(len(keys), np.int64)
        row, k = 0, self._kernels
        while True:
            row, searches, why = k.insert(
                keys, begins, run_slices, run_homes, row, self._searchable, self.key_of, self.home_of,
                self.following, self.heads, self._tails, self._counts, self._latest, self._latest_slice,
                self._live, self._free, self._cells, self._blocks, self._masks, self._meta, out,
            )  # fmt: skip
            if searches:
                self._rows_unsearched = 0
            if row == len(keys):
                return out
            if why == k.ROW_NEEDS_SEARCH:
                self._set_searchable(True)
            else:
                self._make_room()

    def _make_room(self) -> None:
        meta, fields = self._meta, self._fields
        if meta[fields.FREE] == 0 and self.slot_limit == len(self._live):
            if self.slot_limit >= _MAX_ENTRIES:
                raise OverflowError(
                    f"sliding windows hold at most {_MAX_ENTRIES} slices of keys; raise the parallelism"
                )
            self._live = grown(self._live, self.slot_limit + 1)
            limit = len(self._live)
            self.key_of, self.home_of = grown(self.key_of, limit), grown(self.home_of, limit)
            self.following = grown(self.following, limit)
        elif self._searchable:
            homes = np.flatnonzero(self._masks >= 0)
            old, self._cells = self._cells, self._room_for(self._masks[homes] + 1)
            self._kernels.compact(homes, old, self._cells, self._blocks, self._masks, meta)

    def _room_for(self, sizes: I64) -> I32:
        """Return cells for hash tables of these sizes, for as many again, and for one that grows."""
        most = int(sizes.max(initial=self._kernels.MIN_BLOCK))
        return np.zeros(2 * (int(sizes.sum()) + most), np.int32)

    def _set_searchable(self, searchable: bool) -> None:
        """Make the hash tables, or give them up."""
        self._searchable, self._rows_unsearched = searchable, 0
        self._masks[:], self._meta[self._fields.USED] = -1, 0
        homes = np.flatnonzero(self.heads >= 0) if searchable else np.zeros(0, np.int64)
        # At most four cells an entry: half of them are taken, and their number is a power of two.
        self._cells = self._room_for(np.maximum(4 * self._counts[homes], self._kernels.MIN_BLOCK))
        self._kernels.place_all(
            homes, self._counts, self.key_of, self.following, self.heads, self._cells, self._blocks,
            self._masks, self._meta,
        )  # fmt: skip

    def drop(self, homes: I64) -> tuple[I64, I64]:
        """Forget the slices of `homes`, in order of time and earlier than all others; return their entries, and keys
        that have none any more."""
        self._free = grown(self._free, self.slot_limit)
        entries, gone = empty(len(self), np.int64), empty(len(self), np.int64)
        count, keys_gone = self._kernels.drop(
            homes, self.key_of, self.following, self.heads, self._tails, self._counts, self._masks,
            self._latest, self._live, self._free, self._meta, entries, gone,
        )  # fmt: skip
        return entries[:count].copy(), gone[:keys_gone].copy()

    def _warm_up(self) -> None:
        """Compile the loops, or load them from the cache: see `KeyTable.warm_up`."""
        nothing = np.zeros(0, np.int64)
        self.runs(nothing)
        self.insert(nothing, nothing, nothing, nothing)
        self._set_searchable(True)
        self._make_room()
        self._set_searchable(False)
        self.drop(nothing)
