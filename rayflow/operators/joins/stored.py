"""Rows as parts of a snapshot.

A part of rows has their columns, then the numbers that are kept beside them, then the key group.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa

from rayflow.batch.hashing import key_groups
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart, StatePart
from rayflow.state.rows import I64, FrozenRows


def rows_part(
    name: str, frozen: FrozenRows, keys: Sequence[str], numbers: Sequence[str], max_parallelism: int
) -> StatePart:
    """Return the keyed part of these rows and these of their numbers; `keys` are the key columns."""
    build = partial(_build, frozen, tuple(keys), tuple(numbers), max_parallelism)
    return StatePart(name=name, kind="keyed", build=build)


def _build(
    frozen: FrozenRows, keys: tuple[str, ...], numbers: tuple[str, ...], max_parallelism: int
) -> pa.Table:
    tables = []
    for rows, values in frozen.batches():
        groups = pa.array(key_groups(rows, keys, max_parallelism), pa.int32())
        arrays = [*rows.columns, *(pa.array(values[name]) for name in numbers), groups]
        names = [*rows.schema.names, *(f"__{name}" for name in numbers), KEY_GROUP_COLUMN]
        tables.append(pa.Table.from_arrays(arrays, names=names))
    return pa.concat_tables(tables) if tables else pa.table({KEY_GROUP_COLUMN: pa.array([], pa.int32())})


def restored_rows(
    restored: Sequence[RestoredPart], name: str, schema: pa.Schema, numbers: Sequence[str]
) -> Iterator[tuple[pa.RecordBatch, dict[str, I64]]]:
    """Yield (rows, their numbers) of the parts called `name`, a batch at a time."""
    width = len(schema)
    for part in restored:
        if part.name != name:
            continue
        for batch in part.table.to_batches():
            if batch.num_rows:
                rows = pa.RecordBatch.from_arrays(batch.columns[:width], schema=schema)
                yield rows, {n: batch.column(width + i).to_numpy() for i, n in enumerate(numbers)}
