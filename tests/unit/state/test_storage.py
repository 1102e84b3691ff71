"""One contract for all object stores, then what is particular to each."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rayflow.model.errors import ConfigError, StorageError
from rayflow.state.s3 import parse_s3_url
from rayflow.state.storage import MemoryStore, MissingObject, ObjectStore, local_path, open_store


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=pytest.mark.s3)])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "file":
        return open_store(f"file://{tmp_path}/deep/dir", {})
    if request.param == "memory":
        return open_store(f"memory://{tmp_path.name}-{id(request)}/deep", {})
    server = request.getfixturevalue("s3_server")
    return open_store(f"s3://{server.new_bucket()}/deep/dir", server.options)


def test_what_is_written_is_read_and_replaced(store: ObjectStore) -> None:
    store.write("a/b.bin", b"one")
    assert store.read("a/b.bin") == b"one"
    store.write("a/b.bin", b"")
    assert store.read("a/b.bin") == b""


def test_create_succeeds_once_and_changes_nothing_afterwards(store: ObjectStore) -> None:
    assert store.create("a/claim", b"first") is True
    assert store.create("a/claim", b"second") is False
    assert store.read("a/claim") == b"first"


def test_a_missing_object_has_an_error_of_its_own_that_names_it(store: ObjectStore) -> None:
    with pytest.raises(MissingObject, match="chk-1/manifest"):
        store.read("chk-1/manifest.json")


def test_list_goes_by_directory_not_by_letters(store: ObjectStore) -> None:
    for path in ("job/chk-10/m", "job/chk-1/m", "job/chk-1/x/y", "other"):
        store.write(path, b"x")
    assert store.list("job/chk-1") == ["job/chk-1/m", "job/chk-1/x/y"]
    assert store.list("job/") == ["job/chk-1/m", "job/chk-1/x/y", "job/chk-10/m"]
    assert len(store.list("")) == 4
    assert store.list("nowhere") == []


def test_delete_is_idempotent_and_stays_within_its_prefix(store: ObjectStore) -> None:
    for path in ("job/chk-10/m", "job/chk-1/m", "job/chk-1/x/y"):
        store.write(path, b"x")
    store.delete_prefix("job/chk-1")
    store.delete_prefix("job/chk-1")
    assert store.list("") == ["job/chk-10/m"]
    store.delete("job/chk-10/m")
    store.delete("job/chk-10/m")
    assert store.list("") == []
    assert store.create("job/chk-10/m", b"again")


def test_delete_all_takes_what_it_is_told_and_nothing_beside_it(store: ObjectStore) -> None:
    for path in ("job/chk-1/m", "job/chk-1/n", "job/chk-1/x/y", "job/chk-2/m"):
        store.write(path, b"x")
    store.delete_all("job/chk-1", ["job/chk-1/m", "job/chk-1/x/y", "job/chk-1/gone"])
    store.delete_all("job/chk-2", [])
    assert store.list("") == ["job/chk-1/n", "job/chk-2/m"]


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", "a/../b", ".", "", "a/"])
def test_a_path_cannot_leave_the_store(store: ObjectStore, path: str) -> None:
    with pytest.raises(ConfigError, match="object path"):
        store.write(path, b"x")


def test_stores_of_one_url_see_the_same_objects(tmp_path: Path) -> None:
    open_store("memory://same", {}).write("sub/x", b"1")
    assert open_store("memory://same/sub", {}).read("x") == b"1"
    open_store(str(tmp_path), {}).write("x", b"2")
    assert open_store(f"file://{tmp_path}", {}).read("x") == b"2"


def test_one_of_many_racing_creators_wins(tmp_path: Path) -> None:
    for name, open_it in _local_stores(tmp_path):
        won: list[bytes] = []
        barrier = threading.Barrier(8)

        def race(me: bytes, open_it: Callable[[], ObjectStore] = open_it, won: list[bytes] = won) -> None:
            barrier.wait()  # noqa: B023
            if open_it().create("claim", me):
                won.append(me)

        threads = [threading.Thread(target=race, args=(bytes([i]),)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1, name
        assert open_it().read("claim") == won[0], name


def _local_stores(tmp_path: Path) -> list[tuple[str, Callable[[], ObjectStore]]]:
    return [
        ("file", lambda: open_store(str(tmp_path), {})),
        ("memory", lambda: open_store(f"memory://race-{tmp_path.name}", {})),
    ]


def test_leftovers_of_a_crashed_writer_are_not_listed_and_go_with_their_directory(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    store.write("d/x", b"1")
    (tmp_path / "d" / ".rayflow-tmp-dead").write_bytes(b"torn")
    assert store.list("") == ["d/x"]
    store.delete_prefix("d")
    assert list(tmp_path.iterdir()) == []
    store.write("d/x", b"1")
    (tmp_path / "d" / ".rayflow-tmp-dead").write_bytes(b"torn")
    store.delete_all("d", ["d/x"])
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_a_storage_error_that_names_the_target(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=rf"cannot write file://{tmp_path}/file/x/y"):
        open_store(str(tmp_path), {}).write("file/x/y", b"")


@pytest.mark.s3
def test_a_missing_bucket_is_named_and_is_not_a_missing_object(s3_server) -> None:  # type: ignore[no-untyped-def]
    store = open_store("s3://no-such-bucket/x", s3_server.options)
    for act in (lambda: store.read("y"), lambda: store.write("y", b""), lambda: store.list("")):
        with pytest.raises(StorageError, match="no-such-bucket") as caught:
            act()
        assert not isinstance(caught.value, MissingObject)


def test_an_unreachable_endpoint_is_a_clear_error_without_secrets() -> None:
    with socket.socket() as unused:  # bound but not listening: connections are refused
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        options = {"s3.endpoint": endpoint, "s3.access_key": "AK", "s3.secret_key": "HUSH"}
        with pytest.raises(StorageError) as caught:
            open_store("s3://bucket/x", options).create("y", b"")
    assert "s3://bucket/x/y" in str(caught.value)
    assert endpoint in str(caught.value)
    assert "HUSH" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize(
    ("url", "options", "endpoint", "allow_http", "region"),
    [
        ("s3://b/p", {}, None, False, "us-east-1"),
        ("s3://b/p?endpoint_override=h:9&scheme=http&region=eu", {}, "http://h:9", True, "eu"),
        ("s3://b/p?endpoint_override=h:9", {"s3.region": "eu"}, "https://h:9", False, "eu"),
        ("s3://b/p", {"s3.endpoint": "http://h:9/"}, "http://h:9", True, "us-east-1"),
        ("s3://b/p", {"s3.endpoint": "h:9", "s3.allow_http": "true"}, "http://h:9", True, "us-east-1"),
    ],
)
def test_s3_settings_come_from_the_url_then_the_options(
    url: str, options: dict[str, str], endpoint: str | None, allow_http: bool, region: str
) -> None:
    at = parse_s3_url(url, options)
    assert (at.endpoint, at.allow_http, at.region) == (endpoint, allow_http, region)
    assert (at.bucket, at.path, at.url) == ("b", "p", "s3://b/p")


@pytest.mark.parametrize(
    ("url", "options", "match"),
    [
        ("s3://b/p?endpint=x", {}, "unknown query key 'endpint'"),
        ("s3://AK:HUSH@b/p", {}, "has credentials in it"),
        ("s3:///p", {}, "names no bucket"),
        ("s3://b/p", {"s3.access_key": "AK"}, "belong together"),
        ("ftp://b/p", {}, "unknown scheme 'ftp'"),
        ("file://host/p", {}, "did you mean file:///host/p"),
        ("memory://", {}, "has no name"),
        ("", {}, "is empty"),
    ],
)
def test_a_url_that_cannot_be_a_store_is_a_config_error(
    url: str, options: dict[str, str], match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        open_store(url, options)
    assert "HUSH" not in str(caught.value)


def test_local_paths_are_absolute_whatever_they_are_written_as(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    assert local_path("out/x") == tmp_path / "out" / "x"
    assert local_path(f"file://{tmp_path}/a%20b") == tmp_path / "a b"


@pytest.mark.timeout(20)
def test_a_store_in_memory_can_be_emptied_by_a_finalizer_that_runs_while_another_is_written() -> None:
    class Last:
        def __bytes__(self) -> bytes:  # runs where a collection may: within a write
            other.delete_prefix("")
            return b"x"

    one, other = MemoryStore("memory://finalizer-one"), MemoryStore("memory://finalizer-other")
    other.write("gone", b"y")
    one.write("kept", Last())  # type: ignore[arg-type]
    assert (one.read("kept"), other.list("")) == (b"x", [])
