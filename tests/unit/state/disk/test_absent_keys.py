"""A key that is in is never said to be outside, however it was encoded; few of those outside seem to be in."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.state.disk.absent_keys import AbsentKeys
from rayflow.state.key_index import KeyIndex

SCHEMAS = {
    "words": (pa.schema([("k", pa.int64())]), st.integers(-5, 300)),
    "floats": (pa.schema([("k", pa.float64())]), st.floats(width=16)),
    "texts": (pa.schema([("k", pa.string())]), st.text("ab", max_size=9)),
}


class Keys(KeyIndex):
    """Gives keys as they come, and as they are stored."""

    def coming(self, rows: pa.RecordBatch):
        return self._codec.encode(rows)

    def stored(self, slots):
        return self._table.stored().gather(slots)


@pytest.mark.parametrize("kind", SCHEMAS)
@given(data=st.data())
def test_what_was_stored_is_found_as_it_comes(kind: str, data: st.DataObject) -> None:
    schema, values = SCHEMAS[kind]
    batches = data.draw(
        st.lists(st.lists(st.none() | values, min_size=1, max_size=20), min_size=1, max_size=5)
    )
    index, known = Keys(schema), AbsentKeys(1 << 20)
    for batch in batches:
        rows = pa.RecordBatch.from_pylist([{"k": value} for value in batch], schema=schema)
        slots, fresh = index.insert(rows)
        known.add(index.stored(slots[fresh]))
        # Zeros of either sign are one key, and so are all NaN.
        assert known.may_have(index.coming(rows)).all()


def words(start: int, stop: int):
    schema = pa.schema([("k", pa.int64())])
    return Keys(schema).coming(pa.record_batch([np.arange(start, stop)], schema=schema))


def test_few_of_the_others_seem_to_be_there_however_many_there_are() -> None:
    known = AbsentKeys(600_000)
    for start in range(0, 400_000, 50_000):
        known.add(words(start, start + 50_000))
        assert known.may_have(words(0, start + 50_000)).all()
        assert known.may_have(words(1_000_000, 1_100_000)).mean() < 0.1
    assert 0 < known.nbytes < 600_000


def test_beyond_its_bytes_every_key_may_be_there() -> None:
    known = AbsentKeys(50_000)
    known.add(words(0, 10))
    assert not known.may_have(words(100, 110)).all()
    known.add(words(10, 100_000))
    assert known.may_have(words(1_000_000, 1_000_100)).all()
    assert known.nbytes == 0


def test_nothing_is_there_after_clear() -> None:
    known = AbsentKeys(1 << 20)
    known.add(words(0, 1_000))
    known.clear()
    assert not known.may_have(words(0, 1_000)).any()
