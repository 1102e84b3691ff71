"""Keyed state as Arrow tables: what keyed operators share when they snapshot and restore.

A table has the key columns first, then whatever the operator adds, and last the key group of every row, by
which a restoring subtask finds its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa

from rayflow.batch.hashing import key_groups
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart


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
