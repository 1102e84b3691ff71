"""Sets of integers, compared with Python's sets and with the Roaring bitmaps of pyroaring."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroaring import BitMap, BitMap64

from rayflow.state.dedup.id_kernels import BITMAP, MOST_LISTED
from rayflow.state.dedup.id_set import CHUNK_BITS, ChunkedIds, IdSet, chunk_type

TYPES = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64()]


def schema(type_: pa.DataType) -> pa.Schema:
    return pa.schema([("chunk", chunk_type(type_))])


def chunked(ids: pa.Array) -> ChunkedIds:
    chunks = pa.array([None if i is None else i >> CHUNK_BITS for i in ids.to_pylist()], chunk_type(ids.type))
    return ChunkedIds.of(ids, chunks, schema(ids.type))


def add(members: IdSet, ids: pa.Array) -> list[Any]:
    fresh = members.add_new(chunked(ids), np.arange(len(ids)))
    return ids.take(pa.array(fresh)).to_pylist()


def numbers(type_: pa.DataType) -> st.SearchStrategy[int]:
    bits = type_.bit_width
    low, high = (
        (0, 2**bits - 1) if pa.types.is_unsigned_integer(type_) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    )
    near = st.integers(max(low, -70_000), min(high, 70_000))
    edges = st.sampled_from([low, low + 1, high, high - 1, 0])
    return near | edges | st.integers(low, high)


@pytest.mark.parametrize("type_", TYPES, ids=str)
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_it_is_a_set_of_the_ids_and_null(type_: pa.DataType, data: Any) -> None:
    batches = data.draw(st.lists(st.lists(st.none() | numbers(type_), max_size=40), max_size=5))
    members, naive = IdSet(schema(type_)), set()
    for batch in batches:
        ids = pa.array(batch, type_)
        expected = [i for i in dict.fromkeys(batch) if i not in naive]
        there = members.contains(chunked(ids), np.arange(len(batch)))
        assert there.tolist() == [i in naive for i in batch]
        assert add(members, ids) == expected
        naive.update(batch)
        assert len(members) == len(naive)


def containers(members: IdSet, type_: pa.DataType) -> dict[int, BitMap]:
    """Return the containers as Roaring bitmaps, by chunk."""
    frozen = members.freeze()
    found = {}
    for chunk, count, raw in zip(
        frozen.chunks.column(0).to_pylist(),
        frozen.counts.tolist(),
        frozen.containers().to_pylist(),
        strict=True,
    ):
        if len(raw) == 8192:
            bits = BitMap(np.flatnonzero(np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")))
        else:
            listed = np.frombuffer(raw, "<u2")
            assert (np.diff(listed.astype(int)) > 0).all()
            bits = BitMap(listed)
        assert len(bits) == count
        found[chunk] = bits
    return found


@pytest.mark.parametrize("spread", [1, 3, 1 << 20, 1 << 44], ids=["dense", "thin", "sparse", "scattered"])
def test_containers_hold_what_pyroarings_bitmaps_hold(spread: int) -> None:
    rng = np.random.default_rng(spread)
    members, roaring = IdSet(schema(pa.uint64())), BitMap64()
    for _ in range(8):
        ids = rng.integers(0, 10_000, 4_000).astype(np.uint64) * np.uint64(spread)
        fresh = add(members, pa.array(ids))
        assert sorted(fresh) == list(BitMap64(ids) - roaring)
        roaring |= BitMap64(ids)
    assert len(members) == len(roaring)
    found = {
        chunk << CHUNK_BITS | low for chunk, bits in containers(members, pa.uint64()).items() for low in bits
    }
    assert found == set(roaring)


def test_a_container_is_a_list_until_a_bitmap_is_as_small() -> None:
    members = IdSet(schema(pa.int64()))
    ids = np.random.default_rng(1).permutation(65_536)
    add(members, pa.array(ids[:MOST_LISTED]))
    assert members.freeze().containers().to_pylist() == [np.sort(ids[:MOST_LISTED]).astype("<u2").tobytes()]
    add(members, pa.array(ids[: MOST_LISTED + 1]))
    (raw,) = members.freeze().containers().to_pylist()
    assert len(raw) == 2 * BITMAP
    add(members, pa.array(ids))
    assert members.freeze().containers().to_pylist() == [b"\xff" * 8192]


def test_dense_ids_take_about_a_bit_each_and_what_lists_outgrew_is_given_back() -> None:
    members = IdSet(schema(pa.int64()))
    ids = np.random.default_rng(2).permutation(2_000_000)
    for at in range(0, len(ids), 65_536):
        add(members, pa.array(ids[at : at + 65_536]))
    assert len(members) == 2_000_000
    assert members.nbytes < 2 * 2_000_000 / 8


@pytest.mark.parametrize("type_", [pa.int32(), pa.uint64(), pa.int64()], ids=str)
def test_bounds_are_the_smallest_and_largest_id_of_a_container(type_: pa.DataType) -> None:
    signed = not pa.types.is_unsigned_integer(type_)
    ids = [5, 65_535, 65_536, None, *([-1, -65_536] if signed else [2**64 - 1]), *range(131_072, 135_000)]
    members = IdSet(schema(type_))
    add(members, pa.array(ids, type_))
    lowest, highest = members.freeze().bounds(type_)
    assert lowest.type == highest.type == type_
    by_chunk: dict[Any, list[int]] = {}
    for i in ids:
        by_chunk.setdefault(None if i is None else i >> CHUNK_BITS, []).append(i)  # type: ignore[arg-type]
    expected = {(own[0], own[0]) if own == [None] else (min(own), max(own)) for own in by_chunk.values()}
    assert set(zip(lowest.to_pylist(), highest.to_pylist(), strict=True)) == expected


@given(st.lists(st.integers(-200_000, 200_000), max_size=100), st.booleans(), st.booleans())
@settings(max_examples=15, deadline=None)
def test_restored_it_goes_on_as_before_even_into_a_set_that_has_some(
    ids: list[int], long: bool, some: bool
) -> None:
    ids = [*ids, *(range(100_000, 105_000) if long else [])]
    members = IdSet(schema(pa.int64()))
    add(members, pa.array([*ids, None], pa.int64()))
    frozen = members.freeze()
    add(members, pa.array([7_000_000], pa.int64()))
    again = IdSet(schema(pa.int64()))
    others = [*ids[::2], 99_999, 300_000] if some else []
    add(again, pa.array(others, pa.int64()))
    again.restore(frozen.chunks, frozen.counts, frozen.containers())
    everything = {*ids, *others, None}
    assert len(again) == len(everything)
    probe = pa.array([*ids, *others, None, 7_000_000, 250_001], pa.int64())
    there = again.contains(chunked(probe), np.arange(len(probe)))
    assert there.tolist() == [i in everything for i in probe.to_pylist()]
    assert add(again, pa.array([*ids, 104_999, 500_000], pa.int64())) == [
        i for i in (104_999, 500_000) if i not in everything
    ]
