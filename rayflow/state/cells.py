"""States of users' functions: a value, list or map per key slot.

Values are kept in columns and are worked on through a *working set*: for the keys of a batch they are loaded into
a Python list, and what changed is stored back when the batch is done. Lists and maps are Python containers per
slot, changed in place.

Time to live. With `ttl_ms` every value, element of a list and entry of a map has the processing time of its last
write; from `ttl_ms` later on it is invisible, is dropped when it is met or swept, and is left out of snapshots.

Snapshots cost one copy of what is fixed in width. Values lie in immutable chunks or are copied; lists only grow
at the end (whatever else happens to them makes a new one), so their lengths say what belongs to the snapshot; a
map is copied the first time it changes after one.

A frozen state gives the columns `<name>.<kind>`, and with a time to live `<name>.updated`; null means none.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.python_values import pylist
from rayflow.state.accumulators.parts import SlotArray, values_by_slot

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Column = tuple[str, pa.Array]
ReadColumns = Callable[[I64], list[Column]]

UPDATED_TYPE = pa.timestamp("ms")
_SLOTS_PER_CHUNK = 65_536
_SAMPLED = 64
_BYTES_OF_REFERENCE = 8


class Cells(ABC):
    """One state of all keys."""

    kind: str

    def __init__(self, name: str, type_: pa.DataType, ttl_ms: int | None) -> None:
        self.name = name
        self.ttl_ms = ttl_ms
        self.type = type_
        """Type of the column `<name>.<kind>`."""

    @property
    def column(self) -> str:
        """Name of the column that holds the state in a snapshot."""
        return f"{self.name}.{self.kind}"

    @property
    def updated_column(self) -> str:
        """Name of the column of write times."""
        return f"{self.name}.updated"

    @abstractmethod
    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""

    @abstractmethod
    def occupied(self, slots: I64) -> Mask:
        """Return which of `slots` hold something."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory held; of Python objects by a sample."""

    @property
    def fields(self) -> list[pa.Field]:
        """The columns of a snapshot."""
        written = UPDATED_TYPE if self.kind == "value" else pa.list_(UPDATED_TYPE)
        updated = [] if self.ttl_ms is None else [pa.field(self.updated_column, written)]
        return [pa.field(self.column, self.type), *updated]

    @abstractmethod
    def columns(self, slots: I64) -> list[Column]:
        """Return the columns of `slots` as they are now, what is too old included."""

    @abstractmethod
    def forget(self, slots: I64) -> None:
        """Drop all that `slots` hold (none given twice)."""

    @abstractmethod
    def expire(self, slots: I64, now_ms: int) -> None:
        """Drop from `slots` what is too old."""

    @abstractmethod
    def freeze(self, now_ms: int) -> ReadColumns:
        """Return a function that gives the columns of slots as they are now, for any thread."""

    @abstractmethod
    def restore(self, slots: I64, column: pa.Array, updated: pa.Array | None, now_ms: int) -> None:
        """Take the columns of a snapshot. Without `updated`, everything counts as written now."""


class ValueCells(Cells):
    """A value per slot."""

    kind = "value"

    def __init__(self, name: str, type_: pa.DataType, ttl_ms: int | None) -> None:
        super().__init__(name, type_, ttl_ms)
        self._values = values_by_slot(type_)
        self._set = SlotArray(np.bool_)
        self._updated = SlotArray(np.int64)

    def reserve(self, slot_limit: int) -> None:
        """See `Cells`."""
        self._values.reserve(slot_limit)
        self._set.reserve(slot_limit)
        if self.ttl_ms is not None:
            self._updated.reserve(slot_limit)

    def occupied(self, slots: I64) -> Mask:
        """See `Cells`."""
        mask: Mask = self._set.values[slots]
        return mask

    @property
    def nbytes(self) -> int:
        """See `Cells`."""
        return self._values.nbytes + self._set.nbytes + self._updated.nbytes

    def columns(self, slots: I64) -> list[Column]:
        """See `Cells`."""
        found = [(self.column, self._values.get(slots))]
        if self.ttl_ms is not None:
            unset = ~self._set.values[slots]
            found.append(
                (self.updated_column, pa.array(self._updated.values[slots], UPDATED_TYPE, mask=unset))
            )
        return found

    def forget(self, slots: I64) -> None:
        """See `Cells`."""
        self._clear(slots)

    def load(self, slots: I64, now_ms: int) -> list[Any]:
        """Return the values of `slots` (none given twice), None where there is none."""
        self.expire(slots, now_ms)
        if not self._set.values[slots].any():
            return [None] * len(slots)
        return pylist(self._values.get(slots))

    def store(self, slots: I64, values: Sequence[Any], now_ms: int) -> None:
        """Replace the values of `slots` (none given twice); None removes one."""
        array = pa.array(values, self.type)
        if array.null_count:
            valid = array.is_valid().to_numpy(zero_copy_only=False)
            self._clear(slots[~valid])
            slots, array = slots[valid], array.drop_null()
        if len(slots):
            self._put(slots, array)
            if self.ttl_ms is not None:
                self._updated.values[slots] = now_ms

    def _put(self, slots: I64, array: pa.Array) -> None:
        self._values.put(slots, array)
        self._set.values[slots] = True

    def _clear(self, slots: I64) -> None:
        slots = slots[self._set.values[slots]]
        if len(slots):
            self._values.clear(slots)
            self._set.clear(slots)

    def expire(self, slots: I64, now_ms: int) -> None:
        """See `Cells`."""
        if self.ttl_ms is not None:
            self._clear(slots[self._updated.values[slots] <= now_ms - self.ttl_ms])

    def freeze(self, now_ms: int) -> ReadColumns:
        """See `Cells`."""
        values, is_set = self._values.freeze(), self._set.freeze().values
        updated = None if self.ttl_ms is None else self._updated.freeze().values

        def read(slots: I64) -> list[Column]:
            valid = is_set[slots]
            if updated is None or self.ttl_ms is None:
                return [(self.column, values.get(slots))]
            times = updated[slots]
            gone = ~(valid & (times > now_ms - self.ttl_ms))
            array = pc.if_else(pa.array(gone), pa.scalar(None, self.type), values.get(slots))
            return [(self.column, array), (self.updated_column, pa.array(times, UPDATED_TYPE, mask=gone))]

        return read

    def restore(self, slots: I64, column: pa.Array, updated: pa.Array | None, now_ms: int) -> None:
        """See `Cells`."""
        valid = column.is_valid().to_numpy(zero_copy_only=False)
        slots = slots[valid]
        if len(slots) == 0:
            return
        self._put(slots, column.drop_null())
        if self.ttl_ms is not None:
            times = None if updated is None else updated.cast(pa.int64()).fill_null(now_ms).to_numpy()
            self._updated.values[slots] = now_ms if times is None else times[valid]


class ListCells(Cells):
    """A list per slot. With a time to live every element has its own time."""

    kind = "list"

    def __init__(self, name: str, element: pa.DataType, ttl_ms: int | None) -> None:
        super().__init__(name, pa.list_(element), ttl_ms)
        self._lists: list[list[Any]] = []
        self._times: list[list[int]] = []

    def reserve(self, slot_limit: int) -> None:
        """See `Cells`."""
        more = range(slot_limit - len(self._lists))
        self._lists.extend([] for _ in more)
        if self.ttl_ms is not None:
            self._times.extend([] for _ in more)

    def occupied(self, slots: I64) -> Mask:
        """See `Cells`."""
        lists = self._lists
        return np.fromiter((bool(lists[slot]) for slot in slots.tolist()), np.bool_, len(slots))

    @property
    def nbytes(self) -> int:
        """See `Cells`."""
        return sampled_nbytes(self._lists) + sampled_nbytes(self._times)

    def columns(self, slots: I64) -> list[Column]:
        """See `Cells`."""
        numbers = slots.tolist()
        found = [(self.column, list_column([self._lists[slot] for slot in numbers], self.type))]
        if self.ttl_ms is not None:
            times = [self._times[slot] for slot in numbers]
            found.append((self.updated_column, list_column(times, pa.list_(UPDATED_TYPE))))
        return found

    def forget(self, slots: I64) -> None:
        """See `Cells`."""
        for slot in slots.tolist():
            self.replace(slot, [], 0)

    def elements(self, slot: int, now_ms: int) -> Sequence[Any]:
        """Return the elements, not to be changed."""
        if self.ttl_ms is not None:
            self._expire(slot, now_ms - self.ttl_ms)
        return self._lists[slot]

    def extend(self, slot: int, elements: Sequence[Any], now_ms: int) -> None:
        """Add elements at the end."""
        self._lists[slot].extend(elements)
        if self.ttl_ms is not None:
            times = self._times[slot]
            # In order, even if the clock went back: what is too old is always a beginning.
            latest = max(now_ms, times[-1]) if times else now_ms
            times.extend([latest] * len(elements))

    def replace(self, slot: int, elements: list[Any], now_ms: int) -> None:
        """Replace all elements."""
        self._lists[slot] = elements
        if self.ttl_ms is not None:
            self._times[slot] = [now_ms] * len(elements)

    def expire(self, slots: I64, now_ms: int) -> None:
        """See `Cells`."""
        if self.ttl_ms is not None:
            for slot in slots.tolist():
                self._expire(slot, now_ms - self.ttl_ms)

    def _expire(self, slot: int, last_ms: int) -> None:
        times = self._times[slot]
        if times and times[0] <= last_ms:
            gone = next((i for i, time in enumerate(times) if time > last_ms), len(times))
            self._lists[slot], self._times[slot] = self._lists[slot][gone:], times[gone:]

    def freeze(self, now_ms: int) -> ReadColumns:
        """See `Cells`."""
        lists, times = list(self._lists), list(self._times)
        lengths = [len(elements) for elements in lists]
        last_ms = None if self.ttl_ms is None else now_ms - self.ttl_ms

        def read(slots: I64) -> list[Column]:
            pieces: list[list[Any]] = []
            written: list[list[int]] = []
            for slot in slots.tolist():
                end = lengths[slot]
                begin = 0
                if last_ms is not None:
                    own = times[slot]
                    begin = next((i for i in range(end) if own[i] > last_ms), end)
                    written.append(own[begin:end])
                pieces.append(lists[slot][begin:end])
            columns = [(self.column, list_column(pieces, self.type))]
            if last_ms is not None:
                columns.append((self.updated_column, list_column(written, pa.list_(UPDATED_TYPE))))
            return columns

        return in_chunks(read)

    def restore(self, slots: I64, column: pa.Array, updated: pa.Array | None, now_ms: int) -> None:
        """See `Cells`."""
        times = None if updated is None else updated.cast(pa.list_(pa.int64())).to_pylist()
        for row, (slot, elements) in enumerate(zip(slots.tolist(), column.to_pylist())):
            if elements:
                self._lists[slot] = elements
                if self.ttl_ms is not None:
                    own = None if times is None else times[row]
                    self._times[slot] = own or [now_ms] * len(elements)


def sampled_nbytes(containers: Sequence[Any]) -> int:
    """Return about how many bytes lists or dicts take with what is in them: by a few of them, evenly spread."""
    if not containers:
        return 0
    step = -(-len(containers) // _SAMPLED)
    sample = containers[::step]
    return int(sum(map(_nbytes, sample)) * len(containers) / len(sample))


def _nbytes(value: Any) -> int:
    # Of what is in the containers too: each has its own copy (see `owned`).
    size = sys.getsizeof(value) + _BYTES_OF_REFERENCE
    if isinstance(value, dict):
        return size + sum(_nbytes(key) + _nbytes(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return size + sum(map(_nbytes, value))
    return size


def in_chunks(read: ReadColumns) -> ReadColumns:
    """Return `read` for any number of slots."""

    # Making an array of Python values holds the interpreter's lock, and the task thread runs meanwhile.
    def read_chunks(slots: I64) -> list[Column]:
        if len(slots) <= _SLOTS_PER_CHUNK:
            return read(slots)
        pieces = [read(slots[at : at + _SLOTS_PER_CHUNK]) for at in range(0, len(slots), _SLOTS_PER_CHUNK)]
        return [
            (name, pa.chunked_array([piece[i][1] for piece in pieces]))
            for i, (name, _) in enumerate(pieces[0])
        ]

    return read_chunks


def list_column(pieces: Sequence[Sequence[Any]], type_: pa.DataType) -> pa.Array:
    """Return lists as a column; null where one is empty."""
    values = pa.array(list(chain.from_iterable(pieces)), type_.value_type)
    return pa.ListArray.from_arrays(offsets(pieces), values, type=type_, mask=is_empty(pieces))


def offsets(pieces: Sequence[Sequence[Any] | Mapping[Any, Any]]) -> pa.Array:
    """Return where each piece begins, and the last ends, when they lie side by side."""
    ends = np.zeros(len(pieces) + 1, np.int32)
    np.cumsum([len(piece) for piece in pieces], out=ends[1:])
    return pa.array(ends)


def is_empty(pieces: Iterable[Any]) -> pa.Array:
    """Return which pieces are empty."""
    return pa.array([not piece for piece in pieces], pa.bool_())
