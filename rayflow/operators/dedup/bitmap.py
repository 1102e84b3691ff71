"""Exact deduplication of integers in bitmaps: a bit an id where ids are dense.

A row of state is a container of up to 65,536 ids, and, with a time to live, of one period.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.operators.contracts import OperatorContext
from rayflow.operators.dedup.memories import Deduplication, Memory
from rayflow.operators.keyed_parts import keyed_table
from rayflow.state.dedup.generations import Generations
from rayflow.state.dedup.id_set import ChunkedIds, FrozenIds, IdSet
from rayflow.state.dedup.times import I64
from rayflow.state.parts import RestoredPart, StatePart

_FROM = pa.timestamp("us")


class BitmapMemory(Memory):
    """Ids of one column; `partition` names the one with their chunks."""

    part = "ids"

    def __init__(self, todo: Deduplication, ctx: OperatorContext) -> None:
        super().__init__(todo, ctx)
        (self._ids,), (chunk,) = todo.columns, todo.partition
        self._chunk = pa.schema([todo.schema.field(chunk)])
        self._sets: Generations[IdSet] = Generations(partial(IdSet, self._chunk), todo.ttl)
        nothing = pa.nulls(0, todo.key_schema.field(0).type), pa.nulls(0, self._chunk.types[0])
        self._sets.warm_up(ChunkedIds.of(*nothing, self._chunk))

    def __len__(self) -> int:
        """See `Memory`."""
        return len(self._sets)

    @property
    def nbytes(self) -> int:
        """See `Memory`."""
        return self._sets.nbytes

    def first(self, rows: pa.RecordBatch, times: I64 | None, clock: int) -> I64:
        """See `Memory`."""
        chunks = rows.column(self._chunk.names[0])
        return self._sets.first(ChunkedIds.of(rows.column(self._ids), chunks, self._chunk), times, clock)

    def expire(self, clock: int) -> None:
        """See `Memory`."""
        self._sets.expire(clock)

    def snapshot(self, checkpoint_id: int) -> StatePart:
        """See `Memory`."""
        frozen = [(begin, ids.freeze()) for begin, ids in self._sets.by_begin()]
        build = partial(_build, frozen, self._chunk, self.todo, self.ctx.max_parallelism)
        return StatePart(name=self.part, kind="keyed", build=build)

    def restore(self, parts: Sequence[RestoredPart]) -> None:
        """See `Memory`."""
        expected = self.todo.key_schema.field(0).type
        for table in (part.table for part in parts):
            if table.num_rows == 0:
                continue
            if table.schema.field("lowest").type != expected:
                raise ValueError(f"ids are {table.schema.field('lowest').type} there, {expected} here")
            for batch in table.to_batches():
                for begin in batch.column("from").cast(pa.int64()).unique().to_pylist():
                    own = batch.filter(_equal(batch.column("from"), begin))
                    chunks = pa.RecordBatch.from_arrays([own.column(0)], schema=self._chunk)
                    ids = self._sets.of_begin(begin, self.now_ns)
                    ids.restore(chunks, own.column("ids").to_numpy(), own.column("container"))


def _equal(begins: pa.Array, begin: int | None) -> pa.Array:
    return begins.is_null() if begin is None else pc.equal(begins.cast(pa.int64()), begin)


def _build(
    frozen: Sequence[tuple[int | None, FrozenIds]],
    chunk: pa.Schema,
    todo: Deduplication,
    max_parallelism: int,
) -> pa.Table:
    tables = [_table(*each, todo, max_parallelism) for each in frozen]
    if not tables:
        return keyed_table(pa.RecordBatch.from_pylist([], schema=chunk), [], max_parallelism)
    return pa.concat_tables(tables)


def _table(begin: int | None, ids: FrozenIds, todo: Deduplication, max_parallelism: int) -> pa.Table:
    lowest, highest = ids.bounds(todo.key_schema.field(0).type)
    columns = [
        ("from", pa.repeat(pa.scalar(begin, _FROM), len(ids.counts))),
        ("ids", pa.array(ids.counts)),
        ("lowest", lowest),
        ("highest", highest),
        ("container", ids.containers()),
    ]
    return keyed_table(ids.chunks, columns, max_parallelism)
