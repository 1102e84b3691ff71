"""What is checked of what an attempt begins with, and of why a job failed."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from rayflow.model.ids import Attempt, CheckpointId, SubtaskId
from rayflow.runtime.messages import RestoreInfo, WatermarkFrame
from rayflow.state.storage import open_store
from rayflow.testing.faults import NO_FAULTS, Injector
from rayflow.testing.restoring import check_deploy, check_deployed, check_failure, check_watermark
from rayflow.testing.simulation import SimJob
from rayflow.testing.storage import MANIFEST, SimStorage
from rayflow.testing.world import World
from tests.simulation.external import SimSource
from tests.simulation.jobs import SHAPES, plan

URL = "memory://restoring"
JOB = "job"
WATERMARK = 500
CONFIG = {"checkpoint.storage": URL}


class Cluster:
    """A manager of `JOB` and one of its subtasks, a source, over storage on which checkpoints 1 and 2 are complete;
    2 builds on a file of 1. Only 1 has rows of the sink."""

    def __init__(self) -> None:
        self.world = World(1)
        self.storage = SimStorage(self.world, Injector(self.world, NO_FAULTS))
        self.storage_url = URL
        self.store = open_store(URL, {})
        self.manifest(1, [{"path": "a", "uid": "sink"}])
        self.manifest(2, [{"path": "b", "uid": "number"}, {"path": "a", "uid": "number", "origin": 1}])
        self.storage.announced[JOB] = 2
        self.process = self.world.spawn("source-0[0]/1", "machine-0")
        self.job = SimJob(JOB, plan(SHAPES["passthrough"], 1, [SimSource(1, 0, 1, 5)], 1), CONFIG)
        self.manager: Any = SimpleNamespace(sim=self, process=self.process, job=self.job)
        self.clock = SimpleNamespace(current=WATERMARK)
        task = SimpleNamespace(_source=SimpleNamespace(_clock=self.clock))
        self.engine = SimpleNamespace(_deploy=self.deploy(2), _task=task)
        self.worker: Any = SimpleNamespace(sim=self, name=self.process.name, engine=self.engine)

    def manifest(self, number: int, files: list[dict[str, Any]]) -> None:
        data = json.dumps({"files": files}).encode()
        self.storage.manifests[f"{URL}/{JOB}/chk-{number}"] = data
        self.store.write(f"{JOB}/chk-{number}/{MANIFEST}", data)

    def deploy(self, checkpoint: int | None) -> Any:
        info = None
        if checkpoint is not None:
            directory = f"{URL}/{JOB}/chk-{checkpoint}?region=x"
            info = RestoreInfo(
                directory=directory, checkpoint_id=CheckpointId(checkpoint), files=(), watermark=WATERMARK
            )
        subtask = SubtaskId(self.job.graph.vertices[0].id, 0)
        return SimpleNamespace(restore=info, attempt=Attempt(3), subtask=subtask, graph=self.job.graph)

    def deployed(self) -> list[str]:
        check_deployed(self.worker, SimpleNamespace(attempt=Attempt(3)))  # type: ignore[arg-type]
        return self.world.violations

    def deploys(self, checkpoint: int | None) -> list[str]:
        check_deploy(self.manager, self.deploy(checkpoint))
        return self.world.violations

    def fails(self, cause: str) -> None:
        check_failure(self.job, self.storage, URL, (JOB, cause, None, None))


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def test_an_attempt_that_restores_the_newest_checkpoint_is_right(cluster: Cluster) -> None:
    assert cluster.deploys(2) == []


@pytest.mark.parametrize("checkpoint", [None, 1])
def test_an_attempt_that_restores_less_than_was_announced_is_a_violation(
    cluster: Cluster, checkpoint: int | None
) -> None:
    assert [said[:3] for said in cluster.deploys(checkpoint)] == ["I3:"]


@pytest.mark.parametrize("path", ["chk-2/b", "chk-1/a", "chk-2/manifest.json"])
def test_an_attempt_may_fall_back_where_the_newest_is_damaged_in_itself_or_in_what_it_builds_on(
    cluster: Cluster, path: str
) -> None:
    cluster.storage.damaged.add(f"{URL}/{JOB}/{path}")
    assert cluster.deploys(1) == []


def test_damage_to_a_file_that_the_newest_does_not_need_excuses_nothing(cluster: Cluster) -> None:
    cluster.storage.damaged.add(f"{URL}/{JOB}/chk-1/other")
    assert len(cluster.deploys(1)) == 1


def test_a_checkpoint_whose_manifest_is_damaged_must_not_be_restored(cluster: Cluster) -> None:
    cluster.storage.damaged.add(f"{URL}/{JOB}/chk-2/manifest.json")
    assert [said[:4] for said in cluster.deploys(2)] == ["I11:"]


def test_what_a_superseded_manager_wants_restored_is_not_looked_at(cluster: Cluster) -> None:
    cluster.storage.is_current = lambda process: False
    assert cluster.deploys(None) == []


def test_who_has_read_damage_of_its_checkpoint_must_not_begin(cluster: Cluster) -> None:
    read = cluster.storage.read_damaged
    read[cluster.worker.name] = {f"{URL}/{JOB}/chk-7/b"}
    assert cluster.deployed() == []
    read[cluster.worker.name].add(f"{URL}/{JOB}/chk-1/a")
    assert [said[:4] for said in cluster.deployed()] == ["I11:"]


@pytest.mark.parametrize("current", [None, WATERMARK - 1])
def test_a_source_that_begins_before_its_checkpoint_is_a_violation(
    cluster: Cluster, current: int | None
) -> None:
    assert cluster.deployed() == []
    cluster.clock.current = current
    assert [said[:3] for said in cluster.deployed()] == ["I9:"]


def test_a_source_that_says_a_watermark_below_its_checkpoint_is_a_violation(cluster: Cluster) -> None:
    channel: Any = SimpleNamespace(id="c", attempt=Attempt(3), producer=cluster.worker)
    check_watermark(channel, WatermarkFrame(WATERMARK))
    assert not cluster.world.violations
    check_watermark(channel, WatermarkFrame(WATERMARK - 1))
    assert [said[:3] for said in cluster.world.violations] == ["I9:"]


def test_a_job_may_fail_only_for_a_damaged_checkpoint(cluster: Cluster) -> None:
    with pytest.raises(AssertionError, match="I8: the job failed"):
        cluster.fails("ValueError: something else")
    with pytest.raises(AssertionError, match=r"I11: .* which is sound"):
        cluster.fails("checkpoint 1 of job job cannot be used (…)")


def test_a_job_may_fail_only_where_a_sink_can_have_committed(cluster: Cluster) -> None:
    cluster.storage.damaged |= {f"{URL}/{JOB}/chk-1/a"}
    cluster.fails("checkpoint 1 of job job cannot be used (…)")
    with pytest.raises(AssertionError, match="no falling back"):
        cluster.fails("checkpoint 2 of job job cannot be used (…)")
    cluster.storage.damaged |= {f"{URL}/{JOB}/chk-2/manifest.json"}
    cluster.fails("checkpoint 2 of job job cannot be used (…)")  # what it had cannot be told


def test_a_job_may_fail_where_a_sink_can_have_committed_a_checkpoint_that_was_discarded(
    cluster: Cluster,
) -> None:
    cluster.storage.damaged.add(f"{URL}/{JOB}/chk-2/b")
    with pytest.raises(AssertionError, match="no falling back"):
        cluster.fails("checkpoint 2 of job job cannot be used (…)")
    cluster.store.delete(f"{JOB}/chk-1/{MANIFEST}")
    cluster.fails("checkpoint 2 of job job cannot be used (…)")


def test_a_job_that_was_to_continue_another_fails_for_what_that_left(cluster: Cluster) -> None:
    directory = f"{URL}/other/chk-4"
    cluster.storage.manifests[directory] = json.dumps({"files": [{"path": "a", "uid": "number"}]}).encode()
    cluster.storage.damaged.add(f"{directory}/a")
    cluster.fails(f"checkpoint {directory} cannot be used (…); …")
