"""The checkpoint coordinator: when checkpoints begin, when they are complete, and which are kept.

Theory of operation. The job master owns one coordinator per job. In a running attempt it triggers the
sources; barriers then flow through the job, and every subtask acknowledges once its snapshot is durable.
When all have, the manifest is published, and with that the checkpoint is complete: it is announced with a
`CommitPermit`, the only proof under which sinks commit. It is aborted when a subtask declines, the manifest
cannot be written, time runs out, a newer one completes first, or the attempt ends. More consecutive failures
than tolerated fail the attempt. Savepoints that fail are reported to whoever wanted them, and do not count.

Three occasions, in this order of urgency:
- *final*, the last one of a job whose inputs have ended: as soon as nothing is pending, ignoring interval and
  pause. One that fails is tried again after a growing delay. Nothing periodic follows the request.
- *savepoint*, on request: as soon as there is a slot, ignoring interval and pause. Requests made before it is
  triggered are all served by it. It belongs to the user: retention never discards it.
- *periodic*: `interval_ms` after the last one began, and `min_pause_ms` after the last one ended.

Publishing runs elsewhere and may outlast its checkpoint. If it then succeeds while no attempt runs, the
checkpoint is as good as any to restore from and counts as complete (its permit comes with the restore). If an
attempt runs, that one did not start from it, and it is discarded, as is what a failed publication left.

Invariants:

1. Checkpoint ids strictly grow, over attempts and restores too.
2. At most `max_concurrent` are pending, and none is triggered while a savepoint or a final one is.
3. A manifest is published only when every subtask of the attempt has acknowledged in that attempt.
4. A permit is made only when the manifest is published, for the running attempt, once per checkpoint, and in
   the order of ids: what is older and still pending is aborted.
5. What is pending ends: completed, or aborted with a reason; by `timeout_ms` or the end of the attempt at the
   latest. Between attempts nothing is pending.
6. At most `retained` complete checkpoints are kept besides savepoints, the newest ones; `retained` ≥ 1. A
   savepoint is never discarded.
7. Acks and declines of other attempts, of what is not pending, and repeated ones change nothing but a count.
8. After `FailAttempt` nothing is triggered until the next attempt.
9. Nothing is triggered before every subtask is through with the rows that were in flight in what was restored. They
   are in no channel, so that no snapshot would hold them; and a barrier that waited behind them while others of the
   same checkpoint went ahead would have its receiver record, and run out of room for it, for as long.
"""

from __future__ import annotations

from bisect import insort
from dataclasses import dataclass, field

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, CheckpointId, JobId, SubtaskId
from rayflow.protocol.checkpointing import (
    AbortCheckpoint,
    AnnounceCompleted,
    AttemptEnded,
    AttemptStarted,
    Command,
    Commands,
    CoordinatorConfig,
    DiscardCheckpoint,
    Event,
    FailAttempt,
    FinalRequested,
    ManifestFailed,
    ManifestPublished,
    PublishManifest,
    Restored,
    SavepointRequested,
    SubtaskAcked,
    SubtaskCaughtUp,
    SubtaskDeclined,
    Ticked,
    TriggerSources,
)
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.unhandled import unhandled

__all__ = [
    "AbortCheckpoint",
    "AnnounceCompleted",
    "AttemptEnded",
    "AttemptStarted",
    "CheckpointCoordinator",
    "Command",
    "CoordinatorConfig",
    "DiscardCheckpoint",
    "Event",
    "FailAttempt",
    "FinalRequested",
    "ManifestFailed",
    "ManifestPublished",
    "PublishManifest",
    "Restored",
    "SavepointRequested",
    "SubtaskAcked",
    "SubtaskCaughtUp",
    "SubtaskDeclined",
    "Ticked",
    "TriggerSources",
]

_FINAL_RETRY_MS = 100
_MOST_NAMED = 4
_UNNAMED = JobId("")


@dataclass(slots=True)
class _Pending:
    id: CheckpointId
    deadline_ms: int
    final: bool
    savepoint: bool
    waiting: set[SubtaskId] = field(default_factory=set)

    @property
    def publishing(self) -> bool:
        return not self.waiting


class CheckpointCoordinator:
    """Coordinates the checkpoints of job `job_id`; ids begin with `next_checkpoint_id`, never used before."""

    def __init__(
        self, config: CoordinatorConfig, next_checkpoint_id: int = 1, job_id: JobId = _UNNAMED
    ) -> None:
        if config.max_concurrent < 1 or config.retained < 1:
            raise ProtocolViolation(f"{config}: expected max_concurrent and retained of at least 1")
        self._config = config
        self._job_id = job_id
        self._next_id = CheckpointId(next_checkpoint_id)
        self._attempt: Attempt | None = None
        self._newest_attempt = Attempt(0)
        self._subtasks: frozenset[SubtaskId] = frozenset()
        self._catching_up: set[SubtaskId] = set()
        # Ascending by id, since ids grow.
        self._pending: dict[CheckpointId, _Pending] = {}
        # Aborted while their manifest was being published, and whether as a savepoint.
        self._orphans: dict[CheckpointId, bool] = {}
        self._completed: list[CheckpointId] = []
        self._savepoints: set[CheckpointId] = set()
        self._told_restored = False
        self._periodic_ms = 0
        self._pause_ends_ms = 0
        self._failures = 0
        # Whether storage was the cause of all these failures.
        self._storage_only = False
        self._failing = False
        self._savepoint_wanted = False
        self._final_wanted = False
        self._final_done = False
        self._final_retry_ms = 0
        self._ignored = 0

    @property
    def completed(self) -> tuple[CheckpointId, ...]:
        """Complete checkpoints that are kept, savepoints newer than the oldest of them included, oldest first."""
        return tuple(self._completed)

    @property
    def pending(self) -> tuple[CheckpointId, ...]:
        """Checkpoints under way, oldest first."""
        return tuple(self._pending)

    @property
    def ignored(self) -> int:
        """How many messages changed nothing, because they were late, foreign or repeated."""
        return self._ignored

    def waiting_for(self, checkpoint_id: CheckpointId) -> tuple[SubtaskId, ...]:
        """Return the subtasks that have not acknowledged a pending checkpoint, sorted."""
        return tuple(sorted(self._pending[checkpoint_id].waiting))

    def next_deadline_ms(self) -> int | None:
        """Return when `Ticked` next does something by itself, None if only an event can."""
        times = [pending.deadline_ms for pending in self._pending.values()]
        if self._may_trigger():
            if self._final_wanted:
                times += [] if self._pending or self._final_done else [self._final_retry_ms]
            elif self._config.interval_ms is not None:
                times.append(max(self._periodic_ms, self._pause_ends_ms))
        return min(times, default=None)

    def handle(self, event: Event) -> Commands:
        """Take note of `event`; return what to do, in order."""
        match event:
            case Restored():
                self._on_restored(event)
                return ()
            case AttemptStarted():
                self._on_started(event)
                commands: Commands = ()
            case AttemptEnded():
                return self._on_ended()
            case Ticked():
                commands = self._on_ticked(event.now_ms)
            case SubtaskCaughtUp():
                self._on_caught_up(event)
                commands = ()
            case SubtaskAcked():
                commands = self._on_acked(event)
            case SubtaskDeclined():
                commands = self._on_declined(event)
            case ManifestPublished():
                commands = self._on_published(event)
            case ManifestFailed():
                commands = self._on_manifest_failed(event)
            case SavepointRequested():
                self._savepoint_wanted = True
                commands = ()
            case FinalRequested():
                self._on_final_requested()
                commands = ()
            case _:
                unhandled(event)
        return (*commands, *self._trigger(event.now_ms))

    # ------------------------------------------------------------------------------- the attempt

    def _on_restored(self, event: Restored) -> None:
        if self._attempt is not None:
            raise ProtocolViolation(
                f"checkpoint {event.checkpoint_id} restored while attempt {self._attempt} runs"
            )
        if not self._told_restored:
            self._told_restored = True
            self._completed = [c for c in self._completed if c < event.checkpoint_id]
        self._next_id = max(self._next_id, CheckpointId(event.checkpoint_id + 1))
        self._keep(event.checkpoint_id, event.savepoint)

    def _on_started(self, event: AttemptStarted) -> None:
        if self._attempt is not None or event.attempt <= self._newest_attempt or not event.subtasks:
            raise ProtocolViolation(
                f"attempt {event.attempt} of {len(event.subtasks)} subtasks started after {self._newest_attempt} "
                f"(running: {self._attempt}): attempts grow, one at a time, and have subtasks"
            )
        self._attempt = self._newest_attempt = event.attempt
        self._subtasks = event.subtasks
        self._catching_up = set(event.catching_up)
        self._periodic_ms = event.now_ms + (self._config.interval_ms or 0)
        self._pause_ends_ms = 0
        self._failures = 0
        self._failing = False
        self._final_wanted = False
        self._final_done = False
        self._told_restored = False

    def _on_ended(self) -> Commands:
        aborted = [self._drop(pending, "the attempt ended") for pending in tuple(self._pending.values())]
        self._attempt = None
        return tuple(aborted)

    def _on_caught_up(self, event: SubtaskCaughtUp) -> None:
        if event.attempt == self._attempt:
            self._catching_up.discard(event.subtask)
        else:
            self._ignored += 1

    def _on_final_requested(self) -> None:
        if self._attempt is None:
            raise ProtocolViolation("final checkpoint requested while no attempt runs")
        if not self._final_wanted:
            self._final_wanted = True
            self._final_retry_ms = 0

    # ------------------------------------------------------------------------------- beginning

    def _may_trigger(self) -> bool:
        return (
            self._attempt is not None
            and not self._failing
            and not self._catching_up
            and len(self._pending) < self._config.max_concurrent
            and not any(pending.final or pending.savepoint for pending in self._pending.values())
        )

    def _trigger(self, now_ms: int) -> Commands:
        if not self._may_trigger():
            return ()
        final = self._final_wanted and not self._final_done
        if final:
            if self._pending or now_ms < self._final_retry_ms:
                return ()
        elif not self._savepoint_wanted:
            if self._final_wanted or self._config.interval_ms is None:
                return ()
            if now_ms < max(self._periodic_ms, self._pause_ends_ms):
                return ()
        return (self._begin(now_ms, final),)

    def _begin(self, now_ms: int, final: bool) -> TriggerSources:
        checkpoint_id, savepoint = self._next_id, self._savepoint_wanted
        self._next_id = CheckpointId(checkpoint_id + 1)
        self._savepoint_wanted = False
        self._periodic_ms = now_ms + (self._config.interval_ms or 0)
        self._pending[checkpoint_id] = _Pending(
            checkpoint_id, now_ms + self._config.timeout_ms, final, savepoint, set(self._subtasks)
        )
        return TriggerSources(checkpoint_id, final, savepoint)

    # ------------------------------------------------------------------------------- subtasks' answers

    def _on_acked(self, event: SubtaskAcked) -> Commands:
        pending = self._awaited(event)
        if pending is None:
            return ()
        pending.waiting.discard(event.subtask)
        return () if pending.waiting else (PublishManifest(pending.id),)

    def _on_declined(self, event: SubtaskDeclined) -> Commands:
        pending = self._awaited(event)
        if pending is None:
            return ()
        reason = f"{event.subtask} declined: {event.reason}"
        return self._fail(pending, reason, event.now_ms, storage=event.storage)

    def _awaited(self, event: SubtaskAcked | SubtaskDeclined) -> _Pending | None:
        """Return the checkpoint that awaits this answer; None, and a count, if none does (invariant 7)."""
        if event.attempt == self._attempt and event.subtask not in self._subtasks:
            raise ProtocolViolation(f"{event}: attempt {event.attempt} has no such subtask")
        pending = self._pending.get(event.checkpoint_id)
        if event.attempt != self._attempt or pending is None or event.subtask not in pending.waiting:
            self._ignored += 1
            return None
        return pending

    # ------------------------------------------------------------------------------- ends

    def _on_ticked(self, now_ms: int) -> Commands:
        commands: Commands = ()
        for pending in [p for p in self._pending.values() if now_ms >= p.deadline_ms]:
            waiting = sorted(map(str, pending.waiting))
            named = ", ".join(waiting[:_MOST_NAMED]) + (", …" if len(waiting) > _MOST_NAMED else "")
            missing = f"{len(waiting)} of {len(self._subtasks)} subtasks had not acknowledged: {named}"
            reason = missing if waiting else "its manifest was not published"
            commands += self._fail(pending, f"timed out after {self._config.timeout_ms} ms: {reason}", now_ms)
        return commands

    def _on_published(self, event: ManifestPublished) -> Commands:
        orphan = self._orphans.pop(event.checkpoint_id, None)
        if orphan is not None:
            if self._attempt is not None or self._told_restored:
                return (DiscardCheckpoint(event.checkpoint_id),)
            self._keep(event.checkpoint_id, orphan)
            return self._retire()
        pending = self._published_one(event.checkpoint_id)
        return () if pending is None else self._complete(pending, event.now_ms)

    def _on_manifest_failed(self, event: ManifestFailed) -> Commands:
        if self._orphans.pop(event.checkpoint_id, None) is not None:
            return (DiscardCheckpoint(event.checkpoint_id),)
        pending = self._published_one(event.checkpoint_id)
        if pending is None:
            return ()
        reason = f"manifest not published: {event.reason}"
        commands = self._fail(pending, reason, event.now_ms, storage=event.storage)
        self._orphans.pop(pending.id, None)
        return commands

    def _published_one(self, checkpoint_id: CheckpointId) -> _Pending | None:
        pending = self._pending.get(checkpoint_id)
        if pending is None:
            self._ignored += 1
        elif not pending.publishing:
            raise ProtocolViolation(
                f"manifest of checkpoint {checkpoint_id} written while {len(pending.waiting)} subtasks have not "
                "acknowledged (invariant 3)"
            )
        return pending

    def _complete(self, pending: _Pending, now_ms: int) -> Commands:
        if self._attempt is None:
            raise ProtocolViolation(f"checkpoint {pending.id} pending without an attempt (invariant 5)")
        del self._pending[pending.id]
        older = [p for p in self._pending.values() if p.id < pending.id]
        aborted = [self._drop(p, f"checkpoint {pending.id} completed first") for p in older]
        self._failures = 0
        self._final_done |= pending.final
        self._pause_ends_ms = now_ms + self._config.min_pause_ms
        self._keep(pending.id, pending.savepoint)
        permit = CommitPermit(self._job_id, self._attempt, pending.id)
        return (*aborted, AnnounceCompleted(pending.id, permit), *self._retire())

    def _fail(self, pending: _Pending, reason: str, now_ms: int, *, storage: bool = False) -> Commands:
        aborted = self._drop(pending, reason)
        self._pause_ends_ms = now_ms + self._config.min_pause_ms
        if pending.savepoint and not pending.final:
            return (aborted,)
        self._storage_only = storage and (self._storage_only or not self._failures)
        self._failures += 1
        self._final_retry_ms = now_ms + (_FINAL_RETRY_MS << min(self._failures - 1, 8))
        if self._failing or self._failures <= self._config.failures_tolerated:
            return (aborted,)
        self._failing = True
        cause = f"{self._failures} checkpoints failed in a row; the last, {pending.id}: {reason}"
        return (aborted, FailAttempt(cause, self._storage_only))

    def _drop(self, pending: _Pending, reason: str) -> AbortCheckpoint:
        del self._pending[pending.id]
        if pending.publishing:
            self._orphans[pending.id] = pending.savepoint
        return AbortCheckpoint(pending.id, reason)

    # ------------------------------------------------------------------------------- retention

    def _keep(self, checkpoint_id: CheckpointId, savepoint: bool) -> None:
        if savepoint:
            self._savepoints.add(checkpoint_id)
        if checkpoint_id not in self._completed:
            insort(self._completed, checkpoint_id)

    def _retire(self) -> Commands:
        """Let go of what is older than the newest `retained` ones; discard it unless it is a savepoint."""
        own = [c for c in self._completed if c not in self._savepoints]
        if len(own) < self._config.retained:
            return ()
        oldest_kept = own[-self._config.retained]
        self._completed = [c for c in self._completed if c >= oldest_kept]
        self._savepoints = {c for c in self._savepoints if c >= oldest_kept}
        return tuple(DiscardCheckpoint(c) for c in own if c < oldest_kept)
