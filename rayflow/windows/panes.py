"""State by key and pane: which slot belongs to a key in a stretch of time, and which slots a pane has.

Theory of operation. A *pane* is a window, or a slice of several overlapping ones, named by its start (in the
units of the event-time column). Keys are stored once however many panes they are in: one index turns a key
into a key number, a second the pane's start into a pane number, and a third the pair of both, packed into a
word, into the slot under which accumulators keep the aggregate. The slots of a pane are listed with it, and
panes wait in a heap by start, so that finding and dropping what a watermark closes costs what it closes, not
what is open. A key that is in no pane any more is forgotten.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class FrozenPanes:
    """The slots of a `PaneTable` at one moment. Immutable: may be read on any thread."""

    slots: I64
    keys: FrozenKeys
    starts: StoredWords
    pairs: StoredWords

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self.keys.keys((self.pairs.words[slots] >> _PANE_BITS).astype(np.int64))

    def starts_of(self, slots: I64) -> I64:
        """Return the starts of the panes of `slots`."""
        panes = (self.pairs.words[slots] & _PANE_MASK).astype(np.int64)
        starts: I64 = self.starts.words[panes].view(np.int64)
        return starts


class PaneTable:
    """Slots of (key, pane) for key columns of `key_schema`."""

    def __init__(self, key_schema: pa.Schema) -> None:
        self._keys = KeyIndex(key_schema)
        self._starts = WordTable()
        self._pairs = WordTable()
        self._pairs.warm_up()
        self._panes_of_key = SlotArray(np.int64)
        self._open: list[int] = []
        # Slots of each open pane, by its start, in the pieces in which they came.
        self._members: dict[int, list[I64]] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return self._pairs.slot_limit

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        members = sum(piece.nbytes for pieces in self._members.values() for piece in pieces)
        indexes = self._keys.nbytes + self._starts.nbytes + self._pairs.nbytes
        return indexes + self._panes_of_key.nbytes + members

    def slots(self, keys: pa.RecordBatch, starts: I64) -> I64:
        """Return the slot of every row's key in the pane that begins at `starts[row]`, adding new ones."""
        key_numbers = self._keys.slots(keys)
        panes, new_panes = self._starts.insert(WordKeys(starts.view(np.uint64), _NO_NULLS))
        for start in starts[new_panes].tolist():
            heapq.heappush(self._open, start)
            self._members[start] = []
        words = (key_numbers.view(np.uint64) << _PANE_BITS) | panes.view(np.uint64)
        slots, fresh = self._pairs.insert(WordKeys(words, _NO_NULLS))
        if len(fresh):
            self._panes_of_key.reserve(self._keys.slot_limit)
            np.add.at(self._panes_of_key.values, key_numbers[fresh], 1)
            self._list(slots[fresh], starts[fresh])
        return slots

    def _list(self, slots: I64, starts: I64) -> None:
        order = np.argsort(starts, kind="stable")
        ordered = starts[order]
        begins = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        for start, piece in zip(ordered[begins].tolist(), np.split(slots[order], begins[1:])):
            self._members[start].append(piece)

    def first_start(self) -> int | None:
        """Return the start of the earliest open pane, None where there is none."""
        return self._open[0] if self._open else None

    def pop_first(self) -> tuple[int, I64]:
        """Close the earliest open pane (there must be one): return its start and its slots. The slots stay,
        listed nowhere, until `drop` is called with them, which must be before rows come again."""
        start = heapq.heappop(self._open)
        return start, np.concatenate(self._members.pop(start))

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self._keys.keys((self._pairs.stored().words[slots] >> _PANE_BITS).astype(np.int64))

    def drop(self, starts: I64, slots: I64) -> None:
        """Forget closed panes (`starts`) and all of their `slots`."""
        key_numbers = (self._pairs.stored().words[slots] >> _PANE_BITS).astype(np.int64)
        np.subtract.at(self._panes_of_key.values, key_numbers, 1)
        gone = np.unique(key_numbers[self._panes_of_key.values[key_numbers] == 0])
        self._keys.remove(gone)
        self._pairs.remove(slots)
        panes, _ = self._starts.insert(WordKeys(starts.view(np.uint64), _NO_NULLS))
        self._starts.remove(panes)

    def freeze(self) -> FrozenPanes:
        """Return the table as it is now, for building a snapshot on another thread."""
        return FrozenPanes(
            self._pairs.live(), self._keys.freeze(), self._starts.freeze(), self._pairs.freeze()
        )
