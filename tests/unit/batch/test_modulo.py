"""The stand-ins for what pyarrow 25 lacks do what pyarrow 26 does."""

from __future__ import annotations

from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.batch import modulo

INTS = st.integers(-(2**62), 2**62)
FLOATS = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(INTS | st.none(), INTS.filter(bool) | st.none())))
def test_of_integers_like_pythons(pairs):
    left, right = (pa.array([p[i] for p in pairs], pa.int64()) for i in (0, 1))
    expected = [None if a is None or b is None else a % b for a, b in pairs]
    assert modulo._modulo(left, right).to_pylist() == expected


@given(st.lists(st.tuples(FLOATS | st.none(), FLOATS.filter(bool) | st.none())))
def test_of_floats_like_pythons(pairs):
    left, right = (pa.array([p[i] for p in pairs], pa.float64()) for i in (0, 1))
    expected = [None if a is None or b is None else a % b for a, b in pairs]
    assert modulo._modulo(left, right).to_pylist() == pytest.approx(expected)


def test_of_decimals_keeps_their_digits():
    column = pa.array([Decimal("-1.25"), None, Decimal("2.50")])
    expected = [Decimal("0.75"), None, Decimal("0.50")]
    assert modulo._modulo(column, pa.scalar(1)).to_pylist() == expected


@pytest.mark.parametrize(
    ("left", "right", "rest"),
    [
        (pa.decimal128(3, 2), pa.int64(), pa.decimal128(21, 2)),
        (pa.decimal128(3, 2), pa.uint64(), pa.decimal128(22, 2)),
        (pa.decimal128(3, 2), pa.int8(), pa.decimal128(5, 2)),
        (pa.int64(), pa.decimal128(5, 3), pa.decimal128(22, 3)),
        (pa.decimal128(10, 2), pa.decimal128(5, 3), pa.decimal128(11, 3)),
        (pa.decimal128(30, 5), pa.decimal256(50, 2), pa.decimal256(53, 5)),
    ],
)
def test_the_type_of_decimals_is_pyarrow_26s_whatever_the_values_are(left, right, rest):
    for values in ([7], [None], [1, 3, None]):
        columns = [pa.array(values, type_) for type_ in (left, right)]
        assert modulo._modulo(*columns).type == rest
        assert modulo.modulo(*columns).type == rest


def test_of_scalars():
    assert modulo._modulo(pa.scalar(-7), pa.scalar(3)).as_py() == 2
    assert modulo._modulo(pa.scalar(-7.5), pa.scalar(2)).as_py() == 0.5
    assert modulo._modulo(pa.scalar(None, pa.float64()), pa.scalar(2)).as_py() is None


@pytest.mark.parametrize("value", [7, Decimal("7.5")])
def test_zero_raises(value):
    with pytest.raises(pa.ArrowInvalid, match=r"(?i)divide by zero"):
        modulo._modulo(pa.array([value]), pa.scalar(0))


@given(st.tuples(INTS, INTS.filter(bool)))
def test_remainder_has_the_sign_of_the_dividend(pair):
    left, right = pair
    expected = abs(left) % abs(right) * (1 if left >= 0 else -1)
    assert modulo._remainder(pa.array([left]), pa.scalar(right)).to_pylist() == [expected]
