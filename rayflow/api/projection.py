"""Columns in, columns out: what a projection makes of a schema, and of the columns with a meaning.

A *meaning* (event time, upsert key, partitioning) follows a column that passes through unchanged, under
whatever name; computing something from the column does not carry it on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rayflow.api.planning import StreamInfo, at_user_line, known_schema, output_schema, plan_error
from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.expressions import Expr, as_expr, col
from rayflow.batch.hashing import is_key_type
from rayflow.batch.nodes import Alias, Column

Columns = list[tuple[str, Expr]]


def selected_columns(info: StreamInfo, args: Sequence[Any], named: Mapping[str, Any], what: str) -> Columns:
    """Return (name, expression) for `select`-like arguments: names, expressions (named by their alias, else
    their leftmost column), and `name=expression` (a text is a column's name, other values are constants).

    Raises PlanError, at the user's line, for an unknown column or a type that does not fit.
    """
    columns = [(expr.name, expr) for expr in (as_column(arg, what) for arg in args)]
    columns += [(name, as_column(value, what)) for name, value in named.items()]
    for _, expr in columns:
        result_type(info, expr, what)
    return columns


def as_column(value: Any, what: str) -> Expr:
    """Return an expression for what a user put in the place of a column."""
    if isinstance(value, AggregateExpr):
        raise plan_error(f"{what}: {value} is an aggregate; aggregates go into .key_by(…).aggregate(…)")
    with at_user_line():
        return col(value) if isinstance(value, str) else as_expr(value)


def result_type(info: StreamInfo, expr: Expr, what: str) -> pa.DataType:
    """Return the type of `expr` over the stream. Raises PlanError, at the user's line, for an unknown column
    (also where the stream's columns are unknown) or a type that does not fit."""
    if expr.columns():
        known_schema(info, what)
    with at_user_line():
        return expr.output_type(pa.schema([]) if info.schema is None else info.schema)


def projected(info: StreamInfo, columns: Columns, what: str) -> StreamInfo:
    """Return what is known of a stream after projecting it to `columns`."""
    fields = [_field(info, name, expr, what) for name, expr in columns]
    if not fields:
        raise plan_error(f"{what}: no column is left; keep at least one")
    schema = output_schema(fields, what)
    # The first of several copies carries the meaning.
    kept = {source: name for name, expr in reversed(columns) if (source := plain_column(expr)) is not None}
    return replace(
        info,
        schema=schema,
        time_column=None if info.time_column is None else kept.get(info.time_column),
        upsert_key=_upsert_key(info, kept, schema),
        partitioned_by=_mapped(info.partitioned_by, kept),
    )


def plain_column(expr: Expr) -> str | None:
    """Return the column that `expr` is, under whatever alias; None where it computes something."""
    node = expr.node
    while isinstance(node, Alias):
        node = node.input
    return node.column if isinstance(node, Column) else None


def detail(columns: Columns) -> str:
    """Return a short rendering of a projection."""
    return ", ".join(name if plain_column(expr) == name else f"{name}={expr}" for name, expr in columns)


def _field(info: StreamInfo, name: str, expr: Expr, what: str) -> pa.Field:
    source = plain_column(expr)
    if source is not None:
        return known_schema(info, what).field(source).with_name(name)
    return pa.field(name, result_type(info, expr, what))


def _upsert_key(info: StreamInfo, kept: Mapping[str, str], schema: pa.Schema) -> tuple[str, ...] | None:
    key = _mapped(info.upsert_key, kept)
    if key is None and info.whole_rows:
        # All columns tell the rows apart anyhow; the key only says where a row goes.
        return tuple(field.name for field in schema if is_key_type(field.type)) or None
    return key


def _mapped(names: tuple[str, ...] | None, kept: Mapping[str, str]) -> tuple[str, ...] | None:
    if names is None or any(name not in kept for name in names):
        return None
    return tuple(kept[name] for name in names)
