from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayflow.batch import changelog


def test_op_column_is_added_last_replaced_and_removed() -> None:
    batch = pa.record_batch({"a": [1, 2]})
    inserted = changelog.with_op(batch, changelog.INSERT)
    assert inserted.schema.names == ["a", changelog.OP_COLUMN]
    assert changelog.is_changelog(inserted.schema)
    assert not changelog.is_changelog(batch.schema)
    mixed = changelog.with_op(inserted, np.array([changelog.UPDATE_BEFORE, changelog.DELETE], np.int8))
    assert changelog.ops(mixed).tolist() == [1, 3]
    assert changelog.visible(mixed).equals(batch)


def test_schemas_gain_and_lose_the_column_once() -> None:
    schema = pa.schema({"a": pa.int64()})
    grown = changelog.changelog_schema(schema)
    assert grown == changelog.changelog_schema(grown)
    assert changelog.visible_schema(grown) == schema == changelog.visible_schema(schema)


def test_rows_of_an_append_stream_are_inserts() -> None:
    assert changelog.ops(pa.record_batch({"a": [1, 2]})).tolist() == [0, 0]


def test_ops_of_a_slice_are_those_of_its_rows() -> None:
    batch = changelog.with_op(pa.record_batch({"a": [1, 2, 3]}), np.array([0, 1, 2], np.int8))
    assert changelog.ops(batch.slice(1)).tolist() == [1, 2]


def test_symbols_follow_the_numbers() -> None:
    assert changelog.OP_SYMBOLS[changelog.UPDATE_AFTER] == "+U"
    assert changelog.OP_SYMBOLS[changelog.DELETE] == "-D"
