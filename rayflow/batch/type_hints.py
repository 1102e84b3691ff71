"""Arrow types as users write them in Python.

A type is an Arrow type, its name (`"int64"`), or a Python type: `bool int float str bytes datetime date time
timedelta`, `list[T]`, `dict[str, T]` (a map), `T | None`, `Literal[…]`, or a TypedDict or dataclass (a struct).
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import types
import typing
from typing import Any

import pyarrow as pa

_ARROW_TYPES: dict[Any, pa.DataType] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bytes: pa.binary(),
    datetime.datetime: pa.timestamp("us"),
    datetime.date: pa.date32(),
    datetime.time: pa.time64("us"),
    datetime.timedelta: pa.duration("us"),
}


def arrow_type(hint: Any) -> pa.DataType | None:
    """Return the Arrow type for a type as described above, None where it names none."""
    if isinstance(hint, pa.DataType):
        return hint
    if isinstance(hint, str):
        return _named_type(hint)
    if isinstance(hint, type) and hint in _ARROW_TYPES:
        return _ARROW_TYPES[hint]
    if (fields := record_fields(hint)) is not None:
        return None if fields is INCOMPLETE else pa.struct(fields)
    return _generic_type(hint)


INCOMPLETE: list[pa.Field] = []
"""Marks a record some of whose fields have no Arrow type."""


def record_fields(hint: Any) -> list[pa.Field] | None:
    """Return the fields of a TypedDict or dataclass, None for anything else."""
    if not isinstance(hint, type) or not (typing.is_typeddict(hint) or dataclasses.is_dataclass(hint)):
        return None
    try:
        hints = typing.get_type_hints(hint)
    except (NameError, TypeError):
        return INCOMPLETE
    found = {name: arrow_type(of) for name, of in hints.items()}
    if not found or None in found.values():
        return INCOMPLETE
    return [pa.field(name, of) for name, of in found.items()]


def _generic_type(hint: Any) -> pa.DataType | None:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        some = [a for a in arguments if a is not type(None)]
        return arrow_type(some[0]) if len(some) == 1 else None
    if origin is typing.Literal:
        kinds = {type(a) for a in arguments}
        return arrow_type(kinds.pop()) if len(kinds) == 1 else None
    if origin is typing.Annotated:
        return arrow_type(arguments[0])
    inner = [arrow_type(a) for a in arguments if a is not Ellipsis]
    if not inner or None in inner:
        return None
    if origin in (list, collections.abc.Sequence) and len(inner) == 1:
        return pa.list_(inner[0])
    if origin in (dict, collections.abc.Mapping) and len(inner) == 2:
        return pa.map_(*inner)
    return None


def _named_type(name: str) -> pa.DataType | None:
    try:
        return pa.type_for_alias(name)
    except ValueError:
        return None
