"""What happens before an attempt deploys. Blocks; runs on the I/O pool.

1. The attempt is claimed, which fences every master and attempt before it.
2. Before the first attempt of a fresh job the sinks prepare their targets (`Sink.start_job`).
3. The restore point is chosen: the newest complete checkpoint of the job itself; else the one it was submitted
   with (`--from`); else none.

A checkpoint that cannot be read (its manifest is torn or gone, or a subtask found a state file damaged: all are
read and verified before any subtask begins) is passed over for the one before it, and that is reported, but only if
no sink can have committed past the older one: rows that readers have seen must not be written again. What was committed
between the two need not be listed any more (`checkpoint.retained`), so every manifest says it (`Manifest.committed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rayflow.model.errors import CorruptCheckpointError, PlanError, RayflowError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.restore import RestorePoint, check_fits
from rayflow.runtime.master.storage import JobStorage
from rayflow.state.manifest import Manifest, StateFile
from rayflow.state.storage import LostObjects


class SinkNotReady(RayflowError):
    """A sink's target cannot be written by this job."""

    def __init__(self, operator: str, cause: str, location: str | None) -> None:
        super().__init__(operator, cause, location)
        self.operator = operator
        self.cause = cause
        self.location = location

    def __str__(self) -> str:
        where = f"\n  at {self.location}" if self.location else ""
        return f"sink {self.operator!r} cannot begin: {self.cause}{where}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the master asks for. `damaged` are checkpoints, by path, that subtasks found unreadable, and why;
    `newest` is the newest complete one that this job should have, as far as the master knows."""

    first_attempt: Attempt
    at: str
    fresh: bool
    restore_from: str | None
    allow_duplicates: bool
    damaged: Mapping[str, str]
    newest: CheckpointId | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """An attempt that may deploy. `passed_over` are the paths of unreadable checkpoints and why; `highest` the largest
    checkpoint number that was ever used; `complete` the job's own checkpoints."""

    attempt: Attempt
    restore: RestorePoint | None
    highest: CheckpointId
    complete: tuple[CheckpointId, ...]
    incomplete: tuple[CheckpointId, ...]
    passed_over: tuple[tuple[str, str], ...]


def begin(job: Job, storage: JobStorage, request: Request) -> Beginning:
    """Claim the next attempt and choose what it restores.

    Raises PlanError or CorruptCheckpointError where no restart can help, StorageError where one may.
    """
    attempt = storage.claim_attempt(request.first_attempt, request.at)
    listing = storage.list_checkpoints()
    # One that was complete and has no manifest any more is damaged, not absent: its rows may be committed.
    known = set(listing.complete) | ({request.newest} if request.newest is not None else set())
    valid = storage.without_zombies(known, attempt)
    restore, passed_over, past = _own_restore_point(job, storage, valid, request.damaged)
    highest = max((*known, *listing.incomplete), default=CheckpointId(0))
    if restore is None and request.restore_from is not None:
        restore, foreign_over = foreign_restore_point(job, storage, request, request.restore_from)
        passed_over += foreign_over
    past.check(job, 0 if restore is None else restore.checkpoint_id)
    if restore is None and request.fresh:
        _start_sinks(job, attempt)
    if restore is not None:
        # Numbers go on from a foreign checkpoint's, so that a sink's transactions stay in order.
        highest = max(highest, restore.checkpoint_id)
    return Beginning(
        attempt=attempt,
        restore=restore,
        highest=highest,
        complete=tuple(number for number in listing.complete if number in valid),
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


def foreign_restore_point(
    job: Job, storage: JobStorage, request: Request, url: str
) -> tuple[RestorePoint, tuple[tuple[str, str], ...]]:
    """Return the checkpoint that `--from` names, if this job may start from it, and what was passed over.

    A job's directory stands for its newest checkpoint that can be read; a checkpoint's directory for nothing else.
    """
    passed_over: list[tuple[str, str]] = []
    for found_url in (candidates := named_checkpoints(storage, url)):
        path = found_url.partition("?")[0]
        reason = request.damaged.get(path)
        if reason is None:
            try:
                return _foreign(job, storage, request, found_url), tuple(passed_over)
            except LostObjects:
                raise
            except CorruptCheckpointError as error:
                reason = str(error)
        passed_over.append((path, reason))
        older = [candidate.partition("?")[0] for candidate in candidates[len(passed_over) :]]
        if not older or (job.transactional_uids and not request.allow_duplicates):
            way_out = (
                f"restore {older[0]} with --allow-duplicates, which"
                if older
                else "start without --from, which"
            )
            raise CorruptCheckpointError(
                f"checkpoint {path} cannot be used ({reason}); {way_out} may write rows again that were committed"
            )
    raise AssertionError("unreachable: there is at least one candidate")


def named_checkpoints(storage: JobStorage, url: str) -> list[str]:
    """Return what `--from url` may mean, likeliest first. CorruptCheckpointError where there is no checkpoint."""
    try:
        return storage.named(url)
    except CorruptCheckpointError as error:
        newest = storage.newest_sibling(url)
        if newest is None:
            raise
        folder, _, name = url.partition("?")[0].rstrip("/").rpartition("/")
        last = f"chk-{newest.number}"
        if newest.lost:
            advice = f"that job completed {last}, whose manifest is lost: bring it back, or restore {folder}"
        else:
            # Its job may still run, and keep what it needs itself only.
            advice = (
                f"the newest checkpoint of that job is {last}. A job that runs discards {name} once it has newer ones "
                f"(checkpoint.retained): restore {folder}, which is its newest, or stop it first"
            )
        raise CorruptCheckpointError(f"{error}; {advice}") from error


def _foreign(job: Job, storage: JobStorage, request: Request, url: str) -> RestorePoint:
    found = storage.read_named(url)
    manifest, path = found.manifest, url.partition("?")[0]
    check_fits(manifest, job.graph, path)
    if manifest.kind == "checkpoint" and not request.allow_duplicates and job.transactional_uids:
        newest = storage.newest_sibling(url)
        own_name = path.endswith(f"/chk-{manifest.checkpoint_id}")
        if own_name and (newest is None or newest.number < manifest.checkpoint_id):
            way_out = "start without --from" if newest is None else f"restore chk-{newest.number}"
            raise PlanError(
                f"checkpoint {path} appeared when job {manifest.job_id} had ended or had gone on from one before "
                "it: its sinks have dropped the rows that belong to it, and may have committed others since; "
                f"{way_out}, or give --allow-duplicates"
            )
        if newest is not None and newest.number > manifest.checkpoint_id:
            last = f"chk-{newest.number}"
            way_out = f"bring back {last}, whose manifest is lost" if newest.lost else f"restore {last}"
            raise PlanError(
                f"checkpoint {path} is not the last of job {manifest.job_id}: its sinks have committed rows up to "
                f"checkpoint {newest.number}, and restoring would write them again; {way_out}, "
                "or give --allow-duplicates"
            )
    foreign = JobId(manifest.job_id) if manifest.job_id != job.job_id else None
    if foreign is not None:
        storage.pin_named(url)
    return RestorePoint(manifest, url, path, foreign)


def _own_restore_point(
    job: Job, storage: JobStorage, complete: Sequence[CheckpointId], damaged: Mapping[str, str]
) -> tuple[RestorePoint | None, tuple[tuple[str, str], ...], _Past]:
    passed_over: list[tuple[str, str]] = []
    past = _Past()
    for checkpoint_id in reversed(complete):
        past.check(job, checkpoint_id)
        url = storage.url(checkpoint_id)
        reason = damaged.get(url)
        if reason is None:
            try:
                manifest = storage.read_manifest(checkpoint_id)
                check_fits(manifest, job.graph, url)
                location, fallen_back = storage.location(checkpoint_id), bool(passed_over)
                point = RestorePoint(manifest, location, url, fallen_back=fallen_back)
                return point, tuple(passed_over), past
            except LostObjects:
                raise
            except CorruptCheckpointError as error:
                reason = str(error)
        passed_over.append((url, reason))
        past = _Past(checkpoint_id, reason, max(past.committed, _committed(job, storage, checkpoint_id)))
        past.check(job, checkpoint_id - 1)
    return None, tuple(passed_over), past


@dataclass(frozen=True, slots=True)
class _Past:
    """The oldest checkpoint that was passed over, why, and the newest whose rows a sink may have committed."""

    damaged: int = 0
    reason: str = ""
    committed: int = 0

    def check(self, job: Job, older: int) -> None:
        """Raise CorruptCheckpointError where restoring checkpoint `older`, or one before it, writes rows again."""
        if older < self.committed:
            raise CorruptCheckpointError(
                f"checkpoint {self.damaged} of job {job.job_id} cannot be used ({self.reason}), and its sinks may have "
                f"committed rows up to checkpoint {self.committed}, which would be written twice from an older one; "
                "start a new job, or restore an earlier checkpoint by --from with --allow-duplicates"
            )


def _committed(job: Job, storage: JobStorage, checkpoint_id: CheckpointId) -> int:
    """Return the newest checkpoint, up to this one, whose transactions may have been published."""
    if not job.transactional_uids:
        return 0
    try:
        return committed_through(job, storage.read_manifest(checkpoint_id))
    except CorruptCheckpointError:
        return checkpoint_id


def committed_through(job: Job, manifest: Manifest) -> int:
    """Return the newest checkpoint, up to that of `manifest`, whose transactions may be committed; 0: none."""
    if not job.transactional_uids:
        return 0
    return manifest.checkpoint_id if manifest.committed is None else manifest.committed


def has_transactions(job: Job, files: Iterable[StateFile]) -> bool:
    """Whether sinks have something to commit once a checkpoint of these files is complete."""
    return any(file.uid in job.transactional_uids for file in files)
