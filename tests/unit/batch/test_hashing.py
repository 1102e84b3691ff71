"""The hash decides where checkpointed state lives: it may never change. `reference` is its specification."""

from __future__ import annotations

import datetime as dt
import hashlib
import struct
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.hashing import check_key_type, hash_arrays, hash_columns, key_groups
from rayflow.model.errors import PlanError

WORD = 2**64
GOLDEN = 0x9E3779B97F4A7C15
NULL = 0x6E756C6C206B6579


def mix(z: int) -> int:
    z = (z + GOLDEN) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def reference(value: Any) -> int:
    if value is None:
        return NULL
    if isinstance(value, int):
        return mix(value % WORD)
    if isinstance(value, float):
        value = float("nan") if value != value else value + 0.0
        return mix(int.from_bytes(struct.pack("<d", value), "little"))
    data = value.encode() if isinstance(value, str) else value
    if len(data) > 256:
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
    z = len(data) * GOLDEN % WORD
    for start in range(0, max(len(data), 1), 8):
        z = mix(z ^ int.from_bytes(data[start : start + 8], "little"))
    return z


def hashes(values: list[Any], type_: pa.DataType) -> list[int]:
    return hash_arrays([pa.array(values, type_)]).tolist()


GOLDEN_VALUES = [
    (0, pa.int64(), 0xE220A8397B1DCDAF),
    (1, pa.int64(), 0x910A2DEC89025CC1),
    (-1, pa.int32(), 0xE4D971771B652C20),
    (1.5, pa.float64(), 0xD6DAB18E1392608A),
    (True, pa.bool_(), 0x910A2DEC89025CC1),
    ("", pa.string(), 0xE220A8397B1DCDAF),
    ("JFK", pa.string(), 0x78704AC8E66F81F1),
    ("a key longer than one word", pa.string(), 0x2577F4A9D6C2A864),
    ("x" * 300, pa.string(), 0x1546D9CAC139B512),
    (b"\x00\xff", pa.binary(), 0x8191FDD116C1A105),
    (Decimal("12.34"), pa.decimal128(10, 2), 0x9E17E35F6D9238ED),
    (dt.date(2013, 1, 1), pa.date32(), 0xC2D4B737258FAAE5),
    (dt.datetime(2013, 1, 1), pa.timestamp("ms"), 0x41FE4E6D155997A5),
    (None, pa.int64(), NULL),
]


@pytest.mark.parametrize(("value", "type_", "expected"), GOLDEN_VALUES)
def test_golden_values_never_change(value: Any, type_: pa.DataType, expected: int) -> None:
    assert hashes([value], type_) == [expected]


def test_golden_composite_key_never_changes() -> None:
    batch = pa.record_batch({"a": pa.array([7, None]), "b": pa.array(["JFK", "JFK"]), "c": [0.5, 0.5]})
    assert hash_columns(batch, ["a", "b", "c"]).tolist() == [0x601F54A6351DAA64, 0x5770C46F132A3E3F]


KEYS = {
    "int64": (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    "double": (pa.float64(), st.floats()),
    "string": (pa.string(), st.text(max_size=40)),
    "binary": (pa.binary(), st.binary(max_size=280)),
}


@pytest.mark.parametrize("kind", KEYS)
def test_kernels_agree_with_the_specification(kind: str) -> None:
    type_, values = KEYS[kind]

    @settings(max_examples=60)
    @given(st.lists(st.one_of(st.none(), values), max_size=30), st.integers(0, 3))
    def agree(rows: list[Any], offset: int) -> None:
        array = pa.array(rows, type_)[offset:]
        assert hash_arrays([array]).tolist() == [reference(v) for v in rows[offset:]]

    agree()


def test_blocks_join_seamlessly() -> None:
    values = [f"{i}" * (i % 5) for i in range(40_000)]
    assert hashes(values, pa.string()) == [reference(v) for v in values]
    numbers = list(range(40_000))
    assert hashes(numbers, pa.int64()) == [reference(v) for v in numbers]


@given(st.integers(0, 127))
def test_equal_integers_hash_equally_whatever_their_width(value: int) -> None:
    types = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
    assert {hashes([value], t)[0] for t in types} == {reference(value)}


def test_negative_integers_keep_their_sign_when_widened() -> None:
    assert hashes([-5], pa.int8()) == hashes([-5], pa.int64())


def test_equal_floats_hash_equally() -> None:
    other_nan = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    nans = hash_arrays([pa.array(np.append(other_nan, np.nan), from_pandas=False)])
    assert len(set(nans.tolist())) == 1
    assert hashes([0.0], pa.float64()) == hashes([-0.0], pa.float64())
    for type_ in (pa.float16(), pa.float32()):
        assert hashes([1.5, -0.0], type_) == hashes([1.5, 0.0], pa.float64())


def test_layouts_of_strings_hash_equally() -> None:
    values = ["", "JFK", None, "a longer one, not inlined in a view"]
    expected = [reference(v) for v in values]
    for type_ in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())):
        assert hashes(values, type_) == expected
    for type_ in (pa.binary(), pa.large_binary(), pa.binary_view()):
        assert hashes([None if v is None else v.encode() for v in values], type_) == expected
    assert hashes([b"JFK", None], pa.binary(3)) == expected[1:3]


def test_dictionaries_hash_by_value_not_by_index() -> None:
    first = pa.array(["a", "b", None]).dictionary_encode()
    second = pa.DictionaryArray.from_arrays(pa.array([2, 0, None]), pa.array(["b", None, "a"]))
    assert hash_arrays([first]).tolist() == hash_arrays([second]).tolist()
    all_null = pa.DictionaryArray.from_arrays(pa.array([None], pa.int8()), pa.array([], pa.string()))
    assert hash_arrays([all_null]).tolist() == [NULL]


def test_decimals_hash_by_unscaled_value_whatever_their_width() -> None:
    values = [Decimal("-1.50"), Decimal("1.50"), None]
    types = (pa.decimal32(5, 2), pa.decimal64(10, 2), pa.decimal128(20, 2))
    assert len({tuple(hashes(values, t)) for t in types}) == 1
    wide = hashes([Decimal(1), Decimal(2**200)], pa.decimal256(70, 0))
    assert wide[0] != wide[1]


def test_nulls_form_one_group_in_every_type() -> None:
    types = (
        pa.int64(),
        pa.string(),
        pa.float32(),
        pa.null(),
        pa.bool_(),
        pa.decimal128(5, 1),
        pa.time32("s"),
    )
    for type_ in types:
        assert hashes([None, None], type_) == [NULL, NULL]


def test_sliced_columns_hash_as_their_rows() -> None:
    batch = pa.record_batch(
        {"s": ["a", "bb", None, "dddd"], "b": [True, False, True, None], "i": [1, 2, 3, 4]}
    )
    names = ["s", "b", "i"]
    assert hash_columns(batch.slice(1, 2), names).tolist() == hash_columns(batch, names)[1:3].tolist()
    assert hash_columns(batch.slice(4), names).tolist() == []


def test_order_of_columns_matters() -> None:
    batch = pa.record_batch({"a": [1], "b": [2]})
    assert hash_columns(batch, ["a", "b"]).tolist() != hash_columns(batch, ["b", "a"]).tolist()


def test_hashing_changes_nothing_in_the_batch() -> None:
    batch = pa.record_batch({"a": pa.array([-0.0, float("nan")]), "b": pa.array([1, 2], pa.int64())})
    before = batch.serialize().to_pybytes()
    hash_columns(batch, ["a", "b"])
    assert batch.serialize().to_pybytes() == before


@pytest.mark.parametrize("max_parallelism", [1, 100, 128, 32768])
def test_key_groups_are_hash_modulo_max_parallelism(max_parallelism: int) -> None:
    batch = pa.record_batch({"a": range(1000)})
    groups = key_groups(batch, ["a"], max_parallelism)
    assert groups.dtype == np.int32
    assert groups.tolist() == [reference(v) % max_parallelism for v in range(1000)]


def test_key_groups_of_sequential_keys_are_even() -> None:
    counts = np.bincount(key_groups(pa.record_batch({"a": range(128_000)}), ["a"], 128), minlength=128)
    assert counts.min() > 850
    assert counts.max() < 1150


@pytest.mark.parametrize(
    "type_", [pa.list_(pa.int64()), pa.struct({"a": pa.int64()}), pa.map_(pa.string(), pa.int8())]
)
def test_nested_types_cannot_be_keys(type_: pa.DataType) -> None:
    with pytest.raises(PlanError, match=r"'k' of type .* cannot be a key"):
        check_key_type("k", type_)


def test_key_types_are_accepted_when_planning() -> None:
    for type_ in (
        pa.int64(),
        pa.string_view(),
        pa.dictionary(pa.int32(), pa.string()),
        pa.timestamp("ns", "UTC"),
    ):
        check_key_type("k", type_)
