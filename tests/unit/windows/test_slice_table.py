"""The table of (key, slice) against a dictionary: rows in and out of order, slices that are dropped."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.windows.slice_table import SliceTable

SCHEMA = pa.schema([("k", pa.int64())])


def keys_of(values: list[int] | np.ndarray) -> pa.RecordBatch:
    return pa.record_batch([pa.array(values, pa.int64())], schema=SCHEMA)


def listed(table: SliceTable, begin: int, end: int) -> dict[int, list[int]]:
    """Return the entries of each slice, as its list has them."""
    found = {}
    slices = table.between(begin, end)
    for number, head in zip(slices.numbers.tolist(), slices.heads.tolist()):
        found[number] = []
        while head >= 0:
            found[number].append(head)
            head = int(table.following[head])
    return found


@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 6), st.integers(-3, 9)), max_size=30), st.integers(-4, 8)
        ),
        max_size=8,
    ),
    in_order=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_every_key_and_slice_has_one_entry_until_the_slice_is_dropped(
    steps: list[tuple[list[tuple[int, int]], int]], in_order: bool
) -> None:
    table = SliceTable(SCHEMA)
    known: dict[tuple[int, int], int] = {}
    dropped = -4
    for rows, drop in steps:
        rows = [(key, max(slice_, dropped)) for key, slice_ in rows]
        rows = sorted(rows, key=lambda row: row[1]) if in_order else rows
        if rows:
            slots = table.slots(
                keys_of([row[0] for row in rows]), np.array([row[1] for row in rows], np.int64)
            )
            for row, slot in zip(rows, slots.tolist()):
                assert known.setdefault(row, slot) == slot
        assert len(set(known.values())) == len(known) == len(table)
        frozen = table.freeze()
        assert sorted(known.values()) == frozen.slots.tolist()
        live = sorted(known.items(), key=lambda item: item[1])
        assert frozen.keys_of(frozen.slots).column(0).to_pylist() == [key for (key, _), _ in live]
        assert frozen.panes_of(frozen.slots).tolist() == [slice_ for (_, slice_), _ in live]
        lists = listed(table, -10, 20)
        assert list(lists) == sorted({slice_ for _, slice_ in known})
        for slice_, entries in lists.items():
            assert sorted(entries) == sorted(slot for (_, s), slot in known.items() if s == slice_)
        dropped = max(dropped, drop)
        gone = table.drop_before(dropped)
        assert sorted(gone.tolist()) == sorted(slot for (_, s), slot in known.items() if s < dropped)
        known = {row: slot for row, slot in known.items() if row[1] >= dropped}
        assert table.key_count == len({key for key, _ in known})


@pytest.mark.parametrize("disorder", [0, 5])
def test_memory_is_that_of_what_is_open(disorder: int) -> None:
    table = SliceTable(SCHEMA)
    rng = np.random.default_rng(3)
    sizes = []
    for step in range(300):
        slices = step * 10 + np.sort(rng.integers(0, 10, 500)) - rng.integers(0, disorder + 1, 500)
        table.slots(keys_of(step * 100 + rng.integers(0, 400, 500)), slices)
        table.drop_before(step * 10 - 60)
        sizes.append(table.nbytes)
    # How full hash tables are differs a little.
    assert max(sizes[150:]) <= 1.1 * max(sizes[50:150])


def test_rows_behind_their_keys_latest_cost_a_table_only_as_long_as_such_rows_come() -> None:
    table = SliceTable(SCHEMA)
    many = np.arange(20_000)
    table.slots(keys_of(many), np.full(20_000, 10))
    small = table.nbytes
    table.slots(keys_of([5]), np.array([3]))
    assert table.nbytes > small + 8 * 20_000
    for _ in range(3):
        table.slots(keys_of(many), np.full(20_000, 10))
    assert table.nbytes < small + 8 * 20_000
