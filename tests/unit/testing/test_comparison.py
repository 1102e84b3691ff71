"""What is lost, duplicated or differing in an output."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.testing.comparison import compare

TABLE = pa.table({"k": ["a", "b", "c", "c"], "n": [1, 2, 3, 3], "x": [0.1, float("nan"), None, None]})


def numbers(verdict: object) -> tuple[int, int, int]:
    return (verdict.lost, verdict.duplicated, verdict.differing)


def test_the_same_rows_in_another_order_are_exact() -> None:
    assert compare(TABLE, TABLE.take([3, 1, 0, 2])).exact
    assert compare(TABLE, TABLE.select(["x", "n", "k"])).exact


def test_a_row_that_is_gone_is_lost() -> None:
    verdict = compare(TABLE, TABLE.slice(1))
    assert numbers(verdict) == (1, 0, 0)
    assert verdict.examples == ("missing 1 ×: k='a', n=1, x=0.1",)
    assert numbers(compare(TABLE, TABLE.slice(0, 3))) == (1, 0, 0)


def test_a_row_that_is_there_too_often_is_duplicated() -> None:
    assert numbers(compare(TABLE, pa.concat_tables([TABLE, TABLE.slice(1, 2)]))) == (0, 2, 0)


def test_a_wrong_value_is_one_differing_row() -> None:
    wrong = TABLE.set_column(1, "n", pa.array([1, 2, 3, 4]))
    assert numbers(compare(TABLE, wrong)) == (0, 0, 1)
    assert compare(TABLE, wrong, ignore=["n"]).exact


def test_another_column_makes_every_row_differ() -> None:
    assert numbers(compare(TABLE, TABLE.drop_columns(["x"]))) == (0, 0, 4)


def test_floats_may_differ_in_their_last_digits_only() -> None:
    sums = pa.table({"x": [0.1 + 0.2, 1e300, -12345.678901234567, 0.0, float("inf")]})
    near = pa.table({"x": [0.3, 1e300, -12345.678901234569, 0.0, float("inf")]})
    off = pa.table({"x": [0.3, 1e300, -12345.67, 0.0, float("inf")]})
    assert compare(sums, near).exact
    assert numbers(compare(sums, off)) == (0, 0, 1)


def test_nested_columns_are_compared_too() -> None:
    lists = pa.table({"l": [[1, 2], [3]], "n": [1, 2]})
    assert compare(lists, lists.take([1, 0])).exact
    assert numbers(compare(lists, pa.table({"l": [[1, 2], [4]], "n": [1, 2]}))) == (0, 0, 1)


@pytest.mark.parametrize("rows", [0, 3])
def test_an_empty_output(rows: int) -> None:
    assert numbers(compare(TABLE.slice(0, rows), TABLE.slice(0, 0))) == (rows, 0, 0)


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_the_numbers_account_for_every_row(expected: list[int], found: list[int]) -> None:
    verdict = compare(pa.table({"n": pa.array(expected, "int64")}), pa.table({"n": pa.array(found, "int64")}))
    assert verdict.exact == (sorted(expected) == sorted(found))
    if verdict.lost:
        assert len(found) == len(expected) - verdict.lost + verdict.duplicated
