"""Windows of a number of rows by key: which window a row belongs to, and which are full.

A key has at most one window that is not full; a batch may fill several one after another. Full windows keep their
slots until they are closed. A key is in the index exactly while it has an open window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.key_table import grown
from rayflow.windows.bounds import I64

ROWS = "rows"
"""Of state: how many rows a window has."""


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
        self.keys = KeyIndex(key_schema)
        """Keys with an open window. May be replaced while it is empty: by one whose rows lie on disk (`CountRows`)."""
        self._meta: I64 = np.zeros(window_kernels.META_FIELDS, np.int64)
        none = np.zeros(0, np.int64)
        self._counts, self._owners, self._current, self._free = none, none, none, none
        self._count_off(none)

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return int(self._meta[self._k.NEXT])

    def add(self, keys: pa.RecordBatch) -> tuple[I64, I64]:
        """Put every row into its key's window, in order; return their slots, and the windows that became full,
        in that order. These must be given to `close` before the next call."""
        return self._count_off(self.keys.slots(keys))

    def _count_off(self, numbers: I64) -> tuple[I64, I64]:
        limit = self.slot_limit + len(numbers)
        self._counts, self._owners = grown(self._counts, limit), grown(self._owners, limit)
        self._free = grown(self._free, limit)
        self._current = grown(self._current, self.keys.slot_limit, -1)
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
        return self.keys.keys(self._owners[slots])

    def close(self, full: I64) -> None:
        """Forget full windows."""
        self._k.release(full, self._free, self._meta)
        owners = np.unique(self._owners[full])
        self.keys.remove(owners[self._current[owners] < 0])

    def reserve(self, key_limit: int) -> None:
        """Make room for keys below this."""
        self._current = grown(self._current, key_limit, -1)

    def open_windows(self, key_slots: I64, counts: I64) -> I64:
        """Open a window for each of these keys (by slot, none twice), which have none, with rows; return these."""
        slots, _ = self._count_off(key_slots)
        self._counts[slots] = counts
        return slots

    def windows_of(self, key_slots: I64) -> tuple[I64, I64]:
        """Return the open windows of keys (by slot), and how many rows they have."""
        slots = self._current[key_slots]
        return slots, self._counts[slots]

    def forget(self, key_slots: I64) -> None:
        """The open windows of these keys (by slot) are elsewhere now."""
        self._k.release(self._current[key_slots], self._free, self._meta)
        self._current[key_slots] = -1

    @property
    def nbytes(self) -> int:
        """Bytes of memory held beside the keys."""
        return sum(array.nbytes for array in (self._counts, self._owners, self._current, self._free))

    def open_rows(self) -> int:
        """Return how many rows are in windows that are not full."""
        return int(self.freeze().counts.sum())

    def freeze(self) -> FrozenCounts:
        """Return the open windows as they are now, for building a snapshot on another thread."""
        numbers = self.keys.live()
        slots = self._current[numbers]
        return FrozenCounts(slots, self._counts[slots], numbers, self.keys.freeze())

    def restore(self, keys: pa.RecordBatch, counts: I64) -> I64:
        """Open a window for each of `keys`, which have none, as they were frozen; return their slots."""
        return self.open_windows(self.keys.slots(keys), counts)


class CountRows:
    """The `SlotRows` of keys with an open window in `table`: its rows, and the states of `columns`."""

    kinds_of_due = 0

    def __init__(self, table: CountTable, columns: AggregateColumns) -> None:
        self._table, self._columns = table, columns
        states = columns.state_columns(np.zeros(0, np.int64))
        self.schema = pa.schema([(ROWS, pa.int64()), *((name, column.type) for name, column in states)])
        self.away = 0
        """How many rows are in windows on disk."""

    @property
    def nbytes(self) -> int:
        """See `SlotRows`."""
        return self._table.nbytes + self._columns.nbytes

    def reserve(self, slot_limit: int) -> None:
        """See `SlotRows`."""
        self._table.reserve(slot_limit)

    def rows(self, slots: I64) -> pa.RecordBatch:
        """See `SlotRows`."""
        windows, counts = self._table.windows_of(slots)
        states = [column for _, column in self._columns.state_columns(windows)]
        plain = [c.combine_chunks() if isinstance(c, pa.ChunkedArray) else c for c in states]
        return pa.RecordBatch.from_arrays([pa.array(counts), *plain], schema=self.schema)

    def restore(self, slots: I64, rows: pa.RecordBatch) -> None:
        """See `SlotRows`."""
        counts = np.array(rows.column(0).to_numpy())
        self.away -= int(counts.sum())
        windows = self._table.open_windows(slots, counts)
        self._columns.merge(rows, windows, self._table.slot_limit)

    def clear(self, slots: I64) -> None:
        """See `SlotRows`."""
        windows, counts = self._table.windows_of(slots)
        self.away += int(counts.sum())
        self._columns.clear(windows)
        self._table.forget(slots)

    def pinned(self) -> list[int]:
        """See `SlotRows`."""
        return []

    def due(self, kind: int, slots: I64) -> dict[int, int]:
        """See `SlotRows`. Windows of rows have no timers."""
        return {}
