"""Maps per key slot, see `cells`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.state.cells import (
    I64,
    UPDATED_TYPE,
    Cells,
    Column,
    Mask,
    ReadColumns,
    in_chunks,
    is_empty,
    list_column,
    offsets,
    sampled_nbytes,
)


class MapCells(Cells):
    """A map per slot. With a time to live every entry has its own time."""

    kind = "map"

    def __init__(self, name: str, key: pa.DataType, value: pa.DataType, ttl_ms: int | None) -> None:
        super().__init__(name, pa.map_(key, value), ttl_ms)
        self._maps: list[dict[Any, Any]] = []
        self._times: list[dict[Any, int]] = []
        # Slots whose map is this object's own, not a snapshot's too; None: all are.
        self._own: set[int] | None = None

    def reserve(self, slot_limit: int) -> None:
        """See `Cells`."""
        more = range(slot_limit - len(self._maps))
        self._maps.extend({} for _ in more)
        if self.ttl_ms is not None:
            self._times.extend({} for _ in more)

    def occupied(self, slots: I64) -> Mask:
        """See `Cells`."""
        maps = self._maps
        return np.fromiter((bool(maps[slot]) for slot in slots.tolist()), np.bool_, len(slots))

    @property
    def nbytes(self) -> int:
        """See `Cells`."""
        return sampled_nbytes(self._maps) + sampled_nbytes(self._times)

    def columns(self, slots: I64) -> list[Column]:
        """See `Cells`."""
        numbers = slots.tolist()
        found = [(self.column, map_column([self._maps[slot] for slot in numbers], self.type))]
        if self.ttl_ms is not None:
            times = [list(self._times[slot].values()) for slot in numbers]
            found.append((self.updated_column, list_column(times, pa.list_(UPDATED_TYPE))))
        return found

    def forget(self, slots: I64) -> None:
        """See `Cells`."""
        for slot in slots.tolist():
            self.clear(slot)

    def entries(self, slot: int, now_ms: int) -> Mapping[Any, Any]:
        """Return the entries, not to be changed."""
        if self.ttl_ms is not None:
            self._expire(slot, now_ms - self.ttl_ms)
        return self._maps[slot]

    def get(self, slot: int, key: Any, now_ms: int, default: Any) -> Any:
        """Return the value of `key`."""
        if self.ttl_ms is not None and self._times[slot].get(key, now_ms) <= now_ms - self.ttl_ms:
            self.remove(slot, key)
        return self._maps[slot].get(key, default)

    def put(self, slot: int, key: Any, value: Any, now_ms: int) -> None:
        """Set the value of `key`."""
        self._unshare(slot)
        self._maps[slot][key] = value
        if self.ttl_ms is not None:
            self._times[slot][key] = now_ms

    def remove(self, slot: int, key: Any) -> None:
        """Remove `key`, if it is there."""
        if key in self._maps[slot]:
            self._unshare(slot)
            del self._maps[slot][key]
            if self.ttl_ms is not None:
                del self._times[slot][key]

    def clear(self, slot: int) -> None:
        """Remove everything."""
        if self._maps[slot]:
            self._renew(slot, {}, {})

    def expire(self, slots: I64, now_ms: int) -> None:
        """See `Cells`."""
        if self.ttl_ms is not None:
            for slot in slots.tolist():
                self._expire(slot, now_ms - self.ttl_ms)

    def _expire(self, slot: int, last_ms: int) -> None:
        times = self._times[slot]
        if times and min(times.values()) <= last_ms:
            kept = {key: time for key, time in times.items() if time > last_ms}
            entries = self._maps[slot]
            self._renew(slot, {key: entries[key] for key in kept}, kept)

    def _unshare(self, slot: int) -> None:
        if self._own is not None and slot not in self._own:
            times = dict(self._times[slot]) if self.ttl_ms is not None else {}
            self._renew(slot, dict(self._maps[slot]), times)

    def _renew(self, slot: int, entries: dict[Any, Any], times: dict[Any, int]) -> None:
        self._maps[slot] = entries
        if self.ttl_ms is not None:
            self._times[slot] = times
        if self._own is not None:
            self._own.add(slot)

    def freeze(self, now_ms: int) -> ReadColumns:
        """See `Cells`."""
        maps, times = list(self._maps), list(self._times)
        last_ms = None if self.ttl_ms is None else now_ms - self.ttl_ms
        self._own = set()

        def read(slots: I64) -> list[Column]:
            numbers = slots.tolist()
            if last_ms is None:
                return [(self.column, map_column([maps[slot] for slot in numbers], self.type))]
            written = [{k: t for k, t in times[slot].items() if t > last_ms} for slot in numbers]
            entries = [{k: maps[slot][k] for k in own} for slot, own in zip(numbers, written)]
            updated = [list(own.values()) for own in written]
            return [
                (self.column, map_column(entries, self.type)),
                (self.updated_column, list_column(updated, pa.list_(UPDATED_TYPE))),
            ]

        return in_chunks(read)

    def restore(self, slots: I64, column: pa.Array, updated: pa.Array | None, now_ms: int) -> None:
        """See `Cells`."""
        times = None if updated is None else updated.cast(pa.list_(pa.int64())).to_pylist()
        for row, (slot, entries) in enumerate(zip(slots.tolist(), column.to_pylist())):
            if entries:
                self._maps[slot] = dict(entries)
                if self.ttl_ms is not None:
                    own = (None if times is None else times[row]) or [now_ms] * len(entries)
                    self._times[slot] = {key: time for (key, _), time in zip(entries, own)}


def map_column(entries: Sequence[Mapping[Any, Any]], type_: pa.DataType) -> pa.Array:
    """Return maps as a column; null where one is empty."""
    keys = pa.array(list(chain.from_iterable(entries)), type_.key_type)
    items = pa.array(list(chain.from_iterable(own.values() for own in entries)), type_.item_type)
    return pa.MapArray.from_arrays(offsets(entries), keys, items, type=type_, mask=is_empty(entries))
