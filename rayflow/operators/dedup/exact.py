"""Exact deduplication: every key is kept."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa

from rayflow.operators.contracts import OperatorContext
from rayflow.operators.dedup.memories import Deduplication, Memory
from rayflow.operators.keyed_parts import keyed_table, keys_of_operator, restored_keys, stored_part
from rayflow.state.dedup.seen_keys import SeenKeys
from rayflow.state.dedup.seen_on_disk import SEEN_AT, SeenOnDisk, SeenTimes
from rayflow.state.dedup.times import I64, nanoseconds, timestamps
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart, StatePart

_RESTORED_ROWS = 65_536


class ExactMemory(Memory):
    """A row of state per key: its columns, and with a time to live the time of the row that was kept (`__seen_at`)."""

    part = "keys"

    def __init__(self, todo: Deduplication, ctx: OperatorContext) -> None:
        super().__init__(todo, ctx)
        rows = SeenTimes(todo.ttl, todo.time_unit)
        index = keys_of_operator(ctx, KeyIndex(todo.key_schema), lambda: rows)
        self._seen: SeenKeys | SeenOnDisk = (
            SeenOnDisk(index, rows, todo.ttl)
            if isinstance(index, CachedKeys)
            else SeenKeys(todo.key_schema, todo.ttl)
        )
        self._columns = list(todo.columns)

    def __len__(self) -> int:
        """See `Memory`."""
        return len(self._seen)

    @property
    def nbytes(self) -> int:
        """See `Memory`."""
        return self._seen.nbytes

    def first(self, rows: pa.RecordBatch, times: I64 | None, clock: int) -> I64:
        """See `Memory`."""
        return self._seen.first(rows.select(self._columns), times, clock)

    def expire(self, clock: int) -> None:
        """See `Memory`."""
        self._seen.expire(clock)

    def snapshot(self, checkpoint_id: int) -> StatePart:
        """See `Memory`."""
        if isinstance(self._seen, SeenOnDisk):
            index, by = self._seen.index, self.todo.partition
            return stored_part(index, self.part, checkpoint_id, self.ctx.max_parallelism, by)
        build = partial(_build, *self._seen.freeze(), self.todo, self.ctx.max_parallelism)
        return StatePart(name=self.part, kind="keyed", build=build)

    def completed(self, checkpoint_id: int) -> None:
        """See `Memory`."""
        if isinstance(self._seen, SeenOnDisk):
            self._seen.index.completed(checkpoint_id)

    def close(self) -> None:
        """See `Memory`."""
        if isinstance(self._seen, SeenOnDisk):
            self._seen.index.close()

    def restore(self, parts: Sequence[RestoredPart]) -> None:
        """See `Memory`."""
        schema = self.todo.key_schema
        width = len(schema)
        for part in parts:
            written = [field for field in part.schema if field.name not in (SEEN_AT, KEY_GROUP_COLUMN)]
            if [field.type for field in written] != schema.types:
                raise ValueError(f"{_shown(written)} there, {_shown(list(schema))} here")
            for batch in part.batches(_RESTORED_ROWS):
                keys = pa.RecordBatch.from_arrays(batch.columns[:width], schema=schema)
                self._seen.put(keys, self._times(batch, width))
        if isinstance(self._seen, SeenOnDisk):
            restored_keys(self.ctx, self._seen.index)

    def _times(self, batch: pa.RecordBatch, width: int) -> I64 | None:
        if self.todo.ttl_ns is None:
            return None
        if batch.schema.names[width] == SEEN_AT:
            times: I64 = nanoseconds(batch.column(width))
            return times
        # There was no time to live when it was written: it begins now.
        return np.full(batch.num_rows, self.now_ns, np.int64)


def _build(
    keys: FrozenKeys, slots: I64, times: I64 | None, todo: Deduplication, max_parallelism: int
) -> pa.Table:
    columns = [] if times is None else [(SEEN_AT, timestamps(times, todo.time_unit))]
    return keyed_table(keys.keys(slots), columns, max_parallelism, todo.partition)


def _shown(fields: Sequence[pa.Field]) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in fields)
