"""Approximate aggregates: sketches of Apache DataSketches, one per slot, of bounded size.

- `DistinctSketches`: HyperLogLog with 2^12 registers. At most about 4 KiB a slot. Up to about 400 distinct values
  the count is exact (two of them collide in fewer than one set in 500); beyond, its standard error is 1.6 %, so
  that 95 of 100 counts are within 3.2 %, 99.7 of 100 within 4.9 %. The count depends on the set of values only:
  not on order, batches, merges or restarts. (The library's own estimate of a sketch that was never merged is
  a little better, and depends on the order; it is not used.)
- `QuantileSketches`: KLL with k = 400. At most about 10 KiB a slot. Up to 400 values the quantile is exact: the
  smallest value of which at least a fraction q is no larger (SQL's `percentile_disc`); beyond, the value's rank is
  within 0.7 % of q in 99 of 100 cases. The sketch tosses coins: two runs may give neighbouring values.

A batch is grouped by slot, and each slot that it touches costs one call into the library.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.numeric import float64s
from rayflow.state.accumulators.objects import ObjectSlots
from rayflow.state.accumulators.parts import SlotGroups
from rayflow.state.fixed_width import FixedWidth
from rayflow.state.key_codec import KeyCodec, WordKeys

LG_REGISTERS = 12
QUANTILE_K = 400

_FLAGS_BYTE, _OUT_OF_ORDER = 5, 16
_MODE_BYTE, _MODE_MASK, _REGISTERS = 7, 3, 2


class SketchesBySlot(Accumulator):
    """What both kinds share: sketches as objects by slot, stored as bytes, merged one by one."""

    is_columnar = False
    _parts = ("_sketches", "_groups")

    def __init__(self) -> None:
        self._sketches = ObjectSlots(self._create, lambda sketch: self._read(self._written(sketch)))
        self._groups = SlotGroups()

    def _create(self) -> Any:
        """Return an empty sketch."""
        raise TypeError

    def _read(self, data: bytes) -> Any:
        """Return the sketch of the bytes that `_written` returned."""
        raise TypeError

    def _written(self, sketch: Any) -> bytes:
        raise TypeError

    def _add(self, sketch: Any, data: bytes) -> None:
        """Merge the sketch of `data` into `sketch`."""
        raise TypeError

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        states = columns["sketch"].to_pylist()
        rows = [row for row, state in enumerate(states) if state is not None]
        touched, places = self._groups.group(slots[rows])
        owned = self._sketches.owned(touched)
        for row, place in zip(rows, places.tolist()):
            self._add(owned[place], states[row])
        np.add.at(self._sketches.sizes.values, slots[rows], [len(states[row]) for row in rows])

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        states = [None if s is None else self._written(s) for s in self._sketches.get(slots)]
        return [("sketch", pa.array(states, pa.large_binary()))]


class DistinctSketches(SketchesBySlot):
    """Number of different values, about; NaN equals NaN and −0.0 equals 0.0. 0 where there were none."""

    def __init__(self, type_: pa.DataType, output_type: pa.DataType) -> None:
        import datasketches

        self._library: Any = datasketches
        self._output_type = output_type
        self._codec = KeyCodec(pa.schema([("value", type_)]))
        super().__init__()
        # Compiles the loops before there are rows.
        self.update(np.zeros(0, np.int64), pa.array([], type_), np.zeros(0, np.int64))

    def _create(self) -> Any:
        return self._library.hll_union(LG_REGISTERS)

    def _read(self, data: bytes) -> Any:
        union = self._create()
        self._add(union, data)
        return union

    def _written(self, sketch: Any) -> bytes:
        data: bytes = sketch.get_result(self._library.HLL_8).serialize_compact()
        return data

    def _add(self, sketch: Any, data: bytes) -> None:
        sketch.update(self._library.hll_sketch.deserialize(data))

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        from rayflow.state.accumulators import sketch_kernels as kernels

        coupons = self._coupons(values)
        for begin in range(0, max(len(slots), 1), kernels.MAX_COUPONS):
            piece = slice(begin, begin + kernels.MAX_COUPONS)
            touched, places = self._groups.group(slots[piece])
            # Sorted by slot, each coupon once.
            packed = np.unique((places.view(np.uint64) << np.uint64(32)) | coupons[piece])
            bounds = np.searchsorted(packed >> np.uint64(32), np.arange(len(touched) + 1, dtype=np.uint64))
            images = np.empty(4 * len(packed) + kernels.HEADER_BYTES * len(touched), np.uint8)
            ends = np.empty(len(touched), np.int64)
            kernels.write_images(packed.astype(np.uint32), bounds, images, ends)
            data, at, read = images.tobytes(), 0, self._library.hll_sketch.deserialize
            for union, end in zip(self._sketches.owned(touched), ends.tolist()):
                union.update(read(data[at:end]))
                at = end
            sizes = self._sketches.sizes.values
            sizes[touched] = np.minimum(sizes[touched] + 4 * np.diff(bounds), 1 << LG_REGISTERS)

    def _coupons(self, values: Any) -> npt.NDArray[np.uint32]:
        from rayflow.state.accumulators import sketch_kernels as kernels

        keys = self._codec.encode(pa.RecordBatch.from_arrays([values], schema=self._codec.schema))
        coupons = np.empty(len(keys), np.uint32)
        if isinstance(keys, WordKeys):
            kernels.coupons_of_words(keys.words, coupons)
        else:
            kernels.coupons_of_bytes(keys.data, keys.offsets, coupons)
        return coupons

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        counts = [0 if s is None else self._estimate(s) for s in self._sketches.get(slots)]
        return pa.array(counts, pa.int64()).cast(self._output_type)

    def _estimate(self, union: Any) -> int:
        data = self._written(union)
        if data[_MODE_BYTE] & _MODE_MASK == _REGISTERS:
            # Says that the order of values is not known: the estimate is then made of the registers alone.
            flagged = bytearray(data)
            flagged[_FLAGS_BYTE] |= _OUT_OF_ORDER
            data = bytes(flagged)
        estimate: float = self._library.hll_sketch.deserialize(data).get_estimate()
        return round(estimate)


class QuantileSketches(SketchesBySlot):
    """The value below or at which a fraction `q` of all values lies, about; NaNs do not count. Null where there
    were no values. Values are compared as doubles, which hold integers up to 2^53 exactly."""

    def __init__(self, type_: pa.DataType, output_type: pa.DataType, *, q: float) -> None:
        import datasketches

        self._make: Any = datasketches.kll_doubles_sketch
        self._q, self._output_type = float(q), output_type
        self._times = FixedWidth(type_) if pa.types.is_temporal(type_) else None
        super().__init__()

    def _create(self) -> Any:
        return self._make(QUANTILE_K)

    def _read(self, data: bytes) -> Any:
        return self._make.deserialize(data)

    def _written(self, sketch: Any) -> bytes:
        data: bytes = sketch.serialize()
        return data

    def _add(self, sketch: Any, data: bytes) -> None:
        sketch.merge(self._make.deserialize(data))

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        if self._times is None:
            numbers = float64s(values)
            ordered = ~np.isnan(numbers)
            if not ordered.all():
                slots, numbers = slots[ordered], numbers[ordered]
        else:
            numbers = self._times.numbers(values).astype(np.float64)
        touched, places = self._groups.group(slots)
        order = np.argsort(places, kind="stable")
        numbers = numbers[order]
        begin, retained = 0, []
        for sketch, end in zip(self._sketches.owned(touched), np.cumsum(np.bincount(places)).tolist()):
            sketch.update(numbers[begin:end])
            retained.append(sketch.num_retained)
            begin = end
        self._sketches.sizes.values[touched] = 8 * np.array(retained, np.int64)

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        quantiles = [
            None if s is None or s.is_empty() else s.get_quantile(self._q, True)
            for s in self._sketches.get(slots)
        ]
        column = pa.array(quantiles, pa.float64())
        if self._times is None:
            return column.cast(self._output_type)
        numbers = np.rint(column.fill_null(0).to_numpy()).astype(np.int64)
        return self._times.array(numbers, column.is_null().to_numpy(zero_copy_only=False))
