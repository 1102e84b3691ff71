"""What happens before an attempt deploys. Blocks; runs on the I/O pool.

1. The attempt is claimed, which fences every master and attempt before it.
2. Before the first attempt of a fresh job the sinks prepare their targets (`Sink.start_job`).
3. The restore point is chosen: the newest complete checkpoint of the job itself; else the one it was submitted
   with (`--from`); else none.

A checkpoint that cannot be read is passed over for the one before it, and that is reported, but only if
no sink can have committed past the older one: rows that readers have seen must not be written again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayflow.model.errors import CorruptCheckpointError, PlanError, RayflowError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.restore import RestorePoint, check_fits
from rayflow.runtime.master.storage import JobStorage


class SinkNotReady(RayflowError):
    """A sink's target cannot be written by this job."""

    def __init__(self, operator: str, cause: str, location: str | None) -> None:
        super().__init__(operator, cause, location)
        self.operator = operator
        self.cause = cause
        self.location = location

    def __str__(self) -> str:
        return f"sink {self.operator!r} is not ready: {self.cause}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the master asks for. `damaged` are checkpoints that subtasks found unreadable."""

    first_attempt: Attempt
    at: str
    fresh: bool
    restore_from: str | None
    allow_duplicates: bool
    damaged: dict[CheckpointId, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """An attempt that may deploy. `passed_over` are unreadable checkpoints and why; `highest` the largest
    checkpoint number that was ever used; `complete` the job's own checkpoints."""

    attempt: Attempt
    restore: RestorePoint | None
    highest: CheckpointId
    complete: tuple[CheckpointId, ...]
    incomplete: tuple[CheckpointId, ...]
    passed_over: tuple[tuple[CheckpointId, str], ...]


def begin(job: Job, storage: JobStorage, request: Request) -> Beginning:
    """Claim the next attempt and choose what it restores.

    Raises PlanError or CorruptCheckpointError where no restart can help, StorageError where one may.
    """
    attempt = storage.claim_attempt(request.first_attempt, request.at)
    listing = storage.list_checkpoints()
    restore, passed_over = _own_restore_point(job, storage, listing.complete, request.damaged)
    highest = max((*listing.complete, *listing.incomplete), default=CheckpointId(0))
    if restore is None and request.restore_from is not None:
        restore = foreign_restore_point(job, storage, request.restore_from, request.allow_duplicates)
    if restore is None and request.fresh:
        _start_sinks(job, attempt)
    if restore is not None:
        # Numbers go on from a foreign checkpoint's, so that a sink's transactions stay in order.
        highest = max(highest, restore.checkpoint_id)
    return Beginning(
        attempt=attempt,
        restore=restore,
        highest=highest,
        complete=listing.complete,
        incomplete=listing.incomplete,
        passed_over=passed_over,
    )


def _start_sinks(job: Job, attempt: Attempt) -> None:
    for vertex, sink in job.sinks:
        try:
            sink.payload.start_job(job.sink_context(vertex, sink, attempt))
        except Exception as error:
            known = isinstance(error, RayflowError)
            raise SinkNotReady(
                sink.name, str(error) if known else f"{type(error).__name__}: {error}", sink.location
            ) from error


def foreign_restore_point(job: Job, storage: JobStorage, url: str, allow_duplicates: bool) -> RestorePoint:
    """Return the checkpoint of another job that `--from` names, if this job may start from it."""
    found = storage.resolve(url)
    manifest, path = found.manifest, found.url.partition("?")[0]
    check_fits(manifest, job.graph, path)
    if manifest.kind == "checkpoint" and not allow_duplicates and job.transactional_uids:
        newer = [n for n in storage.siblings(found).complete if n > manifest.checkpoint_id]
        if newer:
            raise PlanError(
                f"checkpoint {path} is not the last of job {manifest.job_id}: its sinks have committed rows up to "
                f"checkpoint {newer[-1]}, and restoring would write them again; restore chk-{newer[-1]}, "
                "or give --allow-duplicates"
            )
    foreign = JobId(manifest.job_id) if manifest.job_id != job.job_id else None
    return RestorePoint(manifest, found.url, path, foreign)


def _own_restore_point(
    job: Job, storage: JobStorage, complete: Sequence[CheckpointId], damaged: dict[CheckpointId, str]
) -> tuple[RestorePoint | None, tuple[tuple[CheckpointId, str], ...]]:
    passed_over: list[tuple[CheckpointId, str]] = []
    for checkpoint_id in reversed(complete):
        reason = damaged.get(checkpoint_id)
        if reason is None:
            try:
                manifest = storage.read_manifest(checkpoint_id)
                url = storage.url(checkpoint_id)
                check_fits(manifest, job.graph, url)
                return RestorePoint(manifest, storage.location(checkpoint_id), url), tuple(passed_over)
            except CorruptCheckpointError as error:
                reason = str(error)
        passed_over.append((checkpoint_id, reason))
        if _may_be_committed(job, storage, checkpoint_id):
            raise CorruptCheckpointError(
                f"checkpoint {checkpoint_id} of job {job.job_id} cannot be used ({reason}), and its sinks may have "
                "committed rows after the checkpoint before it, which would be written twice; start a new job, "
                "or restore an earlier checkpoint by --from with --allow-duplicates"
            )
    return None, tuple(passed_over)


def _may_be_committed(job: Job, storage: JobStorage, checkpoint_id: CheckpointId) -> bool:
    """Whether transactions of the checkpoint may have been published. Unreadable: whether there are any sinks
    that have transactions."""
    if not job.transactional_uids:
        return False
    try:
        manifest = storage.read_manifest(checkpoint_id)
    except CorruptCheckpointError:
        return True
    return any(file.uid in job.transactional_uids for file in manifest.files)
