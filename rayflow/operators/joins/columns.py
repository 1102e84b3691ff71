"""The columns of a join's result: the keys once, then (for windows) bounds, the left others, the right others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

How = Literal["inner", "left", "right", "full"]

LEFT, RIGHT = 0, 1
"""Input ports."""


@dataclass(frozen=True, slots=True)
class JoinSide:
    """One input: its columns as a user sees them, and which of them are the key. `outer`: rows without a match
    come out too."""

    schema: pa.Schema
    keys: tuple[str, ...]
    outer: bool = False

    @property
    def key_schema(self) -> pa.Schema:
        """Schema of the key columns."""
        return pa.schema([self.schema.field(key) for key in self.keys])

    @property
    def key_numbers(self) -> list[int]:
        """Positions of the key columns."""
        return [self.schema.get_field_index(key) for key in self.keys]

    @property
    def other_numbers(self) -> list[int]:
        """Positions of the other columns."""
        return [i for i, name in enumerate(self.schema.names) if name not in self.keys]


class JoinColumns:
    """Puts rows of two sides together. `schema` is that of the result: `bounds` are the fields between the keys
    and the others, `suffix` is what a right column's name gets that the left side, or a bound, has too."""

    def __init__(
        self, left: JoinSide, right: JoinSide, suffix: str = "_right", bounds: Sequence[pa.Field] = ()
    ) -> None:
        self._left, self._right = left, right
        self._left_keys, self._left_others = left.key_numbers, left.other_numbers
        self._right_keys, self.right_others = right.key_numbers, right.other_numbers
        keys = [
            left.schema.field(a).with_nullable(
                left.schema.field(a).nullable or right.schema.field(b).nullable
            )
            for a, b in zip(self._left_keys, self._right_keys)
        ]
        lefts = [_optional(left.schema.field(i), right.outer) for i in self._left_others]
        taken = {field.name for field in [*keys, *bounds, *lefts]}
        rights = [
            _optional(field.with_name(field.name + suffix) if field.name in taken else field, left.outer)
            for field in (right.schema.field(i) for i in self.right_others)
        ]
        self.fields = [*keys, *bounds, *lefts, *rights]
        self.schema = pa.schema(self.fields)

    def pairs(
        self, left: pa.RecordBatch, right_others: pa.RecordBatch, bounds: Sequence[pa.Array] = ()
    ) -> pa.RecordBatch:
        """Return row i of `left` (all its columns) beside row i of the right side's others."""
        keys = [left.column(i) for i in self._left_keys]
        lefts = [left.column(i) for i in self._left_others]
        return self._batch([*keys, *bounds, *lefts, *right_others.columns])

    def alone(self, port: int, rows: pa.RecordBatch, bounds: Sequence[pa.Array] = ()) -> pa.RecordBatch:
        """Return rows of one side (all its columns) beside nulls."""
        if port == LEFT:
            nulls = [pa.nulls(rows.num_rows, self._right.schema.field(i).type) for i in self.right_others]
            return self.pairs(
                rows, pa.RecordBatch.from_arrays(nulls, names=[str(i) for i in range(len(nulls))]), bounds
            )
        keys = [rows.column(i) for i in self._right_keys]
        nulls = [pa.nulls(rows.num_rows, self._left.schema.field(i).type) for i in self._left_others]
        return self._batch([*keys, *bounds, *nulls, *(rows.column(i) for i in self.right_others)])

    def _batch(self, arrays: Sequence[pa.Array]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays(list(arrays), schema=self.schema)


def _optional(field: pa.Field, may_be_null: bool) -> pa.Field:
    return field.with_nullable(True) if may_be_null else field
