"""Both implementations of the store port."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayflow.state.disk.rocks import RocksRows
from rayflow.state.disk.row_store import MemoryRows, RowStore


@pytest.fixture(params=["memory", "rocks", "rocks, appended"])
def open_rows(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], RowStore]]:
    """Opens stores; they are closed at the end."""
    stores: list[RowStore] = []

    def open_one() -> RowStore:
        made: RowStore = MemoryRows()
        if request.param != "memory":
            made = RocksRows(tmp_path / str(len(stores)), 1 << 20, "appended" in request.param)
        stores.append(made)
        return made

    yield open_one
    for store in stores:
        store.close()
