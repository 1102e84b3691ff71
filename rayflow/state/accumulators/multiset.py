"""Aggregates from which rows can be taken back, by keeping every value: how often each is there, per slot.

A `Multiset` indexes (slot, value) exactly, and lists the values of a slot (see `collections` for the lists; these
can be left from the middle). On it:

- `RetractableDistinct` is the length of the list.
- `RetractableBest` keeps a best value (smallest, largest, first, last) beside it, in the accumulator that would do
  without retraction. The kept best is never worse than any value that is there; only when it is taken back itself
  does the slot become *stale*, and it is looked for anew among the slot's values when the result is read, unless
  a value as good has come meanwhile. So maxima of counts that only grow never search.
- `Occurrences` remembers for every value each time that it came, for results that go by time.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.collections import Chains, Entries, if_any, lists, owners
from rayflow.state.accumulators.numeric import int64s
from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.pair_table import entry_index

Mask = npt.NDArray[np.bool_]


class Multiset:
    """Values by slot, and how often each is there. An *entry* is the number of a (slot, value)."""

    def __init__(self, type_: pa.DataType) -> None:
        # Typed loosely, since a frozen copy only gives values.
        self._index: Any = entry_index(type_)
        self._chains = Chains(both_ways=True)
        self.counts = SlotArray(np.int64)
        """How often the value of an entry is there."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        size: int = self._index.nbytes + self._chains.nbytes + self.counts.nbytes
        return size

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._chains.reserve(slot_limit)

    def freeze(self) -> Multiset:
        """Return a copy that later changes do not touch."""
        frozen = copy.copy(self)
        frozen._index, frozen._chains = self._index.freeze(), self._chains.freeze()
        frozen.counts = self.counts.freeze()
        return frozen

    def add(self, slots: I64, values: pa.Array, times: I64 | int = 1) -> I64:
        """Add `values[i]` to `slots[i]`, `times[i]` times; return their entries."""
        entries = self._entries(slots, values)
        np.add.at(self.counts.values, entries, times)
        return entries

    def _entries(self, slots: I64, values: pa.Array) -> I64:
        entries: I64
        entries, fresh = self._index.insert(slots, values)
        self.counts.reserve(self._index.limit)
        self._chains.add(slots[fresh], entries[fresh])
        return entries

    def take(self, slots: I64, values: pa.Array) -> tuple[I64, Mask]:
        """Take `values[i]` from `slots[i]` once each; return their entries, and which were there. `sweep` the
        entries afterwards."""
        from rayflow.state.accumulators import kernels

        entries = self._entries(slots, values)
        taken = np.zeros(len(entries), np.bool_)
        kernels.take_back(self.counts.values, entries, taken)
        return entries, taken

    def sweep(self, entries: I64) -> None:
        """Forget those of `entries` whose values are there no more."""
        empty = np.unique(entries[self.counts.values[entries] == 0])
        if len(empty):
            self._chains.remove(self._index.slots(empty), empty)
            self._index.remove(empty)

    def clear(self, slots: I64) -> None:
        """Empty `slots`."""
        entries = self._chains.entries(slots)
        self._index.remove(entries)
        self.counts.clear(entries)
        self._chains.clear(slots)

    def distinct(self, slots: I64) -> I64:
        """Return how many different values `slots` have."""
        return self._chains.counts(slots)

    def entries(self, slots: I64) -> I64:
        """Return the entries of `slots`, slot after slot."""
        return self._chains.entries(slots)

    def values(self, entries: I64) -> pa.Array:
        """Return the values of `entries`."""
        return self._index.values(entries)


class RetractableDistinct(Accumulator):
    """Number of different values that are there, exactly."""

    _parts = ("_values",)

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        self._values, self._output_type = Multiset(type_), output_type

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        self._values.add(slots, values)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        self._values.sweep(self._values.take(slots, values)[0])

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        values = columns["values"]
        self._values.add(owners(slots, values), values.flatten(), int64s(columns["counts"].flatten()))

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return counted_values(self._values, slots)

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return pa.array(self._values.distinct(slots)).cast(self._output_type)


def counted_values(values: Multiset, slots: I64) -> Columns:
    """Return the values of `slots`, and how often each is there, as lists."""
    entries, lengths = values.entries(slots), values.distinct(slots)
    counts = pa.array(values.counts.values[entries])
    return [("values", lists(lengths, values.values(entries))), ("counts", lists(lengths, counts))]


class RetractableBest(Accumulator):
    """What `best`, an accumulator that keeps one of the values, would give for those that are there."""

    _parts = ("_values", "_best", "_stale")

    def __init__(self, type_: pa.DataType, best: Accumulator) -> None:
        self._values, self._best = Multiset(type_), best
        self._stale = SlotArray(np.bool_)

    def freeze(self) -> Accumulator:
        """Return a copy for `state_columns`; what can be found anew is left out."""
        frozen = copy.copy(self)
        frozen._values = self._values.freeze()
        return frozen

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        self._values.add(slots, values)
        self._offer(slots, values, times)

    def _offer(self, slots: I64, values: Any, times: I64) -> None:
        self._best.update(slots, values, times)
        if self._stale.values[slots].any():
            self._stale.values[slots[is_kept(self._best, slots, {"value": values})]] = False

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        entries, _ = self._values.take(slots, values)
        gone = self._values.counts.values[entries] == 0
        if gone.any():
            kept = is_kept(self._best, slots[gone], {"value": values.filter(pa.array(gone))})  # type: ignore[union-attr]
            self._stale.values[slots[gone][kept]] = True
        self._values.sweep(entries)

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        slots, values = owners(slots, columns["values"]), columns["values"].flatten()
        if len(slots):
            self._values.add(slots, values, int64s(columns["counts"].flatten()))
            self._offer(slots, values, slots)

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return counted_values(self._values, slots)

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        stale = np.unique(slots[self._stale.values[slots]])
        if len(stale):
            self._best.clear(stale)
            self._stale.values[stale] = False
            entries = self._values.entries(stale)
            if len(entries):
                candidates = np.repeat(stale, self._values.distinct(stale))
                self._best.update(candidates, self._values.values(entries), candidates)
        return self._best.results(slots)


def is_kept(best: Accumulator, slots: I64, columns: Mapping[str, Any]) -> Mask:
    """Return for each row whether what `best` keeps for its slot is what `columns` say."""
    same = np.ones(len(slots), np.bool_)
    for name, kept in best.state_columns(slots):
        if name in columns:
            same &= _equal(kept, columns[name])
    return same


def _equal(left: pa.Array, right: pa.Array) -> Mask:
    if pa.types.is_float16(left.type):
        # Arrow compares no half floats.
        left, right = left.cast(pa.float32()), right.cast(pa.float32())
    equal = pc.fill_null(pc.equal(left, right), False)
    if pa.types.is_floating(left.type):
        both = pc.and_(pc.is_nan(left), pc.is_nan(right))
        equal = pc.or_(equal, pc.fill_null(both, False))
    mask: Mask = equal.to_numpy(zero_copy_only=False)
    return mask


class Occurrences(Accumulator):
    """Every value with each time that it came. Base of what goes by time."""

    _parts: tuple[str, ...] = ("_values", "_chains", "_times", "_arrivals")

    def __init__(self, type_: pa.DataType) -> None:
        self._values = Multiset(type_)
        self._chains = Chains()  # of occurrences, by entry of the multiset
        self._times, self._arrivals = SlotArray(np.int64), SlotArray(np.int64)
        self._numbers = Entries()
        self._arrived = 0

    def reserve(self, slot_limit: int) -> None:
        """See `Accumulator`."""
        # The rest is indexed by entry, and grows with them.
        self._values.reserve(slot_limit)

    def freeze(self) -> Accumulator:
        """Return a copy for `state_columns`; what can be found anew is left out."""
        frozen = copy.copy(self)
        for name in Occurrences._parts:
            setattr(frozen, name, getattr(self, name).freeze())
        return frozen

    def clear(self, slots: I64) -> None:
        """See `Accumulator`."""
        entries = self._values.entries(slots)
        self._numbers.give_back(self._chains.entries(entries))
        self._chains.clear(entries)
        self._values.clear(slots)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        if len(slots) == 0:
            return
        self.latest_time = max(self.latest_time, int(times.max()))
        entries = self._values.add(slots, values)
        self._chains.reserve(int(entries.max()) + 1)
        numbers = self._numbers.take(len(slots))
        self._times.reserve(self._numbers.limit)
        self._arrivals.reserve(self._numbers.limit)
        self._times.values[numbers] = times
        self._arrivals.values[numbers] = np.arange(self._arrived, self._arrived + len(slots))
        self._arrived += len(slots)
        self._chains.add(entries, numbers)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        from rayflow.state.accumulators import kernels

        entries, taken = self._values.take(slots, values)
        rows = np.flatnonzero(taken)
        self._chains.reserve(int(entries.max(initial=-1)) + 1)
        wanted = np.zeros(len(rows), np.int64) if times is None else times[rows]
        numbers = np.empty(len(rows), np.int64)
        kernels.take_occurrences(
            *self._chains.arrays, self._times.values, entries[rows], wanted, times is None, numbers
        )
        self._chains.count_down(entries[rows])
        self._numbers.give_back(numbers)
        self._forget(slots[rows], values.take(pa.array(rows)), self._times.values[numbers])  # type: ignore[union-attr]
        self._values.sweep(entries)

    def _forget(self, slots: I64, values: pa.Array, times: I64) -> None:
        """Rows have been taken back. For subclasses that keep something beside."""

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        values, times = columns["values"], columns["times"]
        self.update(owners(slots, values), values.flatten(), int64s(times.flatten()))

    def _in_order(self, slots: I64, *, by_time: bool) -> tuple[I64, I64, pa.Array]:
        """Return place among `slots`, time and value of all occurrences, slot after slot, in order of time (or
        not), then of arrival."""
        entries = self._values.entries(slots)
        counts = self._chains.counts(entries)
        numbers = self._chains.entries(entries)
        places = np.repeat(np.repeat(np.arange(len(slots)), self._values.distinct(slots)), counts)
        times = self._times.values[numbers]
        order = np.lexsort((self._arrivals.values[numbers], *([times] if by_time else []), places))
        values = self._values.values(np.repeat(entries, counts)[order])
        return places[order], times[order], values

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        places, times, values = self._in_order(slots, by_time=True)
        counts = np.bincount(places, minlength=len(slots))
        return [("values", lists(counts, values)), ("times", lists(counts, pa.array(times)))]


class RetractableList(Occurrences):
    """All values that are there, by time, then in order of arrival; null where there are none."""

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        super().__init__(type_)
        self._output_type = output_type

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        places, _, values = self._in_order(slots, by_time=True)
        counts = np.bincount(places, minlength=len(slots))
        return if_any(counts, lists(counts, values).cast(self._output_type))


class RetractableByTime(Occurrences):
    """The value with the smallest or largest time, by an accumulator `best` that keeps it; see the module."""

    _parts = (*Occurrences._parts, "_best", "_stale")

    def __init__(self, type_: pa.DataType, best: Accumulator) -> None:
        super().__init__(type_)
        self._best, self._stale = best, SlotArray(np.bool_)

    def reserve(self, slot_limit: int) -> None:
        """See `Accumulator`."""
        super().reserve(slot_limit)
        self._best.reserve(slot_limit)
        self._stale.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """See `Accumulator`."""
        super().clear(slots)
        self._best.clear(slots)
        self._stale.clear(slots)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        super().update(slots, values, times)
        self._best.update(slots, values, times)
        if self._stale.values[slots].any():
            came = {"value": values, "time": pa.array(times)}
            self._stale.values[slots[is_kept(self._best, slots, came)]] = False

    def _forget(self, slots: I64, values: pa.Array, times: I64) -> None:
        # Another row of equal time and value may be left; then it is found again.
        kept = is_kept(self._best, slots, {"value": values, "time": pa.array(times)})
        self._stale.values[slots[kept]] = True

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        stale = np.unique(slots[self._stale.values[slots]])
        if len(stale):
            self._best.clear(stale)
            self._stale.values[stale] = False
            places, times, values = self._in_order(stale, by_time=False)
            self._best.update(stale[places], values, times)
        return self._best.results(slots)
