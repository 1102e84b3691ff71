"""Plain Python data as text, and back: how the states of users' functions are stored without pickle.

The text is JSON. What JSON has, it says as it is; what it lacks is an object with the one name `~type`. Types
come back as they were: a tuple as a tuple, an int of any size as that int, NaN as NaN.
"""

from __future__ import annotations

import base64
import json
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import numpy as np

_MARK = "~"
_AS_IS = (str, int, float, bool, type(None))


def encode(value: Any) -> str:
    """Return `value` as text. Raises TypeError, naming where in `value`, for what is not plain data."""
    return json.dumps(_encoded(value, "the state"), separators=(",", ":"))


def decode(text: str) -> Any:
    """Return the value that `encode` wrote."""
    return _decoded(json.loads(text))


def _encoded(value: Any, where: str) -> Any:
    kind = type(value)
    if kind in _AS_IS:
        return value
    if kind is list:
        return [_encoded(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is dict and all(type(key) is str and not key.startswith(_MARK) for key in value):
        return {key: _encoded(item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind in _COLLECTIONS:
        return {_MARK + kind.__name__: _encoded(list(value), where)}
    if kind in _MAPPINGS:
        return {_MARK + kind.__name__: _encoded([list(item) for item in value.items()], where)}
    if kind in _SCALARS:
        return {_MARK + kind.__name__: _SCALARS[kind][0](value)}
    if isinstance(value, np.generic) and value.dtype.kind in "biufmM":
        return {_MARK + "numpy": _array_data(np.asarray(value))}
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufmMSU":
        return {_MARK + "ndarray": _array_data(value)}
    hint = (
        "; call .as_py() on it" if kind.__module__.startswith("pyarrow") and hasattr(value, "as_py") else ""
    )
    raise TypeError(
        f"{where} is {_shown(value)} of type {kind.__module__}.{kind.__qualname__}, which cannot be stored{hint}; use "
        "None, booleans, numbers, text, bytes, decimals, dates and times, lists, tuples, sets, dicts, NumPy arrays"
    )


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    (name, inner), *others = value.items() or [("", None)]
    if others or not name.startswith(_MARK):
        return {key: _decoded(item) for key, item in value.items()}
    return _BACK[name[1:]](inner)


def _array_data(array: Any) -> list[Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return [array.dtype.str, list(array.shape), data]


def _array(data: list[Any]) -> Any:
    dtype, shape, text = data
    # A copy, since what lies in bytes cannot be written to.
    return np.frombuffer(base64.b64decode(text), np.dtype(dtype)).reshape(shape).copy()


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


_COLLECTIONS = (tuple, set, frozenset)
_MAPPINGS = (dict, Counter, OrderedDict)

_SCALARS: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    bytes: (lambda v: base64.b64encode(v).decode(), base64.b64decode),
    bytearray: (lambda v: base64.b64encode(v).decode(), lambda t: bytearray(base64.b64decode(t))),
    Decimal: (str, Decimal),
    datetime: (datetime.isoformat, datetime.fromisoformat),
    date: (date.isoformat, date.fromisoformat),
    time: (time.isoformat, time.fromisoformat),
    timedelta: (lambda v: [v.days, v.seconds, v.microseconds], lambda v: timedelta(*v)),
    complex: (lambda v: [v.real, v.imag], lambda v: complex(*v)),
}
"""Writes and reads values of a type."""


def _collection(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda items: kind(_decoded(items))


def _mapping(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda items: kind({_decoded(key): _decoded(value) for key, value in items})


_BACK: dict[str, Callable[[Any], Any]] = {
    **{kind.__name__: _collection(kind) for kind in _COLLECTIONS},
    **{kind.__name__: _mapping(kind) for kind in _MAPPINGS},
    **{kind.__name__: read for kind, (_, read) in _SCALARS.items()},
    "ndarray": _array,
    "numpy": lambda data: _array(data)[()],
}
