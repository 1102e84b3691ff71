"""Plain text tables and JSON, the same on a terminal and in a pipe: nothing is wrapped, only long values are cut."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from unicodedata import east_asian_width

import click

if TYPE_CHECKING:
    import pyarrow as pa


def echo_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table, or nothing but its headings where there are no rows."""
    click.echo(text_table(headings, rows))


def echo_json(value: Any) -> None:
    """Print `value` as JSON; what JSON has no type for becomes text (times in ISO 8601, bytes in hex)."""
    click.echo(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return `value` as JSON, see `echo_json`."""
    return json.dumps(value, indent=indent, default=_json_default, ensure_ascii=False)


def text_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return rows below headings in aligned columns; columns of numbers only are aligned to the right."""
    values = [list(row) for row in rows]
    cells = [list(headings), *([cell_text(value) for value in row] for row in values)]
    columns = range(len(headings))
    widths = [max(_width(row[c]) for row in cells) for c in columns]
    right = [bool(values) and all(_is_number(row[c]) for row in values) for c in columns]
    lines = ["  ".join(_padded(row[c], widths[c], right[c]) for c in columns).rstrip() for row in cells]
    return "\n".join([lines[0], "  ".join("─" * width for width in widths), *lines[1:]])


_MOST_BYTES = 32
_MOST_CHARACTERS = 200


def cell_text(value: Any) -> str:
    """Return a value as a table shows it, on one line."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if isinstance(value, list | tuple | dict):
        return json_text(value)
    if isinstance(value, bytes):
        return value.hex() if len(value) <= _MOST_BYTES else f"{value[:8].hex()}… ({len(value):,} bytes)"
    return str(value).replace("\n", "⏎")


def echo_arrow(table: pa.Table, limit: int | None) -> None:
    """Print the first `limit` rows of an Arrow table (None: all), and how many more there are. Of values longer than
    `_MOST_CHARACTERS` the beginning, since one of them makes every line of the table as wide."""
    shown = table if limit is None else table.slice(0, limit)
    echo_table(table.column_names, ([_cut(value) for value in row.values()] for row in _rows(shown)))
    if shown.num_rows < table.num_rows:
        click.echo(f"… {table.num_rows - shown.num_rows:,} more rows")


def _cut(value: Any) -> Any:
    if not isinstance(value, str | list | tuple | dict):
        return value
    text = cell_text(value)
    if len(text) <= _MOST_CHARACTERS:
        return value
    return f"{text[:_MOST_CHARACTERS]}… ({len(text):,} characters)"


def _rows(table: pa.Table) -> list[dict[str, Any]]:
    # Columns of one name twice would be lost in dicts; state and results have none.
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float | Decimal) and not isinstance(value, bool))


def _width(text: str) -> int:
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in text)


def _padded(text: str, width: int, right: bool) -> str:
    gap = " " * (width - _width(text))
    return gap + text if right else text + gap


def _json_default(value: Any) -> Any:
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case bytes():
            return value.hex()
        case timedelta():
            return value.total_seconds()
        case _:
            return str(value)
