"""What is deleted from a job's directory, and what never is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayflow.client.removing import remove
from rayflow.model.errors import StorageError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.clock import wall_clock_ms
from rayflow.runtime.master.storage import JobStorage
from rayflow.runtime.snapshots import written_by
from rayflow.state.manifest import CheckpointKind, Manifest, StateFile
from rayflow.state.pins import Pin
from rayflow.state.publishing import write_surely
from rayflow.state.storage import LocalStore, ObjectStore, open_store

A1, A2 = Attempt(1), Attempt(2)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


@pytest.fixture
def storage(store: ObjectStore) -> JobStorage:
    return JobStorage(open_store, store.url, {}, JobId("job"))


def complete(
    storage: JobStorage, store: ObjectStore, number: int, kind: CheckpointKind = "checkpoint"
) -> None:
    upload(store, number)
    manifest = Manifest(
        job_id="job", attempt=1, checkpoint_id=number, time_ms=0, max_parallelism=8, kind=kind
    )
    storage.publish(manifest, A1)


def upload(store: ObjectStore, number: int, attempt: int = 1) -> None:
    store.write(f"job/chk-{number}/op-0-keys-a{attempt}.arrow", b"state")


def folders(store: ObjectStore) -> list[str]:
    return sorted({path.split("/")[1] for path in store.list("job")})


@pytest.mark.parametrize(
    ("path", "attempt"),
    [("chk-1/my-a9-uid-0-keys-a12.arrow", 12), ("chk-1/manifest.json", 0), ("x-a.arrow", 0), ("x-a3.txt", 0)],
)
def test_a_state_files_name_tells_its_attempt(path: str, attempt: int) -> None:
    assert written_by(path) == attempt


def test_a_checkpoint_is_deleted_whole(storage: JobStorage, store: LocalStore, tmp_path: Path) -> None:
    complete(storage, store, 1)
    storage.discard(CheckpointId(1), A1)
    storage.discard(CheckpointId(1), A1)
    assert not (tmp_path / "job" / "chk-1").exists()


def test_what_a_later_attempt_wrote_under_the_same_number_is_not_touched(
    storage: JobStorage, store: LocalStore
) -> None:
    # A master that was cut off tidies up its checkpoint 1, while its successor makes one of that number.
    upload(store, 1, attempt=1)
    upload(store, 1, attempt=2)
    storage.discard(CheckpointId(1), A1)
    assert len(store.list("job/chk-1")) == 2
    storage.discard(CheckpointId(1), A2)
    assert store.list("job") == []


def test_what_came_late_is_swept_and_what_is_under_way_is_not(storage: JobStorage, store: LocalStore) -> None:
    complete(storage, store, 5)
    for number in (2, 3, 4, 6):
        upload(store, number)
    storage.sweep(A1, CheckpointId(5), busy=[CheckpointId(3)])
    assert folders(store) == ["chk-3", "chk-5", "chk-6"]


def test_at_the_end_only_what_is_kept_and_the_metadata_stay(
    storage: JobStorage, store: LocalStore, tmp_path: Path
) -> None:
    storage.save_job({"state": "FINISHED"})
    storage.claim_attempt(A1, "now")
    for number in (1, 3, 4, 9):
        complete(storage, store, number)
    complete(storage, store, 2, "savepoint")
    upload(store, 5)
    (tmp_path / "job" / ".rayflow-tmp-0123").write_bytes(b"torn")
    (tmp_path / "job" / "chk-6").mkdir()
    (tmp_path / "job" / "chk-6" / ".rayflow-tmp-4567").write_bytes(b"torn")
    other = tmp_path / "other-job" / ".rayflow-tmp-89"
    other.parent.mkdir()
    other.write_bytes(b"at work")
    storage.sweep_all(A1, kept=[CheckpointId(3), CheckpointId(4)], known=CheckpointId(4))
    # 2 is the user's, 9 is newer than anything known, 1 was replaced, 5 and 6 never completed.
    assert sorted(path.name for path in (tmp_path / "job").iterdir()) == [
        "attempts",
        "chk-2",
        "chk-3",
        "chk-4",
        "chk-9",
        "job.json",
    ]
    assert other.exists()


def test_at_the_end_what_the_sinks_have_dropped_the_rows_of_is_no_checkpoint_to_go_on_from(
    storage: JobStorage, store: LocalStore
) -> None:
    for number in (3, 4, 5):
        complete(storage, store, number)
    complete(storage, store, 6, "savepoint")
    after = CheckpointId(3)
    storage.sweep_all(A1, [after], known=after, busy={CheckpointId(5)}, dropped_after=after)
    assert folders(store) == ["chk-3", "chk-5", "chk-6"]


def test_at_the_end_nothing_is_deleted_that_might_help_where_the_newest_manifest_is_gone(
    storage: JobStorage, store: LocalStore
) -> None:
    for number in (1, 2):
        complete(storage, store, number)
    upload(store, 3)
    storage.sweep_all(A1, kept=[CheckpointId(3)], known=CheckpointId(3))
    assert folders(store) == ["chk-1", "chk-2", "chk-3"]


def test_at_the_end_a_checkpoint_whose_manifest_may_still_appear_keeps_its_files(
    storage: JobStorage, sharing: JobStorage, store: LocalStore
) -> None:
    # Its manifest took 13 s, the job ended meanwhile: the manifest named what had been swept (seed 2725).
    for number in (1, 3):
        complete(storage, store, number)
    upload(store, 2)
    storage.sweep_all(A1, [CheckpointId(3)], CheckpointId(3), busy={CheckpointId(2)})
    assert folders(store) == ["chk-2", "chk-3"]
    # What that manifest shares with others is not known before it is there.
    complete(storage, store, 1)
    sharing.sweep_all(A1, [CheckpointId(3)], CheckpointId(3), busy={CheckpointId(2)})
    assert folders(store) == ["chk-1", "chk-2", "chk-3"]
    sharing.sweep_all(A1, [CheckpointId(3)], CheckpointId(3))
    assert folders(store) == ["chk-3"]


def test_at_the_end_what_dead_attempts_wrote_late_under_a_number_that_was_completed_goes_too(
    storage: JobStorage, store: LocalStore
) -> None:
    upload(store, 3, attempt=1)
    upload(store, 3, attempt=2)
    upload(store, 3, attempt=3)
    storage.publish(
        Manifest(job_id="job", attempt=2, checkpoint_id=3, time_ms=0, max_parallelism=8), Attempt(2)
    )
    storage.sweep_all(Attempt(2), [CheckpointId(3)], CheckpointId(3), busy=[CheckpointId(4)])
    assert "job/chk-3/op-0-keys-a1.arrow" in store.list("job")
    storage.sweep_all(Attempt(2), [CheckpointId(3)], CheckpointId(3))
    left = [path.rpartition("/")[2] for path in store.list("job/chk-3")]
    assert sorted(left) == ["manifest.json", "op-0-keys-a2.arrow", "op-0-keys-a3.arrow"]


def test_who_made_the_newest_claim_is_in_charge(storage: JobStorage, store: LocalStore) -> None:
    assert not storage.is_another_in_charge()
    storage.claim_attempt(A1, "now")
    storage.claim_attempt(Attempt(2), "now")
    assert not storage.is_another_in_charge()
    other = JobStorage(lambda url, options: store, store.url, {}, JobId("job"))
    assert other.is_another_in_charge()
    other.claim_attempt(A1, "now")
    assert storage.is_another_in_charge()
    assert not other.is_another_in_charge()
    store.write("job/attempts/3.json", b"torn")
    assert not storage.is_another_in_charge()


# -------------------------------------------------- a master that is superseded while it deletes (a zombie)


class Meanwhile(LocalStore):
    """A folder where something happens, once, between a listing of `after` and whatever the lister does next."""

    def __init__(self, root: Path, after: str, happen: Callable[[], None]) -> None:
        super().__init__(root)
        self._after, self._happen = after, [happen]

    def list(self, prefix: str) -> list[str]:
        found = super().list(prefix)
        if prefix == self._after and self._happen:
            self._happen.pop()()
        return found


def zombie(root: Path, after: str, happen: Callable[[], None], *, shares: bool = False) -> JobStorage:
    store = Meanwhile(root, after, happen)
    return JobStorage(lambda url, options: store, store.url, {}, JobId("job"), shares=shares)


def test_what_its_successor_writes_after_a_zombie_has_looked_stays(
    storage: JobStorage, store: LocalStore, tmp_path: Path
) -> None:
    # The number is free for the successor: what a dead subtask of attempt 1 wrote there came after it had looked.
    upload(store, 7, attempt=1)

    def successor() -> None:
        upload(store, 7, attempt=2)
        manifest = Manifest(job_id="job", attempt=2, checkpoint_id=7, time_ms=0, max_parallelism=8)
        storage.publish(manifest, A2)

    zombie(tmp_path, "job/chk-7", successor).discard(CheckpointId(7), A1)
    assert store.list("job") == ["job/chk-7/manifest.json", "job/chk-7/op-0-keys-a2.arrow"]


def test_what_its_successor_builds_on_stays_though_the_successor_has_discarded_what_told_so(
    sharing: JobStorage, store: LocalStore, tmp_path: Path
) -> None:
    build(sharing, store, 1, {})
    build(sharing, store, 2, {1: own(1)})

    def successor() -> None:
        build(sharing, store, 3, {1: own(1), 2: own(2)})
        sharing.discard(CheckpointId(2), A2)

    # It has listed 1 and 2, and comes to read why it has to spare files of 1 when only 3 tells that.
    with pytest.raises(StorageError, match="another job manager tidies up here"):
        zombie(tmp_path, "job", successor, shares=True).discard(CheckpointId(1), A1)
    assert sharing.list_checkpoints().complete == (1, 3)
    assert store.list("job/chk-1") == ["job/chk-1/manifest.json", f"job/chk-1/{own(1)[0]}"]


def test_a_writer_whose_temporary_file_a_zombie_takes_away_writes_again(tmp_path: Path) -> None:
    # Nobody can tell a crashed writer's temporary file from that of one at work.
    class Interrupted(LocalStore):
        def _temporary(self, target: Path, data: bytes) -> Path:
            temporary = super()._temporary(target, data)
            if calls.append(target) is None and len(calls) == 1:
                LocalStore(tmp_path).delete_all("job/chk-1", [])
            return temporary

    calls: list[Path] = []
    write_surely(Interrupted(tmp_path), "job/chk-1/x.arrow", b"state")
    assert LocalStore(tmp_path).read("job/chk-1/x.arrow") == b"state"
    assert len(calls) == 2


@pytest.mark.s3
def test_uploads_in_parts_that_nobody_will_complete_are_aborted_and_others_are_not(s3_server: Any) -> None:
    from rayflow.state.s3 import parse_s3_url
    from rayflow.state.s3_uploads import S3Uploads

    url = f"s3://{s3_server.new_bucket()}/checkpoints"
    uploads = S3Uploads(parse_s3_url(url, s3_server.options))
    storage = JobStorage(open_store, url, s3_server.options, JobId("job"))
    complete(storage, open_store(url, s3_server.options), 4)
    begun = [f"job/chk-{number}/op-0-keys-a1.arrow" for number in (1, 2, 3, 4, 5)]
    others = "job-2/chk-1/op-0-keys-a1.arrow"
    for path in [*begun, others]:
        uploads.send(path, uploads.begin(path), 1, b"part")

    storage.sweep(A1, CheckpointId(4), busy={CheckpointId(3)})
    assert sorted(path for path, _ in uploads.unfinished("")) == sorted([*begun[2:], others])
    # The job has ended.
    storage.sweep_all(A1, kept={CheckpointId(4)}, known=CheckpointId(4))
    assert [path for path, _ in uploads.unfinished("")] == [others]
    assert storage.list_checkpoints().complete == (4,)


# ---------------------------------------------------------------- checkpoints that are built on each other's files


@pytest.fixture
def sharing(store: ObjectStore) -> JobStorage:
    return JobStorage(open_store, store.url, {}, JobId("job"), shares=True)


def build(storage: JobStorage, store: ObjectStore, number: int, on: dict[int, list[str]]) -> None:
    """Publish a checkpoint of a file of its own, and of some of others."""
    own = f"op-0-state-{number}-a1.arrow"
    store.write(f"job/chk-{number}/{own}", b"state")
    paths: list[tuple[int | None, str]] = [(origin, path) for origin, files in on.items() for path in files]
    files = tuple(
        StateFile(
            path=path, uid="op", part="state", kind="keyed", subtask_index=0, nbytes=5, sha256="", rows=1,
            link=link, origin=origin,
        )
        for link, (origin, path) in enumerate([*paths, (None, own)])
    )  # fmt: skip
    manifest = Manifest(
        job_id="job", attempt=1, checkpoint_id=number, time_ms=0, max_parallelism=8, files=files
    )
    storage.publish(manifest, A1)


def own(number: int) -> list[str]:
    return [f"op-0-state-{number}-a1.arrow"]


def test_files_that_others_are_built_on_outlive_their_checkpoint_and_go_with_the_last_of_these(
    sharing: JobStorage, store: LocalStore
) -> None:
    build(sharing, store, 1, {})
    store.write("job/chk-1/op-0-other-a1.arrow", b"not shared")
    build(sharing, store, 2, {1: own(1)})
    build(sharing, store, 3, {1: own(1), 2: own(2)})
    sharing.discard(CheckpointId(1), A1)
    assert store.list("job/chk-1") == [f"job/chk-1/{own(1)[0]}"]
    sharing.discard(CheckpointId(2), A1)
    assert store.list("job/chk-2") == [f"job/chk-2/{own(2)[0]}"]
    # A new base: nobody needs those any more, once 3 is gone.
    build(sharing, store, 4, {})
    sharing.sweep(A1, CheckpointId(4))
    assert folders(store) == ["chk-1", "chk-2", "chk-3", "chk-4"]
    sharing.discard(CheckpointId(3), A1)
    sharing.sweep(A1, CheckpointId(4))
    assert folders(store) == ["chk-4"]


@pytest.mark.parametrize("damage", ["torn", "missing"])
def test_what_a_checkpoint_is_built_on_whose_manifest_has_rotted_stays_for_those_that_will_be_built_on_it(
    sharing: JobStorage, store: LocalStore, damage: str
) -> None:
    build(sharing, store, 1, {})
    build(sharing, store, 2, {1: own(1)})
    if damage == "torn":
        store.write("job/chk-2/manifest.json", b"to")
    else:
        store.delete("job/chk-2/manifest.json")
    # Its subtasks know that 2 is complete, and not what became of its manifest: 3 will name files of both.
    sharing.discard(CheckpointId(1), A1)
    sharing.sweep(A1, CheckpointId(3), busy=[CheckpointId(3)])
    assert {f"job/chk-{number}/{own(number)[0]}" for number in (1, 2)} <= set(store.list("job"))
    build(sharing, store, 3, {1: own(1), 2: own(2)})
    sharing.discard(CheckpointId(2), A1)
    build(sharing, store, 4, {})
    sharing.discard(CheckpointId(3), A1)
    sharing.sweep(A1, CheckpointId(4))
    assert folders(store) == ["chk-4"]


def test_a_new_attempt_keeps_nothing_for_a_checkpoint_that_cannot_be_restored(
    sharing: JobStorage, store: LocalStore
) -> None:
    build(sharing, store, 1, {})
    build(sharing, store, 2, {1: own(1)})
    store.write("job/chk-2/manifest.json", b"to")
    sharing.claim_attempt(A1, "now")
    sharing.discard(CheckpointId(1), A1)
    assert folders(store) == ["attempts", "chk-2"]


def test_what_another_job_had_pinned_goes_with_the_next_one(sharing: JobStorage, store: LocalStore) -> None:
    for number in (1, 2, 3):
        build(sharing, store, number, {})
    pin = Pin(open_store(f"{store.url}/job/chk-1", {}), "other")
    pin.put(wall_clock_ms())
    sharing.discard(CheckpointId(1), A1)
    assert folders(store) == ["chk-1", "chk-2", "chk-3"]
    pin.take_away()
    sharing.discard(CheckpointId(2), A1)
    assert folders(store) == ["chk-3"]


def test_at_the_end_of_a_job_what_is_kept_keeps_what_it_is_built_on_and_no_more(
    sharing: JobStorage, store: LocalStore
) -> None:
    build(sharing, store, 1, {})
    build(sharing, store, 2, {1: own(1)})
    build(sharing, store, 3, {1: own(1), 2: own(2)})
    build(sharing, store, 4, {1: own(1)})
    sharing.sweep_all(A1, [CheckpointId(4)], CheckpointId(4))
    assert [
        path.removeprefix("job/") for path in store.list("job") if not path.endswith("manifest.json")
    ] == [
        f"chk-1/{own(1)[0]}",
        f"chk-4/{own(4)[0]}",
    ]


def test_removing_a_checkpoint_spares_what_others_are_built_on(
    sharing: JobStorage, store: LocalStore, tmp_path: Path
) -> None:
    build(sharing, store, 1, {})
    store.write("job/chk-1/op-0-other-a1.arrow", b"not shared")
    build(sharing, store, 2, {1: own(1)})
    assert remove(str(tmp_path / "job" / "chk-1"), {}) == 2
    assert store.list("job/chk-1") == [f"job/chk-1/{own(1)[0]}"]
    assert remove(str(tmp_path / "job" / "chk-2"), {}) == 2
    assert folders(store) == ["chk-1"]
