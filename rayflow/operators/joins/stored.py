"""Rows, and the watermark, as parts of a snapshot.

A part of rows has their columns, then the numbers that are kept beside them, then the key group. The watermark
goes with every key group, so that lateness is judged the same after a restart at whatever parallelism; since
barriers are aligned and watermarks are broadcast, all subtasks wrote the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from decimal import Decimal
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.hashing import key_groups
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import OperatorContext
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart, StatePart
from rayflow.state.rows import I64, FrozenRows

_WATERMARK = "watermark"


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


def watermark_part(ctx: OperatorContext, watermark: int) -> StatePart:
    """Return the part that keeps `watermark` with every key group of the subtask."""
    groups = np.arange(ctx.key_groups.start, ctx.key_groups.stop, dtype=np.int32)
    return StatePart(name=_WATERMARK, kind="keyed", build=partial(_watermarks, groups, watermark))


def _watermarks(groups: npt.NDArray[np.int32], watermark: int) -> pa.Table:
    # A decimal, since WATERMARK_MAX is beyond 64 bits.
    values = pa.array([Decimal(watermark)] * len(groups), pa.decimal128(38, 0))
    return pa.table({"watermark": values, KEY_GROUP_COLUMN: pa.array(groups, pa.int32())})


def restored_watermark(restored: Sequence[RestoredPart]) -> int:
    """Return the watermark of the snapshot, WATERMARK_MIN where there is none."""
    known = [
        int(value)
        for part in restored
        if part.name == _WATERMARK
        for value in part.table.column("watermark").unique().to_pylist()
    ]
    return min(known, default=WATERMARK_MIN)
