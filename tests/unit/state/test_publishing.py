"""A write whose answer is lost is resolved by what is there."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pytest

from rayflow.model.errors import CorruptCheckpointError, StorageError
from rayflow.state.files import encode_table, read_part, sha256_hex
from rayflow.state.manifest import CheckpointFiles, Manifest, StateFile, publish_manifest, read_manifest
from rayflow.state.publishing import create_surely, write_surely
from rayflow.state.storage import MemoryStore, MissingObject, ObjectStore, open_store
from tests.faulty_proxy import FaultyProxy, faulty_proxy

MANIFEST = Manifest(job_id="job-1", attempt=1, checkpoint_id=7, time_ms=0, max_parallelism=8)


class Flaky(MemoryStore):
    """A memory store whose next calls fail: "before" or "after" they were carried out."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.script: list[str | None] = []
        self.calls = 0

    def write(self, path: str, data: bytes) -> None:
        self._scripted(lambda: MemoryStore.write(self, path, data))

    def create(self, path: str, data: bytes) -> bool:
        made: list[bool] = []
        self._scripted(lambda: made.append(MemoryStore.create(self, path, data)))
        return made[0]

    def read(self, path: str) -> bytes:
        found: list[bytes] = []
        self._scripted(lambda: found.append(MemoryStore.read(self, path)))
        return found[0]

    def _scripted(self, act) -> None:  # type: ignore[no-untyped-def]
        self.calls += 1
        when = self.script.pop(0) if self.script else None
        if when != "before":
            act()
        if when is not None:
            raise StorageError(f"failed {when}")


@pytest.fixture
def flaky(request: pytest.FixtureRequest) -> Flaky:
    return Flaky(f"memory://flaky-{id(request)}-{request.node.name}")


def test_a_creation_whose_answer_was_lost_is_ours_if_our_contents_are_there(flaky: Flaky) -> None:
    flaky.script = ["after"]
    assert create_surely(flaky, "x", b"mine") is True
    assert flaky.calls == 2


def test_a_creation_that_never_arrived_is_made_again(flaky: Flaky) -> None:
    flaky.script = ["before"]
    assert create_surely(flaky, "x", b"mine") is True
    assert flaky.read("x") == b"mine"


def test_a_creation_that_lost_the_race_is_not_ours_whatever_the_store_answered(flaky: Flaky) -> None:
    MemoryStore.write(flaky, "x", b"theirs")
    flaky.script = ["after"]
    assert create_surely(flaky, "x", b"mine") is False
    assert create_surely(flaky, "x", b"mine") is False
    assert flaky.read("x") == b"theirs"


def test_an_outcome_that_cannot_be_told_is_the_first_error(flaky: Flaky) -> None:
    flaky.script = ["after", "before"]
    with pytest.raises(StorageError, match="failed after"):
        create_surely(flaky, "x", b"mine")
    flaky.script = ["before", None, "before", None]
    with pytest.raises(StorageError, match="failed before"):
        create_surely(flaky, "y", b"mine")
    assert flaky.list("") == ["x"]


def test_a_state_file_whose_answer_was_lost_is_not_written_twice(flaky: Flaky) -> None:
    flaky.script = ["after"]
    write_surely(flaky, "x", b"new")
    assert flaky.calls == 2
    flaky.script = ["before"]
    write_surely(flaky, "x", b"newer")
    assert flaky.read("x") == b"newer"
    flaky.script = ["before", None, "before"]
    with pytest.raises(StorageError):
        write_surely(flaky, "x", b"newest")


def test_one_bad_read_does_not_make_a_checkpoint_corrupt() -> None:
    class OnceWrong(MemoryStore):
        wrong = 1

        def read(self, path: str) -> bytes:
            data = super().read(path)
            self.wrong, flip = self.wrong - 1, self.wrong > 0
            return b"\x00" + data[1:] if flip else data

    store = OnceWrong("memory://once-wrong")
    publish_manifest(store, "chk-7", MANIFEST)
    assert read_manifest(store, "chk-7") == MANIFEST
    data = encode_table(pa.table({"v": [1, 2]}))
    store.write("chk-7/f", data)
    file = StateFile(
        path="chk-7/f",
        uid="u",
        part="p",
        kind="list",
        subtask_index=0,
        nbytes=len(data),
        sha256=sha256_hex(data),
        rows=2,
    )
    store.wrong = 1
    files = CheckpointFiles("memory://once-wrong", lambda url: store)
    assert read_part(files, file).num_rows == 2
    store.wrong = 2
    with pytest.raises(CorruptCheckpointError, match=rf"chk-7/f is corrupt.* says {len(data)} bytes with"):
        read_part(files, file)


# ------------------------------------------------------------------------------------- through a real server


@pytest.fixture
def proxied(s3_server) -> Iterator[tuple[FaultyProxy, ObjectStore]]:  # type: ignore[no-untyped-def]
    with faulty_proxy(s3_server.endpoint) as proxy:
        options = {**s3_server.options, "s3.endpoint": proxy.endpoint}
        yield proxy, open_store(f"s3://{s3_server.new_bucket()}/deep", options)


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["drop-reply", "error-after"])
@pytest.mark.parametrize("times", [1, 1000])
def test_a_manifest_that_was_put_is_published_however_often_the_answer_is_lost(  # type: ignore[no-untyped-def]
    proxied, kind, times: int
) -> None:
    proxy, store = proxied
    fault = proxy.fail(kind, "PUT", "manifest", times)
    publish_manifest(store, "chk-7", MANIFEST)
    assert fault.happened >= 1
    assert read_manifest(store, "chk-7") == MANIFEST
    other = Manifest(job_id="job-1", attempt=2, checkpoint_id=7, time_ms=0, max_parallelism=8)
    with pytest.raises(StorageError, match="was already published by attempt 1"):
        publish_manifest(store, "chk-7", other)


@pytest.mark.s3
def test_a_manifest_that_never_arrived_is_an_error_and_no_checkpoint(proxied) -> None:  # type: ignore[no-untyped-def]
    proxy, store = proxied
    proxy.fail("refuse", "PUT", "manifest")
    with pytest.raises(StorageError, match=r"cannot create s3://.*chk-7/manifest\.json"):
        publish_manifest(store, "chk-7", MANIFEST)
    with pytest.raises(MissingObject):
        store.read("chk-7/manifest.json")


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["truncate", "flip", "refuse"])
def test_an_answer_damaged_once_does_no_harm_and_always_is_an_error(proxied, kind) -> None:  # type: ignore[no-untyped-def]
    proxy, store = proxied
    publish_manifest(store, "chk-7", MANIFEST)
    proxy.fail(kind, "GET", "manifest", times=1)
    assert read_manifest(store, "chk-7") == MANIFEST
    proxy.fail(kind, "GET", "manifest")
    with pytest.raises(CorruptCheckpointError if kind == "flip" else StorageError):
        read_manifest(store, "chk-7")
