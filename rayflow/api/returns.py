"""The columns that a user's Python function makes: from `returns=`, or else from its type hints.

`returns=` may be a `pyarrow.Schema`; a mapping from names to types; a TypedDict or dataclass; or one type, for
functions that return scalars, whose column is then called `value`. A type is an Arrow type, its name
(`"int64"`), or a Python type: `bool int float str bytes datetime date time timedelta`, `list[T]`,
`dict[str, T]` (a map), `T | None`, `Literal[…]`, or a TypedDict or dataclass (a struct). Without `returns=` the
function's return hint is read in the same way, where it has one that says enough; `dict` and `Any` do not.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import datetime
import inspect
import types
import typing
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rayflow.api.planning import output_schema, plan_error
from rayflow.operators.functions import SCALAR_COLUMN

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


def returned_schema(returns: Any, fn: Any, what: str, *, flat: bool = False) -> pa.Schema | None:
    """Return the schema of the rows that `fn` returns (`flat`: yields), None where nothing says.

    Raises PlanError where `returns` is not one of the forms above.
    """
    if returns is None:
        return _schema_of_hint(_return_hint(fn, flat))
    schema = _schema_of(returns, what)
    return output_schema(schema, what)


def arrow_type(hint: Any) -> pa.DataType | None:
    """Return the Arrow type for a type as described above, None where it names none."""
    if isinstance(hint, pa.DataType):
        return hint
    if isinstance(hint, str):
        return _named_type(hint)
    if isinstance(hint, type) and hint in _ARROW_TYPES:
        return _ARROW_TYPES[hint]
    if (fields := _record_fields(hint)) is not None:
        return None if fields is _INCOMPLETE else pa.struct(fields)
    return _generic_type(hint)


def _schema_of(returns: Any, what: str) -> pa.Schema:
    if isinstance(returns, pa.Schema):
        return returns
    if isinstance(returns, Mapping):
        fields = []
        for name, hint in returns.items():
            found = arrow_type(hint)
            if found is None or not isinstance(name, str):
                raise plan_error(
                    f"{what}: returns={{{name!r}: {hint!r}}}: expected the name of a column and an Arrow type, "
                    "or a Python type such as int, float, str, datetime or list[str]"
                )
            fields.append(pa.field(name, found))
        return pa.schema(fields)
    schema = _schema_of_hint(returns)
    if schema is None:
        raise plan_error(
            f"{what}: returns={returns!r}: expected a pyarrow.Schema, a mapping from column names to types, a "
            "TypedDict or dataclass, or one type for a single column"
        )
    return schema


def _schema_of_hint(hint: Any) -> pa.Schema | None:
    fields = _record_fields(hint)
    if fields is not None:
        return None if fields is _INCOMPLETE else pa.schema(fields)
    found = None if isinstance(hint, str) and not hint else arrow_type(hint)
    return None if found is None else pa.schema({SCALAR_COLUMN: found})


_INCOMPLETE: list[pa.Field] = []
"""Marks a record some of whose fields have no Arrow type."""


def _record_fields(hint: Any) -> list[pa.Field] | None:
    """Return the fields of a TypedDict or dataclass, None for anything else."""
    if not isinstance(hint, type) or not (typing.is_typeddict(hint) or dataclasses.is_dataclass(hint)):
        return None
    try:
        hints = typing.get_type_hints(hint)
    except (NameError, TypeError):
        return _INCOMPLETE
    found = {name: arrow_type(of) for name, of in hints.items()}
    if not found or None in found.values():
        return _INCOMPLETE
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


def _return_hint(fn: Any, flat: bool) -> Any:
    target = fn if inspect.isroutine(fn) else getattr(fn, "__call__", None)  # noqa: B004
    try:
        hint = typing.get_type_hints(target).get("return")
    except (NameError, TypeError, AttributeError):
        return None
    if not flat:
        return hint
    many = (
        list,
        tuple,
        set,
        collections.abc.Iterator,
        collections.abc.Iterable,
        collections.abc.Generator,
        collections.abc.Sequence,
    )
    arguments = typing.get_args(hint)
    return arguments[0] if typing.get_origin(hint) in many and arguments else None
