"""The columns that a user's Python function makes: from `returns=`, or else from its type hints.

`returns=` may be a `pyarrow.Schema`; a mapping from names to types; a TypedDict or dataclass; or one type, for
functions that return scalars, whose column is then called `value`. A type is what `batch.type_hints` reads: an
Arrow type, its name, or a Python type. Without `returns=` the function's return hint is read in the same way,
where it has one that says enough; `dict` and `Any` do not.
"""

from __future__ import annotations

import collections.abc
import inspect
import typing
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rayflow.api.planning import output_schema, plan_error
from rayflow.batch.type_hints import INCOMPLETE, arrow_type, record_fields
from rayflow.operators.functions import SCALAR_COLUMN


def returned_schema(returns: Any, fn: Any, what: str, *, flat: bool = False) -> pa.Schema | None:
    """Return the schema of the rows that `fn` returns (`flat`: yields), None where nothing says.

    Raises PlanError where `returns` is not one of the forms above.
    """
    if returns is None:
        return _schema_of_hint(_return_hint(fn, flat))
    schema = _schema_of(returns, what)
    return output_schema(schema, what)


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
    fields = record_fields(hint)
    if fields is not None:
        return None if fields is INCOMPLETE else pa.schema(fields)
    found = None if isinstance(hint, str) and not hint else arrow_type(hint)
    return None if found is None else pa.schema({SCALAR_COLUMN: found})


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
