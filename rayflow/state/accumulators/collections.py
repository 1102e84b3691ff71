"""Aggregates that keep many values per slot: lists, and distinct values.

Values are *entries*, and the entries of a slot form a linked list in two integer arrays (`heads` by slot,
`following` by entry). So a slot of one value and a slot of a million cost what they hold, adding is O(1), and
a slot can be dropped by walking its own list only. With a third array (`preceding`) entries can leave in O(1).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.numeric import int64s
from rayflow.state.accumulators.parts import SlotArray, values_by_slot
from rayflow.state.pair_table import entry_index


class Chains:
    """Lists of entry numbers by slot. `both_ways`: entries can leave them (`remove`)."""

    def __init__(self, *, both_ways: bool = False) -> None:
        self._heads = SlotArray(np.int64, -1)
        self._counts = SlotArray(np.int64)
        self._following = SlotArray(np.int64, -1)
        self._preceding = SlotArray(np.int64) if both_ways else None

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        back = 0 if self._preceding is None else self._preceding.nbytes
        return self._heads.nbytes + self._counts.nbytes + self._following.nbytes + back

    @property
    def arrays(self) -> tuple[I64, I64]:
        """The first entry by slot, and the next one by entry, each -1 for none."""
        return self._heads.values, self._following.values

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._heads.reserve(slot_limit)
        self._counts.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Empty the lists of `slots`."""
        self._heads.clear(slots)
        self._counts.clear(slots)

    def freeze(self) -> Chains:
        """Return a copy to read, which later changes do not touch."""
        frozen = copy.copy(self)
        frozen._heads, frozen._counts = self._heads.freeze(), self._counts.freeze()
        frozen._following = self._following.freeze()
        return frozen

    def add(self, slots: I64, entries: I64) -> None:
        """Append `entries[i]` to the list of `slots[i]`."""
        if len(entries) == 0:
            return
        from rayflow.state import key_kernels
        from rayflow.state.accumulators import kernels

        limit = int(entries.max()) + 1
        self._following.reserve(limit)
        if self._preceding is None:
            key_kernels.link(*self.arrays, slots, entries)
        else:
            self._preceding.reserve(limit)
            kernels.link_both(*self.arrays, self._preceding.values, slots, entries)
        np.add.at(self._counts.values, slots, 1)

    def remove(self, slots: I64, entries: I64) -> None:
        """Take `entries` (none twice), which are in the lists of `slots`, out of them."""
        from rayflow.state.accumulators import kernels

        assert self._preceding is not None
        kernels.unlink(*self.arrays, self._preceding.values, entries)
        self.count_down(slots)

    def count_down(self, slots: I64) -> None:
        """Note that an entry was taken out of the list of each of `slots`."""
        np.subtract.at(self._counts.values, slots, 1)

    def counts(self, slots: I64) -> I64:
        """Return how many entries the lists of `slots` have."""
        counts: I64 = self._counts.values[slots]
        return counts

    def entries(self, slots: I64) -> I64:
        """Return the entries of `slots`, list after list, each newest first."""
        from rayflow.state import key_kernels

        entries = np.empty(int(self.counts(slots).sum()), np.int64)
        key_kernels.walk(*self.arrays, slots, entries)
        return entries


class Entries:
    """Hands out entry numbers, those given back first."""

    def __init__(self) -> None:
        self.limit = 0
        """All numbers ever given out are below this."""
        self._free: I64 = np.zeros(0, np.int64)

    def take(self, count: int) -> I64:
        """Return `count` numbers that are not in use."""
        used = min(count, len(self._free))
        freed, self._free = self._free[:used], self._free[used:]
        begin = self.limit
        self.limit += count - used
        return np.concatenate([freed, np.arange(begin, self.limit)])

    def give_back(self, numbers: I64) -> None:
        """Take `numbers` back."""
        self._free = np.concatenate([self._free, numbers])


def lists(counts: I64, values: pa.Array) -> pa.Array:
    """Return lists of `counts` values each, cut from `values` in turn."""
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets).cast(pa.int32()), values)


def if_any(counts: I64, results: pa.Array) -> pa.Array:
    """Return `results`, null where the count is 0."""
    return pc.if_else(pa.array(counts > 0), results, None) if (counts == 0).any() else results


def owners(slots: I64, columns: pa.Array) -> I64:
    """Return the slot of every value in the flattened lists, one list a slot."""
    return np.repeat(slots, int64s(columns.value_lengths()))


class CollectList(Accumulator):
    """All values, by time, then in order of arrival; null where there were none."""

    _parts = ("_chains", "_times", "_values")

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        self._output_type = output_type
        self._chains, self._times, self._values = Chains(), SlotArray(np.int64), values_by_slot(type_)
        self._entries = Entries()

    def reserve(self, slot_limit: int) -> None:
        """See `Accumulator`."""
        # Times and values are indexed by entry, and grow with them.
        self._chains.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """See `Accumulator`."""
        entries = self._chains.entries(slots)
        self._chains.clear(slots)
        self._values.clear(entries)
        self._entries.give_back(entries)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        assert values is not None
        if len(slots) == 0:
            return
        self.latest_time = max(self.latest_time, int(times.max()))
        entries = self._entries.take(len(slots))
        self._times.reserve(self._entries.limit)
        self._values.reserve(self._entries.limit)
        self._times.values[entries] = times
        self._values.put(entries, values)
        self._chains.add(slots, entries)

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        values, times = columns["values"], columns["times"]
        self.update(owners(slots, values), values.flatten(), int64s(times.flatten()))

    def _sorted_entries(self, slots: I64) -> I64:
        entries = self._chains.entries(slots)
        places = np.repeat(np.arange(len(slots)), self._chains.counts(slots))
        # Lists come newest first, so the higher position is the earlier arrival.
        order = np.lexsort((-np.arange(len(entries)), self._times.values[entries], places))
        sorted_entries: I64 = entries[order]
        return sorted_entries

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        entries, counts = self._sorted_entries(slots), self._chains.counts(slots)
        times = pa.array(self._times.values[entries])
        return [("values", lists(counts, self._values.get(entries))), ("times", lists(counts, times))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        values, counts = self._values.get(self._sorted_entries(slots)), self._chains.counts(slots)
        return if_any(counts, lists(counts, values).cast(self._output_type))


class CountDistinct(Accumulator):
    """Number of different values, exactly; NaN equals NaN and −0.0 equals 0.0."""

    _parts = ("_chains", "_index")

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        self._output_type = output_type
        self._chains = Chains()
        # Typed loosely, since a frozen copy only gives values.
        self._index: Any = entry_index(type_)

    def reserve(self, slot_limit: int) -> None:
        """See `Accumulator`."""
        self._chains.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """See `Accumulator`."""
        self._index.remove(self._chains.entries(slots))
        self._chains.clear(slots)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        entries, fresh = self._index.insert(slots, values)
        self._chains.add(slots[fresh], entries[fresh])

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        values = columns["values"]
        slots = owners(slots, values)
        self.update(slots, values.flatten(), slots)

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        values = self._index.values(self._chains.entries(slots))
        return [("values", lists(self._chains.counts(slots), values))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return pa.array(self._chains.counts(slots)).cast(self._output_type)
