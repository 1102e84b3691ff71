"""State by key and pane: which slot belongs to a key in a stretch of time, and which slots a pane has.

Theory of operation. A *pane* is a window, or a slice of several overlapping ones, known by a number that grows
with time. Keys are stored once however many panes they are in: one index turns a key into a key number, a
second the pane's number into a dense one, and a third the pair of both, packed into a word, into the slot under
which accumulators keep the aggregate. The slots of a pane are listed with it, and open panes are kept in order,
so that finding and dropping what a watermark closes costs what it closes, not what is open. A key that is in
no pane any more is forgotten.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.key_codec import WordKeys
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.key_table import StoredWords, WordTable

I64 = npt.NDArray[np.int64]

_NO_NULLS = np.zeros(0, np.uint8)
_PANE_BITS = np.uint64(32)
_PANE_MASK = np.uint64(0xFFFFFFFF)


class FrozenPanes(Protocol):
    """The slots of `Panes` at one moment. Immutable: may be read on any thread."""

    @property
    def slots(self) -> I64:
        """The slots in use."""

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""

    def panes_of(self, slots: I64) -> I64:
        """Return the panes of `slots`."""


class Panes(Protocol):
    """A table of the slots of (key, pane): a `PaneTable`, or one made for slices (`slice_table`)."""

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""

    def __len__(self) -> int: ...

    def slots(self, keys: pa.RecordBatch, panes: I64, /) -> I64:
        """Return the slot of every row's key in pane `panes[row]`, adding new ones."""

    def keys(self, key_numbers: I64) -> pa.RecordBatch:
        """Return the key columns of keys given by number."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""

    def view(self) -> FrozenPanes:
        """Return the table as it is now: valid until the next change."""

    def freeze(self) -> FrozenPanes:
        """Return the table as it is now, for building a snapshot on another thread."""


@dataclass(frozen=True, slots=True)
class FrozenPaneTable:
    """See `FrozenPanes`."""

    slots: I64
    keys: FrozenKeys
    panes: StoredWords
    pairs: StoredWords

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self.keys.keys((self.pairs.words[slots] >> _PANE_BITS).astype(np.int64))

    def panes_of(self, slots: I64) -> I64:
        """Return the panes of `slots`."""
        dense = (self.pairs.words[slots] & _PANE_MASK).astype(np.int64)
        panes: I64 = self.panes.words[dense].view(np.int64)
        return panes


class PaneTable:
    """Slots of (key, pane) for key columns of `key_schema`."""

    def __init__(self, key_schema: pa.Schema) -> None:
        self._keys = KeyIndex(key_schema)
        self._panes = WordTable()
        self._pairs = WordTable()
        self._pairs.warm_up()
        self._panes_of_key = SlotArray(np.int64)
        # Open panes in order, and the slots of each, in the pieces in which they came.
        self._open: list[int] = []
        self._members: dict[int, list[I64]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return self._pairs.slot_limit

    @property
    def key_limit(self) -> int:
        """All key numbers ever given out are below this."""
        return self._keys.slot_limit

    @property
    def key_count(self) -> int:
        """How many keys are in some pane."""
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        members = sum(piece.nbytes for pieces in self._members.values() for piece in pieces)
        indexes = self._keys.nbytes + self._panes.nbytes + self._pairs.nbytes
        return indexes + self._panes_of_key.nbytes + members

    def slots(self, keys: pa.RecordBatch, panes: I64) -> I64:
        """Return the slot of every row's key in pane `panes[row]`, adding new ones."""
        key_numbers = self._keys.slots(keys)
        dense, new_panes = self._panes.insert(WordKeys(panes.view(np.uint64), _NO_NULLS))
        for pane in panes[new_panes].tolist():
            bisect.insort(self._open, pane)
            self._members[pane] = []
        words = (key_numbers.view(np.uint64) << _PANE_BITS) | dense.view(np.uint64)
        slots, fresh = self._pairs.insert(WordKeys(words, _NO_NULLS))
        if len(fresh):
            self._panes_of_key.reserve(self._keys.slot_limit)
            np.add.at(self._panes_of_key.values, key_numbers[fresh], 1)
            self._list(slots[fresh], panes[fresh])
        return slots

    def number_keys(self, keys: pa.RecordBatch) -> I64:
        """Return the number of every row's key. Whoever asks must add these keys to some pane next."""
        return self._keys.slots(keys)

    def _list(self, slots: I64, panes: I64) -> None:
        order = np.argsort(panes, kind="stable")
        ordered = panes[order]
        begins = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        for pane, piece in zip(ordered[begins].tolist(), np.split(slots[order], begins[1:])):
            self._members[pane].append(piece)

    def open_panes(self, begin: int | None, end: int) -> list[int]:
        """Return the open panes from `begin` (None: the first) to before `end`, in order."""
        first = 0 if begin is None else bisect.bisect_left(self._open, begin)
        return self._open[first : bisect.bisect_left(self._open, end)]

    def next_pane(self, begin: int | None = None) -> int | None:
        """Return the first open pane from `begin` (None: of all) on, None where there is none."""
        at = 0 if begin is None else bisect.bisect_left(self._open, begin)
        return self._open[at] if at < len(self._open) else None

    def members(self, pane: int) -> I64:
        """Return the slots of a pane (none where it is not open), in order of their coming."""
        pieces = self._members.get(pane)
        if not pieces:
            return np.zeros(0, np.int64)
        if len(pieces) > 1:
            pieces[:] = [np.concatenate(pieces)]
        return pieces[0]

    def key_numbers(self, slots: I64) -> I64:
        """Return the numbers of the keys of `slots`; each stands for a key while that is in some pane."""
        numbers: I64 = (self._pairs.stored().words[slots] >> _PANE_BITS).astype(np.int64)
        return numbers

    def panes_of(self, slots: I64) -> I64:
        """Return the panes of `slots`."""
        dense = (self._pairs.stored().words[slots] & _PANE_MASK).astype(np.int64)
        panes: I64 = self._panes.stored().words[dense].view(np.int64)
        return panes

    def keys(self, key_numbers: I64) -> pa.RecordBatch:
        """Return the key columns of keys given by number."""
        return self._keys.keys(key_numbers)

    def live(self) -> I64:
        """Return the slots in use, ascending."""
        return self._pairs.live()

    def drop_before(self, end: int) -> I64:
        """Forget the panes before `end`; return what were their slots."""
        count = bisect.bisect_left(self._open, end)
        if count == 0:
            return np.zeros(0, np.int64)
        panes = np.array(self._open[:count])
        slots = np.concatenate([piece for pane in panes.tolist() for piece in self._members.pop(pane)])
        del self._open[:count]
        key_numbers = self.key_numbers(slots)
        np.subtract.at(self._panes_of_key.values, key_numbers, 1)
        gone = np.unique(key_numbers[self._panes_of_key.values[key_numbers] == 0])
        self._keys.remove(gone)
        self._pairs.remove(slots)
        dense, _ = self._panes.insert(WordKeys(panes.view(np.uint64), _NO_NULLS))
        self._panes.remove(dense)
        return slots

    def view(self) -> FrozenPaneTable:
        """See `Panes`."""
        return FrozenPaneTable(
            self._pairs.live(), self._keys.view(), self._panes.stored(), self._pairs.stored()
        )

    def freeze(self) -> FrozenPaneTable:
        """Return the table as it is now, for building a snapshot on another thread."""
        return FrozenPaneTable(
            self._pairs.live(), self._keys.freeze(), self._panes.freeze(), self._pairs.freeze()
        )
