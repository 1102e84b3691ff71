"""Rows' places in an order, as words: the smaller code comes first, whatever the type and the direction.

Numbers, times and booleans have a code of their own, which never changes: an order-preserving image of the value in
64 bits, where NaN comes after all numbers and null after everything. Where the values may use all 64 bits, a word
before it says whether the value is null. Other types (strings, binary, decimals) have no such image. Their codes
are ranks among the values at hand, and mean nothing beyond them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.ordering import SortKey
from rayflow.state.fixed_width import FixedWidth, is_fixed_width

Codes = npt.NDArray[np.uint64]

_SIGN = np.uint64(1 << 63)
_NULL = np.uint64(2**64 - 1)
_NAN = np.uint64(2**64 - 2)


class SortCodes:
    """Codes of `keys` over rows of `schema`, `width` words a row.

    `stable`: codes of different batches may be compared. Raises TypeError for a type without an order.
    """

    def __init__(self, keys: Sequence[SortKey], schema: pa.Schema) -> None:
        self._columns = [_column(key, key.expr.output_type(schema)) for key in keys]
        self.width = sum(column.width for column in self._columns)
        self.stable = all(isinstance(column, _FixedColumn) for column in self._columns)

    def of(self, rows: pa.RecordBatch) -> Codes:
        """Return the codes of `rows`, a line of words each. Raises what the expressions raise."""
        codes = np.empty((rows.num_rows, self.width), np.uint64)
        at = 0
        for column in self._columns:
            column.write(rows, codes[:, at : at + column.width])
            at += column.width
        return codes


def _column(key: SortKey, type_: pa.DataType) -> _FixedColumn | _RankedColumn:
    if is_fixed_width(type_):
        return _FixedColumn(key, type_)
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_nested(plain) or pa.types.is_null(plain):
        raise TypeError(f"{key.expr} is {type_}, which has no order")
    return _RankedColumn(key)


class _FixedColumn:
    def __init__(self, key: SortKey, type_: pa.DataType) -> None:
        self._key = key
        self._fixed = FixedWidth(type_)
        integer = self._fixed.dtype.kind != "f" and not pa.types.is_boolean(type_)
        self.width = 2 if integer and type_.bit_width == 64 else 1

    def write(self, rows: pa.RecordBatch, out: Codes) -> None:
        values = self._key.expr.evaluate(rows)
        words = _ascending(self._fixed.numbers(values))
        if self._key.descending:
            words = ~words
        if self._fixed.dtype.kind == "f":
            words = np.where(np.isnan(self._fixed.numbers(values)), _NAN, words)
        null = values.is_null().to_numpy(zero_copy_only=False) if values.null_count else None
        if null is not None:
            words = np.where(null, _NULL, words)
        if self.width == 2:
            out[:, 0] = 0 if null is None else null
        out[:, -1] = words


def _ascending(numbers: npt.NDArray[Any]) -> Codes:
    if numbers.dtype == np.uint64:
        return numbers
    if numbers.dtype == np.int64:
        signed: Codes = numbers.view(np.uint64) ^ _SIGN
        return signed
    # Adding makes -0.0 the same as 0.0. Negative floats order by their bits the other way round.
    bits = (numbers + 0.0).view(np.uint64)
    codes: Codes = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return codes


class _RankedColumn:
    width = 1

    def __init__(self, key: SortKey) -> None:
        self._key = key

    def write(self, rows: pa.RecordBatch, out: Codes) -> None:
        values = self._key.expr.evaluate(rows)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        order = "descending" if self._key.descending else "ascending"
        # Nulls get the largest rank: they come last unless told otherwise.
        out[:, 0] = pc.rank(values, sort_keys=order, tiebreaker="dense").to_numpy(zero_copy_only=False)
