from __future__ import annotations

import math
from collections import Counter, OrderedDict, defaultdict
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.state.plain_data import decode, encode

KEYS = st.none() | st.booleans() | st.integers() | st.text() | st.dates() | st.binary()
LEAVES = (
    KEYS
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.complex_numbers(allow_nan=False)
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.sets(KEYS, max_size=3)
        | st.frozensets(KEYS, max_size=3)
        | st.dictionaries(KEYS | st.just("~tuple"), inner, max_size=3)
        | st.dictionaries(st.text(), st.integers()).map(Counter)
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
    ),
    max_leaves=8,
)


def shape(value: Any) -> Any:
    """Return `value` with its types, since 1 == 1.0 == True."""
    if isinstance(value, dict):
        return type(value), [(shape(k), shape(v)) for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), {(type(v), v) for v in value}
    if isinstance(value, list | tuple):
        return type(value), [shape(v) for v in value]
    return type(value), value


@given(VALUES)
def test_whatever_is_plain_comes_back_as_it_was(value: Any) -> None:
    assert shape(decode(encode(value))) == shape(value)


def test_odd_numbers_zones_and_arrays_come_back() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode([math.inf, -0.0, 2**70])) == [math.inf, -0.0, 2**70]
    assert math.copysign(1, decode(encode(-0.0))) == -1
    moment = datetime(2024, 1, 2, 3, 4, 5, 6, timezone(timedelta(hours=2)))
    assert decode(encode(moment)) == moment
    assert decode(encode([date(1, 1, 1), time(0, 0, 0, 1), timedelta(microseconds=-1), Decimal("1.10")])) == [
        date(1, 1, 1),
        time(0, 0, 0, 1),
        timedelta(microseconds=-1),
        Decimal("1.10"),
    ]
    for array in (
        np.arange(6, dtype=np.int16).reshape(2, 3),
        np.zeros(0),
        np.array(["a", "é"]),
        np.eye(2)[:, 0],
    ):
        back = decode(encode(array))
        assert back.dtype == array.dtype
        assert np.array_equal(back, array)
        assert back.flags.writeable
    back = decode(encode(np.float32(1.5)))
    assert (back, type(back)) == (1.5, np.float32)


class Custom:
    def __repr__(self) -> str:
        return "<a custom thing>"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"a": [1, Custom()]},
            r"the state\['a'\]\[1\] is <a custom thing> of type .*Custom, which cannot be stored",
        ),
        (pa.scalar(1), r"call \.as_py\(\) on it"),
        (defaultdict(int), "collections.defaultdict"),
        (np.array([Custom()]), "numpy.ndarray"),
    ],
)
def test_what_is_not_plain_is_refused_by_its_place(value: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        encode(value)
