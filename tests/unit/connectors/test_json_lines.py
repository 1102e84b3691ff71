"""JSON lines: valid, exact, and readable again where promised."""

from __future__ import annotations

import datetime as dt
import decimal
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.connectors.file_formats import FORMATS
from rayflow.connectors.json_lines import decode_lines, encode_lines, finite_only, reads_back, render_rows

NAN = float("nan")


@pytest.mark.parametrize(
    ("array", "texts"),
    [
        (pa.array([1, None]), ["1", "null"]),
        (pa.array([True, False]), ["true", "false"]),
        (
            pa.array([1.0, -0.0, 0.1, 1e300, NAN, float("inf")]),
            ["1.0", "-0.0", "0.1", "1e+300", "null", "null"],
        ),
        (pa.array([np.float16(1.5), None], pa.float16()), ["1.5", "null"]),
        (pa.array(['a"\\b', "é\u2028", "a\nb", None]), ['"a\\"\\\\b"', '"é\u2028"', '"a\\nb"', "null"]),
        (pa.array([0, None], pa.timestamp("ms")), ['"1970-01-01T00:00:00.000"', "null"]),
        (pa.array([0], pa.timestamp("s", "Europe/Berlin")), ['"1970-01-01T00:00:00Z"']),
        (pa.array([0], pa.date32()), ['"1970-01-01"']),
        (pa.array([61], pa.time32("s")), ['"00:01:01"']),
        (pa.array([5], pa.duration("s")), ["5"]),
        (
            pa.array([decimal.Decimal("123456789012345678901.10")], pa.decimal128(30, 2)),
            ["123456789012345678901.10"],
        ),
        (pa.array([b"ab", None]), ['"YWI="', "null"]),
        (pa.array(["x", None, "x"]).dictionary_encode(), ['"x"', "null", '"x"']),
        (pa.nulls(1), ["null"]),
        (pa.array([[1.0, NAN, None], None, []]), ["[1.0,null,null]", "null", "[]"]),
        (
            pa.array([{"t": dt.datetime(2020, 1, 1), "é": [b""]}]),
            ['{"t":"2020-01-01T00:00:00.000000","é":[""]}'],
        ),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), ['[["k",1]]']),
    ],
)
def test_each_type_has_its_text(array: pa.Array, texts: list[str]) -> None:
    batch = pa.record_batch({'a"b': array})
    assert render_rows(batch) == [f'{{"a\\"b":{text}}}' for text in texts]
    for line in render_rows(batch):
        json.loads(line)
    assert render_rows(batch.slice(1)) == render_rows(batch)[1:]


def test_rows_without_columns_and_tables_without_rows_are_fine() -> None:
    assert encode_lines(pa.table({"x": pa.array([], pa.int64())})) == b""
    batch = pa.RecordBatch.from_struct_array(pa.array([{}, {}], pa.struct([])))
    assert encode_lines(batch) == b"{}\n{}\n"


TYPES: dict[pa.DataType, Any] = {
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.uint8(): st.integers(0, 255),
    pa.float64(): st.floats(allow_nan=False, allow_infinity=False),
    pa.float32(): st.floats(width=32, allow_nan=False, allow_infinity=False),
    pa.bool_(): st.booleans(),
    pa.string(): st.text(st.characters(codec="utf-8"), max_size=5),
    pa.large_string(): st.text("a\"\\\n,{}'", max_size=3),
    pa.timestamp("us"): st.datetimes(dt.datetime(1700, 1, 1), dt.datetime(2200, 1, 1)),
    pa.timestamp("ms", "Europe/Berlin"): st.integers(-(10**12), 10**13),
    pa.date32(): st.dates(),
}


@st.composite
def tables(draw: Any) -> pa.Table:
    types = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=4))
    rows = draw(st.integers(1, 5))
    columns = {
        f"c{i}": pa.array(draw(st.lists(st.none() | TYPES[type_], min_size=rows, max_size=rows)), type_)
        for i, type_ in enumerate(types)
    }
    return pa.table(columns)


@settings(deadline=None, max_examples=50)
@given(tables())
def test_types_that_read_back_do(table: pa.Table) -> None:
    assert all(reads_back(type_) for type_ in table.schema.types)
    assert decode_lines(encode_lines(table), table.schema).equals(table)


@pytest.mark.parametrize("name", ["csv", "json", "parquet", "arrow"])
@settings(deadline=None, max_examples=50)
@given(table=tables())
def test_every_format_reads_back_what_it_wrote(name: str, table: pa.Table) -> None:
    stream = pa.BufferOutputStream()
    writer = FORMATS[name].writer(stream, table.schema)
    writer.write(table)
    writer.close()
    assert FORMATS[name].read(bytes(stream.getvalue()), table.schema).cast(table.schema).equals(table)


def test_only_finite_floats_stay() -> None:
    batch = pa.record_batch({"f": [1.0, NAN, float("inf")], "s": ["nan", "x", None]})
    assert finite_only(batch).to_pydict() == {"f": [1.0, None, None], "s": ["nan", "x", None]}
