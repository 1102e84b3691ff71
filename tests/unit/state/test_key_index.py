from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.state.key_index import KeyIndex

FLOATS = st.sampled_from([0.0, -0.0, 1.5, -1.5, math.nan, -math.nan, math.inf, None])
VALUES = {
    pa.int64(): st.sampled_from([None, 0, 1, -1, 2**63 - 1, -(2**63)]),
    pa.uint64(): st.sampled_from([None, 0, 2**64 - 1, 7]),
    pa.int8(): st.sampled_from([None, -128, 127, 0]),
    pa.bool_(): st.sampled_from([None, True, False]),
    pa.float64(): FLOATS,
    pa.float32(): FLOATS,
    pa.string(): st.sampled_from([None, "", "a", "b", "ab", "a" * 9, "ä" * 20]),
    pa.large_binary(): st.sampled_from([None, b"", b"\0", b"\0\0", b"12345678", b"123456789"]),
    pa.string_view(): st.sampled_from([None, "", "x", "a long string for a view"]),
    pa.date32(): st.sampled_from([None, 0, -1, 19_000]),
    pa.timestamp("ms", "UTC"): st.sampled_from([None, 0, -1, 1_700_000_000_000]),
    pa.duration("us"): st.sampled_from([None, 0, -5]),
    pa.time32("s"): st.sampled_from([None, 0, 60]),
    pa.decimal128(9, 2): st.sampled_from([None, Decimal("1.20"), Decimal("-3.00")]),
    pa.binary(3): st.sampled_from([None, b"abc", b"\0\0\0"]),
    pa.null(): st.none(),
    pa.dictionary(pa.int16(), pa.string()): st.sampled_from([None, "x", "y"]),
}


def canonical(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value + 0.0
    return value


@st.composite
def key_batches(draw: st.DrawFn) -> tuple[pa.Schema, list[pa.RecordBatch]]:
    types = draw(st.lists(st.sampled_from(list(VALUES)), min_size=1, max_size=3))
    schema = pa.schema([(f"k{i}", t) for i, t in enumerate(types)])
    rows = draw(st.lists(st.tuples(*(VALUES[t] for t in types)), max_size=30))
    arrays = [pa.array([row[i] for row in rows], t) for i, t in enumerate(types)]
    whole = pa.RecordBatch.from_arrays(arrays, schema=schema)
    cut = draw(st.integers(1, 31))
    return schema, [whole.slice(at, cut) for at in range(0, len(rows), cut)]


def rows_of(batch: pa.RecordBatch) -> list[tuple[Any, ...]]:
    columns = [column.to_pylist() for column in batch.columns]
    return [tuple(canonical(v) for v in row) for row in zip(*columns)]


@given(key_batches())
@settings(max_examples=100, deadline=None)
def test_slots_are_those_of_a_dict_and_keys_come_back(case: tuple[pa.Schema, list[pa.RecordBatch]]) -> None:
    schema, batches = case
    index, model = KeyIndex(schema), {}
    for batch in batches:
        slots, fresh = index.insert(batch)
        expected_fresh = []
        for i, key in enumerate(rows_of(batch)):
            if key not in model:
                model[key] = len(model)
                expected_fresh.append(i)
            assert slots[i] == model[key]
        assert fresh.tolist() == expected_fresh
    assert len(index) == index.slot_limit == len(model)
    keys = index.keys(index.live())
    assert keys.schema == schema
    assert rows_of(keys) == list(model)
    keys.validate(full=True)


@given(
    st.lists(st.tuples(st.lists(st.integers(0, 300), max_size=60), st.integers(0, 100)), max_size=12),
    st.sampled_from([pa.int64(), pa.string()]),
)
@settings(max_examples=100, deadline=None)
def test_removed_keys_are_forgotten_and_their_slots_used_again(
    steps: list[tuple[list[int], int]], type_: pa.DataType
) -> None:
    index, model = KeyIndex(pa.schema([("k", type_)])), {}
    most = 0
    for numbers, percent in steps:
        values = pa.array([None if n == 0 else n for n in numbers], pa.int64()).cast(type_)
        slots = index.slots(pa.record_batch([values], names=["k"]))
        for key, slot in zip(values.to_pylist(), slots.tolist()):
            assert model.setdefault(key, slot) == slot
        most = max(most, len(model))
        gone = [key for i, key in enumerate(list(model)) if i % 100 < percent]
        frozen, before = index.freeze(), dict(model)
        index.remove(np.array([model.pop(key) for key in gone], np.int64))
        assert index.live().tolist() == sorted(model.values())
        assert frozen.keys(np.array(list(before.values()), np.int64)).column(0).to_pylist() == list(before)
    assert index.slot_limit <= most
    assert index.keys(np.array(list(model.values()), np.int64)).column(0).to_pylist() == list(model)


@pytest.mark.parametrize("type_", [pa.int64(), pa.string()])
def test_growth_while_keys_come_and_go_keeps_every_key(type_: pa.DataType) -> None:
    # Enough keys for the table to move several times, with lookups and removals while it moves.
    index, model = KeyIndex(pa.schema([("k", type_)])), {}
    generator = np.random.default_rng(7)
    for _ in range(60):
        numbers = pa.array(generator.integers(0, 60_000, 2_000)).cast(type_)
        slots = index.slots(pa.record_batch([numbers], names=["k"])).tolist()
        for key, slot in zip(numbers.to_pylist(), slots):
            assert model.setdefault(key, slot) == slot
        gone = list(model)[::3]
        index.remove(np.array([model.pop(key) for key in gone], np.int64))
    assert len(index) == len(model)
    assert index.keys(np.array(list(model.values()), np.int64)).column(0).to_pylist() == list(model)


def test_bytes_of_removed_keys_are_given_back() -> None:
    index = KeyIndex(pa.schema([("k", pa.string())]))
    for round_ in range(40):
        keys = pa.array([f"{round_}-{i}-" + "x" * 200 for i in range(1_000)])
        index.remove(index.slots(pa.record_batch([keys], names=["k"])))
    assert len(index) == 0
    assert index.nbytes < 4_000_000  # 8 MB of keys went through


def test_sliced_and_dictionary_columns_are_read_from_their_offset() -> None:
    index = KeyIndex(pa.schema([("k", pa.dictionary(pa.int32(), pa.string())), ("n", pa.int32())]))
    words = pa.array(["a", "b", None, "b"]).dictionary_encode()
    batch = pa.record_batch([words, pa.array([1, 2, 3, 2], pa.int32())], names=["k", "n"])
    assert index.slots(batch.slice(1)).tolist() == [0, 1, 0]
    assert index.keys(np.array([1, 0])).to_pylist() == [{"k": None, "n": 3}, {"k": "b", "n": 2}]


def test_a_list_cannot_be_a_key() -> None:
    with pytest.raises(TypeError, match=r"column 'tags'.*cannot be a key"):
        KeyIndex(pa.schema([("tags", pa.list_(pa.string()))]))


@pytest.mark.parametrize(
    ("type_", "known", "unknown"),
    [
        (pa.int64(), [3, None, 5], [4, 0]),
        (pa.float64(), [float("nan"), -0.0], [1.0, None]),
        (pa.string(), ["a", "", None], ["b", "aa"]),
    ],
)
def test_find_adds_nothing(type_: pa.DataType, known: list[object], unknown: list[object]) -> None:
    index = KeyIndex(pa.schema([("k", type_)]))

    def column(values: list[object]) -> pa.RecordBatch:
        return pa.RecordBatch.from_arrays([pa.array(values, type_)], ["k"])

    slots = index.slots(column(known))
    found = index.find(column([*unknown, *known]))
    assert found.tolist() == [*[-1] * len(unknown), *slots.tolist()]
    assert len(index) == len(known)
