"""Python values that users put into states, made what an Arrow type can hold.

A value is checked when it is set, where the user's line is at hand, and kept as it will come back from a
checkpoint: an int put into a float64 is a float from then on. Common cases are decided by the value's exact
type; the rest goes through Arrow.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from datetime import date, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

_NAN = math.nan


class ValueType:
    """Checks values for one Arrow type. `is_nested`: its values are lists or dicts, which could be changed
    after they were set."""

    def __init__(self, type_: pa.DataType) -> None:
        self.type = type_
        self.is_nested = pa.types.is_nested(type_)
        self.canonical: Callable[[Any], Any] = self._checker()
        """Return a value (not None) as it is kept. Raises TypeError or ValueError where it does not fit."""

    def _checker(self) -> Callable[[Any], Any]:
        t, type_ = pa.types, self.type
        if t.is_integer(type_):
            bits = type_.bit_width
            signed = t.is_signed_integer(type_)
            low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
            return _integer(low, high)
        if t.is_float64(type_):
            return _double
        if t.is_string(type_) or t.is_large_string(type_):
            return _text
        if t.is_timestamp(type_) and type_.unit == "us" and type_.tz is None:
            return self._plain_timestamp
        return self._by_arrow

    def _plain_timestamp(self, value: Any) -> Any:
        if type(value) is datetime and value.tzinfo is None:
            return value
        return self._by_arrow(value)

    def _by_arrow(self, value: Any) -> Any:
        accepted = _accepted(self.type)
        if accepted is not None and not isinstance(value, accepted):
            raise TypeError
        made = pa.scalar(value, self.type).as_py()
        if pa.types.is_floating(self.type) and made != made:
            return _NAN
        return made


def owned(value: Any) -> Any:
    """Return a copy of a nested value that shares nothing with it that could be changed."""
    if isinstance(value, list):
        return [owned(item) for item in value]
    if isinstance(value, tuple):
        return tuple(owned(item) for item in value)
    if isinstance(value, Mapping):
        return {key: owned(item) for key, item in value.items()}
    return value


def widens(old: pa.DataType, new: pa.DataType) -> bool:
    """Whether every value of `old` is one of `new`, so that old state can be taken over."""
    t = pa.types
    if old == new or t.is_null(old):
        return True
    if t.is_integer(old) and t.is_integer(new):
        more_bits = new.bit_width > old.bit_width
        same_sign = t.is_signed_integer(old) == t.is_signed_integer(new)
        return bool(more_bits and (same_sign or t.is_signed_integer(new)))
    if t.is_integer(old) and t.is_floating(new):
        return bool(old.bit_width < _EXACT_BITS[new.bit_width])
    if t.is_floating(old) and t.is_floating(new):
        return bool(new.bit_width > old.bit_width)
    if (t.is_string(old) and t.is_large_string(new)) or (t.is_binary(old) and t.is_large_binary(new)):
        return True
    if t.is_decimal(old) and t.is_decimal(new):
        whole = new.precision - new.scale >= old.precision - old.scale
        return bool(whole and new.scale >= old.scale)
    if t.is_list(old) and t.is_list(new):
        return widens(old.value_type, new.value_type)
    if t.is_map(old) and t.is_map(new):
        return widens(old.key_type, new.key_type) and widens(old.item_type, new.item_type)
    return False


_EXACT_BITS = {16: 12, 32: 25, 64: 54}
"""Integers of fewer bits than this fit a float of so many bits."""


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def canonical(value: Any) -> int:
        if type(value) is not int:
            # Not a bool, which is a kind of int to Python; nor a float, whose fraction would be lost.
            if isinstance(value, (bool, np.bool_)):
                raise TypeError
            value = operator.index(value)
        if low <= value <= high:
            return int(value)
        raise ValueError(f"expected {low} to {high}")

    return canonical


def _double(value: Any) -> float:
    if type(value) is not float:
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.number)):
            raise TypeError
        value = float(value)
    return value if value == value else _NAN


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    if not value.isascii():
        value.encode()  # raises ValueError for what is no text: a lone surrogate
    return str(value)


def _accepted(type_: pa.DataType) -> tuple[type, ...] | None:
    """Return the Python types that Arrow may convert; it would take more, and guess."""
    t = pa.types
    for matches, accepted in (
        (t.is_timestamp, (datetime, np.datetime64)),
        (t.is_date, (date, np.datetime64)),
        (t.is_duration, (timedelta, np.timedelta64)),
        (t.is_boolean, (bool, np.bool_)),
        (t.is_floating, (int, float, np.number)),
        (t.is_binary, (bytes, bytearray, memoryview)),
        (t.is_large_binary, (bytes, bytearray, memoryview)),
        (t.is_list, (list, tuple, np.ndarray)),
        (t.is_large_list, (list, tuple, np.ndarray)),
        (t.is_struct, (Mapping,)),
    ):
        if matches(type_):
            return accepted
    return None
