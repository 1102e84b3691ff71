"""What accumulators are made of: arrays indexed by slot, for numbers and for any Arrow values.

Each part grows on demand (`reserve`), forgets slots (`clear`), and can be frozen: a copy that later changes
do not touch, from which a snapshot is built on another thread. Values without a fixed width (strings,
decimals, lists) lie in an append-only *pool* of Arrow chunks, and the array by slot holds positions in it;
chunks are merged as in a log-structured merge tree, so that appending costs amortised O(log n), and what is no longer
referred to is dropped when it outweighs what is.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.fixed_width import FixedWidth, is_fixed_width
from rayflow.state.key_table import grown

I64 = npt.NDArray[np.int64]

_MIN_POOL_ROWS = 1024


class SlotArray:
    """A NumPy array indexed by slot; a slot not written since `clear` holds `fill`."""

    def __init__(self, dtype: npt.DTypeLike, fill: Any = 0) -> None:
        self.fill = fill
        self.values: npt.NDArray[Any] = np.zeros(0, dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.values.nbytes

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self.values = grown(self.values, slot_limit, self.fill)

    def clear(self, slots: I64) -> None:
        """Reset `slots`."""
        self.values[slots] = self.fill

    def freeze(self) -> SlotArray:
        """Return a copy that later changes do not touch."""
        frozen = copy.copy(self)
        frozen.values = self.values.copy()
        return frozen


class SlotGroups:
    """Groups rows by slot without sorting: a scratch array by slot remembers where a slot was met."""

    def __init__(self) -> None:
        self._scratch: npt.NDArray[np.int32] = np.zeros(0, np.int32)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._scratch.nbytes

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._scratch = grown(self._scratch, slot_limit)

    def clear(self, slots: I64) -> None:
        """Nothing is remembered between calls."""

    def freeze(self) -> SlotGroups:
        """Return an empty one."""
        return SlotGroups()

    def group(self, slots: I64) -> tuple[I64, I64]:
        """Return the distinct slots in order of first appearance, and for each row its place among them."""
        rows = np.arange(len(slots), dtype=np.int32)
        # Of repeated indices the last assignment stays, so backwards the first row wins.
        self._scratch[slots[::-1]] = rows[::-1]
        distinct = slots[self._scratch[slots] == rows]
        self._scratch[distinct] = np.arange(len(distinct), dtype=np.int32)
        return distinct, self._scratch[slots].astype(np.int64)


class FixedValues:
    """A value of a fixed-width type per slot; null until set."""

    def __init__(self, type_: pa.DataType) -> None:
        self._fixed = FixedWidth(type_)
        self._numbers = SlotArray(self._fixed.dtype)
        self._set = SlotArray(np.bool_)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._numbers.nbytes + self._set.nbytes

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._numbers.reserve(slot_limit)
        self._set.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Make `slots` null."""
        self._set.clear(slots)

    def put(self, slots: I64, values: pa.Array) -> None:
        """Assign values (no nulls) to slots; of several for one slot the last stays."""
        self._numbers.values[slots] = self._fixed.numbers(values)
        self._set.values[slots] = True

    def get(self, slots: I64) -> pa.Array:
        """Return the values of `slots`."""
        return self._fixed.array(self._numbers.values[slots], ~self._set.values[slots])

    def freeze(self) -> FixedValues:
        """Return a copy that later changes do not touch."""
        frozen = copy.copy(self)
        frozen._numbers, frozen._set = self._numbers.freeze(), self._set.freeze()
        return frozen


class PooledValues:
    """A value of any Arrow type per slot; null until set."""

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        # Pools outgrow the 2 GiB that 32-bit offsets reach.
        self._pool_type = _pool_type(type_)
        self._positions = SlotArray(np.int64, -1)
        self._chunks: list[pa.Array] = []
        self._rows = 0
        self._used = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        pool: int = sum(chunk.nbytes for chunk in self._chunks)
        return self._positions.nbytes + pool

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._positions.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Make `slots` null (none given twice)."""
        self._used -= int(np.count_nonzero(self._positions.values[slots] >= 0))
        self._positions.clear(slots)
        self._compact()

    def put(self, slots: I64, values: pa.Array) -> None:
        """Assign values (no nulls) to slots; of several for one slot the last stays."""
        positions = self._positions.values
        rows = np.arange(len(slots))
        was_null = positions[slots] < 0
        positions[slots] = rows
        kept = np.flatnonzero(positions[slots] == rows)
        positions[slots[kept]] = self._rows + np.arange(len(kept))
        self._used += int(np.count_nonzero(was_null[kept]))
        kept_values = values if len(kept) == len(values) else values.take(pa.array(kept))
        self._append(kept_values.cast(self._pool_type))
        self._compact()

    def get(self, slots: I64) -> pa.Array:
        """Return the values of `slots`."""
        return self._take(slots).cast(self._type)

    def freeze(self) -> PooledValues:
        """Return a copy that later changes do not touch; the pool is shared."""
        frozen = copy.copy(self)
        frozen._positions, frozen._chunks = self._positions.freeze(), list(self._chunks)
        return frozen

    def _append(self, values: pa.Array) -> None:
        self._chunks.append(values)
        self._rows += len(values)
        while len(self._chunks) > 1 and 2 * len(self._chunks[-1]) >= len(self._chunks[-2]):
            self._chunks[-2:] = [pa.concat_arrays(self._chunks[-2:])]

    def _take(self, slots: I64) -> pa.Array:
        positions = self._positions.values[slots]
        null = positions < 0
        ends = np.cumsum([len(chunk) for chunk in self._chunks])
        if len(ends) <= 1:
            pool = self._chunks[0] if self._chunks else pa.nulls(0, self._pool_type)
            return pool.take(pa.array(positions, mask=null))
        # Not ChunkedArray.take: it may join all chunks first.
        which = np.searchsorted(ends, positions, side="right")
        order = np.argsort(which, kind="stable")
        pieces = []
        for chunk, array in enumerate(self._chunks):
            rows = order[
                np.searchsorted(which, chunk, "left", order) : np.searchsorted(which, chunk, "right", order)
            ]
            begin = ends[chunk] - len(array)
            pieces.append(array.take(pa.array(positions[rows] - begin, mask=null[rows])))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_arrays(pieces).take(pa.array(back))

    def _compact(self) -> None:
        if self._rows <= max(_MIN_POOL_ROWS, 2 * self._used):
            return
        slots = np.flatnonzero(self._positions.values >= 0)
        self._chunks = [self._take(slots)]
        self._positions.values[slots] = np.arange(len(slots))
        self._rows = len(slots)


_LARGE = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}


def _pool_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_pool_type(field.type)) for field in type_])
    return _LARGE.get(type_, type_)


ValuesBySlot = FixedValues | PooledValues


def values_by_slot(type_: pa.DataType) -> ValuesBySlot:
    """Return an empty part that holds values of `type_`."""
    return FixedValues(type_) if is_fixed_width(type_) else PooledValues(type_)
