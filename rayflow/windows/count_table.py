"""Windows of a number of rows by key: which window a row belongs to, and which are full.

A key has at most one window that is not full; a batch may fill several one after another. Full windows keep their
slots until they are closed. A key is in the index exactly while it has an open window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.key_table import grown
from rayflow.windows.bounds import I64


@dataclass(frozen=True, slots=True)
class FrozenCounts:
    """The open windows at one moment. Immutable: may be read on any thread."""

    slots: I64
    counts: I64
    key_numbers: I64
    keys: FrozenKeys

    def key_columns(self) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self.keys.keys(self.key_numbers)


class CountTable:
    """Windows of `size` rows for key columns of `key_schema`."""

    def __init__(self, key_schema: pa.Schema, size: int) -> None:
        from rayflow.windows import window_kernels

        self._k: Any = window_kernels
        self._size = size
        self._keys = KeyIndex(key_schema)
        self._meta: I64 = np.zeros(window_kernels.META_FIELDS, np.int64)
        none = np.zeros(0, np.int64)
        self._counts, self._owners, self._current, self._free = none, none, none, none
        self._count_off(none)

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return int(self._meta[self._k.NEXT])

    def add(self, keys: pa.RecordBatch) -> tuple[I64, I64]:
        """Put every row into its key's window, in order; return their slots, and the windows that became full,
        in that order. These must be given to `close` before the next call."""
        return self._count_off(self._keys.slots(keys))

    def _count_off(self, numbers: I64) -> tuple[I64, I64]:
        limit = self.slot_limit + len(numbers)
        self._counts, self._owners = grown(self._counts, limit), grown(self._owners, limit)
        self._free = grown(self._free, limit)
        self._current = grown(self._current, self._keys.slot_limit, -1)
        slots, full = np.empty(len(numbers), np.int64), np.empty(len(numbers), np.int64)
        fulls = self._k.count_off(
            numbers,
            self._size,
            self._counts,
            self._owners,
            self._current,
            self._free,
            self._meta,
            slots,
            full,
        )
        return slots, full[:fulls]

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self._keys.keys(self._owners[slots])

    def close(self, full: I64) -> None:
        """Forget full windows."""
        self._k.release(full, self._free, self._meta)
        owners = np.unique(self._owners[full])
        self._keys.remove(owners[self._current[owners] < 0])

    def open_rows(self) -> int:
        """Return how many rows are in windows that are not full."""
        return int(self.freeze().counts.sum())

    def freeze(self) -> FrozenCounts:
        """Return the open windows as they are now, for building a snapshot on another thread."""
        numbers = self._keys.live()
        slots = self._current[numbers]
        return FrozenCounts(slots, self._counts[slots], numbers, self._keys.freeze())

    def restore(self, keys: pa.RecordBatch, counts: I64) -> I64:
        """Open a window for each of `keys`, which have none, as they were frozen; return their slots."""
        slots, _ = self.add(keys)
        self._counts[slots] = counts
        return slots
