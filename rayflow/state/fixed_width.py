"""Fixed-width Arrow columns as NumPy numbers of 64 bits, and back.

Key words and accumulators store such values as int64, uint64 or float64, whatever the column's own width;
this is the one place that knows how an Arrow type maps to them. Exact for all that `is_fixed_width` accepts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Numbers = npt.NDArray[Any]


def is_fixed_width(type_: pa.DataType) -> bool:
    """Whether values of `type_` fit a 64-bit number: integers, floats, booleans and times."""
    t = pa.types
    if t.is_integer(type_) or t.is_floating(type_) or t.is_boolean(type_):
        return True
    return bool(t.is_temporal(type_) and not t.is_interval(type_))


class FixedWidth:
    """Converts columns of one fixed-width type. `dtype` is that of the numbers."""

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self._raw = _raw_type(type_)
        kind = np.dtype(self._raw.to_pandas_dtype()).kind
        self.dtype = np.dtype({"f": np.float64, "u": np.uint64}.get(kind, np.int64))

    def numbers(self, array: pa.Array) -> Numbers:
        """Return a number per row, 0 where the row is null. May be read-only: shared with Arrow."""
        # Booleans are bits, which cannot be viewed as bytes.
        raw = array.cast(self._raw) if pa.types.is_boolean(self.type) else array.view(self._raw)
        if raw.null_count:
            raw = pc.fill_null(raw, 0)
        numbers: Numbers = raw.to_numpy(zero_copy_only=False)
        return numbers.astype(self.dtype, copy=False)

    def array(self, numbers: Numbers, null: npt.NDArray[np.bool_] | None = None) -> pa.Array:
        """Return the column whose `numbers` these are; null where `null` is set."""
        raw = pa.array(numbers.astype(self._raw.to_pandas_dtype(), copy=False), self._raw, mask=null)
        return raw.cast(self.type) if pa.types.is_boolean(self.type) else raw.view(self.type)


def _raw_type(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_boolean(type_):
        return pa.uint8()
    if pa.types.is_temporal(type_):
        return pa.int64() if type_.bit_width == 64 else pa.int32()
    return type_
