"""Rows come back from bytes as they were."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.state.disk.row_codec import RowCodec, joined, pieces

_INTS = st.integers(-(2**63), 2**63 - 1)
_TEXTS = st.text(max_size=6)
_TYPES: list[tuple[pa.DataType, st.SearchStrategy[object]]] = [
    (pa.int64(), _INTS),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.bool_(), st.booleans()),
    (pa.timestamp("us"), st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1))),
    (pa.string(), _TEXTS),
    (pa.large_binary(), st.binary(max_size=5)),
    (pa.decimal128(20, 2), st.integers(-(10**9), 10**9).map(lambda n: Decimal(n).scaleb(-2))),
    (pa.list_(pa.int32()), st.lists(st.none() | st.integers(-5, 5), max_size=3)),
    (pa.large_list(pa.string()), st.lists(st.none() | _TEXTS, max_size=3)),
    (pa.list_(pa.list_(pa.string())), st.lists(st.none() | st.lists(_TEXTS, max_size=2), max_size=2)),
    (pa.list_(pa.int8(), 2), st.lists(st.integers(0, 5), min_size=2, max_size=2)),
    (
        pa.map_(pa.string(), pa.float64()),
        st.dictionaries(_TEXTS, st.none() | st.floats(allow_nan=False), max_size=3).map(
            lambda entries: list(entries.items())
        ),
    ),
    (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        st.fixed_dictionaries({"a": st.none() | _INTS, "b": st.none() | st.lists(_TEXTS, max_size=2)}),
    ),
]


@given(st.data())
def test_rows_come_back_as_they_were(data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.sampled_from(_TYPES), min_size=1, max_size=4))
    rows = data.draw(st.integers(0, 6))
    columns = [
        pa.array(data.draw(st.lists(st.none() | values, min_size=rows, max_size=rows)), type_)
        for type_, values in picked
    ]
    batch = pa.RecordBatch.from_arrays(columns, names=[f"c{i}" for i in range(len(columns))])
    # Of a part of a longer array, too: its buffers hold more than its rows.
    batch = pa.concat_batches([batch, batch]).slice(rows // 2, rows)
    codec = RowCodec(batch.schema)
    encoded = codec.encode(batch)
    back = codec.decode(joined(list(pieces(encoded))))
    assert back.schema == batch.schema
    assert back.to_pylist() == batch.to_pylist()
    back.validate(full=True)


def test_floats_keep_their_bits() -> None:
    column = np.array([0x8000000000000000, 0x7FF8000000000001, 0x7FF0000000000000], np.uint64).view(
        np.float64
    )
    batch = pa.record_batch({"x": column})
    codec = RowCodec(batch.schema)
    back = codec.decode(codec.encode(batch)).column(0).to_numpy()
    assert back.view(np.uint64).tolist() == column.view(np.uint64).tolist()


def test_dictionaries_come_back_as_dictionaries() -> None:
    batch = pa.record_batch({"x": pa.array(["a", None, "b", "a"]).dictionary_encode()})
    codec = RowCodec(batch.schema)
    back = codec.decode(codec.encode(batch))
    assert back.schema == batch.schema
    assert back.to_pylist() == batch.to_pylist()


def test_a_type_that_has_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError, match="month_day_nano_interval"):
        RowCodec(pa.schema([("x", pa.month_day_nano_interval())]))
