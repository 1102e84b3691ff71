from __future__ import annotations

import math
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayflow.state.value_types import ValueType, owned, widens

DAY = datetime(2024, 1, 2, 3, 4, 5, 678901)


@pytest.mark.parametrize(
    ("type_", "value", "kept"),
    [
        (pa.int64(), np.int32(5), 5),
        (pa.uint8(), 255, 255),
        (pa.float64(), 3, 3.0),
        (pa.float32(), 0.1, float(np.float32(0.1))),
        (pa.string(), "ü", "ü"),
        (pa.binary(), bytearray(b"x"), b"x"),
        (pa.bool_(), np.bool_(True), True),
        (pa.timestamp("us"), DAY, DAY),
        (pa.timestamp("us"), DAY.replace(tzinfo=timezone(timedelta(hours=1))), DAY - timedelta(hours=1)),
        (pa.timestamp("s"), DAY, DAY.replace(microsecond=0)),
        (pa.date32(), date(2024, 1, 2), date(2024, 1, 2)),
        (pa.duration("us"), timedelta(seconds=1), timedelta(seconds=1)),
        (pa.decimal128(5, 2), Decimal("1.5"), Decimal("1.50")),
        (pa.list_(pa.int64()), (1, 2), [1, 2]),
        (pa.struct({"a": pa.int64(), "b": pa.string()}), {"a": 1}, {"a": 1, "b": None}),
        (pa.map_(pa.string(), pa.int64()), {"a": 1}, [("a", 1)]),
    ],
)
def test_what_fits_is_kept_as_a_checkpoint_gives_it_back(type_: pa.DataType, value: Any, kept: Any) -> None:
    made = ValueType(type_).canonical(value)
    assert made == kept
    assert type(made) is type(kept)
    assert pa.array([made], type_).to_pylist() == [kept]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (pa.int64(), "5"),
        (pa.int64(), 1.0),
        (pa.int64(), True),
        (pa.int64(), 2**63),
        (pa.uint8(), -1),
        (pa.float64(), "1"),
        (pa.float64(), True),
        (pa.string(), b"x"),
        (pa.string(), "\ud800"),
        (pa.binary(), "x"),
        (pa.bool_(), 1),
        (pa.timestamp("us"), 5),
        (pa.timestamp("us"), date(2024, 1, 1)),
        (pa.duration("s"), 3),
        (pa.date32(), "2024-01-01"),
        (pa.list_(pa.string()), "abc"),
        (pa.list_(pa.int64()), [1, "a"]),
        (pa.struct({"a": pa.int64()}), [1]),
        (pa.decimal128(3, 2), Decimal("1000")),
    ],
)
def test_what_does_not_fit_is_refused(type_: pa.DataType, value: Any) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError, pa.ArrowException)):
        ValueType(type_).canonical(value)


def test_every_nan_is_the_same_object_so_that_it_can_be_a_maps_key() -> None:
    for type_ in (pa.float64(), pa.float32()):
        canonical = ValueType(type_).canonical
        assert canonical(float("nan")) is canonical(-math.nan)


def test_an_owned_copy_shares_nothing() -> None:
    value = {"a": [1, {"b": [2]}], "c": (1, [2])}
    copied = owned(value)
    copied["a"][1]["b"].append(3)
    copied["c"][1].append(3)
    assert value == {"a": [1, {"b": [2]}], "c": (1, [2])}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (pa.int32(), pa.int64(), True),
        (pa.uint8(), pa.int16(), True),
        (pa.int8(), pa.uint64(), False),
        (pa.int64(), pa.int32(), False),
        (pa.uint64(), pa.int64(), False),
        (pa.int32(), pa.float64(), True),
        (pa.int64(), pa.float64(), False),
        (pa.float32(), pa.float64(), True),
        (pa.string(), pa.large_string(), True),
        (pa.string(), pa.binary(), False),
        (pa.decimal128(5, 2), pa.decimal128(7, 3), True),
        (pa.decimal128(5, 2), pa.decimal128(5, 3), False),
        (pa.list_(pa.int32()), pa.list_(pa.int64()), True),
        (pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.int64()), True),
        (pa.map_(pa.string(), pa.int32()), pa.map_(pa.string(), pa.string()), False),
        (pa.timestamp("us"), pa.timestamp("ns"), False),
    ],
)
def test_types_that_hold_all_the_others_values(old: pa.DataType, new: pa.DataType, expected: bool) -> None:
    assert widens(old, new) is expected
    if expected:
        pa.nulls(1, old).cast(new)
