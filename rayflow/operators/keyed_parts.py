"""Keyed state as Arrow tables: what keyed operators share when they snapshot and restore.

A table has the key columns first, then whatever the operator adds, and last the key group of every row, by
which a restoring subtask finds its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.hashing import key_groups
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import OperatorContext
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.disk.slot_rows import SlotRows
from rayflow.state.disk.stored_rows import StoredRows
from rayflow.state.key_index import KeyIndex
from rayflow.state.parts import GONE_COLUMN, KEY_COLUMNS, KEY_GROUP_COLUMN, RestoredPart, StatePart

_WATERMARK = "watermark"
_RESTORED_ROWS = 65_536


def keyed_table(
    keys: pa.RecordBatch,
    columns: Sequence[tuple[str, pa.Array]],
    max_parallelism: int,
    partition: Sequence[str] | None = None,
) -> pa.Table:
    """Return the table of a keyed part: `keys`, `columns` (name and values), key groups. `partition` names those of
    the keys by which rows lie; None: all of them."""
    by = keys.schema.names if partition is None else partition
    groups = pa.array(key_groups(keys, by, max_parallelism), pa.int32())
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
        for batch in part.batches(_RESTORED_ROWS):
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


def keys_of_operator(ctx: OperatorContext, in_memory: KeyIndex, rows: Callable[[], SlotRows]) -> KeyIndex:
    """Return the index that an operator uses: `in_memory`, or one whose rows lie on disk, where the job says so and the
    columns can; else the job's events say that they do not."""
    if ctx.disk is None:
        return in_memory
    try:
        return ctx.disk.keys(in_memory.schema, rows())
    except TypeError as error:
        ctx.warn("state_in_memory", f"operator {ctx.name!r} keeps its state in memory: {error}")
        return in_memory


def restored_keys(ctx: OperatorContext, keys: KeyIndex) -> None:
    """All rows that the job's own checkpoint has were put in, and nothing was changed yet: later ones build on it."""
    if isinstance(keys, CachedKeys) and ctx.restored_from is not None and ctx.foreign_job is None:
        keys.restored(ctx.restored_from)


def stored_part(
    keys: CachedKeys,
    name: str,
    checkpoint_id: int,
    max_parallelism: int,
    partition: Sequence[str] | None = None,
) -> StatePart:
    """Return all rows on disk as of now as a keyed part. `partition` as in `keyed_table`."""
    stored, first = keys.barrier(checkpoint_id), keys.first_epoch or 0
    return StatePart(
        name=name,
        kind="keyed",
        build=partial(_stored_table, stored, max_parallelism, partition),
        stream=partial(_stored_tables, stored, max_parallelism, partition),
        file_bytes=keys.file_bytes,
        extends=lambda since: since >= first,
    )


def _stored_table(stored: StoredRows, max_parallelism: int, by: Sequence[str] | None) -> pa.Table:
    tables = list(_stored_tables(stored, max_parallelism, by, None))
    return pa.concat_tables(tables) if tables else _as_table(*stored.nothing(), max_parallelism, by, False)


def _stored_tables(
    stored: StoredRows, max_parallelism: int, by: Sequence[str] | None, since: int | None
) -> Iterator[pa.Table]:
    for keys, rows, gone in stored.all() if since is None else stored.since(since):
        yield _as_table(keys, rows, gone, max_parallelism, by, since is not None)


def _as_table(
    keys: pa.RecordBatch,
    rows: pa.RecordBatch,
    gone: Any,
    max_parallelism: int,
    by: Sequence[str] | None,
    changes: bool,
) -> pa.Table:
    columns = list(zip(rows.schema.names, rows.columns))
    if changes:
        columns.append((GONE_COLUMN, pa.array(gone)))
    table = keyed_table(keys, columns, max_parallelism, by)
    return table.replace_schema_metadata({KEY_COLUMNS: str(keys.num_columns)})


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
    """Return the part that keeps `watermark` with every key group of the subtask, so that lateness is judged the same
    after a restart at whatever parallelism: watermarks are broadcast, so all subtasks write the same."""
    groups = np.arange(ctx.key_groups.start, ctx.key_groups.stop, dtype=np.int32)
    return StatePart(name=_WATERMARK, kind="keyed", build=partial(_watermarks, groups, watermark))


def _watermarks(groups: Any, watermark: int) -> pa.Table:
    # A decimal, since WATERMARK_MAX is beyond 64 bits.
    values = pa.array([Decimal(watermark)] * len(groups), pa.decimal128(38, 0))
    return pa.table({"watermark": values, KEY_GROUP_COLUMN: pa.array(groups, pa.int32())})
