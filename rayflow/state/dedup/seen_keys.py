"""The keys that were seen, exactly: a key index, and with a time to live the time of each key's kept row.

Without a time to live a key costs what it costs in the index (`state.key_table`), and a batch one pass through it.

With one, a key that the clock has passed by the time to live is as good as forgotten at once; its memory is found a
piece at a time: with every batch four slots are looked at per row, so that what is forgotten but still there is at
most a quarter of the rows since. Slots are used again. When seven eighths of them are free the index is built anew,
which gives their memory back."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.dedup.times import I64, TimeToLive
from rayflow.state.key_index import FrozenKeys, KeyIndex

_SWEPT_PER_ROW = 4
_SWEPT_AT_LEAST = 4096
_MIN_SLOTS_TO_SHRINK = 1 << 16
_ROWS_PER_BATCH = 1 << 16


class SeenKeys:
    """Keys with columns of `schema`. Raises TypeError for a column type that cannot be a key."""

    def __init__(self, schema: pa.Schema, ttl: TimeToLive | None) -> None:
        from rayflow.state.dedup import kernels

        self._kernels = kernels
        self._schema = schema
        self._ttl = ttl
        self._index = KeyIndex(schema)
        self._times = SlotArray(np.int64, kernels.NEVER)
        self._swept_to = 0
        nothing = np.zeros(0, np.int64)
        kernels.first_within(nothing, nothing, nothing, 0, 1, nothing)

    def __len__(self) -> int:
        """Return the number of keys, those that can be forgotten but were not yet included."""
        return len(self._index)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._index.nbytes + self._times.nbytes

    def first(self, keys: pa.RecordBatch, times: I64 | None, clock: int) -> I64:
        """Return the numbers (ascending) of the rows that are no duplicates, and remember them. `times` only with a
        time to live."""
        if self._ttl is None:
            return self._index.insert(keys)[1]
        assert times is not None
        slots = self._index.slots(keys)
        self._times.reserve(self._index.slot_limit)
        kept = np.empty(len(slots), np.int64)
        count = self._kernels.first_within(slots, times, self._times.values, clock, self._ttl.ttl_ns, kept)
        self._sweep(max(_SWEPT_AT_LEAST, _SWEPT_PER_ROW * len(slots)), clock)
        return kept[:count]

    def expire(self, clock: int) -> None:
        """Forget all that the clock has passed."""
        if self._ttl is not None:
            self._swept_to = 0
            self._sweep(self._index.slot_limit, clock)

    def _sweep(self, count: int, clock: int) -> None:
        assert self._ttl is not None
        limit = self._index.slot_limit
        while count > 0 and limit:
            # Round and round, since new slots may come as fast as old ones are looked at.
            begin = self._swept_to if self._swept_to < limit else 0
            self._swept_to = min(begin + count, limit)
            self._forget(begin, self._swept_to, clock - self._ttl.ttl_ns)
            count = min(count - (self._swept_to - begin), begin)
        if limit > _MIN_SLOTS_TO_SHRINK and len(self._index) < limit // 8:
            self._rebuild()

    def _forget(self, begin: int, end: int, last: int) -> None:
        times = self._times.values[begin:end]
        passed = begin + np.flatnonzero((times != self._times.fill) & (times <= last))
        if len(passed):
            self._index.remove(passed)
            self._times.clear(passed)

    def _rebuild(self) -> None:
        kept = list(self._batches(self._index.live()))
        self._index, self._swept_to = KeyIndex(self._schema), 0
        self._times = SlotArray(np.int64, self._times.fill)
        for keys, times in kept:
            self.put(keys, times)

    def _batches(self, slots: I64) -> Iterator[tuple[pa.RecordBatch, I64]]:
        for at in range(0, len(slots), _ROWS_PER_BATCH):
            piece = slots[at : at + _ROWS_PER_BATCH]
            yield self._index.keys(piece), self._times.values[piece]

    def put(self, keys: pa.RecordBatch, times: I64 | None) -> None:
        """Remember keys that are not there yet, and the times of their rows."""
        slots = self._index.slots(keys)
        if self._ttl is not None:
            assert times is not None
            self._times.reserve(self._index.slot_limit)
            self._times.values[slots] = times

    def freeze(self) -> tuple[FrozenKeys, I64, I64 | None]:
        """Return keys, their slots, and the times of these, as they are now; for any thread."""
        slots = self._index.live()
        times = None if self._ttl is None else self._times.values[slots]
        return self._index.freeze(), slots, times
