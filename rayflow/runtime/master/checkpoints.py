"""The shell of the checkpoint coordinator: it carries out what the machine decides.

Theory of operation. `protocol.coordinator` decides when to trigger, when a checkpoint is complete, aborted or
to be discarded. This module turns its commands into messages and storage work, and the outcomes into events
again. The manifest of a complete checkpoint is made of the acks' files and of every source's splits.

What happens to each checkpoint is entered in the books (`checkpoint_books`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from rayflow.model.ids import CheckpointId, SubtaskId
from rayflow.protocol.coordinator import (
    AbortCheckpoint,
    AnnounceCompleted,
    AttemptEnded,
    AttemptStarted,
    CheckpointCoordinator,
    Command,
    CoordinatorConfig,
    DiscardCheckpoint,
    Event,
    FailAttempt,
    FinalRequested,
    ManifestFailed,
    ManifestPublished,
    PublishManifest,
    Restored,
    SubtaskAcked,
    SubtaskCaughtUp,
    SubtaskDeclined,
    Ticked,
    TriggerSources,
)
from rayflow.protocol.retention import (
    CheckpointBegun,
    CheckpointDiscarded,
    CheckpointOver,
    Retention,
)
from rayflow.protocol.retention import Event as RetentionEvent
from rayflow.runtime.faults import is_storage_away
from rayflow.runtime.master.background import InTurn
from rayflow.runtime.master.beginning import Beginning, committed_through, has_transactions
from rayflow.runtime.master.checkpoint_books import CheckpointBooks, Report
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.phases import FailTheAttempt
from rayflow.runtime.master.sources import SourceSplits
from rayflow.runtime.messages import (
    CaughtUp,
    CheckpointAborted,
    CheckpointAcked,
    CheckpointCompleted,
    CheckpointDeclined,
    TriggerCheckpoint,
)
from rayflow.state.manifest import Manifest, SplitState

_SWEEPS_AFTER_ABORT = 3


class Checkpoints:
    """The checkpoints of one job. `fail_attempt` and `superseded()` tell the master what it has to do, `progressed()`
    that a checkpoint completed; `salted()` is what goes into manifests as that. `past`: see `JobRun`."""

    def __init__(
        self,
        ctx: Context,
        sources: Mapping[str, SourceSplits],
        *,
        past: Mapping[str, Any],
        fail_attempt: FailTheAttempt,
        superseded: Callable[[], None],
        progressed: Callable[[], None],
        salted: Callable[[], dict[str, tuple[int, ...]]],
    ) -> None:
        self._ctx = ctx
        self._salted = salted
        self._sources = sources
        self._fail_attempt = fail_attempt
        self._superseded = superseded
        self._progressed = progressed
        self._running = False
        # Newest checkpoint of those that the attempt builds on whose completion had a sink commit.
        self._committed = 0
        counted = past.get("describe", {}).get("checkpoints", {})
        self.books = CheckpointBooks(past.get("checkpoints", ()), ctx.job.subtasks, self._phase, counted)
        self._publishing: set[CheckpointId] = set()
        # What is deleted when, where checkpoints are built on each other's files.
        self._retention = Retention()
        self._shares = ctx.job.config.state_backend == "disk"
        self._tidying = InTurn(ctx.background)
        # An upload of a checkpoint that was aborted may come in after its directory was deleted.
        self._sweeps_due = 0
        self.final_completed: CheckpointId | None = None
        self._coordinator: CheckpointCoordinator | None = None

    # ------------------------------------------------------------------------------- the attempt

    def begin_attempt(self, beginning: Beginning, catching_up: Collection[SubtaskId] = ()) -> None:
        """All subtasks run; `catching_up` have rows to process that were in flight in what they restored."""
        ctx, restore = self._ctx, beginning.restore
        self._running = True
        self.final_completed = None
        if self._coordinator is None:
            self._coordinator = _coordinator(ctx.job, beginning.highest)
        self._committed = 0 if restore is None else committed_through(ctx.job, restore.manifest)
        own = restore is not None and restore.foreign_job is None
        for checkpoint_id in beginning.complete:
            if restore is None or not own or checkpoint_id <= restore.checkpoint_id:
                self._handle(Restored(checkpoint_id))
        for checkpoint_id in beginning.incomplete:
            self._delete(checkpoint_id)
        everyone = frozenset(ctx.job.subtasks)
        self._handle(AttemptStarted(ctx.attempt, everyone, ctx.now_ms, frozenset(catching_up)))

    def end_attempt(self) -> None:
        """The attempt failed, was cancelled, or is finished."""
        if self._running:
            self._running = False
            self._handle(AttemptEnded(self._ctx.now_ms))

    def request_final(self) -> None:
        """All inputs have ended."""
        self._handle(FinalRequested(self._ctx.now_ms))

    def tick(self) -> None:
        """Time has passed."""
        if self._running:
            self._handle(Ticked(self._ctx.now_ms))

    @property
    def next_deadline_ms(self) -> int | None:
        """When `tick` has something to do."""
        if self._coordinator is None or not self._running:
            return None
        return self._coordinator.next_deadline_ms()

    def caught_up(self, message: CaughtUp) -> None:
        """A subtask is through with what was in flight in what it restored."""
        self._handle(SubtaskCaughtUp(message.attempt, message.subtask, self._ctx.now_ms))

    def acked(self, ack: CheckpointAcked) -> None:
        """A subtask's snapshot is durable."""
        if not self._retention.may_build(ack.checkpoint_id, ack.builds_on, self.kept):
            reason = f"it builds on checkpoint {ack.builds_on}, which is not kept any more"
            self._handle(
                SubtaskDeclined(ack.attempt, ack.checkpoint_id, ack.subtask, reason, self._ctx.now_ms)
            )
            return
        self.books.acked(ack)
        event = SubtaskAcked(ack.attempt, ack.checkpoint_id, ack.subtask, self._ctx.now_ms)
        self._handle(event)

    def declined(self, message: CheckpointDeclined) -> None:
        """A subtask could not make its snapshot."""
        self._handle(
            SubtaskDeclined(
                message.attempt,
                message.checkpoint_id,
                message.subtask,
                message.reason,
                self._ctx.now_ms,
                message.storage,
            )
        )

    @property
    def latest(self) -> CheckpointId | None:
        """The newest complete checkpoint that is kept."""
        if self._coordinator is None:
            return self.books.newest_kept
        return max(self._coordinator.completed, default=None)

    @property
    def kept(self) -> tuple[CheckpointId, ...]:
        """Complete checkpoints that stay on storage; none before the first attempt has begun."""
        return () if self._coordinator is None else self._coordinator.completed

    @property
    def publishing(self) -> Collection[CheckpointId]:
        """Checkpoints whose manifests are being written: any of them may appear, however long that takes."""
        return self._publishing

    # ------------------------------------------------------------------------------- commands

    def _handle(self, event: Event) -> None:
        # Without a coordinator no attempt has run: there is nothing that an event could be about.
        for command in () if self._coordinator is None else self._coordinator.handle(event):
            self._obey(command)

    def _obey(self, command: Command) -> None:
        match command:
            case TriggerSources():
                self._trigger(command)
            case PublishManifest():
                self._publish(command.checkpoint_id)
            case AnnounceCompleted():
                self._announce(command)
            case AbortCheckpoint():
                self._abort(command)
            case DiscardCheckpoint():
                self._discard(command.checkpoint_id)
            case FailAttempt():
                self._fail_attempt(command.reason, storage=command.storage)

    def _trigger(self, command: TriggerSources) -> None:
        ctx, checkpoint_id = self._ctx, command.checkpoint_id
        self.books.enter(checkpoint_id, ctx.storage.url(checkpoint_id), ctx.now_ms, final=command.final)
        self._retained(CheckpointBegun(checkpoint_id))
        kind = "final checkpoint" if command.final else "checkpoint"
        ctx.note("checkpoint_triggered", f"{kind} {checkpoint_id} triggered", checkpoint_id=checkpoint_id)
        aligned = command.final or command.savepoint
        ctx.fleet.broadcast(TriggerCheckpoint(ctx.attempt, checkpoint_id, aligned), ctx.job.source_subtasks)

    def _publish(self, checkpoint_id: CheckpointId) -> None:
        ctx, report = self._ctx, self.books.report(checkpoint_id)
        manifest, attempt = self._manifest(report), ctx.attempt
        self._publishing.add(checkpoint_id)
        ctx.background.run(
            lambda: ctx.storage.publish(manifest, attempt),
            lambda announce, error: self._published(report, announce, error),
            critical=True,
        )

    def _published(self, report: Report, announce: bool, error: BaseException | None) -> None:
        self._publishing.discard(report.id)
        self._retained(CheckpointOver(report.id))
        if error is not None:
            away = is_storage_away(error)
            self._handle(ManifestFailed(report.id, str(error), self._ctx.now_ms, away))
        elif not announce:
            self._superseded()
        else:
            if report.status == "aborted":
                # The attempt ended while the manifest was written: the checkpoint is good to restore from.
                self.books.settle(report, "completed", None, self._ctx.now_ms)
            self._handle(ManifestPublished(report.id, self._ctx.now_ms))

    def _announce(self, command: AnnounceCompleted) -> None:
        ctx, report = self._ctx, self.books.report(command.checkpoint_id)
        self.books.settle(report, "completed", None, self._ctx.now_ms)
        ctx.note(
            "checkpoint_completed",
            f"checkpoint {report.id} completed in {ctx.now_ms - report.triggered_ms} ms, {report.nbytes} bytes",
            checkpoint_id=report.id,
            path=report.path,
        )
        if report.final:
            self.final_completed = report.id
        self._progressed()
        self._sweep(report.id)
        permit = command.permit
        ctx.fleet.broadcast(CheckpointCompleted(permit.attempt, permit.checkpoint_id))

    def _abort(self, command: AbortCheckpoint) -> None:
        ctx, report = self._ctx, self.books.report(command.checkpoint_id)
        status = "failed" if self._running else "aborted"
        self.books.settle(report, status, command.reason, ctx.now_ms)
        ctx.note(
            f"checkpoint_{status}",
            f"checkpoint {report.id} {status}: {command.reason}",
            checkpoint_id=report.id,
        )
        if self._running:
            ctx.fleet.broadcast(CheckpointAborted(ctx.attempt, report.id))
        self._sweeps_due = _SWEEPS_AFTER_ABORT
        if report.id not in self._publishing:
            self._retained(CheckpointOver(report.id))
            self._delete(report.id)

    def _sweep(self, completed: CheckpointId) -> None:
        """Some subtask may have been at an upload for an older checkpoint, and have written on; or of a checkpoint that
        was discarded there may be files that nobody needs any more."""
        if not self._sweeps_due and not self._shares:
            return
        self._sweeps_due = max(0, self._sweeps_due - 1)
        storage, attempt, busy = self._ctx.storage, self._ctx.attempt, frozenset(self._publishing)
        self._tidy("old files", lambda: storage.sweep(attempt, completed, busy))

    def _discard(self, checkpoint_id: CheckpointId) -> None:
        self.books.discarded(checkpoint_id)
        if self._shares:
            self._retained(CheckpointDiscarded(checkpoint_id))
        else:
            self._delete(checkpoint_id)

    def _retained(self, event: RetentionEvent) -> None:
        for command in self._retention.handle(event):
            self._delete(command.checkpoint_id)

    def _delete(self, checkpoint_id: CheckpointId) -> None:
        storage, attempt = self._ctx.storage, self._ctx.attempt
        self._tidy(f"checkpoint {checkpoint_id}", lambda: storage.discard(checkpoint_id, attempt))

    def _phase(self, subtask: SubtaskId, checkpoint_id: CheckpointId) -> str:
        worker = self._ctx.fleet.ready.get(subtask)
        told = worker.statistics.get("checkpoint") if worker is not None else None
        return str(told["phase"]) if told and told["id"] == checkpoint_id else "waiting for barriers"

    def _tidy(self, what: str, work: Callable[[], None]) -> None:
        """Delete something. One thing after the other: what goes is told by the manifests of what stays."""

        def ended(_result: Any, error: BaseException | None) -> None:
            # Best effort: what stays behind has no manifest, and is swept later.
            if error is not None:
                self._ctx.note("checkpoint_cleanup_failed", f"{what} could not be deleted: {error}")

        self._tidying.run(work, ended)

    def _manifest(self, report: Report) -> Manifest:
        job = self._ctx.job
        acks = [report.acks[subtask] for subtask in job.subtasks]
        acked: dict[str, list[SplitState]] = {uid: [] for uid in self._sources}
        for ack in acks:
            for uid, splits in ack.splits.items():
                acked[uid].extend(splits)
        files = tuple(file for ack in acks for file in ack.files)
        if has_transactions(job, files):
            self._committed = max(self._committed, report.id)
        return Manifest(
            job_id=job.job_id,
            attempt=self._ctx.attempt,
            checkpoint_id=report.id,
            time_ms=report.triggered_ms,
            max_parallelism=job.graph.max_parallelism,
            operators={op.uid: v.parallelism for v in job.graph.vertices for op in v.operators},
            files=files,
            sources={uid: source.merged(acked[uid]) for uid, source in self._sources.items()},
            watermarks=_watermarks(acks),
            # Also of one whose publication fails: whether it did is known to storage only.
            committed=min(self._committed, report.id),
            salted=self._salted(),
        )


def _coordinator(job: Job, highest: CheckpointId) -> CheckpointCoordinator:
    config = job.config
    return CheckpointCoordinator(
        CoordinatorConfig(
            interval_ms=config.checkpoint_interval_ms,
            timeout_ms=config.checkpoint_timeout_ms,
            min_pause_ms=config.checkpoint_min_pause_ms,
            max_concurrent=config.checkpoint_max_concurrent,
            retained=config.checkpoint_retained,
            failures_tolerated=config.checkpoint_failures_tolerated,
        ),
        next_checkpoint_id=highest + 1,
        job_id=job.job_id,
    )


def _watermarks(acks: Iterable[CheckpointAcked]) -> dict[str, int]:
    """Smallest watermark of each vertex whose subtasks all have one."""
    found: dict[str, list[int | None]] = {}
    for ack in acks:
        found.setdefault(ack.subtask.vertex, []).append(ack.watermark)
    smallest: dict[str, int] = {}
    for vertex, watermarks in found.items():
        known = [w for w in watermarks if w is not None]
        if len(known) == len(watermarks):
            smallest[vertex] = min(known)
    return smallest
