"""Keyed state as Arrow tables: what keyed operators share when they snapshot and restore.

A table has the key columns first, then whatever the operator adds, and last the key group of every row, by
which a restoring subtask finds its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.hashing import key_groups
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import OperatorContext
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart, StatePart

_WATERMARK = "watermark"


def keyed_table(
    keys: pa.RecordBatch, columns: Sequence[tuple[str, pa.Array]], max_parallelism: int
) -> pa.Table:
    """Return the table of a keyed part: `keys`, `columns` (name and values), key groups."""
    groups = pa.array(key_groups(keys, keys.schema.names, max_parallelism), pa.int32())
    arrays = [*keys.columns, *(column for _, column in columns), groups]
    names = [*keys.schema.names, *(name for name, _ in columns), KEY_GROUP_COLUMN]
    return pa.Table.from_arrays(arrays, names=names)


def restored_batches(
    restored: Sequence[RestoredPart], name: str, key_schema: pa.Schema
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yield (key columns, other columns) of the restored parts called `name`, a batch at a time."""
    width = len(key_schema)
    for part in restored:
        if part.name != name:
            continue
        for batch in part.table.to_batches():
            if batch.num_rows == 0:
                continue
            keys = pa.RecordBatch.from_arrays(batch.columns[:width], schema=key_schema)
            others = batch.select(list(range(width, batch.num_columns)))
            yield keys, others


def rows_part(
    name: str, batches: Sequence[pa.RecordBatch], keys: Sequence[str], max_parallelism: int
) -> StatePart:
    """Return the state that is these rows (batches of one schema, at least one), in order: a keyed part by the columns
    `keys`, or, without any, a list part."""
    build = partial(_rows, list(batches), list(keys), max_parallelism)
    return StatePart(name=name, kind="keyed" if keys else "list", build=build)


def restored_rows(restored: Sequence[RestoredPart], name: str) -> Iterator[pa.RecordBatch]:
    """Yield what `rows_part` was given under `name`."""
    for part in restored:
        if part.name != name:
            continue
        rows = part.table
        if KEY_GROUP_COLUMN in rows.schema.names:
            rows = rows.drop_columns(KEY_GROUP_COLUMN)
        yield from (batch for batch in rows.to_batches() if batch.num_rows)


def _rows(batches: list[pa.RecordBatch], keys: list[str], max_parallelism: int) -> pa.Table:
    if keys:
        group = pa.field(KEY_GROUP_COLUMN, pa.int32())
        batches = [
            batch.append_column(group, pa.array(key_groups(batch, keys, max_parallelism), pa.int32()))
            for batch in batches
        ]
    return pa.Table.from_batches(batches)


def restored_watermark(restored: Sequence[RestoredPart]) -> int:
    """Return the watermark (ns) that `watermark_part` wrote, WATERMARK_MIN where there is none."""
    known = [
        int(value)
        for part in restored
        if part.name == _WATERMARK
        for value in part.table.column("watermark").unique().to_pylist()
    ]
    return min(known, default=WATERMARK_MIN)


def watermark_part(ctx: OperatorContext, watermark: int) -> StatePart:
    """Return the state that is `watermark`, with every key group of the subtask."""
    groups = np.arange(ctx.key_groups.start, ctx.key_groups.stop, dtype=np.int32)
    return StatePart(name=_WATERMARK, kind="keyed", build=partial(_watermarks, groups, watermark))


def _watermarks(groups: Any, watermark: int) -> pa.Table:
    # A decimal, since WATERMARK_MAX is beyond 64 bits.
    values = pa.array([Decimal(watermark)] * len(groups), pa.decimal128(38, 0))
    return pa.table({"watermark": values, KEY_GROUP_COLUMN: pa.array(groups, pa.int32())})
