"""Which checkpoints are found, and which of them somebody may go on from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from rayflow.model.errors import CorruptCheckpointError
from rayflow.state.finding import list_checkpoints, resolve_checkpoint, restorable, stored_job
from rayflow.state.manifest import CheckpointKind, Manifest, publish_manifest, read_manifest
from rayflow.state.storage import MemoryStore, ObjectStore, open_store

MANIFEST = Manifest(job_id="job-1", attempt=2, checkpoint_id=7, time_ms=0, max_parallelism=128)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(f"memory://finding-{id(request)}")


def publish(store: ObjectStore, number: int, kind: CheckpointKind = "checkpoint") -> None:
    manifest = dataclasses.replace(MANIFEST, checkpoint_id=number, kind=kind)
    publish_manifest(store, f"job-1/chk-{number}", manifest)


def test_checkpoints_are_listed_by_number_not_by_letters(store: MemoryStore) -> None:
    for number in (10, 9, 2):
        publish(store, number)
    store.write("job-1/attempts/1.json", b"")
    store.write("job-1/chk-11/deep/manifest.json", b"")
    store.write("job-10/chk-3/manifest.json", b"")
    assert list_checkpoints(store, "job-1") == [2, 9, 10]


def test_a_user_may_name_a_checkpoint_or_a_job(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    for number in (9, 10):
        publish(store, number)
    publish_manifest(store, "my-savepoint", MANIFEST)
    store.write("job-1/chk-11/part.arrow", b"unfinished")

    def resolved(path: str) -> tuple[str, int]:
        found = resolve_checkpoint(path, {})
        assert read_manifest(open_store(found.url, {}), "") == found.manifest
        return found.url, found.manifest.checkpoint_id

    assert resolved(f"{tmp_path}/job-1") == (f"{tmp_path}/job-1/chk-10", 10)
    assert resolved(f"file://{tmp_path}/job-1/chk-9/") == (f"file://{tmp_path}/job-1/chk-9/", 9)
    assert resolved(f"{tmp_path}/my-savepoint") == (f"{tmp_path}/my-savepoint", 7)


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("nowhere", "there is nothing"),
        ("foreign", "what is there is not a checkpoint"),
        ("torn", "torn/manifest.json is not JSON"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path: Path, path: str, problem: str) -> None:
    store = open_store(str(tmp_path), {})
    store.write("foreign/data.parquet", b"PAR1")
    store.write("torn/manifest.json", MANIFEST.to_json()[:100])
    with pytest.raises(CorruptCheckpointError, match=problem):
        resolve_checkpoint(f"{tmp_path}/{path}", {})


@pytest.mark.s3
def test_on_s3_a_checkpoint_is_found_through_a_url_with_a_query(s3_server) -> None:  # type: ignore[no-untyped-def]
    bucket = s3_server.new_bucket()
    publish_manifest(open_store(f"s3://{bucket}", s3_server.options), "job-1/chk-7", MANIFEST)
    keys = {k: v for k, v in s3_server.options.items() if k.endswith("_key")}
    url = f"s3://{bucket}/job-1?endpoint_override={s3_server.endpoint}"
    found = resolve_checkpoint(url, keys)
    assert found.url == f"s3://{bucket}/job-1/chk-7?endpoint_override={s3_server.endpoint}"
    assert read_manifest(open_store(found.url, keys), "") == MANIFEST


def test_nobody_goes_on_from_what_appears_when_the_sinks_have_dropped_its_rows(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    for number in (2, 3, 4):
        publish(store, number)
    publish(store, 5, "savepoint")
    store.write("job-1/job.json", json.dumps({"state": "CANCELLED", "dropped_after": 3}).encode())
    assert restorable(store, "job-1", list_checkpoints(store, "job-1"), stored_job(store, "job-1")) == [
        2,
        3,
        5,
    ]
    store.delete("job-1/chk-5/manifest.json")
    assert resolve_checkpoint(f"{tmp_path}/job-1", {}).manifest.checkpoint_id == 3


def test_where_that_is_all_there_is_no_checkpoint(tmp_path: Path) -> None:
    store = open_store(str(tmp_path), {})
    publish(store, 1)
    store.write("job-1/job.json", json.dumps({"state": "CANCELLED", "dropped_after": 0}).encode())
    with pytest.raises(CorruptCheckpointError, match=r"chk-1 appeared when .* start without --from"):
        resolve_checkpoint(f"{tmp_path}/job-1", {})


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"dropped_after": ', b"\xff"])
def test_with_a_damaged_job_json_checkpoints_are_found_and_what_it_said_is_not_made_up(
    tmp_path: Path, data: bytes
) -> None:
    store = open_store(str(tmp_path), {})
    publish(store, 1)
    store.write("job-1/job.json", data)
    assert resolve_checkpoint(f"{tmp_path}/job-1", {}).manifest.checkpoint_id == 1
    with pytest.raises(CorruptCheckpointError, match=r"job-1/job\.json is not"):
        stored_job(store, "job-1")


def test_a_job_json_that_says_nothing_of_it_rules_nothing_out(store: MemoryStore) -> None:
    publish(store, 1)
    store.write("job-1/job.json", b'{"dropped_after": null}')
    assert restorable(store, "job-1", [1], stored_job(store, "job-1")) == [1]
    assert restorable(store, "job-1", [1], stored_job(store, "job-2")) == [1]
