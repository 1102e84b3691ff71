"""Two outputs compared as multisets of rows: what is lost, there too often, or not what it should be. Pure.

A row counts as *duplicated* where the output has it more often than the reference, and *lost* where less often. A row
that the reference does not have at all is *differing*, and accounts for one that is missing: a wrong count is one
differing row, not one lost and one too many. Rows are equal if all their columns are; NaN equals NaN. Floats may differ
in the last digits (`FLOAT_DIGITS` count), since sums of them depend on the order of their rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

FLOAT_DIGITS = 10
_EXAMPLES = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of one output's rows. `examples` are some that are wrong."""

    expected: int
    found: int
    lost: int
    duplicated: int
    differing: int
    examples: tuple[str, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicated or self.differing)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        names = ("expected", "found", "lost", "duplicated", "differing")
        numbers = {name: getattr(self, name) for name in names}
        return {**numbers, "exact": self.exact, "examples": list(self.examples)}


def compare(expected: pa.Table, found: pa.Table, ignore: Sequence[str] = ()) -> Verdict:
    """Compare two tables, without the columns `ignore`. Columns that only one of them has make all rows differ."""
    left, right = _counted(expected, ignore), _counted(found, ignore)
    missing = {row: n - right[row] for row, n in left.items() if n > right[row]}
    extra = {row: n - left[row] for row, n in right.items() if n > left[row]}
    differing = sum(n for row, n in extra.items() if row not in left)
    duplicated = sum(extra.values()) - differing
    lost = max(0, sum(missing.values()) - differing)
    shown = [f"missing {n} ×: {_text(row)}" for row, n in list(missing.items())[:_EXAMPLES]]
    shown += [f"too many {n} ×: {_text(row)}" for row, n in list(extra.items())[:_EXAMPLES]]
    return Verdict(
        expected=expected.num_rows,
        found=found.num_rows,
        lost=lost,
        duplicated=duplicated,
        differing=differing,
        examples=tuple(shown),
    )


def _counted(table: pa.Table, ignore: Sequence[str]) -> Counter[tuple[Any, ...]]:
    """Return how often each row is there. Whole columns first: most rows of most outputs are there once."""
    names = sorted(name for name in table.column_names if name not in ignore)
    columns = [_canonical(table[name]) for name in names]
    if any(pa.types.is_nested(column.type) for column in columns):
        return Counter(zip(*([(n, repr(v)) for v in c.to_pylist()] for n, c in zip(names, columns))))
    plain = pa.table(columns, names=names)
    grouped = plain.group_by(names).aggregate([([], "count_all")])
    counts = grouped["count_all"].to_pylist()
    values = zip(*([(n, repr(v)) for v in grouped[n].to_pylist()] for n in names))
    found: Counter[tuple[Any, ...]] = Counter()
    for row, count in zip(values, counts):
        found[row] += count
    return found


def _canonical(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if not pa.types.is_floating(column.type):
        return column
    wide = column.cast(pa.float64())
    # Rounded to so many significant digits: the decimal places that this leaves depend on the size.
    size = pc.floor(pc.log10(pc.abs(wide)))
    scale = pc.power(pa.scalar(10.0), pc.subtract(FLOAT_DIGITS - 1.0, size))
    rounded = pc.divide(pc.round(pc.multiply(wide, scale)), scale)
    return pc.if_else(pc.and_(pc.is_finite(scale), pc.is_finite(rounded)), rounded, wide)


def _text(row: tuple[Any, ...]) -> str:
    return ", ".join(f"{name}={value}" for name, value in row)
