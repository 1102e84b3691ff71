from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.state.rows import RowStore

SCHEMA = pa.schema([("v", pa.int64()), ("s", pa.string())])


def rows(values: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values), pa.array([f"s{v}" for v in values])], schema=SCHEMA)


def matched(store: RowStore, slots: list[int], max_pairs: int = 3) -> list[tuple[int, int]]:
    found = []
    for probes, numbers in store.match("slot", np.array(slots), max_pairs):
        assert 0 < len(probes) <= max_pairs
        found += list(zip(probes.tolist(), store.take(numbers)["v"].to_pylist()))
    return found


def test_rows_are_found_by_slot_oldest_first_in_pieces() -> None:
    store = RowStore(SCHEMA, ("slot",), ("slot",))
    store.add(rows([1, 2, 3]), slot=np.array([0, 1, 0]))
    store.add(rows([4, 5, 6, 7]), slot=np.array([0, -1, 0, 0]))
    assert matched(store, [1, 9, 0, -1, 1]) == [(0, 2), (2, 1), (2, 3), (2, 4), (2, 6), (2, 7), (4, 2)]
    assert store.counts("slot", np.array([0, 1, 2, -1])).tolist() == [5, 1, 0, 0]
    assert store.first("slot", np.array([0, 1, 2])).tolist() == [0, 1, -1]


def test_what_is_removed_is_not_found_and_its_memory_comes_back() -> None:
    store = RowStore(SCHEMA, ("slot",), ("slot",))
    for begin in range(0, 40_000, 1000):
        added = store.add(rows(list(range(begin, begin + 1000))), slot=np.zeros(1000, np.int64))
        store.remove(added[:-1])
        store.tidy()
    assert [v for _, v in matched(store, [0], 7)] == list(range(999, 40_000, 1000))
    assert len(store) == 40
    assert store.nbytes < 200_000


def test_the_latest_up_to_a_limit_is_the_newest_of_equal_ones() -> None:
    store = RowStore(SCHEMA, ("slot", "time"), ("slot",))
    store.add(rows([1, 2, 3, 4]), slot=np.array([0, 0, 0, 1]), time=np.array([5, 9, 5, 1]))
    found = store.latest("slot", np.array([0, 0, 0, 1, 2, -1]), "time", np.array([4, 8, 9, 1, 9, 9]))
    assert found.tolist() == [-1, 2, 1, 3, -1, -1]


def test_a_slice_of_a_large_batch_does_not_keep_it() -> None:
    store = RowStore(SCHEMA, ("slot",), ("slot",))
    store.add(rows(list(range(100_000))).slice(7, 3), slot=np.zeros(3, np.int64))
    assert sum(chunk.get_total_buffer_size() for chunk in store._chunks) < 10_000


@given(
    st.lists(
        st.tuples(st.lists(st.integers(-1, 4), max_size=400), st.integers(0, 100), st.booleans()), max_size=8
    )
)
@settings(max_examples=40, deadline=None)
def test_a_store_is_a_list_of_rows(steps: list[Any]) -> None:
    store = RowStore(SCHEMA, ("slot",), ("slot",))
    model: list[tuple[int, int]] = []
    value = 0
    for slots, percent, probe in steps:
        values = list(range(value, value + len(slots)))
        value += len(slots)
        store.add(rows(values), slot=np.array(slots, np.int64))
        model += list(zip(slots, values))
        if probe:
            expected = [(i, v) for i in range(5) for s, v in model if s == i]
            assert matched(store, list(range(5)), 50) == expected
        live = store.live()
        gone = np.arange(len(live)) * 37 % 100 < percent
        store.remove(live[gone])
        model = [row for row, out in zip(model, gone.tolist()) if not out]
        store.tidy()
        assert store.take(store.live())["v"].to_pylist() == [v for _, v in model]
        frozen = [v for batch, _ in store.freeze().batches() for v in batch["v"].to_pylist()]
        assert frozen == [v for _, v in model]
    assert matched(store, list(range(5)), 50) == [(i, v) for i in range(5) for s, v in model if s == i]
