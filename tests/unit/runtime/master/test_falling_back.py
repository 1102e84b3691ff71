"""What an attempt restores where the newest checkpoint is damaged: nothing before what a sink may have committed."""

from __future__ import annotations

from pathlib import Path

import pytest

import rayflow as rf
from rayflow.model.errors import CorruptCheckpointError, PlanError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.local import run_local
from rayflow.runtime.master.beginning import Beginning, Request, begin
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.storage import JobStorage, Sibling
from rayflow.state.finding import list_checkpoints
from rayflow.state.manifest import Manifest, read_manifest
from rayflow.state.storage import open_store

DAMAGE = "a bit of a state file flipped"


class Lab:
    """A job with a transactional sink (or without), and its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.storage = JobStorage(open_store, str(folder), {}, JobId("job"))

    def publish(self, number: int, committed: int | None, attempt: int = 1) -> None:
        manifest = Manifest(
            job_id="job",
            attempt=attempt,
            checkpoint_id=number,
            time_ms=0,
            max_parallelism=8,
            committed=committed,
        )
        self.storage.publish(manifest, Attempt(1))

    def discard(self, number: int) -> None:
        self.storage.discard(CheckpointId(number), Attempt(1))

    def job(self, transactions: bool = True) -> Job:
        env = rf.StreamEnvironment(max_parallelism=8)
        rows = env.from_rows([{"a": 1}])
        if transactions:
            rows.write_parquet(str(self.folder / "out"))
        else:
            rows.discard()
        return Job.of(JobId("job"), env.plan(), {"checkpoint.storage": str(self.folder)})

    def begin(self, *damaged: int, transactions: bool = True, restore_from: str | None = None) -> Beginning:
        job = self.job(transactions)
        request = Request(
            first_attempt=Attempt(2),
            at="now",
            fresh=False,
            restore_from=restore_from,
            allow_duplicates=False,
            damaged={self.storage.url(CheckpointId(number)): DAMAGE for number in damaged},
        )
        return begin(job, self.storage, request)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def number(beginning: Beginning) -> int | None:
    return None if beginning.restore is None else beginning.restore.checkpoint_id


def test_a_checkpoint_that_is_discarded_may_have_been_committed_by_the_one_after_it(lab: Lab) -> None:
    # `checkpoint.retained` is 1: chk-2 had transactions, and is gone; chk-3 had none.
    lab.publish(3, committed=2)
    with pytest.raises(CorruptCheckpointError) as caught:
        lab.begin(3)
    assert "checkpoint 3 of job job cannot be used (a bit of a state file flipped)" in str(caught.value)
    assert "committed rows up to checkpoint 2" in str(caught.value)


def test_nor_is_one_before_the_commit_restored(lab: Lab) -> None:
    lab.publish(1, committed=0)
    lab.publish(3, committed=2)
    with pytest.raises(CorruptCheckpointError, match="committed rows up to checkpoint 2"):
        lab.begin(3)


def test_what_is_not_older_than_the_commit_is_restored(lab: Lab) -> None:
    lab.publish(2, committed=2)
    lab.publish(3, committed=2)
    lab.publish(4, committed=2)
    assert number(lab.begin(4)) == 3
    beginning = lab.begin(3, 4)
    assert number(beginning) == 2
    assert [path[-1] for path, _ in beginning.passed_over] == ["4", "3"]
    with pytest.raises(CorruptCheckpointError, match="checkpoint 2 of job job cannot be used"):
        lab.begin(2, 3, 4)


def test_no_checkpoint_is_built_on_one_that_was_fallen_back_to(lab: Lab) -> None:
    # A job manager that was thought dead may just be deleting it: it keeps the newer ones.
    def goes_on(beginning: Beginning) -> bool:
        assert beginning.restore is not None
        job = lab.job()
        return all(beginning.restore.info(job.graph, subtask).goes_on for subtask in job.subtasks)

    lab.publish(2, committed=2)
    lab.publish(3, committed=2)
    assert goes_on(lab.begin())
    assert not goes_on(lab.begin(3))


def test_where_nothing_was_ever_committed_it_begins_anew(lab: Lab) -> None:
    lab.publish(3, committed=0)
    assert number(lab.begin(3)) is None


def test_without_transactions_it_falls_back_whatever_is_said(lab: Lab) -> None:
    lab.publish(2, committed=2)
    lab.publish(3, committed=3)
    assert number(lab.begin(3, transactions=False)) == 2
    assert number(lab.begin(2, 3, transactions=False)) is None


def test_a_manifest_that_does_not_say_may_have_been_committed_itself(lab: Lab) -> None:
    lab.publish(2, committed=None)
    lab.publish(3, committed=None)
    assert number(lab.begin()) == 3
    with pytest.raises(CorruptCheckpointError, match="committed rows up to checkpoint 3"):
        lab.begin(3)


def test_falling_back_to_what_the_job_was_submitted_with_does_not_pass_a_commit_either(lab: Lab) -> None:
    other = JobStorage(open_store, str(lab.folder), {}, JobId("other"))
    manifest = Manifest(job_id="other", attempt=1, checkpoint_id=5, time_ms=0, max_parallelism=8, committed=5)
    other.publish(manifest, Attempt(1))
    start = f"file://{lab.folder}/other/chk-5"
    lab.publish(7, committed=5)
    assert number(lab.begin(7, restore_from=start)) == 5
    lab.discard(7)
    lab.publish(8, committed=7)
    with pytest.raises(CorruptCheckpointError, match="committed rows up to checkpoint 7"):
        lab.begin(8, restore_from=start)


def test_what_a_superseded_manager_publishes_after_its_successor_is_not_gone_on_from(lab: Lab) -> None:
    # Attempt 3 has begun, and committed chk-2; then attempt 2, cut off, publishes its chk-3, of other rows.
    for attempt in (1, 2, 3):
        assert lab.storage.claim_attempt(Attempt(attempt), "now") == attempt
    lab.publish(1, committed=1, attempt=1)
    lab.publish(2, committed=2, attempt=3)
    lab.publish(3, committed=3, attempt=2)
    beginning = lab.begin()
    assert (beginning.attempt, number(beginning)) == (4, 2)
    assert (beginning.complete, beginning.highest, beginning.passed_over) == ((1, 2), 3, ())
    assert number(lab.begin(3, transactions=False)) == 2
    # The same for another job that starts from this one's folder.
    other = JobStorage(open_store, str(lab.folder), {}, JobId("other"))
    folder = f"file://{lab.folder}/job"
    assert [url.rpartition("/")[2] for url in other.named(folder)] == ["chk-2", "chk-1"]
    assert other.newest_sibling(f"{folder}/chk-1") == Sibling(CheckpointId(2), lost=False)


def test_nor_may_another_job_begin_from_it_by_its_name(lab: Lab) -> None:
    other = JobStorage(open_store, str(lab.folder), {}, JobId("other"))
    for n, attempt in ((1, 1), (2, 3), (3, 2)):
        manifest = Manifest(
            job_id="other", attempt=attempt, checkpoint_id=n, time_ms=0, max_parallelism=8, committed=n
        )
        other.publish(manifest, Attempt(1))
    with pytest.raises(
        PlanError, match=r"chk-3 appeared when job other had ended or had gone on .* restore chk-2, or"
    ):
        lab.begin(restore_from=f"file://{lab.folder}/other/chk-3")
    assert number(lab.begin(restore_from=f"file://{lab.folder}/other/chk-2")) == 2
    # Nothing is written twice where nothing is committed.
    assert number(lab.begin(restore_from=f"file://{lab.folder}/other/chk-3", transactions=False)) == 3


@pytest.mark.parametrize("before", [True, False])
def test_nor_from_one_that_appeared_when_its_job_had_ended(lab: Lab, before: bool) -> None:
    other = JobStorage(open_store, str(lab.folder), {}, JobId("other"))
    for n in (2, 3) if before else (3,):
        manifest = Manifest(
            job_id="other", attempt=1, checkpoint_id=n, time_ms=0, max_parallelism=8, committed=n
        )
        other.publish(manifest, Attempt(1))
    other.save_job({"state": "CANCELLED", "dropped_after": 2 if before else 0})
    way_out = "restore chk-2, or" if before else "start without --from, or"
    with pytest.raises(PlanError, match=f"chk-3 appeared when job other had ended .* {way_out}"):
        lab.begin(restore_from=f"file://{lab.folder}/other/chk-3")
    if before:
        assert number(lab.begin(restore_from=f"file://{lab.folder}/other")) == 2
    else:
        with pytest.raises(CorruptCheckpointError, match="to go on from: chk-3 appeared"):
            lab.begin(restore_from=f"file://{lab.folder}/other")
    assert number(lab.begin(restore_from=f"file://{lab.folder}/other/chk-3", transactions=False)) == 3


def test_where_it_cannot_be_told_which_was_the_newest_nothing_is_written_again(lab: Lab) -> None:
    other = JobStorage(open_store, str(lab.folder), {}, JobId("other"))
    manifest = Manifest(job_id="other", attempt=1, checkpoint_id=2, time_ms=0, max_parallelism=8, committed=2)
    other.publish(manifest, Attempt(1))
    (lab.folder / "other" / "job.json").write_bytes(b'{"checkpoints": [')
    for start in ("other", "other/chk-2"):
        with pytest.raises(CorruptCheckpointError, match=r"job\.json is not JSON"):
            lab.begin(restore_from=f"file://{lab.folder}/{start}")
    assert number(lab.begin(restore_from=f"file://{lab.folder}/other", transactions=False)) == 2


def test_without_a_successors_checkpoint_the_newest_counts_whoever_published_it(lab: Lab) -> None:
    for attempt in (1, 2, 3):
        lab.storage.claim_attempt(Attempt(attempt), "now")
    lab.publish(1, committed=1, attempt=1)
    lab.publish(2, committed=2, attempt=2)
    assert number(lab.begin()) == 2


@pytest.mark.parametrize("lost", [True, False])
def test_the_way_out_is_never_a_checkpoint_whose_manifest_is_lost(lab: Lab, lost: bool) -> None:
    other = JobStorage(open_store, str(lab.folder), {}, JobId("other"))
    for n in (5,) if lost else (5, 6):
        manifest = Manifest(
            job_id="other", attempt=1, checkpoint_id=n, time_ms=0, max_parallelism=8, committed=n
        )
        other.publish(manifest, Attempt(1))
    other.save_job({"checkpoints": [{"id": n, "status": "completed", "retained": True} for n in (5, 6)]})
    with pytest.raises(PlanError) as caught:
        lab.begin(restore_from=f"file://{lab.folder}/other/chk-5")
    assert "committed rows up to checkpoint 6" in str(caught.value)
    assert ("bring back chk-6, whose manifest is lost, or" if lost else "restore chk-6, or") in str(
        caught.value
    )
    if lost:
        with pytest.raises(
            CorruptCheckpointError, match=r"chk-6, whose manifest is lost: bring it back, or restore"
        ):
            lab.begin(restore_from=f"file://{lab.folder}/other/chk-6")


@pytest.mark.parametrize("transactions", [True, False])
def test_checkpoints_say_what_sinks_had_to_commit_also_where_they_themselves_have_nothing(
    tmp_path: Path, transactions: bool
) -> None:
    def ran(name: str, restore_from: str | None) -> Manifest:
        env = rf.StreamEnvironment(max_parallelism=8)
        rows = env.from_rows([{"a": 1}, {"a": 2}])
        if transactions:
            rows.write_parquet(str(tmp_path / "out"))
        else:
            rows.discard()
        config = {"checkpoint.storage": str(tmp_path / "chk"), "checkpoint.interval": "off"}
        result = run_local(env.plan(), config, job_id=JobId(name), restore_from=restore_from)
        assert result.failure is None, result.failure
        store = open_store(str(tmp_path / "chk"), {})
        return read_manifest(store, f"{name}/chk-{list_checkpoints(store, name)[-1]}")

    first = ran("first", None)
    assert first.committed == (first.checkpoint_id if transactions else 0)
    # All is read already: there are no rows to commit any more.
    second = ran("second", f"file://{tmp_path}/chk/first")
    assert second.checkpoint_id > first.checkpoint_id
    assert second.committed == first.committed
