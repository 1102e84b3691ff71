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

1. Messages of other attempts than the current one change nothing (they are counted); but for the word of subtasks
   that they have closed the last one that was deployed.
2. An attempt is deployed only after it was claimed, and no storage work of the one before is under way.
3. A job shows FINISHED only after every subtask has committed the final checkpoint.
4. After `cancel` nothing is announced as complete, so nothing new is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rayflow.model.errors import CorruptCheckpointError, JobFailed, RayflowError, TransientError
from rayflow.model.ids import Attempt, SubtaskId
from rayflow.protocol.failover import GiveUp, RestartAt
from rayflow.protocol.lifecycle import (
    AttemptAbandoned,
    AttemptRunning,
    JobCancelled,
    JobCompleted,
    JobEvent,
    JobGivenUp,
    JobState,
)
from rayflow.runtime.master.beginning import SinkNotReady
from rayflow.runtime.master.board import Board
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.deployment import Deployment
from rayflow.runtime.master.ending import STOP_LIMIT_MS, Ending
from rayflow.runtime.master.key_skew import KeySkew
from rayflow.runtime.master.opening import Opening
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.master.records import Records
from rayflow.runtime.master.recovery import Recovery
from rayflow.runtime.master.restarts import Restarts
from rayflow.runtime.master.running import Running
from rayflow.runtime.master.salting import Salting
from rayflow.runtime.messages import (
    Cancel,
    Deployed,
    Finish,
    FromSubtask,
    HeartbeatAnswered,
    PeerLost,
    Stopped,
    TaskFailed,
)


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
        self._last_attempt = Attempt(past.get("attempt", 0))
        self._records = Records(ctx, document)
        self._ending = Ending(ctx, self._records, document, closed=self._closed, superseded=self._superseded)
        self._salting = Salting(ctx)
        self.opening = Opening(
            ctx,
            last_attempt=self._last_attempt,
            fresh=not past.get("sinks_started", False),
            restore_from=restore_from,
            allow_duplicates=allow_duplicates,
            newest=lambda: self.checkpoints.books.newest_kept,
            salting=self._salting,
        )
        self.phase = Phase.BEGINNING
        self.board = Board(ctx.job.subtasks)
        self.restarts = Restarts(
            ctx,
            past.get("describe", {}),
            "the job manager was restarted" if past else None,
        )
        self.recovery = Recovery(ctx, recovered=bool(past))
        self.key_skew = KeySkew(ctx)
        self._deployment = Deployment(ctx, self.board, self.opening)
        self._running = Running(
            ctx,
            self.board,
            past=past,
            fail_attempt=self._fail_attempt,
            give_up=self.give_up,
            superseded=self._superseded,
            progressed=self._progressed,
            salted=lambda: self._salting.keys,
        )
        self.stale_messages = 0
        self.superseded = False
        # When a worker was last lost (or, unseen, under the master before): cut off it may live on, for as long as its
        # lease lasts.
        self.lost_ms = ctx.now_ms if past else None

    @property
    def state(self) -> JobState:
        """The job's state, as users see it."""
        return self._ending.state

    @property
    def coming_state(self) -> JobState:
        """See `Ending.coming_state`."""
        return self._ending.coming_state

    @property
    def failure(self) -> JobFailed | None:
        """Why the job fails; None unless it does."""
        return self._ending.failure

    @property
    def newest_attempt(self) -> Attempt:
        """The newest attempt, of this master or the ones before."""
        return max(self._ctx.attempt, self._last_attempt)

    def clean_up_again(self) -> None:
        """See `Closing.clean_up_again`."""
        self._ending.clean_up_again()

    @property
    def checkpoints(self) -> Checkpoints:
        """The job's checkpoints, for reports."""
        return self._running.checkpoints

    # ------------------------------------------------------------------------------- what happened

    def worker_ready(self, subtask: SubtaskId, address: str, node_id: str, pid: int, silent_ms: int) -> None:
        """A worker has come up, or was taken over from a dead master."""
        self.recovery.manager_silent(silent_ms)
        self._ctx.fleet.worker_ready(subtask, address, node_id, pid, self._ctx.now_ms)

    def worker_lost(self, subtask: SubtaskId, reason: str) -> None:
        """A worker died, or could not be started."""
        if self.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        ctx = self._ctx
        self.lost_ms = ctx.now_ms
        worker = ctx.fleet.worker_lost(subtask)
        if worker is not None:
            self.recovery.trouble(worker.answered_ms)
        self.board.lost(subtask)
        cause = f"subtask {subtask} lost: {reason}"
        ctx.note("subtask_lost", cause, operator=subtask.vertex, index=subtask.index, attempt=ctx.attempt)
        if self.phase in (Phase.DEPLOYING, Phase.RUNNING) or worker is None:
            # Which of the chain's operators it was at nobody knows.
            names = [operator.name for operator in ctx.job.vertex_of(subtask).operators]
            self._fail_attempt(cause, " → ".join(names))

    def message(self, message: FromSubtask) -> None:
        """A subtask reported."""
        ctx = self._ctx
        if isinstance(message, HeartbeatAnswered):
            ctx.fleet.heard(message, ctx.now_ms)
            self.key_skew.heard(message.subtask, message.statistics)
            self._salting.heard(message.subtask, message.statistics)
            self._back_at_work(self.recovery.heard(message.statistics))
        elif message.attempt != ctx.attempt:
            # Newer ones come to a master that was superseded and does not know it yet.
            self.stale_messages += 1
            if isinstance(message, Stopped | TaskFailed) and message.attempt == self.board.attempt:
                # The next attempt is claimed, and not deployed: the sender has closed for all that.
                self.board.closed(message.subtask, finished=False)
        elif not ctx.fleet.accepts(message):
            return
        elif isinstance(message, Stopped):
            ctx.fleet.answered(message.subtask, message.statistics, ctx.now_ms)
            self.key_skew.heard(message.subtask, message.statistics)
            self.board.closed(message.subtask, finished=self.phase is Phase.FINISHING)
        elif isinstance(message, TaskFailed):
            self._task_failed(message)
        elif isinstance(message, Deployed):
            if self.phase is Phase.DEPLOYING:
                self.board.restored(message.subtask, catches_up=message.catches_up)
        elif self.phase is Phase.RUNNING:
            if isinstance(message, PeerLost):
                self.recovery.trouble(ctx.now_ms)
            self._running.message(message)

    def cancel(self) -> None:
        """The user wants the job to end. Too late once its last checkpoint is committed everywhere."""
        if self.phase.going_on:
            self._ctx.note("job_cancel_requested", "cancellation was requested")
            self._end(JobCancelled())

    def give_up(self, cause: str, operator: str | None = None, location: str | None = None) -> None:
        """The job has failed for good."""
        if self.phase.going_on:
            self._ctx.note("job_gave_up", f"the job fails: {cause}", operator=operator, location=location)
            self._end(JobGivenUp(), JobFailed(self._ctx.job.job_id, cause, operator, location))

    def abort(self, cause: str) -> None:
        """Stop at once, whatever the phase, for a bug of ours: neither sinks nor subtasks are asked."""
        self._ctx.note("job_gave_up", f"the job fails: {cause}")
        self._running.stop()
        self._ctx.fleet.shutdown()
        self._ending.abort(JobFailed(self._ctx.job.job_id, cause))
        self.phase = Phase.CLOSED
        self._records.save_job()

    # ------------------------------------------------------------------------------- time

    def advance(self) -> None:
        """Do what time and the notes taken allow. Called at the end of every step."""
        if self.phase is Phase.CLOSED:
            return
        if self.phase is not Phase.CLOSING:
            self._check_heartbeats()
            self._running.discover()
        phase = None
        while phase is not self.phase:
            phase = self.phase
            self._pass_through(phase)
        if self._ending.closing:
            self._ending.advance()
        else:
            self._records.tick()

    def _pass_through(self, phase: Phase) -> None:
        match phase:
            case Phase.BEGINNING:
                self._while_beginning()
            case Phase.DEPLOYING:
                self._while_deploying()
            case Phase.RUNNING:
                self._running.advance()
                if self._running.finished and self.phase is Phase.RUNNING:
                    self._finish()
            case Phase.FINISHING | Phase.ENDING:
                if not self.board.open or self._ending.overdue:
                    self._close()

    def next_deadline_ms(self) -> int | None:
        """When `advance` next has something to do by itself."""
        if self._ending.closing:
            return self._ending.deadline_ms
        times = [self._ending.deadline_ms, *self._running.deadlines_ms]
        times += [self._ctx.fleet.next_beat_ms, self._records.next_deadline_ms]
        if self.phase in (Phase.BEGINNING, Phase.DEPLOYING):
            times.append(self._deployment.deadline_ms)
        if self.phase is Phase.BEGINNING and self.restarts.at_ms > self._ctx.now_ms:
            times.append(self.restarts.at_ms)
        return min((time for time in times if time is not None), default=None)

    def _check_heartbeats(self) -> None:
        ctx = self._ctx
        for subtask in ctx.fleet.beat(ctx.attempt, ctx.now_ms):
            reason = ctx.fleet.complaint(subtask, ctx.now_ms)
            ctx.fleet.end(subtask, unreachable=True)
            self.worker_lost(subtask, reason)

    # ------------------------------------------------------------------------------- beginning

    def _while_beginning(self) -> None:
        opening = self.opening
        if self._ctx.now_ms < self.restarts.at_ms:
            return
        complete = self._deployment.may_begin()
        opening.advance()
        if opening.error is not None:
            self._not_begun(opening.error)
        elif opening.beginning is not None and complete:
            self.phase = Phase.DEPLOYING
            self.restarts.deployed(None if opening.restore is None else opening.restore.path)
            self.recovery.deployed()
            self._deployment.begin()
            self._records.save_job()

    def _not_begun(self, error: BaseException) -> None:
        self.opening.reset()
        cause = str(error) if isinstance(error, RayflowError) else f"{type(error).__name__}: {error}"
        if isinstance(error, SinkNotReady):
            self.give_up(str(error), error.operator, error.location)
        else:
            # A job that never ran learns at once that its storage is out of reach; one that did waits for it.
            ran = self._recovered or self._ctx.attempt > 0
            away = isinstance(error, TransientError) and not isinstance(error, CorruptCheckpointError)
            if not (ran and away):
                self._fail_attempt(cause, retryable=False)
            elif (end := self.restarts.await_storage(cause)) is not None:
                self.give_up(f"{cause} ({end.reason})")

    # ------------------------------------------------------------------------------- deploying

    def _while_deploying(self) -> None:
        if not self.board.restoring:
            self._start()
        elif (cause := self._deployment.end_silent()) is not None:
            # Bounded: those who replace them are no survivors.
            self._leave_attempt(cause, self._ctx.now_ms)

    def _start(self) -> None:
        assert self.opening.beginning is not None, "deployed without a beginning"
        self.phase = Phase.RUNNING
        self.board.started()
        self.key_skew.begin_attempt()
        self._ending.passed(AttemptRunning())
        self._running.begin(self.opening.beginning)
        self.recovery.running()
        self._records.save_job()

    def _progressed(self) -> None:
        self.restarts.progressed()
        self._back_at_work(self.recovery.recovered())
        self._records.save_job()

    def _back_at_work(self, times: dict[str, Any] | None) -> None:
        if times is not None:
            self.restarts.recovered(times)
            self._records.save_job()

    # ------------------------------------------------------------------------------- failing

    def _task_failed(self, message: TaskFailed) -> None:
        subtask = message.subtask
        self.board.failed(subtask)
        if message.process_ends:
            self._ctx.fleet.end(subtask)
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
            self._fail_attempt(
                message.cause, message.operator, message.location, retryable=retryable, fault=message.fault
            )
        elif self.phase is Phase.BEGINNING and not message.retryable and not message.corrupt_checkpoint:
            # The attempt had already failed, of a consequence of this.
            self.give_up(message.cause, message.operator, message.location)

    def _fail_attempt(
        self,
        cause: str,
        operator: str | None = None,
        location: str | None = None,
        retryable: bool = True,
        fault: str | None = None,
        storage: bool = False,
    ) -> None:
        if not self.phase.going_on:
            return
        match self.restarts.decide(cause, retryable=retryable, fault=fault, storage=storage):
            case GiveUp(_, reason):
                self.give_up(f"{cause} ({reason})" if storage else cause, operator, location)
            case RestartAt(at_ms):
                self._leave_attempt(cause, at_ms)

    def _leave_attempt(self, cause: str, restart_at_ms: int) -> None:
        ctx = self._ctx
        self.restarts.plan(cause, restart_at_ms)
        self.recovery.failed()
        self._deployment.leave()
        if self.phase is not Phase.BEGINNING:
            self.phase = Phase.BEGINNING
            self.opening.reset()
            self._running.end()
            # Survivors stop at once, instead of working for nothing until they are reset.
            ctx.fleet.broadcast(Cancel(ctx.attempt), self.board.open)
            # A new process takes seconds to come up: it is asked for before the delay, not after.
            ctx.fleet.ensure()
        self._ending.passed(AttemptAbandoned())
        self._records.save_job()

    def _superseded(self) -> None:
        # Storage and workers are the other master's now: touch nothing.
        self._ctx.note("job_manager_superseded", "another job manager has taken over; this one stops")
        self._running.stop()
        self.superseded = True
        self.phase = Phase.CLOSED

    # ------------------------------------------------------------------------------- the end

    def _finish(self) -> None:
        self._stop(JobCompleted(), Phase.FINISHING)
        self._ctx.fleet.broadcast(Finish(self._ctx.attempt))

    def _end(self, event: JobEvent, failure: JobFailed | None = None) -> None:
        self._stop(event, Phase.ENDING, failure)
        self._ctx.fleet.broadcast(Cancel(self._ctx.attempt), self.board.open)

    def _stop(self, event: JobEvent, phase: Phase, failure: JobFailed | None = None) -> None:
        self._ending.decide(event, failure)
        self.phase = phase
        self._running.end()
        self._running.stop()

    def _close(self) -> None:
        ctx = self._ctx
        for subtask in self.board.open:
            ctx.note(
                "subtask_killed", f"{subtask} did not close in {STOP_LIMIT_MS} ms", operator=subtask.vertex
            )
            ctx.fleet.end(subtask)
        self.key_skew.end_attempt()
        self.phase = Phase.CLOSING
        self._ending.close(self.newest_attempt, self.checkpoints)

    def _closed(self) -> None:
        self.phase = Phase.CLOSED
