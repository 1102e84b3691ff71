"""Upsert streams: how a batch says that rows are inserted, updated or deleted.

An append stream has the user's columns only. An upsert stream carries one more, hidden column
`OP_COLUMN` (int8, never null, always last), which says per row what happened to the row's key: an
`INSERT`; an update, as a pair of `UPDATE_BEFORE` (the old row, to be retracted) and `UPDATE_AFTER` (the
new one); or a `DELETE`. These are the four row kinds of Flink's changelog streams. The column rides
through stateless operators like any other; users' expressions and schemas never see it; sinks interpret it.

Whose row it is, the stream's *upsert key* says: columns that at most one row has at a time. Old rows (`UPDATE_BEFORE`,
and the values of a `DELETE`) are then only made where somebody asks for them. Of some streams several rows may share
those columns: the joined rows of a key, its best ten. Such a stream is one of *whole rows*: it is a multiset, rows only
come and go, and a `DELETE` carries all the columns of the row that goes; of equal rows, any one goes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

OP_COLUMN = "__op"
"""Name of the hidden column."""

INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE = 0, 1, 2, 3

OP_SYMBOLS = ("+I", "-U", "+U", "-D")
"""How each operation is printed, by its number."""

OP_FIELD = pa.field(OP_COLUMN, pa.int8(), nullable=False)


def is_changelog(schema: pa.Schema) -> bool:
    """Return whether batches of `schema` belong to an upsert stream."""
    return bool(schema.get_field_index(OP_COLUMN) >= 0)


def changelog_schema(schema: pa.Schema) -> pa.Schema:
    """Return `schema` with the hidden column appended; unchanged where it has it."""
    return schema if is_changelog(schema) else schema.append(OP_FIELD)


def visible_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns a user sees: `schema` without the hidden column."""
    index = schema.get_field_index(OP_COLUMN)
    return schema if index < 0 else schema.remove(index)


def visible(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` without the hidden column. Copies nothing; the number of rows is kept."""
    index = batch.schema.get_field_index(OP_COLUMN)
    return batch if index < 0 else batch.remove_column(index)


def comes(operations: npt.NDArray[np.int8]) -> npt.NDArray[np.bool_]:
    """Return for each operation whether its row is there from now on, rather than gone."""
    found: npt.NDArray[np.bool_] = (operations == INSERT) | (operations == UPDATE_AFTER)
    return found


def with_op(batch: pa.RecordBatch, op: int | npt.NDArray[np.int8]) -> pa.RecordBatch:
    """Return `batch` with the hidden column (replaced where it exists): one operation for all rows,
    or an int8 array of one per row."""
    values = np.full(batch.num_rows, op, np.int8) if isinstance(op, int) else op
    return visible(batch).append_column(OP_FIELD, pa.array(values, pa.int8()))


def ops(batch: pa.RecordBatch) -> npt.NDArray[np.int8]:
    """Return the operation of each row (int8, read-only); all INSERT for an append stream's batch."""
    index = batch.schema.get_field_index(OP_COLUMN)
    if index < 0:
        return np.zeros(batch.num_rows, np.int8)
    column: Any = batch.column(index)
    values: npt.NDArray[np.int8] = column.to_numpy()
    return values
