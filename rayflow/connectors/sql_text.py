"""Rows as the text that databases read: COPY's tab-separated lines, and the literals of an INSERT.

Everything is done by Arrow's kernels, a column at a time; only binary and nested values, which have none, go through
Python. A value's text is what the database's own cast from text takes, so the column's type there decides what
it becomes: 64-bit integers into numeric, text into an enum.

| Arrow type | text |
|---|---|
| integers, floats, decimals, dates, times, text | as Arrow writes it; NaN and infinities as `NaN`, `Infinity` |
| bool | `true` / `false`; as numbers `1` / `0` where the database has no booleans |
| timestamp without zone | `2024-01-31 10:20:30.123456` |
| timestamp with zone | the same in UTC, with `+00` where the database has zones |
| binary | hexadecimal |
| lists, structs, maps | JSON, as in `json_lines` |
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.connectors.json_lines import characters, json_tokens

_TEXT = pa.large_string()
_EMPTY, _TAB, _LINE_END, _COMMA, _QUOTE, _OPENING, _CLOSING, _UTC = (
    pa.scalar(text, _TEXT) for text in ("", "\t", "\n", ",", "'", ",(", ")", "+00")
)
_COPY_ESCAPES = (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r"))
_MYSQL_ESCAPES = (("\\", "\\\\"), ("'", "\\'"), ("\0", "\\0"))


def copy_lines(batch: pa.RecordBatch) -> memoryview:
    """Return the rows in the text format of PostgreSQL's COPY, in UTF-8."""
    columns = [_escaped(texts(column, zones=True), _COPY_ESCAPES) for column in batch.columns]
    lines = pc.binary_join_element_wise(*columns, _TAB, null_handling="replace", null_replacement="\\N")
    return characters(pc.binary_join_element_wise(lines, _LINE_END, _EMPTY))


def mysql_values(batch: pa.RecordBatch) -> memoryview:
    """Return `(…),(…)`: the rows as literals of a MariaDB or MySQL INSERT whose connection speaks utf8mb4 and takes
    backslashes as escapes."""
    columns = [_mysql_literals(column) for column in batch.columns]
    rows = pc.binary_join_element_wise(*columns, _COMMA, null_handling="replace", null_replacement="NULL")
    return characters(pc.binary_join_element_wise(_OPENING, rows, _CLOSING, _EMPTY))[1:]


def texts(column: pa.Array, *, zones: bool) -> pa.Array:
    """Return the values as large text; see the module's table. `zones`: times with a zone say so."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return texts(column.dictionary_decode(), zones=zones)
    if pa.types.is_timestamp(kind):
        return _timestamps(column, zones)
    if pa.types.is_nested(kind):
        return pc.if_else(pc.is_valid(column), json_tokens(column), pa.scalar(None, _TEXT))
    if is_binary(kind):
        return _each(column, lambda value: "\\x" + value.hex())
    # float16 has no text form of its own in Arrow.
    found = pc.cast(column.cast(pa.float32()) if kind == pa.float16() else column, _TEXT)
    if pa.types.is_floating(kind):
        for ours, theirs in (("nan", "NaN"), ("inf", "Infinity"), ("-inf", "-Infinity")):
            found = pc.if_else(pc.equal(found, ours), pa.scalar(theirs, _TEXT), found)
    return found


def _mysql_literals(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _mysql_literals(column.dictionary_decode())
    if pa.types.is_boolean(kind):
        return pc.cast(pc.cast(column, pa.int8()), _TEXT)
    if pa.types.is_integer(kind) or pa.types.is_decimal(kind):
        return pc.cast(column, _TEXT)
    if is_binary(kind):
        return _each(column, lambda value: f"x'{value.hex()}'")
    found = _escaped(texts(column, zones=False), _MYSQL_ESCAPES)
    return pc.binary_join_element_wise(_QUOTE, found, _QUOTE, _EMPTY)


def _timestamps(column: pa.Array, zones: bool) -> pa.Array:
    zoned = column.type.tz is not None
    plain = pa.timestamp("us")
    # Databases count microseconds: what is finer is cut off, as they would.
    found = pc.cast(pc.cast(column, pa.timestamp("us", column.type.tz), safe=False), plain)
    found = pc.cast(found, _TEXT)
    return pc.binary_join_element_wise(found, _UTC, _EMPTY) if zoned and zones else found


def _escaped(column: pa.Array, escapes: tuple[tuple[str, str], ...]) -> pa.Array:
    for what, instead in escapes:
        column = pc.replace_substring(column, what, instead)
    return column


def _each(column: pa.Array, render: Callable[[Any], str]) -> pa.Array:
    values = column.to_pylist()
    return pa.array([None if value is None else render(value) for value in values], _TEXT)


def is_binary(kind: pa.DataType) -> bool:
    """Return whether values are bytes."""
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )
