"""Sets of integers of up to 64 bits, in the containers of Roaring bitmaps.

Theory of operation. As in Roaring bitmaps (Chambi, Lemire, Kaser, Godin, "Better bitmap performance with Roaring
bitmaps", 2016) the ids that agree in all but their lower 16 bits share a container: a sorted list of these 16 bits
while there are at most 2,048, then a bitmap of 8 KiB. A dense range takes a bit an id. What is above the lower 16
bits, the *chunk*, has a slot in a key index, so that numbers scattered over 64 bits cost what an index entry costs.

A batch is tested and added in one compiled loop over all its rows. That is why these are no
`pyroaring.BitMap64`s: that library adds and tests whole sets, so a batch must be made a set of its own,
subtracted, united, and the rest found again among the rows, which is a fifth as fast on dense ids and on a
few scattered ones; and of many scattered ones subtracting a batch walks them all (0.6 s for 2 million;
`tests/benchmarks/bench_dedup.py --library`). Tests compare with it.

Chunks are all of a container's ids, so a snapshot is a row per container, and the chunk decides the key group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.accumulators.parts import SlotArray
from rayflow.state.fixed_width import FixedWidth
from rayflow.state.key_codec import I64, U8, U64, gather
from rayflow.state.key_index import KeyIndex
from rayflow.state.key_table import grown

CHUNK_BITS = 16
"""Ids that share all but so many lower bits share a container, and a key group."""

U16 = npt.NDArray[np.uint16]

_MIN_GARBAGE = 1 << 16
_BYTES_PER_BITMAP = 8192


def chunk_type(id_type: pa.DataType) -> pa.DataType:
    """Return the type of a column of chunks: that of `id_type`, widened to 64 bits."""
    return pa.uint64() if pa.types.is_unsigned_integer(id_type) else pa.int64()


@dataclass(frozen=True, slots=True)
class ChunkedIds:
    """A batch of ids: their chunks as a batch of one column, null where the id is; their lower bits; all of them."""

    chunks: pa.RecordBatch
    lows: U16
    words: U64
    valid: U8
    """Empty, or 0 where the id is null."""

    def __len__(self) -> int:
        return len(self.words)

    @staticmethod
    def of(ids: pa.Array, chunks: pa.Array, schema: pa.Schema) -> ChunkedIds:
        """Return the ids of a column of integers, whose `chunks` are known, a column of `schema`."""
        words = np.array(FixedWidth(ids.type).numbers(ids)).view(np.uint64)
        valid = np.zeros(0, np.uint8)
        if ids.null_count:
            valid = ids.is_valid().to_numpy(zero_copy_only=False).view(np.uint8)
        batch = pa.RecordBatch.from_arrays([chunks], schema=schema)
        return ChunkedIds(batch, words.astype(np.uint16), words, valid)


class FrozenIds:
    """A set as it was at one moment: for any thread."""

    def __init__(self, chunks: pa.RecordBatch, arena: U16, starts: I64, counts: I64, rooms: I64) -> None:
        self.chunks = chunks
        """One row per container."""
        self.counts = counts
        self._arena, self._starts, self._rooms = arena, starts, rooms

    def containers(self) -> pa.Array:
        """Return the bytes of each container, as Roaring has them: little-endian lists and bitmaps."""
        from rayflow.state.dedup.id_kernels import BITMAP

        lengths = 2 * np.where(self._rooms == BITMAP, BITMAP, self.counts)
        pieces = gather(self._arena.view(np.uint8), 2 * self._starts, lengths, np.zeros(0, np.uint8))
        buffers = [None, pa.py_buffer(pieces.offsets), pa.py_buffer(pieces.data)]
        return pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(lengths), buffers)

    def bounds(self, id_type: pa.DataType) -> tuple[pa.Array, pa.Array]:
        """Return the smallest and the largest id of each container; null in that of null."""
        from rayflow.state.dedup.id_kernels import bounds

        chunks = self.chunks.column(0)
        lowest, highest = np.zeros(len(chunks), np.int64), np.zeros(len(chunks), np.int64)
        bounds(self._arena, self._starts, self.counts, self._rooms, lowest, highest)
        fixed = FixedWidth(chunks.type)
        upper = np.array(fixed.numbers(chunks)).view(np.uint64) << np.uint64(CHUNK_BITS)
        null = chunks.is_null().to_numpy(zero_copy_only=False)
        low, high = (
            fixed.array((upper | part.view(np.uint64)).view(fixed.dtype), null).cast(id_type)
            for part in (lowest, highest)
        )
        return low, high


class IdSet:
    """A set of integers, and null; `schema` has the one column of the chunks."""

    def __init__(self, schema: pa.Schema) -> None:
        from rayflow.state.dedup import id_kernels

        self._kernels = id_kernels
        self._index = KeyIndex(schema)
        self._starts, self._counts, self._rooms = (SlotArray(np.int64) for _ in range(3))
        self._arena: U16 = np.zeros(0, np.uint16)
        self._meta: Any = np.zeros(id_kernels.META_FIELDS, np.int64)
        self._size = 0

    def __len__(self) -> int:
        """Return the number of ids, null included."""
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        arrays = (self._index, self._starts, self._counts, self._rooms, self._arena)
        return sum(array.nbytes for array in arrays)

    def contains(self, ids: ChunkedIds, rows: I64) -> npt.NDArray[np.bool_]:
        """Return which of `rows` have an id that is there."""
        slots = self._index.find(_picked(ids.chunks, rows))
        found = np.zeros(len(rows), np.uint8)
        self._kernels.contains(
            rows, slots, ids.lows, self._arena, self._starts.values, self._counts.values, self._rooms.values,
            found,
        )  # fmt: skip
        return found.view(np.bool_)

    def add_new(self, ids: ChunkedIds, rows: I64) -> I64:
        """Add the ids of `rows`; return those rows, in order, whose id was not there."""
        slots = self._index.slots(_picked(ids.chunks, rows))
        self._reserve()
        fresh = np.empty(len(rows), np.int64)
        at, done = 0, 0
        while True:
            at, done = self._kernels.add_new(
                rows, at, slots, ids.lows, self._arena, self._starts.values, self._counts.values,
                self._rooms.values, self._meta, fresh, done,
            )  # fmt: skip
            if at == len(rows):
                break
            self._make_room()
        self._size += done
        return fresh[:done]

    def _reserve(self) -> None:
        for array in (self._starts, self._counts, self._rooms):
            array.reserve(self._index.slot_limit)

    def _make_room(self) -> None:
        """Lengthen the arena, or leave out what is not used of it."""
        used, garbage = self._meta.tolist()
        if garbage < max(_MIN_GARBAGE, used // 3):
            self._arena = grown(self._arena, used + 2 * self._kernels.BITMAP)
            return
        larger = np.zeros(used - garbage + used // 4 + 2 * self._kernels.BITMAP, np.uint16)
        limit = self._index.slot_limit
        end = self._kernels.move(self._arena, self._starts.values[:limit], self._rooms.values[:limit], larger)
        self._arena = larger
        self._meta[:] = end, 0

    def freeze(self) -> FrozenIds:
        """Return the set as it is now."""
        slots = self._index.live()
        return FrozenIds(
            self._index.keys(slots),
            self._arena[: int(self._meta[self._kernels.USED])].copy(),
            *(array.values[slots] for array in (self._starts, self._counts, self._rooms)),
        )

    def restore(self, chunks: pa.RecordBatch, counts: I64, containers: pa.Array) -> None:
        """Add whole containers."""
        there = self._index.find(chunks) >= 0
        if there.any():
            self._add_all(chunks.filter(pa.array(there)), containers.filter(pa.array(there)))
            new = pa.array(~there)
            chunks, counts, containers = chunks.filter(new), counts[~there], containers.filter(new)
        kernels = self._kernels
        slots = self._index.slots(chunks)
        self._reserve()
        raw = containers.cast(pa.large_binary())
        offsets = np.frombuffer(raw.buffers()[1], np.int64, len(raw) + 1, 8 * raw.offset)
        data = np.frombuffer(raw.buffers()[2], np.uint16, int(offsets[-1] - offsets[0]) // 2, int(offsets[0]))
        lengths = np.diff(offsets) // 2
        # The next power of two, as if the list had grown to its length.
        rooms = 1 << np.ceil(np.log2(np.maximum(lengths, 1))).astype(np.int64)
        used = int(self._meta[kernels.USED])
        starts = used + np.concatenate([[0], np.cumsum(rooms)[:-1]]) if len(rooms) else rooms
        self._meta[kernels.USED] = used + int(rooms.sum())
        self._arena = grown(self._arena, int(self._meta[kernels.USED]))
        within = np.arange(len(data)) - np.repeat((offsets[:-1] - offsets[0]) // 2, lengths)
        self._arena[np.repeat(starts, lengths) + within] = data
        for array, values in ((self._starts, starts), (self._counts, counts), (self._rooms, rooms)):
            array.values[slots] = values
        self._size += int(counts.sum())

    def _add_all(self, chunks: pa.RecordBatch, containers: pa.Array) -> None:
        """Add the ids of containers one by one."""
        for row, raw in enumerate(containers.to_pylist()):
            if len(raw) == _BYTES_PER_BITMAP:
                bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
                lows = np.flatnonzero(bits).astype(np.uint16)
            else:
                lows = np.frombuffer(raw, np.uint16).copy()
            same = chunks.slice(row, 1).take(pa.array(np.zeros(len(lows), np.int64)))
            # Words and validity tell ids apart within a batch; here the chunk and the lower bits do.
            none = np.zeros(0, np.uint8)
            self.add_new(ChunkedIds(same, lows, lows.astype(np.uint64), none), np.arange(len(lows)))


def _picked(batch: pa.RecordBatch, rows: I64) -> pa.RecordBatch:
    return batch if len(rows) == batch.num_rows else batch.take(pa.array(rows))
