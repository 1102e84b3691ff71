"""`rayflow clean`: what is left in a sink's target after the end of a job, by a zombie or since it was away."""

from __future__ import annotations

import json
import os
import sys

import pytest

from rayflow.client.registry import JobRecord, remember
from rayflow.operators.transactions import sink_name
from rayflow.state.manifest import Manifest, publish_manifest
from rayflow.state.storage import open_store

JOB = """
import os
import rayflow as rf
import beside

class Folder(rf.TransactionalSink):
    def connect(self, ctx):
        if os.path.exists(f"{beside.TARGET}/away"):
            raise ConnectionError("the folder is away")
        for name in ("prepared", "committed"):
            os.makedirs(f"{beside.TARGET}/{name}", exist_ok=True)
    def begin(self, transaction):
        self.rows = []
    def write_rows(self, transaction, batch):
        self.rows += batch.to_pylist()
    def pre_commit(self, transaction):
        with open(f"{beside.TARGET}/prepared/{transaction}", "w") as file:
            file.write(repr(self.rows))
    def commit_transaction(self, transaction):
        os.replace(f"{beside.TARGET}/prepared/{transaction.id}", f"{beside.TARGET}/committed/{transaction.id}")
    def abort_transaction(self, transaction):
        os.unlink(f"{beside.TARGET}/prepared/{transaction.id}")
    def list_transactions(self, prefix):
        return [name for name in os.listdir(f"{beside.TARGET}/prepared") if name.startswith(prefix)]

def build(env):
    env.from_rows([{"n": 1}]).sink_to(Folder()).uid("sink")
"""


@pytest.fixture
def ended(rayflow, tmp_path, monkeypatch):
    """The folder of a job that has finished."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "beside.py").write_text(f"TARGET = {str(tmp_path / 'target')!r}\n")
    (tmp_path / "job.py").write_text(JOB)
    code, _, err = rayflow("run", "job.py", "--local", "--set", "checkpoint.storage=chk")
    assert code == 0, err
    (folder,) = (tmp_path / "chk").iterdir()
    assert [len(os.listdir(tmp_path / "target" / name)) for name in ("prepared", "committed")] == [0, 1]
    return folder


def zombie(tmp_path, job_id, checkpoint):
    """Prepare a transaction as a process does that does not know that the job has ended."""
    name = f"rf-{job_id}-{sink_name('sink')}-0-1-{checkpoint}"
    (tmp_path / "target" / "prepared" / name).write_text("[]")
    return name


def prepared(tmp_path):
    return os.listdir(tmp_path / "target" / "prepared")


def state(folder, state):
    document = json.loads((folder / "job.json").read_text())
    (folder / "job.json").write_text(json.dumps({**document, "state": state}))


def test_what_was_prepared_after_the_end_is_removed_and_nothing_of_others(rayflow, tmp_path, ended):
    zombie(tmp_path, ended.name, 9)
    others = zombie(tmp_path, f"{ended.name}-2", 9)
    code, out, err = rayflow("clean", ended)
    assert (code, err) == (0, "")
    assert "have nothing left" in out
    assert prepared(tmp_path) == [others]


def test_a_job_is_found_by_its_id_too(rayflow, tmp_path, ended, monkeypatch):
    monkeypatch.setenv("RAYFLOW_HOME", str(tmp_path / "home"))
    record = JobRecord(
        job_id=ended.name, name="folders", cluster="gone", storage=str(ended.parent), submitted_at_ms=0
    )
    remember(record)
    zombie(tmp_path, ended.name, 9)
    code, out, err = rayflow("clean", "folders", "--json")
    assert (code, json.loads(out), err) == (0, [], "")
    assert prepared(tmp_path) == []
    state(ended, "RUNNING")
    code, _, err = rayflow("clean", "folders")
    assert code == 2
    assert (
        f"is RUNNING; cancel it first, or, if it died with its cluster, `rayflow clean {ended} --force`"
        in err
    )
    code, _, err = rayflow("clean", "folders", "--force")
    assert code == 2
    assert "CHECKPOINT-STORAGE/JOB-ID" in err


def test_what_the_newest_checkpoint_left_pending_stays_unless_the_job_finished(rayflow, tmp_path, ended):
    newest = max(int(path.name[4:]) for path in ended.glob("chk-*"))
    kept, _ = zombie(tmp_path, ended.name, newest), zombie(tmp_path, ended.name, newest + 1)
    state(ended, "FAILED")
    code, out, _ = rayflow("clean", ended)
    assert code == 0
    assert prepared(tmp_path) == [kept]
    assert f"1 prepared and not committed ({kept})" in out
    assert f"--from {ended}/chk-{newest}" in out


def test_what_a_superseded_manager_published_late_keeps_nothing_pending(rayflow, tmp_path, ended):
    newest = max(int(path.name[4:]) for path in ended.glob("chk-*"))
    for n, attempt in ((newest + 1, 2), (newest + 2, 1)):
        manifest = Manifest(job_id=ended.name, attempt=attempt, checkpoint_id=n, time_ms=0, max_parallelism=8)
        publish_manifest(open_store(f"file://{ended}", {}), f"chk-{n}", manifest)
    kept, _ = zombie(tmp_path, ended.name, newest + 1), zombie(tmp_path, ended.name, newest + 2)
    state(ended, "FAILED")
    assert rayflow("clean", ended)[0] == 0
    assert prepared(tmp_path) == [kept]


def test_nor_does_one_that_appeared_when_the_job_had_ended(rayflow, tmp_path, ended):
    newest = max(int(path.name[4:]) for path in ended.glob("chk-*"))
    late = Manifest(job_id=ended.name, attempt=1, checkpoint_id=newest + 1, time_ms=0, max_parallelism=8)
    publish_manifest(open_store(f"file://{ended}", {}), f"chk-{newest + 1}", late)
    kept, _ = zombie(tmp_path, ended.name, newest), zombie(tmp_path, ended.name, newest + 1)
    document = json.loads((ended / "job.json").read_text())
    (ended / "job.json").write_text(json.dumps({**document, "state": "FAILED", "dropped_after": newest}))
    assert rayflow("clean", ended)[0] == 0
    assert prepared(tmp_path) == [kept]


def test_a_job_that_may_still_run_is_left_alone_unless_it_is_known_to_be_dead(rayflow, tmp_path, ended):
    state(ended, "RUNNING")
    name = zombie(tmp_path, ended.name, 99)
    code, _, err = rayflow("clean", ended)
    assert code == 2
    assert "a job that is RUNNING by what it last stored; cancel it first" in err
    assert prepared(tmp_path) == [name]
    assert rayflow("clean", ended, "--force")[0] == 0
    assert prepared(tmp_path) == []


def test_a_target_that_is_away_is_a_failure_and_says_so(rayflow, tmp_path, ended):
    (tmp_path / "target" / "away").touch()
    code, out, _ = rayflow("clean", ended)
    assert code == 1
    assert "could not clean up: ConnectionError: the folder is away" in out
    assert f"rayflow clean {ended}" in out


def test_code_that_cannot_be_loaded_and_folders_that_are_none_are_bad_usage(
    rayflow, tmp_path, ended, monkeypatch
):
    code, _, err = rayflow("clean", tmp_path / "target")
    assert code == 2
    assert "nothing to clean up at" in err
    (tmp_path / "beside.py").unlink()
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    code, _, err = rayflow("clean", ended)
    assert code == 2
    assert "No module named 'beside'" in err
    assert "PYTHONPATH" in err
