"""`--from` a checkpoint of a job that still runs, and discards it meanwhile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import rayflow as rf
from rayflow.model.errors import CorruptCheckpointError, StorageError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.clock import wall_clock_ms
from rayflow.runtime.local import run_local
from rayflow.runtime.master.beginning import Request, foreign_restore_point
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.storage import JobStorage
from rayflow.state.manifest import Manifest
from rayflow.state.pins import HELD_MS
from rayflow.state.storage import LocalStore, ObjectStore, open_store


@pytest.fixture
def running(tmp_path: Path) -> JobStorage:
    """The storage of a job that has completed checkpoints 5 to 8 and keeps three."""
    storage = JobStorage(open_store, str(tmp_path), {}, JobId("running"))
    for number in range(5, 9):
        manifest = Manifest(job_id="running", attempt=1, checkpoint_id=number, time_ms=0, max_parallelism=8)
        storage.publish(manifest, Attempt(1))
    storage.discard(CheckpointId(5), Attempt(1))
    return storage


def restored(tmp_path: Path, what: str, own: JobStorage | None = None) -> int:
    env = rf.StreamEnvironment(max_parallelism=8)
    env.from_rows([{"a": 1}]).discard()
    job = Job.of(JobId("new"), env.plan(), {"checkpoint.storage": str(tmp_path)})
    request = Request(
        first_attempt=Attempt(1),
        at="now",
        fresh=True,
        restore_from=what,
        allow_duplicates=False,
        damaged={},
    )
    own = own or JobStorage(open_store, str(tmp_path), {}, JobId("new"))
    point, _ = foreign_restore_point(job, own, request, what)
    return point.checkpoint_id


def test_a_checkpoint_that_its_job_has_discarded_is_an_error_that_names_the_newest(
    tmp_path: Path, running: JobStorage
) -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        restored(tmp_path, f"file://{tmp_path}/running/chk-5")
    assert "newest checkpoint of that job is chk-8" in str(caught.value)
    assert "checkpoint.retained" in str(caught.value)
    assert f"restore file://{tmp_path}/running, which is its newest" in str(caught.value)


def test_what_the_error_names_can_be_restored(tmp_path: Path, running: JobStorage) -> None:
    assert restored(tmp_path, f"file://{tmp_path}/running") == 8
    assert restored(tmp_path, f"file://{tmp_path}/running/chk-6") == 6


def test_where_there_never_was_a_job_nothing_is_said_of_one(tmp_path: Path) -> None:
    with pytest.raises(CorruptCheckpointError) as caught:
        restored(tmp_path, f"file://{tmp_path}/nobody/chk-5")
    assert "newest" not in str(caught.value)


def test_what_a_job_is_about_to_start_from_stays_until_that_has_a_checkpoint_of_its_own(
    tmp_path: Path, running: JobStorage
) -> None:
    own = JobStorage(open_store, str(tmp_path), {}, JobId("new"))
    chosen = f"file://{tmp_path}/running/chk-6"
    assert restored(tmp_path, chosen, own) == 6
    running.discard(CheckpointId(6), Attempt(1))
    # An attempt that follows, before there is a checkpoint.
    assert restored(tmp_path, chosen, own) == 6
    running.discard(CheckpointId(7), Attempt(1))
    assert running.list_checkpoints().complete == (6, 8)
    own.publish(Manifest(job_id="new", attempt=1, checkpoint_id=9, time_ms=0, max_parallelism=8), Attempt(1))
    running.discard(CheckpointId(8), Attempt(1))
    assert not [path for path in open_store(str(tmp_path), {}).list("running") if path.startswith("chk-")]


def test_the_pin_of_a_job_that_died_does_not_last(tmp_path: Path, running: JobStorage) -> None:
    restored(tmp_path, f"file://{tmp_path}/running/chk-6")
    now_ms = wall_clock_ms()
    for later_ms, there in ((HELD_MS - 60_000, True), (HELD_MS + 60_000, False)):
        owner = JobStorage(
            open_store, str(tmp_path), {}, JobId("running"), now_ms=lambda ms=now_ms + later_ms: ms
        )
        owner.discard(CheckpointId(6), Attempt(1))
        assert (CheckpointId(6) in owner.list_checkpoints().complete) is there


def test_what_cannot_be_pinned_can_be_started_from_all_the_same(
    tmp_path: Path, running: JobStorage, caplog: pytest.LogCaptureFixture
) -> None:
    class ReadOnly(LocalStore):
        def write(self, path: str, data: bytes) -> None:
            raise StorageError("no rights to write here")

    def opened(url: str, options: Mapping[str, str]) -> ObjectStore:
        return ReadOnly(Path(url.removeprefix("file://"))) if "chk-6" in url else open_store(url, options)

    own = JobStorage(opened, str(tmp_path), {}, JobId("new"))
    assert restored(tmp_path, f"file://{tmp_path}/running/chk-6", own) == 6
    assert "could not be pinned: no rights" in caplog.text


def test_nothing_is_made_where_there_is_no_checkpoint(tmp_path: Path, running: JobStorage) -> None:
    with pytest.raises(CorruptCheckpointError):
        restored(tmp_path, f"file://{tmp_path}/running/chk-55")
    assert not (tmp_path / "running" / "chk-55").exists()


def numbers(start: int, count: int) -> Any:
    import pyarrow as pa

    return pa.record_batch({"k": [i % 5 for i in range(start, start + count)]})


def counting() -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(max_parallelism=8)
    env.generate(numbers, rows=2_000).key_by("k").aggregate(n=rf.count()).discard()
    return env


class Vanishing(LocalStore):
    """A folder whose checkpoint 1 is discarded while its state is being read."""

    def read(self, path: str) -> bytes:
        if path.endswith(".arrow"):
            self.delete_prefix("")
        return super().read(path)


def test_a_checkpoint_that_goes_while_it_is_read_ends_in_the_same_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = counting()
    config = {"checkpoint.storage": str(tmp_path), "checkpoint.interval": "off", "restart.delay": "1ms"}
    run_local(env.plan(), config, job_id=JobId("running"))
    (newest,) = (p for p in (tmp_path / "running").iterdir() if p.name.startswith("chk-"))
    # The job has gone on meanwhile, as its metadata tell.
    later = tmp_path / "running" / "chk-99"
    later.mkdir()
    document = json.loads((newest / "manifest.json").read_text())
    (later / "manifest.json").write_text(json.dumps(document))

    def opened(url: str, options: Mapping[str, str]) -> ObjectStore:
        if url.partition("?")[0].endswith(newest.name):
            return Vanishing(newest)
        return open_store(url, options)

    monkeypatch.setattr("rayflow.runtime.local.open_store", opened)
    result = run_local(counting().plan(), config, job_id=JobId("new"), restore_from=f"file://{newest}")
    assert result.failure is not None
    assert "newest checkpoint of that job is chk-99" in result.failure[1]
