from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.state.pair_table import KeyedEntries, PairIndex, _Pairs, entry_index


def test_fixed_width_values_lie_in_words_and_others_in_bytes() -> None:
    assert isinstance(entry_index(pa.timestamp("ns", "UTC")), PairIndex)
    assert isinstance(entry_index(pa.decimal128(5, 1)), KeyedEntries)
    with pytest.raises(TypeError, match="cannot be a key"):
        entry_index(pa.list_(pa.int8()))


@given(
    st.sampled_from([pa.int64(), pa.string()]),
    st.lists(
        st.tuples(st.booleans(), st.lists(st.tuples(st.integers(0, 3), st.integers(-3, 3)), max_size=9))
    ),
)
@settings(max_examples=60, deadline=None)
def test_every_pair_has_one_entry_until_it_is_removed(type_: pa.DataType, steps: list[Any]) -> None:
    index, model = entry_index(type_), {}
    for removes, pairs in steps:
        if removes:
            gone = [pair for pair in dict.fromkeys(pairs) if pair in model]
            index.remove(np.array([model.pop(pair) for pair in gone], np.int64))
            continue
        slots, values = np.array([s for s, _ in pairs], np.int64), pa.array([v for _, v in pairs], pa.int64())
        entries, fresh = index.insert(slots, values.cast(type_))
        for row, (pair, entry) in enumerate(zip(pairs, entries.tolist())):
            assert (row in fresh) == (pair not in model)
            assert model.setdefault(pair, entry) == entry
    entries = np.array(list(model.values()), np.int64)
    assert len(set(entries.tolist())) == len(model)
    assert index.slots(entries).tolist() == [slot for slot, _ in model]
    frozen = index.freeze()
    index.insert(np.array([9]), pa.array([9]).cast(type_))
    assert frozen.values(entries).cast(pa.int64()).to_pylist() == [value for _, value in model]


def test_a_table_grows_and_keeps_every_entry() -> None:
    index = PairIndex(pa.int64())
    slots, values = np.repeat(np.arange(300), 300), np.tile(np.arange(300), 300)
    first = np.concatenate([index.insert(s, pa.array(v))[0] for s, v in zip(*map(pieces, (slots, values)))])
    assert first.tolist() == list(range(90_000))
    again, fresh = index.insert(slots[::-1].copy(), pa.array(values[::-1].copy()))
    assert again.tolist() == first[::-1].tolist()
    assert len(fresh) == 0
    assert index._table.find(_Pairs(slots + 299, values.view(np.uint64))).tolist() == [
        *range(299 * 300, 300 * 300),
        *[-1] * (299 * 300),
    ]
    assert index.nbytes < 90_000 * 80


def pieces(array: Any) -> Any:
    return np.array_split(array, 7)
