from __future__ import annotations

from datetime import datetime

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.batch.python_values import pylist, row_dicts

TYPES = [
    pa.timestamp(unit, tz) for unit in ("s", "ms", "us") for tz in (None, "UTC", "Europe/Berlin", "+02:00")
]


@given(
    st.sampled_from(TYPES), st.lists(st.none() | st.integers(-(2**34), 2**34), max_size=6), st.integers(0, 2)
)
def test_values_are_those_of_arrow(type_: pa.DataType, numbers: list[int | None], skipped: int) -> None:
    array = pa.array(numbers, pa.int64()).cast(type_).slice(skipped)
    assert pylist(array) == array.to_pylist()
    assert [v.tzinfo for v in pylist(array) if v] == [v.tzinfo for v in array.to_pylist() if v]


@pytest.mark.parametrize(
    "array",
    [
        pa.array([1, None, 3], pa.int8()),
        pa.array(["a", None]),
        pa.array([[1], None]),
        pa.array([True, None]),
        pa.array([0, None], pa.timestamp("ns")),
        pa.array([], pa.timestamp("ms")),
        pa.array([None, None], pa.timestamp("ms")),
    ],
)
def test_other_types_pass_through(array: pa.Array) -> None:
    assert pylist(array) == array.to_pylist()


def test_the_whole_range_of_datetime_is_covered_and_beyond_it_is_an_error() -> None:
    for time in (datetime.min, datetime.max.replace(microsecond=0)):
        assert pylist(pa.array([time], pa.timestamp("s"))) == [time]
    with pytest.raises((OverflowError, ValueError)):
        pylist(pa.array([2**50], pa.int64()).cast(pa.timestamp("s")))
    with pytest.raises((OverflowError, ValueError)):
        pylist(pa.array([2**50], pa.int64()).cast(pa.timestamp("s", "UTC")))


def test_rows_are_dicts_and_count_without_columns() -> None:
    assert list(row_dicts(["a", "b"], [[1, 2], ["x", None]], 2)) == [{"a": 1, "b": "x"}, {"a": 2, "b": None}]
    assert list(row_dicts([], [], 2)) == [{}, {}]
