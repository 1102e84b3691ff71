"""What is checked, in any simulated job, of what an attempt begins with, and of why a job failed, by number.

I1   no checkpoint is acknowledged while rows that were in flight in the restored one have yet to be processed: they are
     in no channel, so they would not be in it.
I3   an attempt restores the newest checkpoint that was announced, unless that is damaged.
I9   a source that was restored begins at the watermark in its checkpoint, and says none below: event time does not go
     back.
I11  who has read a damaged object as it restored does not begin. And a job fails only for a checkpoint that is really
     damaged, and only where its sinks may have committed past the one before it that is still there: else it has that,
     or the beginning, to fall back to.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from rayflow.model.ids import JobId
from rayflow.runtime.job_master import FailureArgs
from rayflow.runtime.master.job import Job
from rayflow.runtime.messages import Deploy, FromSubtask, WatermarkFrame
from rayflow.state.storage import MissingObject, open_store
from rayflow.testing.network import Channel
from rayflow.testing.storage import MANIFEST, SimStorage, file_path

if TYPE_CHECKING:
    from rayflow.testing.managers import SimManager
    from rayflow.testing.simulation import SimJob
    from rayflow.testing.workers import SimWorker

_UNUSABLE = re.compile(r"checkpoint (\S+?)(?: of job \S+)? cannot be used")
_LOST = re.compile(
    r"checkpoint (\S+)/chk-\d+ is not the last of job .* bring back (chk-\d+), whose manifest is lost"
)


def check_deploy(manager: SimManager, deploy: Deploy) -> None:
    """I3, I11: of what a manager has a subtask restore. Said to the world: the manager would handle an exception."""
    sim = manager.sim
    if not sim.storage.is_current(manager.process):
        return  # what it tells arrives nowhere, or is of an attempt that is over
    if sim.storage.is_superseded(f"{sim.storage_url}/{manager.job.id}", deploy.attempt):
        return  # it does not know yet that the one it took for dead came back and went on
    restored = 0
    if deploy.restore is not None:
        directory = deploy.restore.directory.partition("?")[0]
        if f"{directory}/{MANIFEST}" in sim.storage.damaged:
            sim.world.violated(f"I11: {deploy.subtask} shall restore {directory}, whose manifest is damaged")
        restored = 0 if deploy.restore.foreign_job is not None else deploy.restore.checkpoint_id
    newest = sim.storage.announced.get(manager.job.id, 0)
    if restored >= newest or sim.storage.is_discarded(f"{sim.storage_url}/{manager.job.id}/chk-{newest}"):
        return  # discarded: for one that was not announced, and is damaged
    if _is_damaged(sim.storage, f"{sim.storage_url}/{manager.job.id}/chk-{newest}"):
        # Its manifest got lost, and its manager died, before anything else told of it: nobody knows of its commits.
        sim.storage.forgotten |= newest not in _noted(sim.storage_url, manager.job.id)
    else:
        sim.world.violated(
            f"I3: attempt {deploy.attempt} restores chk-{restored}, though chk-{newest} was announced"
        )


def check_deployed(worker: SimWorker, message: FromSubtask) -> None:
    """I9, I11: the subtask says that it has restored its state."""
    deploy = worker.engine._deploy
    if deploy is None or deploy.attempt != message.attempt or deploy.restore is None:
        return
    _check_clock(worker, deploy.restore.watermark)
    directory = deploy.restore.directory.partition("?")[0]
    storage = worker.sim.storage
    needed = _needed(storage, directory)
    used = sorted(
        p for p in storage.read_damaged.get(worker.name, ()) if p.startswith(f"{directory}/") or p in needed
    )
    if used:
        worker.sim.world.violated(
            f"I11: {worker.name} begins with what it read of {', '.join(used)}, which is damaged"
        )


def check_acked(worker: SimWorker, message: FromSubtask) -> None:
    """I1: the subtask acknowledges a checkpoint."""
    engine = worker.engine
    task = engine._task if engine._fence.attempt == message.attempt else None
    if task is not None and task._recovery is not None:
        worker.sim.world.violated(
            f"I1: {worker.name} acknowledges a checkpoint before it has processed the rows in flight in the last one"
        )


def _check_clock(worker: SimWorker, before: int | None) -> None:
    """What a source says is a poor witness: it is seldom told to read what would take it back."""
    task = worker.engine._task
    clock = None if task is None or task._source is None else task._source._clock
    if clock is None or before is None:
        return
    if clock.current is None or clock.current < before:
        worker.sim.world.violated(
            f"I9: {worker.name} begins at watermark {clock.current}, its checkpoint had come to {before}"
        )


def check_watermark(channel: Channel, frame: WatermarkFrame) -> None:
    """I9, of a watermark that arrives from a source."""
    deploy = channel.producer.engine._deploy
    if deploy is None or deploy.attempt != channel.attempt or deploy.restore is None:
        return
    before, operators = deploy.restore.watermark, deploy.graph.vertex(deploy.subtask.vertex).operators
    # Windows pass on less than they get, and they could be behind the source in one chain.
    only_source = len(operators) == 1 and operators[0].kind == "source"
    if only_source and before is not None and frame.watermark < before:
        channel.producer.sim.world.violated(
            f"I9: {channel.id}: watermark {frame.watermark} after a restore at {before}"
        )


def check_failure(job: SimJob, storage: SimStorage, url: str, failure: FailureArgs | None) -> None:
    """I8, I11: the job has failed. Right only where it had to."""
    cause = "" if failure is None else failure[1]
    if lost := _LOST.search(cause):
        assert f"{lost[1]}/{lost[2]}/{MANIFEST}" in storage.damaged, f"I11: {lost[2]} is not lost: {cause}"
        return
    named = _UNUSABLE.search(cause)
    assert named is not None, f"I8: the job failed: {failure}"
    directory = f"{url}/{job.id}/chk-{named[1]}" if named[1].isdigit() else named[1]
    assert _is_damaged(storage, directory), f"I11: the job failed for {directory}, which is sound: {cause}"
    manifest = storage.manifests.get(directory)
    if manifest is None or f"{directory}/{MANIFEST}" in storage.damaged:
        return  # what it had cannot be told
    sinks = Job.of(JobId(job.id), job.graph, job.config).transactional_uids
    if directory.startswith(f"{url}/{job.id}/"):
        assert _may_be_committed(storage, url, job.id, int(named[1]), sinks), (
            f"I11: no sink can have committed {directory}, nor what came after the one before it, and yet there was "
            f"no falling back: {cause}"
        )


def _may_be_committed(storage: SimStorage, url: str, job_id: str, number: int, sinks: frozenset[str]) -> bool:
    """Whether sinks may have committed a checkpoint up to this one, after the one before it that is still there: that
    itself, or one in between that was discarded."""
    there = [_number(path, "/manifest.json") for path in open_store(url, {}).list(job_id) if MANIFEST in path]
    older = max((n for n in there if n < number), default=0)
    for directory in storage.published.keys() | storage.manifests.keys():
        if directory.startswith(f"{url}/{job_id}/") and older < _number(directory) <= number:
            manifest = storage.manifests.get(directory)
            # Of one that was damaged as it was published it cannot be told.
            if manifest is None or sinks & {file["uid"] for file in json.loads(manifest)["files"]}:
                return True
    return False


def _noted(url: str, job_id: str) -> set[int]:
    """Return the checkpoints of which the job's metadata on storage tell."""
    try:
        document = json.loads(open_store(url, {}).read(f"{job_id}/job.json"))
    except (MissingObject, ValueError):
        return set()
    return {report["id"] for report in document["checkpoints"] if report["status"] == "completed"}


def _number(path: str, end: str = "") -> int:
    return int(path.removesuffix(end).rpartition("/chk-")[2])


def _is_damaged(storage: SimStorage, directory: str) -> bool:
    """Whether anything of a checkpoint is damaged: in its directory, or a file of an earlier one that it builds on."""
    needed = _needed(storage, directory)
    return any(path.startswith(f"{directory}/") or path in needed for path in storage.damaged)


def _needed(storage: SimStorage, directory: str) -> set[str]:
    manifest = storage.manifests.get(directory)
    return set() if manifest is None else {file_path(directory, f) for f in json.loads(manifest)["files"]}
