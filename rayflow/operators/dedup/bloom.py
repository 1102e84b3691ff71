"""Approximate deduplication: Bloom filters, in which a new key is taken for a known one at a bounded rate.

A row of state is a filter: of one key group and layer, and, with a time to live, of one period.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.hashing import groups_of_hashes, hash_columns, key_groups
from rayflow.model.errors import ProtocolViolation
from rayflow.operators.contracts import OperatorContext
from rayflow.operators.dedup.memories import Deduplication, Memory
from rayflow.state.dedup.bloom import BloomFilters, BloomSizes, FrozenLayer, HashedKeys, Layer
from rayflow.state.dedup.bloom_sizing import BLOCK_BITS, rate_at
from rayflow.state.dedup.generations import PERIODS_LOOKED_AT, PERIODS_PER_TTL, Generations
from rayflow.state.dedup.times import I64
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart, StatePart

_NO_NULLS = np.zeros(0, np.uint8)
_SCHEMA = pa.schema(
    [
        ("from", pa.timestamp("us")),
        ("keys", pa.int64()),
        ("room", pa.int64()),
        ("fill", pa.float64()),
        ("rate", pa.float64()),
        ("bits_per_key", pa.int64()),
        ("words", pa.large_binary()),
        (KEY_GROUP_COLUMN, pa.int32()),
    ]
)


class BloomMemory(Memory):
    """Hashes of keys. With a time to live the rate is shared by all the periods that a row is looked up in."""

    part = "filters"

    def __init__(self, todo: Deduplication, ctx: OperatorContext) -> None:
        super().__init__(todo, ctx)
        kept_apart, looked_at = (1, 1) if todo.ttl_ns is None else (PERIODS_PER_TTL, PERIODS_LOOKED_AT)
        sizes = BloomSizes(
            todo.expected / ctx.max_parallelism / kept_apart, todo.false_positive_rate / looked_at
        )
        _ = sizes.first
        make = partial(BloomFilters, len(ctx.key_groups), sizes)
        self._sets: Generations[BloomFilters] = Generations(make, todo.ttl)
        self._sets.warm_up(HashedKeys(np.zeros(0, np.uint64), np.zeros(0, np.int64), _NO_NULLS))

    def __len__(self) -> int:
        """See `Memory`."""
        return len(self._sets)

    @property
    def nbytes(self) -> int:
        """See `Memory`."""
        return self._sets.nbytes

    def false_positive_rate(self) -> float:
        """See `Memory`: the sum over the sets, or as many of the fullest as a row is looked up in."""
        rates = sorted((filters.rate() for filters in self._sets.sets.values()), reverse=True)
        return sum(rates[:PERIODS_LOOKED_AT])

    def first(self, rows: pa.RecordBatch, times: I64 | None, clock: int) -> I64:
        """See `Memory`."""
        hashes = hash_columns(rows, self.todo.columns)
        if self.todo.partition == self.todo.columns:
            groups: Any = groups_of_hashes(hashes.copy(), self.ctx.max_parallelism)
        else:
            groups = key_groups(rows, self.todo.partition, self.ctx.max_parallelism).astype(np.int64)
        own = self.ctx.key_groups
        if groups.min() < own.start or groups.max() >= own.stop:
            raise ProtocolViolation(f"deduplicate got rows of key groups that are not its own, {own}")
        return self._sets.first(HashedKeys(hashes, groups - own.start, _NO_NULLS), times, clock)

    def expire(self, clock: int) -> None:
        """See `Memory`."""
        self._sets.expire(clock)

    def snapshot(self, checkpoint_id: int) -> StatePart:
        """See `Memory`."""
        frozen = [(begin, filters.freeze()) for begin, filters in self._sets.by_begin()]
        build = partial(_build, frozen, self.ctx.key_groups.start)
        return StatePart(name=self.part, kind="keyed", build=build)

    def restore(self, parts: Sequence[RestoredPart]) -> None:
        """See `Memory`. Filters keep the sizes they were written with."""
        for table in (part.table for part in parts):
            begins = table.column("from").cast(pa.int64())
            rows = table.drop_columns(["from"]).to_pylist()
            for begin, row in zip(begins.to_pylist(), rows, strict=True):
                words = np.frombuffer(row["words"], np.uint64)
                blocks = 64 * len(words) // BLOCK_BITS
                filters = self._sets.of_begin(begin, self.now_ns)
                filters.restore(
                    FrozenLayer(
                        group=row[KEY_GROUP_COLUMN] - self.ctx.key_groups.start,
                        layer=Layer(blocks=blocks, bits=row["bits_per_key"], room=row["room"]),
                        count=row["keys"],
                        words=words,
                    )
                )


def _build(frozen: Sequence[tuple[int | None, list[FrozenLayer]]], first_group: int) -> pa.Table:
    from rayflow.state.dedup.bloom_kernels import bits_set

    layers = [(begin, each) for begin, of_period in frozen for each in of_period]
    columns: list[list[Any]] = [
        [begin for begin, _ in layers],
        [each.count for _, each in layers],
        [each.layer.room for _, each in layers],
        [bits_set(each.words) / (64 * len(each.words)) for _, each in layers],
        [rate_at(each.count / each.layer.blocks, each.layer.bits) for _, each in layers],
        [each.layer.bits for _, each in layers],
        [each.words.data for _, each in layers],
        [first_group + each.group for _, each in layers],
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)
