"""The contract of stores, of both implementations."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayflow.model.errors import StorageError
from rayflow.state.disk.rocks import RocksRows, failed
from rayflow.state.disk.row_store import RowStore, RowView

KEYS = [bytes([a]) + bytes([b]) * n for a in (1, 2, 3) for b in (0, 9) for n in (0, 1, 2)]
Open = Callable[[], RowStore]


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.dictionaries(st.sampled_from(KEYS), st.binary(max_size=3))),
            st.tuples(st.just("delete"), st.sets(st.sampled_from(KEYS))),
            st.tuples(st.just("range"), st.tuples(st.sampled_from(KEYS), st.sampled_from(KEYS))),
            st.tuples(st.just("view"), st.none()),
        ),
        max_size=8,
    ),
    st.integers(1, 4),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_store_is_an_ordered_map_and_its_views_stand_still(
    open_rows: Open, steps: list, limit: int
) -> None:
    store, model = open_rows(), dict[bytes, bytes]()
    views: list[tuple[RowView, dict[bytes, bytes]]] = []
    for what, given_ in steps:
        if what == "put":
            store.write(list(given_.items()))
            model |= given_
        elif what == "delete":
            store.write([], sorted(given_))
            model = {key: value for key, value in model.items() if key not in given_}
        elif what == "range":
            start, stop = sorted(given_)
            store.delete_range(start, stop)
            model = {key: value for key, value in model.items() if not start <= key < stop}
        else:
            views.append((store.view(), dict(model)))
    for view, held in [*views, (store, model)]:
        assert view.get(KEYS) == [held.get(key) for key in KEYS]
        for start in KEYS[::5]:
            wanted = sorted(entry for entry in held.items() if start <= entry[0] < b"\3\0")[:limit]
            assert view.scan(start, b"\3\0", limit) == wanted
            keys, values = view.scan_apart(start, b"\3\0", limit)
            assert list(zip(keys, values, strict=True)) == wanted


def test_a_view_is_read_on_another_thread_after_its_store_is_gone(open_rows: Open) -> None:
    store = open_rows()
    store.write([(b"a", b"1"), (b"b", b"2")])
    view = store.view()
    store.write([(b"c", b"3")], [b"a"])
    store.close()
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.extend([view.scan(b"a", b"z", 9), view.get([b"a", b"c"])]))
    reader.start()
    reader.join()
    assert found == [[(b"a", b"1"), (b"b", b"2")], [b"1", None]]


def test_a_closed_store_leaves_nothing_behind(tmp_path: Path) -> None:
    store = RocksRows(tmp_path / "rows", 1 << 20)
    store.write([(b"a", b"1")])
    assert store.nbytes() > 0
    store.close()
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_there_as_long_as_a_view_of_it(tmp_path: Path) -> None:
    store = RocksRows(tmp_path / "rows", 1 << 20)
    store.write([(b"a", b"1")])
    view = store.view()
    store.close()
    store.close()
    assert (tmp_path / "rows").exists()
    assert view.get([b"a"]) == [b"1"]
    del view
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path) -> None:
    store = RocksRows(tmp_path / "rows", 1 << 20)
    with pytest.raises(StorageError, match=f"cannot open state at {tmp_path}/rows"):
        RocksRows(tmp_path / "rows", 1 << 20)
    store.close()


def test_a_full_disk_is_an_error_that_says_what_to_do() -> None:
    error = failed(
        "write", "/scratch/rows", Exception("IO error: No space left on device: /scratch/rows/7.sst")
    )
    assert isinstance(error, StorageError)
    assert "free space there, or keep state elsewhere (state.dir)" in str(error)
