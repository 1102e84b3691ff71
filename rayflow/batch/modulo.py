"""`modulo` (floors, as Python's `%`) and `remainder` (truncates), also where pyarrow has neither.

They came with pyarrow 26, which needs Python 3.11; on Python 3.10 they are made of what pyarrow 25 has.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


def _remainder(left: Any, right: Any) -> Any:
    """Of integers: what truncating division leaves, with the sign of `left`; ArrowInvalid on zero."""
    return pc.subtract(left, pc.multiply(pc.divide(left, right), right))


def _modulo(left: Any, right: Any) -> Any:
    """What flooring division leaves, with the sign of `right`; ArrowInvalid on zero, NaN for floats."""
    if pa.types.is_integer(left.type) and pa.types.is_integer(right.type):
        rest = _remainder(left, right)
        other_sign = pc.xor(pc.less(rest, 0), pc.less(right, 0))
        return pc.add(rest, pc.if_else(pc.and_(pc.not_equal(rest, 0), other_sign), right, 0))
    if not (pa.types.is_floating(left.type) or pa.types.is_floating(right.type)):
        return _decimals(left, right)
    left, right = left.cast(pa.float64(), safe=False), right.cast(pa.float64(), safe=False)
    with np.errstate(all="ignore"):
        rest = np.mod(_floats(left), _floats(right))
    missing = pc.or_(pc.is_null(left), pc.is_null(right))
    if isinstance(missing, pa.Scalar):
        return pa.scalar(None if missing.as_py() else float(rest), pa.float64())
    return pc.if_else(missing, None, pa.array(rest))


def _decimals(left: Any, right: Any) -> Any:
    """Row by row: pyarrow 25 divides decimals, but cannot round the quotient down without losing digits."""
    type_ = _decimal_type(left.type, right.type)
    if isinstance(left, pa.Scalar) and isinstance(right, pa.Scalar):
        return pa.scalar(_decimal(left.as_py(), right.as_py()), type_)
    pairs = zip(
        [left.as_py()] * len(right) if isinstance(left, pa.Scalar) else left.to_pylist(),
        [right.as_py()] * len(left) if isinstance(right, pa.Scalar) else right.to_pylist(),
        strict=True,
    )
    return pa.array([_decimal(a, b) for a, b in pairs], type_)


def _decimal_type(left: pa.DataType, right: pa.DataType) -> pa.DataType:
    """What pyarrow 26 gives: all digits before and after the point that either has, whatever the values are."""
    places = [_places(type_) for type_ in (left, right)]
    scale = max(after for _, after in places)
    wide = any(pa.types.is_decimal256(type_) for type_ in (left, right))
    return (pa.decimal256 if wide else pa.decimal128)(max(before for before, _ in places) + scale, scale)


def _places(type_: pa.DataType) -> tuple[int, int]:
    """Return how many digits there may be before the point and after it."""
    if pa.types.is_decimal(type_):
        return type_.precision - type_.scale, type_.scale
    signed = pa.types.is_signed_integer(type_)
    return len(str(2 ** (type_.bit_width - signed))), 0


def _decimal(left: Decimal | int | None, right: Decimal | int | None) -> Decimal | int | None:
    if left is None or right is None:
        return None
    if right == 0:
        raise pa.ArrowInvalid("Divide by zero")
    rest = left % right
    return rest + right if rest and (rest < 0) != (right < 0) else rest


def _floats(datum: Any) -> Any:
    """Return a datum of doubles for NumPy, its nulls as NaN."""
    if isinstance(datum, pa.Scalar):
        return np.float64("nan") if datum.as_py() is None else np.float64(datum.as_py())
    return datum.to_numpy(zero_copy_only=False)


modulo = getattr(pc, "modulo", _modulo)
remainder = getattr(pc, "remainder", _remainder)
