"""The tables under the key index: keys of one word, and keys of bytes, each mapped to a slot.

Theory of operation. A slot is a small number, dense from 0, under which accumulators keep their columns.
Keys are stored by slot (a word each, or bytes in an append-only arena); the hash table only holds slots and
hash tags (see `key_kernels`). Freed slots are used again, the last freed first.

Growth costs no pause: the hash table moves into a larger one a few cells per row inserted, and the stored
keys are copied in one `memcpy`. Memory beyond the keys' own bytes is 8 bytes a cell at a load of 1/4 to 1/2
(16 to 32 bytes a key, for a moment 1.5 times that), and per slot a flag, plus start and length for bytes.
What a snapshot holds never changes: slots are copied, and the arena is shared, since it is only appended to
and replaced as a whole when it is compacted.

Invariants:

1. A live slot is in the table once (twice while the table moves), a free slot never.
2. At least half of the table's cells are empty, so every probe ends.
3. Bytes of the arena below `meta[ARENA]` are never written again.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayflow.state.key_codec import I64, U8, U64, ByteKeys, WordKeys, gather

Array = npt.NDArray[Any]

_MIN_CELLS = 1024
_MIN_SLOTS = 512
_MIN_ARENA_BYTES = 4096
_CELLS_MOVED_PER_ROW = 4
_MIN_CELLS_MOVED = 4096
_NOTHING_TO_MOVE: U64 = np.zeros(1, np.uint64)
_MIN_GARBAGE_BYTES = 1 << 20
_MAX_SLOTS = 2**31 - 1


def grown(array: Array, needed: int, fill: Any = 0) -> Array:
    """Return `array`, or a copy at least 1.5 times as long where it has fewer than `needed` elements."""
    if needed <= len(array):
        return array
    size = max(needed, len(array) + len(array) // 2, 16)
    # zeros() takes untouched pages from the system: no pause for what is not used yet.
    new = np.zeros((size, *array.shape[1:]), array.dtype)
    new[: len(array)] = array
    if fill != 0:
        new[len(array) :] = fill
    return new


@dataclass(frozen=True, slots=True)
class StoredWords:
    """Words by slot, and the slot of null (-1: none)."""

    words: U64
    null_slot: int

    def gather(self, slots: I64) -> WordKeys:
        """Return the keys of `slots`."""
        return WordKeys(self.words[slots], _valid(slots, self.null_slot))


@dataclass(frozen=True, slots=True)
class StoredBytes:
    """Where the bytes of each slot lie in the arena, and the slot of null (-1: none)."""

    arena: U8
    starts: I64
    lengths: npt.NDArray[np.int32]
    null_slot: int

    def gather(self, slots: I64) -> ByteKeys:
        """Return the keys of `slots`."""
        lengths = self.lengths[slots].astype(np.int64)
        lengths[slots == self.null_slot] = 0
        return gather(self.arena, self.starts[slots], lengths, _valid(slots, self.null_slot))


def _valid(slots: I64, null_slot: int) -> U8:
    if null_slot < 0:
        return np.zeros(0, np.uint8)
    valid: U8 = (slots != null_slot).view(np.uint8)
    return valid


class KeyTable(ABC):
    """Slots of keys. Subclasses know how keys are stored."""

    def __init__(self) -> None:
        from rayflow.state import key_kernels

        self._kernels: Any = key_kernels
        self._meta: I64 = np.zeros(key_kernels.META_FIELDS, np.int64)
        self._meta[key_kernels.NULL] = -1
        self._table: U64 = np.zeros(_MIN_CELLS, np.uint64)
        self._old = _NOTHING_TO_MOVE
        self._moved = 0
        self._live: npt.NDArray[np.bool_] = np.zeros(_MIN_SLOTS, np.bool_)
        self._free: npt.NDArray[np.int32] = np.zeros(0, np.int32)

    def __len__(self) -> int:
        return int(self._meta[self._kernels.NEXT] - self._meta[self._kernels.FREE])

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return int(self._meta[self._kernels.NEXT])

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, the keys' own included."""
        parts = (self._table, self._old, self._live, self._free, *self._stored_arrays())
        return sum(part.nbytes for part in parts)

    def live(self) -> I64:
        """Return the slots in use, ascending."""
        return np.flatnonzero(self._live[: self.slot_limit])

    def insert(self, keys: WordKeys | ByteKeys) -> tuple[I64, I64]:
        """Return the slot of every key, and the rows (ascending) whose key was not there before."""
        rows = len(keys)
        out, fresh = np.empty(rows, np.int64), np.empty(rows, np.int64)
        self._meta[self._kernels.FRESH] = 0
        self._move(max(_MIN_CELLS_MOVED, rows * _CELLS_MOVED_PER_ROW))
        row = self._insert(keys, 0, out, fresh)
        while row < rows:
            self._make_room(keys, row)
            row = self._insert(keys, row, out, fresh)
        return out, fresh[: self._meta[self._kernels.FRESH]]

    def find(self, keys: WordKeys | ByteKeys) -> I64:
        """Return the slot of every key, −1 where it is not there."""
        out = np.empty(len(keys), np.int64)
        self._find(keys, out)
        return out

    def remove(self, slots: I64) -> None:
        """Forget the keys of `slots` (live, none twice); the slots may be given to other keys."""
        self._free = grown(self._free, self.slot_limit)
        self._remove(np.ascontiguousarray(slots, np.int64))

    def warm_up(self) -> None:
        """Compile the loops, or load them from the cache, which takes up to some seconds once a process:
        to be called while a subtask is set up, so that the first rows do not wait for it."""
        nothing = np.zeros(0, np.int64)
        self._insert(self.stored().gather(nothing), 0, nothing, nothing)
        self._find(self.stored().gather(nothing), nothing)
        self._remove(nothing)
        self._kernels.migrate(_NOTHING_TO_MOVE, 0, 0, self._table, self._meta)

    @abstractmethod
    def freeze(self) -> StoredWords | StoredBytes:
        """Return the stored keys as they are now, unaffected by later changes; for any thread."""

    @abstractmethod
    def stored(self) -> StoredWords | StoredBytes:
        """Return the stored keys without a copy: valid until the next change."""

    @abstractmethod
    def _insert(self, keys: Any, row: int, out: I64, fresh: I64) -> int: ...

    @abstractmethod
    def _find(self, keys: Any, out: I64) -> None: ...

    @abstractmethod
    def _remove(self, slots: I64) -> None: ...

    @abstractmethod
    def _stored_arrays(self) -> tuple[Array, ...]: ...

    @abstractmethod
    def _grow_slots(self, slots: int) -> None: ...

    def _make_room(self, keys: Any, row: int) -> None:
        k = self._kernels
        if self._meta[k.FREE] == 0 and self.slot_limit == len(self._live):
            if self.slot_limit >= _MAX_SLOTS:
                raise OverflowError(f"a key index holds at most {_MAX_SLOTS} keys; raise the parallelism")
            self._live = grown(self._live, self.slot_limit + 1)
            self._grow_slots(len(self._live))
        if self._meta[k.USED] >= len(self._table) // 2:
            self._move(len(self._old))
            # Graves count as used: with many of them the new table may be no larger than the old one.
            if self._meta[k.USED] >= len(self._table) // 2:
                cells = max(_MIN_CELLS, 1 << (4 * len(self) - 1).bit_length())
                self._old, self._moved = self._table, 0
                self._table = np.zeros(cells, np.uint64)
                self._meta[k.USED] = 0
                if len(self._old) <= _MIN_CELLS_MOVED:
                    self._move(len(self._old))

    def _move(self, cells: int) -> None:
        if len(self._old) == 1:
            return
        end = self._moved + cells
        self._kernels.migrate(self._old, self._moved, end, self._table, self._meta)
        self._moved = end
        if end >= len(self._old):
            self._old = _NOTHING_TO_MOVE


class WordTable(KeyTable):
    """A table of keys of one word."""

    def __init__(self) -> None:
        super().__init__()
        self._words: U64 = np.zeros(len(self._live), np.uint64)

    def stored(self) -> StoredWords:
        """See `KeyTable`."""
        return StoredWords(self._words, int(self._meta[self._kernels.NULL]))

    def freeze(self) -> StoredWords:
        """See `KeyTable`."""
        return StoredWords(self._words[: self.slot_limit].copy(), int(self._meta[self._kernels.NULL]))

    def _insert(self, keys: Any, row: int, out: I64, fresh: I64) -> int:
        end: int = self._kernels.insert_words(
            keys.words, keys.valid, row, self._words, self._live, self._free, self._table, self._old,
            self._meta, out, fresh,
        )  # fmt: skip
        return end

    def _find(self, keys: Any, out: I64) -> None:
        self._kernels.find_words(keys.words, keys.valid, self._words, self._table, self._old, self._meta, out)

    def _remove(self, slots: I64) -> None:
        self._kernels.remove_words(
            slots, self._words, self._live, self._free, self._table, self._old, self._meta
        )

    def _stored_arrays(self) -> tuple[Array, ...]:
        return (self._words,)

    def _grow_slots(self, slots: int) -> None:
        self._words = grown(self._words, slots)


class ByteTable(KeyTable):
    """A table of keys of bytes."""

    def __init__(self) -> None:
        super().__init__()
        self._arena: U8 = np.zeros(_MIN_ARENA_BYTES, np.uint8)
        self._starts: I64 = np.zeros(len(self._live), np.int64)
        self._lengths: npt.NDArray[np.int32] = np.zeros(len(self._live), np.int32)
        self._garbage_bytes = 0

    def stored(self) -> StoredBytes:
        """See `KeyTable`."""
        return StoredBytes(self._arena, self._starts, self._lengths, int(self._meta[self._kernels.NULL]))

    def freeze(self) -> StoredBytes:
        """See `KeyTable`."""
        limit = self.slot_limit
        return StoredBytes(
            self._arena,
            self._starts[:limit].copy(),
            self._lengths[:limit].copy(),
            int(self._meta[self._kernels.NULL]),
        )

    def _insert(self, keys: Any, row: int, out: I64, fresh: I64) -> int:
        end: int = self._kernels.insert_bytes(
            keys.data, keys.offsets, keys.valid, row, self._arena, self._starts, self._lengths, self._live,
            self._free, self._table, self._old, self._meta, out, fresh,
        )  # fmt: skip
        return end

    def _find(self, keys: Any, out: I64) -> None:
        self._kernels.find_bytes(
            keys.data, keys.offsets, keys.valid, self._arena, self._starts, self._lengths, self._table,
            self._old, self._meta, out,
        )  # fmt: skip

    def _remove(self, slots: I64) -> None:
        self._garbage_bytes += self._kernels.remove_bytes(
            slots, self._arena, self._starts, self._lengths, self._live, self._free, self._table, self._old,
            self._meta,
        )  # fmt: skip
        used = int(self._meta[self._kernels.ARENA])
        if self._garbage_bytes > max(_MIN_GARBAGE_BYTES, used // 2):
            self._compact()

    def _make_room(self, keys: Any, row: int) -> None:
        length = int(keys.offsets[row + 1] - keys.offsets[row])
        self._arena = grown(self._arena, int(self._meta[self._kernels.ARENA]) + length)
        super()._make_room(keys, row)

    def _compact(self) -> None:
        live = self.live()
        null = self._meta[self._kernels.NULL]
        live = live[live != null]
        kept = gather(
            self._arena, self._starts[live], self._lengths[live].astype(np.int64), np.zeros(0, np.uint8)
        )
        self._starts[live] = kept.offsets[:-1]
        self._arena = grown(kept.data, _MIN_ARENA_BYTES)
        self._meta[self._kernels.ARENA] = kept.offsets[-1]
        self._garbage_bytes = 0

    def _stored_arrays(self) -> tuple[Array, ...]:
        return self._arena, self._starts, self._lengths

    def _grow_slots(self, slots: int) -> None:
        self._starts = grown(self._starts, slots)
        self._lengths = grown(self._lengths, slots)
