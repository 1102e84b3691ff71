"""The job master: one per job, the engine that runs it from submission to end, behind ports.

Theory of operation. Other threads only put events into the mailbox and wake the driver; `step` takes them out, one
after the other, and then lets time act. What happens is in `runtime.master`: `run` moves through the phases of the
job's life, machines of `protocol` decide, the other modules carry out.

The first thing a master does is to read what is in the job's directory. If a predecessor left the job running,
this master recovers it: the next attempt is claimed, which fences the predecessor, and the last complete checkpoint
restored. If the job had ended, it shows that end and does nothing.

Everything blocking runs on the I/O pool. There is no clock, thread or chance in here: with the same ports in
the same order the same happens.

Invariant: a job shows a final state only after that state is on storage (or could not be put there).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayflow.graph.plan import JobGraph
from rayflow.model.errors import TransientError
from rayflow.model.ids import Attempt, JobId, SubtaskId
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.master.background import Background, WorkEnded
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.events import EventLog, iso_utc
from rayflow.runtime.master.fleet import Fleet
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.master.reports import describe, job_document, metrics
from rayflow.runtime.master.run import JobRun
from rayflow.runtime.master.storage import JobStorage, OpenStore, StoredJob
from rayflow.runtime.messages import FromSubtask
from rayflow.runtime.ports import Clock, IoPool, WorkerPool
from rayflow.runtime.stepping import StepResult

_log = logging.getLogger(__name__)

_EVENTS_PER_STEP = 256
_LOAD_AGAIN_MS = 1_000

FailureArgs = tuple[str, str, str | None, str | None]
"""Arguments of `JobFailed`: job id, cause, operator, location."""


@dataclass(frozen=True, slots=True)
class _WorkerReady:
    subtask: SubtaskId
    address: str
    node_id: str
    pid: int
    silent_ms: int


@dataclass(frozen=True, slots=True)
class _WorkerLost:
    subtask: SubtaskId
    reason: str


@dataclass(frozen=True, slots=True)
class _CancelRequested:
    pass


class JobMaster:
    """Runs one job; implements `WorkerEvents`.

    `step` is called by one driver; everything else on any thread. `config` is flat and must name
    `checkpoint.storage`; ConfigError if it is wrong. `restore_from` is a checkpoint or savepoint (`--from`).
    `recovering`: another master ran the job before, so storage that is out of reach is waited for, while a fresh job
    fails at once.
    """

    def __init__(
        self,
        *,
        job_id: JobId,
        graph: JobGraph,
        config: dict[str, Any],
        workers: WorkerPool,
        io: IoPool,
        open_store: OpenStore,
        wake: Callable[[], None],
        clock: Clock,
        restore_from: str | None = None,
        allow_duplicates: bool = False,
        node_id: str = "local",
        recovering: bool = False,
    ) -> None:
        job = Job.of(job_id, graph, config)
        self._wake = wake
        self._restore_from = restore_from
        self._allow_duplicates = allow_duplicates
        self._node_id = node_id
        self._mailbox: deque[_WorkerReady | _WorkerLost | _CancelRequested | WorkEnded | FromSubtask] = (
            deque()
        )
        # Steps change the state that the inspecting methods read; both are short and never block.
        self._lock = threading.Lock()
        storage = JobStorage(
            open_store,
            str(job.config.checkpoint_storage),
            job.config.storage_options,
            job_id,
            shares=job.config.state_backend == "disk",
            now_ms=clock.now_ms,
        )
        self._ctx = Context(
            job=job,
            background=Background(io, self._post),
            storage=storage,
            fleet=Fleet(workers, job),
            log=EventLog(),
            now_ms=clock.now_ms(),
            attempt=Attempt(0),
        )
        self._started_at = iso_utc(self._ctx.now_ms)
        self._recovering = recovering
        self._load_at_ms: int | None = self._ctx.now_ms
        self._cancelled_early = False
        self._run: JobRun | None = None
        self._over: StoredJob | None = None

    # ------------------------------------------------------------------------------- any thread

    def on_worker_ready(
        self, subtask: SubtaskId, address: str, node_id: str, pid: int, silent_ms: int = 0
    ) -> None:
        """The worker runs and listens on `address`."""
        self._post(_WorkerReady(subtask, address, node_id, pid, silent_ms))

    def on_worker_lost(self, subtask: SubtaskId, reason: str) -> None:
        """The worker died, or could not be started."""
        self._post(_WorkerLost(subtask, reason))

    def on_message(self, message: FromSubtask) -> None:
        """A subtask reported."""
        self._post(message)

    def cancel(self) -> None:
        """Have the job end as CANCELLED; nothing new is committed. Harmless when it has ended."""
        self._post(_CancelRequested())

    @property
    def state(self) -> JobState:
        """The job's state."""
        if self._over is not None:
            return JobState(self._over.job["state"])
        return JobState.CREATED if self._run is None else self._run.state

    @property
    def closed(self) -> bool:
        """Whether this master has nothing left to do: the job ended, or another master has taken over."""
        return self._over is not None or (self._run is not None and self._run.phase is Phase.CLOSED)

    @property
    def superseded(self) -> bool:
        """Whether another master has taken over: then nothing of the job may be touched any more."""
        return self._run is not None and self._run.superseded

    @property
    def failure(self) -> FailureArgs | None:
        """Why the job is FAILED, as the arguments of `JobFailed`; None unless it is failing."""
        with self._lock:
            if self._over is not None:
                why = self._over.job.get("failure")
                return (
                    why
                    if why is None
                    else (self._ctx.job.job_id, why["cause"], why["operator"], why["location"])
                )
            failed = None if self._run is None else self._run.failure
            return (
                failed if failed is None else (failed.job_id, failed.cause, failed.operator, failed.location)
            )

    @property
    def lost_ms(self) -> int | None:
        """When a worker was last lost, None for never. It may live on, cut off, for as long as its lease lasts."""
        return None if self._run is None else self._run.lost_ms

    def clean_up_again(self) -> None:
        """Have the sinks look once more for what was staged and cannot be committed, after the job's end. Blocks."""
        with self._lock:
            if self._run is not None and self.closed and not self.superseded:
                self._run.clean_up_again()

    def describe(self) -> dict[str, Any]:
        """Return what `rayflow describe --json` prints."""
        with self._lock:
            if self._over is not None:
                return dict(self._over.job["describe"])
            return describe(self._ctx, self._run, self.state, self._node_id)

    def metrics(self) -> dict[str, Any]:
        """Return what `rayflow metrics --json` prints."""
        with self._lock:
            if self._over is not None and "metrics" in self._over.job:
                return dict(self._over.job["metrics"])
            return metrics(self._ctx, self._run, self.state)

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return what `rayflow checkpoints --json` prints, newest last."""
        with self._lock:
            if self._over is not None:
                return list(self._over.job["checkpoints"])
            return [] if self._run is None else self._run.checkpoints.books.to_json(self._ctx.now_ms)

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the events whose `seq` is `since` or more, oldest first."""
        with self._lock:
            return self._ctx.log.since(since)

    # ------------------------------------------------------------------------------- the driver

    def step(self, now_ms: int) -> StepResult:
        """Handle what came, then what is due. Never blocks, never raises."""
        with self._lock:
            self._ctx.now_ms = now_ms
            try:
                handled = self._turn()
                return StepResult(handled or bool(self._mailbox), self._next_deadline_ms())
            except Exception as error:
                _log.exception("the job master of %s failed", self._ctx.job.job_id)
                self._stop_for(error)
                return StepResult(False)

    def _turn(self) -> bool:
        if self._load_at_ms is not None and self._ctx.now_ms >= self._load_at_ms:
            self._load()
        handled = False
        for _ in range(min(len(self._mailbox), _EVENTS_PER_STEP)):
            self._handle(self._mailbox.popleft())
            handled = True
        if self._run is not None:
            self._run.advance()
        return handled

    def _handle(self, event: _WorkerReady | _WorkerLost | _CancelRequested | WorkEnded | FromSubtask) -> None:
        run = self._run
        if isinstance(event, WorkEnded):
            self._ctx.background.settle(event)
        elif run is None:
            self._cancelled_early |= isinstance(event, _CancelRequested)
        elif isinstance(event, _WorkerReady):
            run.worker_ready(event.subtask, event.address, event.node_id, event.pid, event.silent_ms)
        elif isinstance(event, _WorkerLost):
            run.worker_lost(event.subtask, event.reason)
        elif isinstance(event, _CancelRequested):
            run.cancel()
        else:
            run.message(event)

    def _next_deadline_ms(self) -> int | None:
        if self._run is None:
            return self._load_at_ms
        return None if self.closed else self._run.next_deadline_ms()

    # ------------------------------------------------------------------------------- beginning and end

    def _load(self) -> None:
        """Read what a predecessor left, and see that the graph is stored for a successor."""
        ctx = self._ctx
        self._load_at_ms = None

        def work() -> StoredJob:
            stored = ctx.storage.load()
            if not stored.job:
                ctx.storage.save_graph(ctx.job.graph)
            return stored

        ctx.background.run(work, self._loaded)

    def _loaded(self, stored: StoredJob | None, error: BaseException | None) -> None:
        ctx = self._ctx
        if self._recovering and isinstance(error, TransientError):
            _log.warning("what the last job master left cannot be read, trying again: %s", error)
            self._load_at_ms = ctx.now_ms + _LOAD_AGAIN_MS
            return
        past = stored.job if stored is not None else {}
        if stored is not None:
            ctx.log.restore(stored.events)
            if past and JobState(past["state"]).ended:
                self._over = stored
                return
        run = self._run = JobRun(
            ctx,
            past,
            restore_from=self._restore_from,
            allow_duplicates=self._allow_duplicates,
            document=self._document,
        )
        self._started_at = past.get("started_at", self._started_at)
        what = "recovered by a new job manager" if past else "submitted"
        ctx.note("job_recovered" if past else "job_started", f"job {ctx.job.job_id} {what}")
        if stored is not None and stored.warning:
            ctx.note("storage_warning", stored.warning)
        if error is not None:
            run.give_up(
                f"the job cannot be stored: {error}; set checkpoint.storage to a place that can be written, such as "
                "--set checkpoint.storage=/path"
            )
        elif self._cancelled_early:
            run.cancel()

    def _document(self) -> dict[str, Any]:
        assert self._run is not None, "only a run writes its document"
        run = self._run
        ended = run.phase in (Phase.CLOSING, Phase.CLOSED)
        state = run.coming_state if ended else run.state
        description = describe(self._ctx, run, state, self._node_id)
        return job_document(self._ctx, run, description, self._started_at, ended)

    def _stop_for(self, error: Exception) -> None:
        if self._run is None:
            raise error
        self._run.abort(f"the job master failed, a bug of rayflow: {type(error).__name__}: {error}")

    def _post(self, event: _WorkerReady | _WorkerLost | _CancelRequested | WorkEnded | FromSubtask) -> None:
        self._mailbox.append(event)
        self._wake()
