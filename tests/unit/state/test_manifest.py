"""Manifests: what is published is what is read, and nothing else passes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import CorruptCheckpointError, StorageError
from rayflow.state.finding import list_checkpoints
from rayflow.state.manifest import (
    Manifest,
    SplitState,
    StateFile,
    checkpoint_directory,
    publish_manifest,
    read_manifest,
)
from rayflow.state.storage import MemoryStore

FILE = StateFile(
    path="count-0-keys.arrow",
    uid="count",
    part="keys",
    kind="keyed",
    subtask_index=0,
    nbytes=100,
    sha256="ab" * 32,
    rows=3,
    key_groups=(0, 64),
)
MANIFEST = Manifest(
    job_id="job-1",
    attempt=2,
    checkpoint_id=7,
    time_ms=1_700_000_000_000,
    max_parallelism=128,
    operators={"read": 1, "count": 2},
    files=(FILE, dataclasses.replace(FILE, kind="list", key_groups=None)),
    sources={
        "read": (SplitState(split='{"id": "a"}', position="[1]", max_time=-(2**100)), SplitState(split="b"))
    },
    watermarks={"count": 2**100},
)


@pytest.fixture
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(f"memory://manifest-{id(request)}-{request.node.name}")


names = st.text(max_size=20)
whole = st.integers(-(2**100), 2**100)
split_states = st.builds(
    SplitState,
    split=names,
    position=st.none() | names,
    finished=st.booleans(),
    max_time=st.none() | whole,
)
state_files = st.builds(
    StateFile,
    path=st.just("a/b.arrow"),
    uid=names,
    part=names,
    kind=st.sampled_from(["keyed", "list", "broadcast"]),
    subtask_index=st.integers(0, 100),
    nbytes=st.integers(0),
    sha256=names,
    rows=st.integers(0),
    key_groups=st.none() | st.tuples(st.integers(0), st.integers(0)),
)
chain_files = st.builds(
    dataclasses.replace,
    state_files,
    link=st.integers(0, 20),
    origin=st.none() | st.integers(1),
)


@settings(deadline=None, max_examples=50)
@given(
    manifest=st.builds(
        Manifest,
        job_id=names,
        attempt=whole,
        checkpoint_id=whole,
        time_ms=whole,
        max_parallelism=whole,
        kind=st.sampled_from(["checkpoint", "savepoint"]),
        operators=st.dictionaries(names, st.integers(1, 99), max_size=3),
        files=st.lists(state_files | chain_files, max_size=3).map(tuple),
        sources=st.dictionaries(names, st.lists(split_states, max_size=3).map(tuple), max_size=3),
        watermarks=st.dictionaries(names, whole, max_size=3),
        committed=st.none() | whole,
        salted=st.dictionaries(names, st.lists(st.integers(0, 2**64 - 1), min_size=1).map(tuple), max_size=2),
    )
)
def test_json_and_back_is_the_same_manifest(manifest: Manifest) -> None:
    assert Manifest.from_json(manifest.to_json()) == manifest


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(MANIFEST.to_json()) - 1))
def test_a_torn_manifest_is_corrupt_wherever_it_is_torn(length: int) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"^here/manifest\.json"):
        Manifest.from_json(MANIFEST.to_json()[:length], "here/manifest.json")


@pytest.mark.parametrize(
    ("committed", "salted", "version"),
    [(None, {}, 1), (0, {}, 3), (6, {}, 3), (6, {"salt": (2**64 - 1,)}, 4)],
)
def test_a_manifest_has_the_first_version_that_can_read_it(
    committed: int | None, salted: dict[str, tuple[int, ...]], version: int
) -> None:
    document = json.loads(dataclasses.replace(MANIFEST, committed=committed, salted=salted).to_json())
    assert (document["format_version"], document.get("committed")) == (version, committed)
    assert ("salted" in document) == bool(salted)


def _edited(path: tuple[Any, ...], value: Any) -> bytes:
    salted = {"salt": (1, 2)} if path[0] == "salted" else {}
    document: Any = json.loads(dataclasses.replace(MANIFEST, salted=salted).to_json())
    at = document
    for step in path[:-1]:
        at = at[step]
    if value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        (("format_version",), 5, "format_version is 5; this rayflow reads 1 to 4"),
        (("format_version",), ..., "not a manifest of rayflow"),
        (("job_id",), ..., "the manifest lacks 'job_id'"),
        (("attempt",), "2", "'attempt' is '2': not of the expected type"),
        (("attempt",), True, "'attempt' is True"),
        (("kind",), "backup", "kind is 'backup'"),
        (("surprise",), 1, "unknown field 'surprise'"),
        (("operators", "count"), 2, "operator 'count'"),
        (("files", 0, "sha256"), ..., "files.0. lacks 'sha256'"),
        (("files", 0, "path"), "../../etc/passwd", "object path"),
        (("files", 0, "kind"), "odd", "kind is 'odd'"),
        (("files", 0, "key_groups"), [1], "key_groups is .1."),
        (("files", 1), None, r"files\[1\] is None"),
        (("sources", "read", "splits", 0, "split"), ..., "a split of source 'read' lacks 'split'"),
        (("sources", "read"), [], "source 'read'"),
        (("watermarks", "count"), "now", "watermark of 'count'"),
        (("salted", "salt"), 7, "what operator 'salt' salts is 7"),
        (("salted", "salt"), ["a"], "what operator 'salt' salts is 'a'"),
        (("salted", "salt"), [2**64], "no hash of 64 bits"),
        (("salted", "salt"), [-1], "no hash of 64 bits"),
    ],
)
def test_each_defect_is_named(path: tuple[Any, ...], value: Any, problem: str) -> None:
    with pytest.raises(CorruptCheckpointError, match=problem):
        Manifest.from_json(_edited(path, value))


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'"x"', b"PAR1\x00\xff", b"{}"])
def test_a_foreign_file_is_not_a_manifest(data: bytes) -> None:
    with pytest.raises(CorruptCheckpointError, match=r"^here is not"):
        Manifest.from_json(data, "here")


def test_publishing_twice_is_harmless_but_another_manifest_never_replaces_the_first(
    store: MemoryStore,
) -> None:
    directory = checkpoint_directory("job-1", 7)
    publish_manifest(store, directory, MANIFEST)
    publish_manifest(store, directory, MANIFEST)
    with pytest.raises(StorageError, match="already published by attempt 2"):
        publish_manifest(store, directory, dataclasses.replace(MANIFEST, attempt=1))
    assert read_manifest(store, directory) == MANIFEST


def test_a_directory_without_a_manifest_is_no_checkpoint(store: MemoryStore) -> None:
    store.write("job-1/chk-9/count-0-keys.arrow", b"x")
    with pytest.raises(CorruptCheckpointError, match=r"job-1/chk-9/manifest\.json does not exist"):
        read_manifest(store, "job-1/chk-9")
    assert list_checkpoints(store, "job-1") == []


def test_a_manifest_in_another_checkpoints_directory_is_foreign(store: MemoryStore) -> None:
    store.write("job-1/chk-8/manifest.json", MANIFEST.to_json())
    with pytest.raises(CorruptCheckpointError, match="checkpoint 7: it is foreign"):
        read_manifest(store, "job-1/chk-8")


def test_a_manifest_that_still_parses_but_was_changed_is_corrupt() -> None:
    for path, value in ((("sources", "read", "splits", 0, "position"), "[2]"), (("watermarks", "count"), 1)):
        with pytest.raises(CorruptCheckpointError, match="its contents have SHA-256"):
            Manifest.from_json(_edited(path, value))
    Manifest.from_json(_edited(("attempt",), MANIFEST.attempt))
