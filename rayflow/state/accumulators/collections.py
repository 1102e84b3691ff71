"""Aggregates that keep many values per slot: lists, and distinct values.

Values are *entries*, and the entries of a slot form a linked list in two integer arrays (`heads` by slot,
`following` by entry). So a slot of one value and a slot of a million cost what they hold, adding is O(1), and
a slot can be dropped by walking its own list only.
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
from rayflow.state.key_index import KeyIndex


class Chains:
    """Lists of entry numbers by slot."""

    def __init__(self) -> None:
        self._heads = SlotArray(np.int64, -1)
        self._counts = SlotArray(np.int64)
        self._following = SlotArray(np.int64, -1)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._heads.nbytes + self._counts.nbytes + self._following.nbytes

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._heads.reserve(slot_limit)
        self._counts.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Empty the lists of `slots`."""
        self._heads.clear(slots)
        self._counts.clear(slots)

    def freeze(self) -> Chains:
        """Return a copy that later changes do not touch."""
        frozen = copy.copy(self)
        frozen._heads, frozen._counts = self._heads.freeze(), self._counts.freeze()
        frozen._following = self._following.freeze()
        return frozen

    def add(self, slots: I64, entries: I64) -> None:
        """Append `entries[i]` to the list of `slots[i]`."""
        if len(entries) == 0:
            return
        from rayflow.state import key_kernels

        self._following.reserve(int(entries.max()) + 1)
        key_kernels.link(self._heads.values, self._following.values, slots, entries)
        np.add.at(self._counts.values, slots, 1)

    def counts(self, slots: I64) -> I64:
        """Return how many entries the lists of `slots` have."""
        counts: I64 = self._counts.values[slots]
        return counts

    def entries(self, slots: I64) -> I64:
        """Return the entries of `slots`, list after list, each newest first."""
        from rayflow.state import key_kernels

        entries = np.empty(int(self.counts(slots).sum()), np.int64)
        key_kernels.walk(self._heads.values, self._following.values, slots, entries)
        return entries


def _lists(counts: I64, values: pa.Array) -> pa.Array:
    offsets = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=offsets[1:])
    return pa.ListArray.from_arrays(pa.array(offsets).cast(pa.int32()), values)


def _owners(slots: I64, lists: pa.Array) -> I64:
    """Return the slot of every value in the flattened `lists`."""
    return np.repeat(slots, int64s(lists.value_lengths()))


class CollectList(Accumulator):
    """All values, by time, then in order of arrival; null where there were none."""

    _parts = ("_chains", "_times", "_values")

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        self._output_type = output_type
        self._chains, self._times, self._values = Chains(), SlotArray(np.int64), values_by_slot(type_)
        self._free: I64 = np.zeros(0, np.int64)
        self._entries = 0

    def reserve(self, slot_limit: int) -> None:
        """See `Accumulator`."""
        # Times and values are indexed by entry, and grow with them.
        self._chains.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """See `Accumulator`."""
        entries = self._chains.entries(slots)
        self._chains.clear(slots)
        self._values.clear(entries)
        self._free = np.concatenate([self._free, entries])

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        assert values is not None
        if len(slots) == 0:
            return
        self.latest_time = max(self.latest_time, int(times.max()))
        entries = self._take_entries(len(slots))
        self._times.reserve(self._entries)
        self._values.reserve(self._entries)
        self._times.values[entries] = times
        self._values.put(entries, values)
        self._chains.add(slots, entries)

    def _take_entries(self, count: int) -> I64:
        used = min(count, len(self._free))
        freed, self._free = self._free[:used], self._free[used:]
        begin = self._entries
        self._entries += count - used
        return np.concatenate([freed, np.arange(begin, self._entries)])

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        values, times = columns["values"], columns["times"]
        self.update(_owners(slots, values), values.flatten(), int64s(times.flatten()))

    def _sorted_entries(self, slots: I64) -> I64:
        entries = self._chains.entries(slots)
        owners = np.repeat(np.arange(len(slots)), self._chains.counts(slots))
        # Lists come newest first, so the higher position is the earlier arrival.
        order = np.lexsort((-np.arange(len(entries)), self._times.values[entries], owners))
        sorted_entries: I64 = entries[order]
        return sorted_entries

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        entries, counts = self._sorted_entries(slots), self._chains.counts(slots)
        times = pa.array(self._times.values[entries])
        return [("values", _lists(counts, self._values.get(entries))), ("times", _lists(counts, times))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        values, counts = self._values.get(self._sorted_entries(slots)), self._chains.counts(slots)
        lists = _lists(counts, values).cast(self._output_type)
        return pc.if_else(pa.array(counts > 0), lists, None) if (counts == 0).any() else lists


class CountDistinct(Accumulator):
    """Number of different values, exactly; NaN equals NaN and −0.0 equals 0.0."""

    _parts = ("_chains", "_index")

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        self._output_type = output_type
        self._chains = Chains()
        # Typed loosely, since a frozen copy holds a FrozenKeys.
        self._index: Any = KeyIndex(pa.schema([("slot", pa.int64()), ("value", type_)]))

    def reserve(self, slot_limit: int) -> None:
        """See `Accumulator`."""
        self._chains.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """See `Accumulator`."""
        self._index.remove(self._chains.entries(slots))
        self._chains.clear(slots)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        pairs = pa.RecordBatch.from_arrays([pa.array(slots), values], schema=self._index.schema)
        entries, fresh = self._index.insert(pairs)
        self._chains.add(slots[fresh], entries[fresh])

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        lists = columns["values"]
        owners = _owners(slots, lists)
        self.update(owners, lists.flatten(), owners)

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        values = self._index.keys(self._chains.entries(slots)).column("value")
        return [("values", _lists(self._chains.counts(slots), values))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return pa.array(self._chains.counts(slots)).cast(self._output_type)
