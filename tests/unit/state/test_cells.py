"""States by slot: what is too old is left out of a snapshot, whether or not it has been swept."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayflow.state.cells import Cells, ListCells, ValueCells
from rayflow.state.map_cells import MapCells

SLOTS = np.arange(3)


def value_cells(ttl_ms: int | None) -> Cells:
    cells = ValueCells("s", pa.int64(), ttl_ms)
    cells.reserve(3)
    cells.store(np.array([0]), [1], 0)
    cells.store(np.array([1]), [2], 5_000)
    return cells


def list_cells(ttl_ms: int | None) -> Cells:
    cells = ListCells("s", pa.int64(), ttl_ms)
    cells.reserve(3)
    cells.extend(0, [1], 0)
    cells.extend(1, [1], 0)
    cells.extend(1, [2], 5_000)
    return cells


def map_cells(ttl_ms: int | None) -> Cells:
    cells = MapCells("s", pa.int64(), pa.int64(), ttl_ms)
    cells.reserve(3)
    cells.put(0, 1, 1, 0)
    cells.put(1, 1, 1, 0)
    cells.put(1, 2, 2, 5_000)
    return cells


@pytest.mark.parametrize(
    ("make", "all_", "young"),
    [
        (value_cells, [1, 2, None], [None, 2, None]),
        (list_cells, [[1], [1, 2], None], [None, [2], None]),
        (map_cells, [[(1, 1)], [(1, 1), (2, 2)], None], [None, [(2, 2)], None]),
    ],
)
def test_a_snapshot_leaves_out_what_is_too_old(make: Any, all_: list[Any], young: list[Any]) -> None:
    for ttl_ms, now_ms, expected in ((10_000, 9_999, all_), (10_000, 10_000, young), (None, 10**9, all_)):
        cells = make(ttl_ms)
        ((name, column), *updated) = cells.freeze(now_ms)(SLOTS)
        assert name == cells.column
        assert column.to_pylist() == expected
        assert [name for name, _ in updated] == ([] if ttl_ms is None else ["s.updated"])
        cells.expire(SLOTS, now_ms)
        assert cells.occupied(SLOTS).tolist() == [value is not None for value in expected]


@pytest.mark.parametrize("make", [value_cells, list_cells, map_cells])
def test_write_times_come_back_with_what_was_written(make: Any) -> None:
    cells = make(10_000)
    columns = dict(cells.freeze(6_000)(SLOTS))
    restored = type(cells)(
        *(("s", pa.int64(), pa.int64(), 10_000) if make is map_cells else ("s", pa.int64(), 10_000))
    )
    restored.reserve(8)
    restored.restore(SLOTS + 5, columns["s." + cells.kind], columns["s.updated"], 6_000)
    assert restored.occupied(SLOTS + 5).tolist() == [True, True, False]
    again = dict(restored.freeze(10_000)(SLOTS + 5))
    assert again["s." + cells.kind].equals(dict(cells.freeze(10_000)(SLOTS))["s." + cells.kind])


def test_many_slots_are_read_in_chunks() -> None:
    cells = ListCells("s", pa.int64(), None)
    count = 150_000
    cells.reserve(count)
    for slot in range(0, count, 1000):
        cells.extend(slot, [slot], 0)
    ((_, column),) = cells.freeze(0)(np.arange(count))
    assert len(column) == count
    assert [value[0] for value in column.drop_null().to_pylist()] == list(range(0, count, 1000))
