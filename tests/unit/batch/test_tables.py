from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch import changelog, tables


def test_a_single_batch_is_not_copied_by_concat() -> None:
    batch = pa.record_batch({"a": [1]})
    assert tables.concat([batch]) is batch


def test_concat_unifies_different_dictionaries() -> None:
    parts = [pa.record_batch({"s": pa.array([v]).dictionary_encode()}) for v in ("x", "y")]
    assert tables.concat(parts).column(0).to_pylist() == ["x", "y"]


def test_nbytes_counts_the_slice_not_the_buffers_behind_it() -> None:
    batch = pa.record_batch({"a": np.arange(1000), "s": ["abcd"] * 1000})
    assert tables.nbytes(batch.slice(10, 100)) == 100 * 8 + 100 * 4 + 100 * 4


@settings(max_examples=60)
@given(st.lists(st.text(max_size=40), max_size=60), st.integers(1, 20), st.integers(1, 300))
def test_slices_keep_every_row_and_the_limits(values: list[str], rows: int, limit: int) -> None:
    batch = pa.record_batch({"s": pa.array(values, pa.string())})
    slices = tables.slice_rows(batch, max_rows=rows)
    assert tables.concat(slices).column(0).to_pylist() == values
    assert all(piece.num_rows <= rows for piece in slices)
    sized = tables.sized_pieces(batch, limit)
    assert tables.concat([piece for piece, _ in sized]).column(0).to_pylist() == values
    for piece, size in sized:
        assert size == tables.nbytes(piece)
        assert piece.num_rows <= 1 or size <= limit


def test_one_huge_row_among_small_ones_travels_alone() -> None:
    batch = pa.record_batch({"s": ["a"] * 10 + ["b" * 1000] + ["a"] * 10})
    pieces = [piece for piece, _ in tables.sized_pieces(batch, 100)]
    assert max(tables.nbytes(p) for p in pieces if p.num_rows > 1) <= 100
    assert sum(p.num_rows for p in pieces) == 21
    assert len(pieces) < 8


def test_rows_become_columns_in_order_of_first_appearance() -> None:
    batch = tables.rows_to_batch([{"a": 1}, {"b": "x", "a": 2.5}])
    assert batch.schema == pa.schema({"a": pa.float64(), "b": pa.string()})
    assert batch.to_pylist() == [{"a": 1.0, "b": None}, {"a": 2.5, "b": "x"}]


def test_rows_follow_a_given_schema() -> None:
    schema = pa.schema({"b": pa.int32(), "a": pa.float64()})
    assert tables.rows_to_batch([{"a": 1}], schema).schema == schema
    assert tables.rows_to_batch([], schema).num_rows == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"a": 1}, {"a": "x"}], "row 1: column 'a' is 'x', expected int64"),
        ([{"a": 1, "z": 2}], "'z'"),
        ([{"a": 2**70}], "row 0"),
        ([7], "row 0 is 7"),
    ],
)
def test_rows_that_do_not_fit_the_schema_name_row_and_column(rows: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tables.rows_to_batch(rows, pa.schema({"a": pa.int64()}))


def test_a_missing_value_of_a_required_column_is_an_error() -> None:
    with pytest.raises(ValueError, match="row 0 lacks a value for column 'a'"):
        tables.rows_to_batch([{}], pa.schema([pa.field("a", pa.int64(), nullable=False)]))


def test_rows_of_mixed_types_without_schema_name_the_column() -> None:
    with pytest.raises(ValueError, match="column 'a'"):
        tables.rows_to_batch([{"a": 1}, {"a": "x"}])


def test_sample_is_short_and_hides_the_op_column() -> None:
    batch = changelog.with_op(pa.record_batch({"a": [1, 2, 3, 4], "s": ["x" * 500] * 4}), 0)
    text = tables.render_sample(batch)
    assert text.startswith("{a: 1,")
    assert text.endswith("… (4 rows)")
    assert text.count("{") == 3
    assert changelog.OP_COLUMN not in text
    assert len(text) < 300


@pytest.mark.parametrize("rows", [10, 9000])
def test_take_gives_the_rows_asked_for_in_order(rows: int) -> None:
    batch = pa.record_batch(
        {
            "i": np.arange(rows, dtype=np.int16),
            "t": pa.array(np.arange(rows), pa.timestamp("ms", "UTC")),
            "n": pa.array([None if i % 2 else i for i in range(rows)]),
            "s": [str(i) for i in range(rows)],
            "b": [i % 3 == 0 for i in range(rows)],
        }
    ).slice(1)
    indices = np.random.default_rng(1).permutation(rows - 1)
    assert tables.take(batch, indices).equals(batch.take(pa.array(indices)))
    assert tables.take(batch, indices[:0]).num_rows == 0
