"""Minima and maxima of any ordered type.

Fixed-width values go through NumPy's `minimum.at` on their 64-bit numbers. A NaN is larger than all numbers, as in
PostgreSQL, DuckDB and Spark: it is the maximum, and the minimum where there is nothing else. Strings, binaries
and decimals are first reduced per slot within the batch by Arrow's grouping, then compared with what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.lanes import LEAST, MOST, Lane, Numbers
from rayflow.state.accumulators.parts import PooledValues, SlotArray
from rayflow.state.fixed_width import FixedWidth


class FixedExtreme(Accumulator):
    """Smallest or largest value of a fixed-width type; null where there were no values."""

    _parts = ("_numbers", "_seen")

    def __init__(self, type_: pa.DataType, *, largest: bool) -> None:
        self._fixed, self._largest = FixedWidth(type_), largest
        dtype = self._fixed.dtype
        self._ufunc: Any
        if dtype.kind == "f":
            # maximum gives NaN where one operand is, fmin the other one.
            self._ufunc, fill = (np.maximum, -np.inf) if largest else (np.fmin, np.nan)
        else:
            limits = np.iinfo(np.uint64 if dtype.kind == "u" else np.int64)
            self._ufunc = np.maximum if largest else np.minimum
            fill = limits.min if largest else limits.max
        self._numbers = SlotArray(dtype, fill)
        self._seen = SlotArray(np.bool_)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        assert values is not None
        self._take(slots, self._fixed.numbers(values))
        self._seen.values[slots] = True

    def _take(self, slots: I64, numbers: Any) -> None:
        # NumPy warns of NaNs.
        with np.errstate(invalid="ignore"):
            self._ufunc.at(self._numbers.values, slots, numbers)

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """See `Accumulator`."""
        other = self if source is None else source
        # A slot without values holds what any value beats.
        self._take(into, other._numbers.values[from_])
        self._seen.values[into[other._seen.values[from_]]] = True

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        column = columns["value"]
        rows = column.is_valid().to_numpy(zero_copy_only=False)
        self.update(slots[rows], column.drop_null(), slots[rows])

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return [("value", self.results(slots))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return self.results_of([self._numbers.values[slots], self._seen.values[slots]])

    def lanes(self) -> tuple[Lane, ...]:
        """See `Accumulator`."""
        return (Lane(self._numbers, MOST if self._largest else LEAST), Lane(self._seen, MOST))

    def results_of(self, numbers: Sequence[Numbers]) -> pa.Array:
        """See `Accumulator`."""
        values, seen = numbers
        return self._fixed.array(values, None if seen.all() else ~seen)


class PooledExtreme(Accumulator):
    """Smallest or largest string, binary or decimal; null where there were no values."""

    _parts = ("_values",)

    def __init__(self, type_: pa.DataType, *, largest: bool) -> None:
        self._function, self._beats = ("max", pc.greater) if largest else ("min", pc.less)
        self._values = PooledValues(type_)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        assert values is not None
        rows = pa.table({"slot": slots, "value": values})
        best = pa.TableGroupBy(rows, "slot", use_threads=False).aggregate([("value", self._function)])
        best = best.combine_chunks()
        touched = best.column("slot").to_numpy()
        candidates = best.column(f"value_{self._function}").combine_chunks()
        wins = pc.fill_null(self._beats(candidates, self._values.get(touched)), True)
        kept = wins.to_numpy(zero_copy_only=False)
        self._values.put(touched[kept], candidates.filter(wins))

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        column = columns["value"]
        rows = column.is_valid().to_numpy(zero_copy_only=False)
        if rows.any():
            self.update(slots[rows], column.drop_null(), slots[rows])

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return [("value", self.results(slots))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return self._values.get(slots)
