"""Indexes of values by slot: an *entry* is the number of a (slot, value), dense, exact whatever the hashes.

Values of a fixed-width type lie beside their slots, two words an entry, in a table like those of `key_table`;
others go through the key index for keys of two columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.fixed_width import is_fixed_width
from rayflow.state.key_codec import I64, U64, KeyCodec, WordKeys
from rayflow.state.key_index import KeyIndex
from rayflow.state.key_table import Array, KeyTable, grown


class FrozenEntries(Protocol):
    """The entries of an index at one moment. Immutable: may be read on any thread."""

    def values(self, entries: I64) -> pa.Array:
        """Return the values of `entries`, which were live at that moment."""


class EntryIndex(Protocol):
    """Numbers the (slot, value) it is given."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""

    @property
    def limit(self) -> int:
        """All entries ever given out are below this."""

    def insert(self, slots: I64, values: pa.Array) -> tuple[I64, I64]:
        """Return every row's entry, and the rows (ascending) whose entry is new. Values are not null."""

    def remove(self, entries: I64) -> None:
        """Forget `entries` (live, none twice); their numbers may be given out again."""

    def slots(self, entries: I64) -> I64:
        """Return the slots of `entries`."""

    def values(self, entries: I64) -> pa.Array:
        """Return the values of `entries`."""

    def freeze(self) -> Any:
        """Return a `FrozenEntries`."""


def entry_index(type_: pa.DataType) -> EntryIndex:
    """Return an empty index for values of `type_`. Raises TypeError for one that cannot be a key."""
    return PairIndex(type_) if is_fixed_width(type_) else KeyedEntries(type_)


class KeyedEntries:
    """An `EntryIndex` for values of any type that can be a key."""

    def __init__(self, type_: pa.DataType) -> None:
        # Typed loosely, since a frozen copy holds a FrozenKeys.
        self._index: Any = KeyIndex(pa.schema([("slot", pa.int64()), ("value", type_)]))

    @property
    def nbytes(self) -> int:
        """See `EntryIndex`."""
        size: int = self._index.nbytes
        return size

    @property
    def limit(self) -> int:
        """See `EntryIndex`."""
        limit: int = self._index.slot_limit
        return limit

    def insert(self, slots: I64, values: pa.Array) -> tuple[I64, I64]:
        """See `EntryIndex`."""
        pairs = pa.RecordBatch.from_arrays([pa.array(slots), values], schema=self._index.schema)
        entries, fresh = self._index.insert(pairs)
        return entries, fresh

    def remove(self, entries: I64) -> None:
        """See `EntryIndex`."""
        self._index.remove(entries)

    def slots(self, entries: I64) -> I64:
        """See `EntryIndex`."""
        slots: I64 = self._index.keys(entries).column("slot").to_numpy()
        return slots

    def values(self, entries: I64) -> pa.Array:
        """See `EntryIndex`."""
        return self._index.keys(entries).column("value")

    def freeze(self) -> KeyedEntries:
        """See `EntryIndex`."""
        frozen = KeyedEntries.__new__(KeyedEntries)
        frozen._index = self._index.freeze()
        return frozen


class PairIndex:
    """An `EntryIndex` for values of a fixed-width type."""

    def __init__(self, type_: pa.DataType) -> None:
        self._codec = KeyCodec(pa.schema([("value", type_)]))
        self._table = _PairTable()
        self._table.warm_up()

    @property
    def nbytes(self) -> int:
        """See `EntryIndex`."""
        return self._table.nbytes

    @property
    def limit(self) -> int:
        """See `EntryIndex`."""
        return self._table.slot_limit

    def insert(self, slots: I64, values: pa.Array) -> tuple[I64, I64]:
        """See `EntryIndex`."""
        keys = self._codec.encode(pa.RecordBatch.from_arrays([values], schema=self._codec.schema))
        assert isinstance(keys, WordKeys)
        # A copy: the loops are not compiled for read-only arrays.
        return self._table.insert(_Pairs(np.array(slots, np.int64), keys.words))  # type: ignore[arg-type]

    def remove(self, entries: I64) -> None:
        """See `EntryIndex`."""
        self._table.remove(entries)

    def slots(self, entries: I64) -> I64:
        """See `EntryIndex`."""
        slots: I64 = self._table.firsts[entries]
        return slots

    def values(self, entries: I64) -> pa.Array:
        """See `EntryIndex`."""
        return FrozenPairs(self._codec, self._table.seconds).values(entries)

    def freeze(self) -> FrozenPairs:
        """See `EntryIndex`."""
        return FrozenPairs(self._codec, self._table.seconds[: self._table.slot_limit].copy())


@dataclass(frozen=True, slots=True)
class FrozenPairs:
    """See `FrozenEntries`."""

    codec: KeyCodec
    words: U64

    def values(self, entries: I64) -> pa.Array:
        """See `FrozenEntries`."""
        return self.codec.decode(WordKeys(self.words[entries], _NO_NULLS)).column(0)


_NO_NULLS: npt.NDArray[np.uint8] = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True)
class _Pairs:
    first: I64
    second: U64

    def __len__(self) -> int:
        return len(self.first)


class _PairTable(KeyTable):
    """A table of keys of two words. What `KeyTable` calls a slot is an entry here."""

    def __init__(self) -> None:
        super().__init__()
        from rayflow.state import pair_kernels

        self._pair_kernels: Any = pair_kernels
        self.firsts: I64 = np.zeros(len(self._live), np.int64)
        self.seconds: U64 = np.zeros(len(self._live), np.uint64)

    def warm_up(self) -> None:
        """See `KeyTable`."""
        nothing = np.zeros(0, np.int64)
        self._insert(_Pairs(nothing, nothing.view(np.uint64)), 0, nothing, nothing)
        self._remove(nothing)
        self._move(0)

    def stored(self) -> Any:
        """See `KeyTable`."""
        return self.seconds

    def freeze(self) -> Any:
        """See `KeyTable`."""
        return self.seconds[: self.slot_limit].copy()

    def _insert(self, keys: Any, row: int, out: I64, fresh: I64) -> int:
        end: int = self._pair_kernels.insert_pairs(
            keys.first, keys.second, row, self.firsts, self.seconds, self._live, self._free, self._table,
            self._old, self._meta, out, fresh,
        )  # fmt: skip
        return end

    def _find(self, keys: Any, out: I64) -> None:
        self._pair_kernels.find_pairs(
            keys.first, keys.second, self.firsts, self.seconds, self._table, self._old, out
        )

    def _remove(self, slots: I64) -> None:
        self._pair_kernels.remove_pairs(
            slots, self.firsts, self.seconds, self._live, self._free, self._table, self._old, self._meta
        )

    def _stored_arrays(self) -> tuple[Array, ...]:
        return self.firsts, self.seconds

    def _grow_slots(self, slots: int) -> None:
        self.firsts, self.seconds = grown(self.firsts, slots), grown(self.seconds, slots)
