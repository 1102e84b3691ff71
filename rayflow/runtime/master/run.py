"""A job's life under one master, from its first claim to its end: the phases, and what moves between them.

Theory of operation
-------------------
::

    BEGINNING ─▶ DEPLOYING ─▶ RUNNING ─▶ FINISHING ─▶ CLOSING ─▶ CLOSED
        ▲            │           │           │           ▲
        └── failed ──┴───────────┴───────────┘           │
    any ── cancelled, or no restart left ──▶ ENDING ─────┘

*BEGINNING*: the restart delay passes, storage work of the attempt before settles, the attempt is claimed and its
checkpoint chosen (`beginning`), missing workers come up. *DEPLOYING*: every subtask restores; a survivor that does
not answer in `restart.reset_timeout` is killed. *RUNNING*: until all inputs ended, the final checkpoint is
complete, and every sink committed it. *FINISHING*, *ENDING*: subtasks close. *CLOSING*: sinks clean up, metadata
is stored; only then does the job show its final state.

Events only take notes and set deadlines; `advance`, called in every step, moves between phases.

Invariants:

1. Messages of other attempts than the current one change nothing (they are counted).
2. An attempt is deployed only after it was claimed, and no storage work of the one before is under way.
3. A job shows FINISHED only after every subtask has committed the final checkpoint.
4. After `cancel` nothing is announced as complete, so nothing new is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, cast

from rayflow.model.errors import JobFailed, RayflowError, TransientError
from rayflow.model.ids import SubtaskId
from rayflow.protocol.failover import (
    AttemptFailed,
    GiveUp,
    ProgressMade,
    RestartAt,
    RestartPolicy,
    RestartStrategy,
)
from rayflow.protocol.lifecycle import (
    JOB_TRANSITIONS,
    AttemptAbandoned,
    AttemptRunning,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobGivenUp,
    JobLifecycle,
    JobState,
)
from rayflow.runtime.master.beginning import SinkNotReady
from rayflow.runtime.master.board import Board
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.closing import Closing
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.discovery import Discovery
from rayflow.runtime.master.events import iso_utc
from rayflow.runtime.master.opening import Opening
from rayflow.runtime.master.records import Records
from rayflow.runtime.master.sources import Assignments, SourceSplits
from rayflow.runtime.messages import (
    Cancel,
    CheckpointAcked,
    CheckpointDeclined,
    Committed,
    Deployed,
    Finish,
    FromSubtask,
    HeartbeatAnswered,
    InputsEnded,
    PeerLost,
    SplitsRequested,
    Start,
    Stopped,
    TaskFailed,
)

STOP_LIMIT_MS = 10_000
"""How long subtasks may take to close after Cancel or Finish, and storage work to settle at the end."""

PEER_LOST_GRACE_MS = 200
"""A broken stream is a symptom: so long the death or failure behind it may take to be reported itself."""


class Phase(Enum):
    """Where the master is in the job's life; see the module's picture."""

    BEGINNING = "beginning"
    DEPLOYING = "deploying"
    RUNNING = "running"
    FINISHING = "finishing"
    ENDING = "ending"
    CLOSING = "closing"
    CLOSED = "closed"


class JobRun:
    """One master's run of a job, on the master's thread. `past` is the job.json that a dead master left, empty
    for a fresh job; `document` returns what job.json shall hold now."""

    def __init__(
        self,
        ctx: Context,
        past: Mapping[str, Any],
        *,
        restore_from: str | None,
        allow_duplicates: bool,
        document: Callable[[], dict[str, Any]],
    ) -> None:
        self._ctx = ctx
        self._recovered = bool(past)
        self._past_reports = past.get("checkpoints", [])
        self._document = document
        self._records = Records(ctx, document)
        config = ctx.job.config
        self._policy = RestartPolicy(
            cast(RestartStrategy, config.restart_strategy),
            config.restart_max_attempts,
            config.restart_window_ms,
            config.restart_delay_ms,
        )
        self._cause = "the job manager was restarted" if past else None
        self._restart_at_ms = ctx.now_ms
        self._deadline_ms: int | None = None
        self._peer_lost: PeerLost | None = None
        self._survivors: list[SubtaskId] = []
        self._closing: Closing | None = None
        self._lifecycle = JobLifecycle()
        self._sources = {v.operators[0].uid: SourceSplits(v) for v in ctx.job.sources}
        self._discovery = Discovery(ctx, self._sources, self._deliver, self._discovery_failed)
        self.opening = Opening(
            ctx,
            last_attempt=past.get("attempt", 0),
            fresh=not past.get("sinks_started", False),
            restore_from=restore_from,
            allow_duplicates=allow_duplicates,
        )
        self.phase = Phase.BEGINNING
        self.ending: JobEvent | None = None
        self.failure: JobFailed | None = None
        self.checkpoints: Checkpoints | None = None
        self.board = Board(ctx.job.subtasks)
        self.restarts: list[dict[str, Any]] = list(past.get("describe", {}).get("restarts", []))
        self.stale_messages = 0

    @property
    def state(self) -> JobState:
        """The job's state, as users see it."""
        return self._lifecycle.state

    @property
    def coming_state(self) -> JobState:
        """The state the job will show once it is closed; `state` until its end is decided."""
        return self.state if self.ending is None else JOB_TRANSITIONS[self.state, type(self.ending)]

    # ------------------------------------------------------------------------------- what happened

    def worker_ready(self, subtask: SubtaskId, address: str, node_id: str, pid: int) -> None:
        """A worker has come up."""
        self._ctx.fleet.worker_ready(subtask, address, node_id, pid, self._ctx.now_ms)

    def worker_lost(self, subtask: SubtaskId, reason: str) -> None:
        """A worker died, or could not be started."""
        if self.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        ctx = self._ctx
        worker = ctx.fleet.worker_lost(subtask)
        self.board.lost(subtask)
        cause = f"subtask {subtask} lost: {reason}"
        ctx.note("subtask_lost", cause, operator=subtask.vertex, index=subtask.index, attempt=ctx.attempt)
        if self.phase in (Phase.DEPLOYING, Phase.RUNNING) or worker is None:
            self._fail_attempt(cause)

    def message(self, message: FromSubtask) -> None:
        """A subtask reported."""
        ctx = self._ctx
        if isinstance(message, HeartbeatAnswered):
            ctx.fleet.answered(message.subtask, message.statistics, ctx.now_ms)
        elif message.attempt != ctx.attempt:
            # Newer ones come to a master that was superseded and does not know it yet.
            self.stale_messages += 1
        elif isinstance(message, Stopped):
            self.board.closed(message.subtask, finished=self.phase is Phase.FINISHING)
        elif isinstance(message, TaskFailed):
            self._task_failed(message)
        elif isinstance(message, Deployed):
            if self.phase is Phase.DEPLOYING:
                self.board.restored(message.subtask)
        elif self.phase is Phase.RUNNING:
            self._progress(message, self._coordinated)

    def cancel(self) -> None:
        """The user wants the job to end. Too late once its last checkpoint is committed everywhere."""
        if self.phase in (Phase.BEGINNING, Phase.DEPLOYING, Phase.RUNNING):
            self._ctx.note("job_cancel_requested", "cancellation was requested")
            self._end(JobCancelled())

    def give_up(self, cause: str, operator: str | None = None, location: str | None = None) -> None:
        """The job has failed for good."""
        if self.phase in (Phase.BEGINNING, Phase.DEPLOYING, Phase.RUNNING):
            self.failure = JobFailed(self._ctx.job.job_id, cause, operator, location)
            self._ctx.note("job_gave_up", f"the job fails: {cause}", operator=operator, location=location)
            self._end(JobGivenUp())

    def abort(self, cause: str) -> None:
        """Stop at once, whatever the phase, for a bug of ours: neither sinks nor subtasks are asked."""
        self.failure = JobFailed(self._ctx.job.job_id, cause)
        self._ctx.note("job_gave_up", f"the job fails: {cause}")
        self._discovery.stop()
        self._ctx.fleet.shutdown()
        self.ending = None
        if not self._lifecycle.ended:
            self._lifecycle.handle(JobGivenUp())
        self.phase = Phase.CLOSED
        self._records.save_job()

    # ------------------------------------------------------------------------------- time

    def advance(self) -> None:
        """Do what time and the notes taken allow. Called at the end of every step."""
        if self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.CLOSING:
            self._check_heartbeats()
            self._discovery.tick()
        phase = None
        while phase is not self.phase:
            phase = self.phase
            self._pass_through(phase)
        if self._closing is not None:
            self._closing.advance()
        else:
            self._records.tick()

    def _pass_through(self, phase: Phase) -> None:
        match phase:
            case Phase.BEGINNING:
                self._while_beginning()
            case Phase.DEPLOYING:
                self._while_deploying()
            case Phase.RUNNING:
                self._while_running(self._coordinated)
            case Phase.FINISHING | Phase.ENDING:
                if not self.board.open or self._overdue():
                    self._close()

    def next_deadline_ms(self) -> int | None:
        """When `advance` next has something to do by itself."""
        times = [self._deadline_ms, self._discovery.next_deadline_ms]
        if self._closing is not None:
            times = [self._closing.deadline_ms]
        else:
            times += [self._ctx.fleet.next_beat_ms, self._records.next_deadline_ms]
        if self.phase is Phase.BEGINNING and self._restart_at_ms > self._ctx.now_ms:
            times.append(self._restart_at_ms)
        if self.checkpoints is not None:
            times.append(self.checkpoints.next_deadline_ms)
        return min((time for time in times if time is not None), default=None)

    def _check_heartbeats(self) -> None:
        ctx = self._ctx
        for subtask in ctx.fleet.beat(ctx.attempt, ctx.now_ms):
            reason = f"no heartbeat answered for {ctx.job.config.heartbeat_timeout_ms} ms"
            ctx.fleet.end(subtask)
            self.worker_lost(subtask, reason)

    def _overdue(self) -> bool:
        return self._deadline_ms is not None and self._ctx.now_ms >= self._deadline_ms

    # ------------------------------------------------------------------------------- beginning

    def _while_beginning(self) -> None:
        ctx, opening = self._ctx, self.opening
        if ctx.now_ms < self._restart_at_ms:
            return
        ctx.fleet.ensure()
        opening.advance()
        if opening.error is not None:
            self._not_begun(opening.error)
        elif opening.beginning is not None and not ctx.fleet.missing:
            self._deploy()

    def _not_begun(self, error: BaseException) -> None:
        self.opening.reset()
        cause = str(error) if isinstance(error, RayflowError) else f"{type(error).__name__}: {error}"
        if isinstance(error, SinkNotReady):
            self.give_up(error.cause, error.operator, error.location)
        else:
            # A job that never ran learns at once that its storage is out of reach; one that did waits for it.
            passing = isinstance(error, TransientError) and (self._recovered or self._ctx.attempt > 0)
            self._fail_attempt(cause, retryable=passing)

    def _deploy(self) -> None:
        ctx = self._ctx
        self._note_restart()
        self.phase = Phase.DEPLOYING
        self.board.begin()
        self._survivors = ctx.fleet.take_survivors()
        timeout_ms = ctx.job.config.restart_reset_timeout_ms
        self._deadline_ms = ctx.now_ms + timeout_ms if self._survivors else None
        for deploy in self.opening.deploys():
            ctx.fleet.send(deploy.subtask, deploy)
        self._records.save_job()

    def _note_restart(self) -> None:
        if self._cause is None:
            return
        restore = self.opening.restore
        self.restarts.append(
            {
                "attempt": self._ctx.attempt,
                "at": iso_utc(self._ctx.now_ms),
                "cause": self._cause,
                "restored_from": None if restore is None else restore.path,
            }
        )
        self._cause = None

    # ------------------------------------------------------------------------------- deploying

    def _while_deploying(self) -> None:
        if not self.board.restoring:
            self._start()
        elif self._overdue():
            self._deadline_ms = None
            fleet, attempt = self._ctx.fleet, self._ctx.attempt
            late = [s for s in self.board.restoring if s in self._survivors]
            self._replace([s for s in late if fleet.is_silent(s, attempt)])

    def _replace(self, silent: list[SubtaskId]) -> None:
        """Kill survivors that ignore their reset, and begin again. Bounded: who replaces them is no survivor."""
        if not silent:
            return
        ctx = self._ctx
        timeout_ms = ctx.job.config.restart_reset_timeout_ms
        cause = f"{', '.join(map(str, silent))} did not answer the reset in {timeout_ms} ms and was replaced"
        for subtask in silent:
            ctx.fleet.end(subtask)
            self.board.lost(subtask)
            ctx.note("subtask_killed", cause, operator=subtask.vertex, index=subtask.index)
        self._leave_attempt(cause, ctx.now_ms)

    def _start(self) -> None:
        ctx, opening = self._ctx, self.opening
        beginning, restore = opening.beginning, opening.restore
        assert beginning is not None, "deployed without a beginning"
        if self.checkpoints is None:
            self.checkpoints = Checkpoints(
                ctx,
                self._sources,
                highest=beginning.highest,
                earlier_reports=self._past_reports,
                fail_attempt=self._fail_attempt,
                superseded=self._superseded,
                progressed=self._progressed,
            )
        self.phase = Phase.RUNNING
        self._deadline_ms = self._peer_lost = None
        self.board.started()
        self._lifecycle.handle(AttemptRunning())
        ctx.note("attempt_running", f"attempt {ctx.attempt} runs", attempt=ctx.attempt)
        ctx.fleet.broadcast(Start(ctx.attempt))
        own = restore.checkpoint_id if restore is not None and restore.foreign_job is None else None
        self.checkpoints.sweep(beginning.incomplete)
        self.checkpoints.begin_attempt(own, beginning.complete)
        for uid, source in self._sources.items():
            self._deliver(source.begin(ctx.attempt, () if restore is None else restore.splits(uid)))
        self._records.save_job()

    # ------------------------------------------------------------------------------- running

    @property
    def _coordinated(self) -> Checkpoints:
        assert self.checkpoints is not None, "an attempt runs without a coordinator"
        return self.checkpoints

    def _progress(self, message: FromSubtask, checkpoints: Checkpoints) -> None:
        match message:
            case SplitsRequested():
                self._deliver(self._sources[message.uid].requested(message.subtask))
            case CheckpointAcked():
                checkpoints.acked(message)
            case CheckpointDeclined():
                checkpoints.declined(message)
            case InputsEnded():
                self.board.inputs_ended(message.subtask)
                if not self.board.reading:
                    checkpoints.request_final()
            case Committed():
                if message.checkpoint_id == checkpoints.final_completed:
                    self.board.committed(message.subtask)
            case PeerLost():
                self._suspect(message)

    def _suspect(self, message: PeerLost) -> None:
        # A broken stream is a symptom. Whoever is behind it will be noticed in a moment, by its own words or
        # by the pool, which finds out when it sends; that makes the better cause.
        if self._peer_lost is None:
            self._peer_lost = message
            self._deadline_ms = self._ctx.now_ms + PEER_LOST_GRACE_MS
            self._ctx.fleet.probe(self._ctx.attempt)

    def _while_running(self, checkpoints: Checkpoints) -> None:
        if self._peer_lost is not None and self._overdue():
            self._fail_attempt(f"the stream {self._peer_lost.channel} broke: {self._peer_lost.reason}")
            return
        checkpoints.tick()
        if checkpoints.final_completed is not None and not self.board.committing:
            self._finish(checkpoints)

    def _deliver(self, assignments: Assignments) -> None:
        if self.phase is Phase.RUNNING:
            for subtask, message in assignments:
                self._ctx.fleet.send(subtask, message)

    def _progressed(self) -> None:
        self._policy.handle(ProgressMade())
        self._records.save_job()

    # ------------------------------------------------------------------------------- failing

    def _task_failed(self, message: TaskFailed) -> None:
        subtask = message.subtask
        self.board.failed(subtask)
        self._ctx.note(
            "subtask_failed",
            f"subtask {subtask} failed: {message.cause}",
            operator=message.operator or subtask.vertex,
            index=subtask.index,
            attempt=message.attempt,
            location=message.location,
        )
        if self.phase in (Phase.DEPLOYING, Phase.RUNNING):
            retryable = message.retryable
            if message.corrupt_checkpoint:
                retryable = self.opening.note_damage(message.cause)
            self._fail_attempt(message.cause, message.operator, message.location, retryable=retryable)
        elif self.phase is Phase.BEGINNING and not message.retryable and not message.corrupt_checkpoint:
            # The attempt had already failed, of a consequence of this.
            self.give_up(message.cause, message.operator, message.location)

    def _fail_attempt(
        self,
        cause: str,
        operator: str | None = None,
        location: str | None = None,
        retryable: bool = True,
    ) -> None:
        ctx = self._ctx
        if self.phase not in (Phase.BEGINNING, Phase.DEPLOYING, Phase.RUNNING):
            return
        ctx.note("attempt_failed", f"attempt {ctx.attempt} failed: {cause}", attempt=ctx.attempt, cause=cause)
        for command in self._policy.handle(AttemptFailed(cause, retryable, ctx.now_ms)):
            match command:
                case GiveUp():
                    self.give_up(command.cause, operator, location)
                case RestartAt():
                    self._leave_attempt(cause, command.at_ms)

    def _leave_attempt(self, cause: str, restart_at_ms: int) -> None:
        ctx = self._ctx
        self._cause = cause
        self._restart_at_ms = restart_at_ms
        self._deadline_ms = None
        if self.phase is not Phase.BEGINNING:
            self.phase = Phase.BEGINNING
            self.opening.reset()
            if self.checkpoints is not None:
                self.checkpoints.end_attempt()
            # Survivors stop at once, instead of working for nothing until they are reset.
            ctx.fleet.broadcast(Cancel(ctx.attempt), self.board.open)
            # A new process takes seconds to come up: it is asked for before the delay, not after.
            ctx.fleet.ensure()
        self._lifecycle.handle(AttemptAbandoned())
        self._records.save_job()

    def _discovery_failed(self, cause: str, source: SourceSplits) -> None:
        self.give_up(cause, source.spec.name, source.spec.location)

    def _superseded(self) -> None:
        # Storage and workers are the other master's now: touch nothing.
        self._ctx.note("job_manager_superseded", "another job manager has taken over; this one stops")
        self._discovery.stop()
        self.phase = Phase.CLOSED

    # ------------------------------------------------------------------------------- the end

    def _finish(self, checkpoints: Checkpoints) -> None:
        self.ending = JobCompleted()
        self.phase = Phase.FINISHING
        self._stop_within_limit(checkpoints)
        self._ctx.fleet.broadcast(Finish(self._ctx.attempt))

    def _end(self, event: JobEvent) -> None:
        self.ending = event
        self.phase = Phase.ENDING
        self._stop_within_limit(self.checkpoints)
        self._ctx.fleet.broadcast(Cancel(self._ctx.attempt), self.board.open)

    def _stop_within_limit(self, checkpoints: Checkpoints | None) -> None:
        self._deadline_ms = self._ctx.now_ms + STOP_LIMIT_MS
        self._discovery.stop()
        if checkpoints is not None:
            checkpoints.end_attempt()

    def _close(self) -> None:
        ctx = self._ctx
        for subtask in self.board.open:
            ctx.note(
                "subtask_killed", f"{subtask} did not close in {STOP_LIMIT_MS} ms", operator=subtask.vertex
            )
            ctx.fleet.end(subtask)
        self.phase = Phase.CLOSING
        state = self.coming_state
        ctx.note(f"job_{state.value.lower()}", f"the job is {state.value}")
        self._closing = Closing(ctx, self._records, self._document, self._closed, STOP_LIMIT_MS)

    def _closed(self) -> None:
        if self.ending is not None and self.phase is Phase.CLOSING:
            self._lifecycle.handle(self.ending)
            self.phase = Phase.CLOSED
