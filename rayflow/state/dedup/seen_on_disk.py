"""The keys that were seen, exactly, with those not in use on disk; see `seen_keys`, whose answers these are.

A key's row is the time of the row that was kept, or nothing without a time to live. Keys that the clock has passed are
found a piece at a time, in memory and on disk: with every batch some of either are looked at, in turns.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.dedup.times import I64, TimeToLive, nanoseconds, timestamps
from rayflow.state.disk.cached_keys import CachedKeys

SEEN_AT = "__seen_at"
_SWEPT_PER_ROW = 4
_SWEPT_AT_LEAST = 4096
_REVISITED_AT_LEAST = 64


class SeenTimes:
    """The `SlotRows` of seen keys: the times of their kept rows, written in `unit`; nothing without a time to live."""

    kinds_of_due = 0

    def __init__(self, ttl: TimeToLive | None, unit: str) -> None:
        from rayflow.state.dedup import kernels

        self._unit = unit
        self.schema = pa.schema([] if ttl is None else [(SEEN_AT, pa.timestamp(unit))])
        self.times = SlotArray(np.int64, kernels.NEVER)

    @property
    def nbytes(self) -> int:
        """See `SlotRows`."""
        return self.times.nbytes

    def reserve(self, slot_limit: int) -> None:
        """See `SlotRows`."""
        if self.schema.names:
            self.times.reserve(slot_limit)

    def rows(self, slots: I64) -> pa.RecordBatch:
        """See `SlotRows`."""
        columns = [timestamps(self.times.values[slots], self._unit)] if self.schema.names else []
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def restore(self, slots: I64, rows: pa.RecordBatch) -> None:
        """See `SlotRows`."""
        if self.schema.names:
            self.times.values[slots] = nanoseconds(rows.column(0))

    def clear(self, slots: I64) -> None:
        """See `SlotRows`."""
        if self.schema.names:
            self.times.clear(slots)

    def pinned(self) -> list[int]:
        """See `SlotRows`."""
        return []

    def due(self, kind: int, slots: I64) -> dict[int, int]:
        """See `SlotRows`. Keys are found in time without timers."""
        return {}


class SeenOnDisk:
    """Keys of `index`, whose rows are `rows`."""

    def __init__(self, index: CachedKeys, rows: SeenTimes, ttl: TimeToLive | None) -> None:
        from rayflow.state.dedup import kernels

        self._kernels = kernels
        self.index, self._rows, self._ttl = index, rows, ttl
        self._swept_to = 0
        nothing = np.zeros(0, np.int64)
        kernels.first_within(nothing, nothing, nothing, 0, 1, nothing)

    def __len__(self) -> int:
        """Return the number of keys, those that can be forgotten but were not yet included."""
        return self.index.count

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.index.nbytes

    def first(self, keys: pa.RecordBatch, times: I64 | None, clock: int) -> I64:
        """See `SeenKeys`."""
        slots, fresh = self.index.look_up(keys)
        if self._ttl is None:
            return fresh
        assert times is not None
        kept = np.empty(len(slots), np.int64)
        seen = self._rows.times.values
        count = self._kernels.first_within(slots, times, seen, clock, self._ttl.ttl_ns, kept)
        self.index.touch(slots[kept[:count]])
        self._sweep(max(_SWEPT_AT_LEAST, _SWEPT_PER_ROW * len(slots)), clock)
        self._forget(self.index.revisit(max(_REVISITED_AT_LEAST, len(slots))), clock)
        return kept[:count]

    def expire(self, clock: int) -> None:
        """Forget what the clock has passed, of the keys in memory, and of some on disk: these have their turn with the
        rows, as many as come."""
        if self._ttl is not None:
            self._forget(self.index.live(), clock)
            self._forget(self.index.revisit(_SWEPT_AT_LEAST), clock)

    def _sweep(self, count: int, clock: int) -> None:
        limit = self.index.slot_limit
        slots = (self._swept_to + np.arange(min(count, limit))) % max(1, limit)
        self._swept_to = (self._swept_to + len(slots)) % max(1, limit)
        self._forget(slots, clock)

    def _forget(self, slots: I64, clock: int) -> None:
        assert self._ttl is not None
        times = self._rows.times
        seen = times.values[slots]
        passed = slots[(seen != times.fill) & (seen <= clock - self._ttl.ttl_ns)]
        if len(passed):
            self.index.remove(passed)
            times.clear(passed)

    def put(self, keys: pa.RecordBatch, times: I64 | None) -> None:
        """Remember keys that are not there yet, and the times of their rows."""
        slots, _ = self.index.insert(keys)
        if self._ttl is not None:
            assert times is not None
            self._rows.times.values[slots] = times
