"""The whole engine in one process, without Ray: `--local`, tests, notebooks.

The same job master and the same subtask engines as on Ray, with other ports: a worker is a `TaskThread`, control
messages are method calls into mailboxes, channels are `local_transport`'s. The master runs on the calling thread.

Memory is measured, and warned of, but `memory.process` limits nothing here: the process is the caller's too, and what
else it holds is not the job's.

`LocalCluster.crash` makes a worker die as a killed process would: its thread does nothing for the job any more,
its channels break, and the master hears of it. (A thread cannot be killed: if it is inside a user's function
it ends after that; fenced by then, since neither its reports nor its frames lead anywhere.)
"""

from __future__ import annotations

import os
import pickle
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rayflow.graph.plan import JobGraph, Resources
from rayflow.graph.shipping import ship_graph
from rayflow.model.config import JobConfig
from rayflow.model.errors import ConfigError
from rayflow.model.ids import JobId, SubtaskId, new_job_id
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.clock import SystemClock
from rayflow.runtime.io_pool import ThreadIoPool
from rayflow.runtime.job_master import FailureArgs, JobMaster
from rayflow.runtime.local_transport import LocalNetwork, LocalTransport
from rayflow.runtime.messages import Deploy, FromSubtask, ToSubtask
from rayflow.runtime.ports import Clock, IoPool, WorkerEvents
from rayflow.runtime.process_memory import GarbageMeter, resident_bytes
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task_thread import TaskThread
from rayflow.state.storage import open_store

_PROGRESS_INTERVAL_S = 0.2
_THREAD_END_S = 5.0
NODE_ID = "local"


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalResult:
    """How a local run ended. `failure` holds the arguments of `JobFailed`, None unless `state` is FAILED.
    The rest is what the inspecting commands would print."""

    job_id: JobId
    state: JobState
    failure: FailureArgs | None
    describe: dict[str, Any]
    metrics: dict[str, Any]
    checkpoints: list[dict[str, Any]]
    events: list[dict[str, Any]]


def run_local(
    graph: JobGraph,
    config: dict[str, Any],
    *,
    job_id: JobId | None = None,
    restore_from: str | None = None,
    allow_duplicates: bool = False,
    on_progress: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[LocalJob], None] | None = None,
) -> LocalResult:
    """Run a job in this process until it ends, and return how.

    Checkpoints are periodic only if `config` has `checkpoint.interval`, and kept only if it has
    `checkpoint.storage`. Ctrl-C cancels the job and is raised again once it is cancelled. `on_progress` gets
    `describe()` every 200 ms, `on_start` the running job; both are called on this thread.
    """
    with _storage(config) as complete:
        job = LocalJob(
            job_id or new_job_id(graph.name),
            graph,
            complete,
            restore_from=restore_from,
            allow_duplicates=allow_duplicates,
        )
        if on_start is not None:
            on_start(job)
        return job.run(on_progress)


class LocalJob:
    """One job with its master and its cluster."""

    def __init__(
        self,
        job_id: JobId,
        graph: JobGraph,
        config: dict[str, Any],
        *,
        restore_from: str | None = None,
        allow_duplicates: bool = False,
    ) -> None:
        self._clock = SystemClock()
        self._woken = threading.Event()
        # Of all subtasks together; their commits may hang.
        self._io = ThreadIoPool(threads=128)
        self.cluster = LocalCluster(self._clock, self._io)
        self.cluster.ship(graph)
        self.master = JobMaster(
            job_id=job_id,
            graph=graph,
            config=config,
            workers=self.cluster,
            io=self._io,
            open_store=open_store,
            wake=self._woken.set,
            clock=self._clock,
            restore_from=restore_from,
            allow_duplicates=allow_duplicates,
            node_id=NODE_ID,
        )
        self.cluster.report_to(self.master)
        self._job_id = job_id

    def run(self, on_progress: Callable[[dict[str, Any]], None] | None = None) -> LocalResult:
        """Drive the master on this thread until the job has ended."""
        interrupt: KeyboardInterrupt | None = None
        try:
            while not self.master.closed:
                try:
                    self._drive(on_progress)
                except KeyboardInterrupt as error:
                    if interrupt is not None:
                        raise
                    interrupt = error
                    self.master.cancel()
            if interrupt is not None:
                raise interrupt
            return self.result()
        finally:
            self.cluster.shutdown()
            self.cluster.join(_THREAD_END_S)
            self._io.close()

    def result(self) -> LocalResult:
        """Return how things stand."""
        master = self.master
        return LocalResult(
            job_id=self._job_id,
            state=master.state,
            failure=master.failure,
            describe=master.describe(),
            metrics=master.metrics(),
            checkpoints=master.checkpoints(),
            events=master.events(),
        )

    def _drive(self, on_progress: Callable[[dict[str, Any]], None] | None) -> None:
        next_progress_s = time.monotonic() + _PROGRESS_INTERVAL_S
        while not self.master.closed:
            self._woken.clear()
            result = self.master.step(self._clock.now_ms())
            if on_progress is not None and time.monotonic() >= next_progress_s:
                next_progress_s = time.monotonic() + _PROGRESS_INTERVAL_S
                on_progress(self.master.describe())
            if not result.progressed and not self.master.closed:
                self._woken.wait(self._pause_s(result.wake_at_ms, on_progress is not None))

    def _pause_s(self, wake_at_ms: int | None, progress: bool) -> float | None:
        limit_s = _PROGRESS_INTERVAL_S if progress else None
        if wake_at_ms is None:
            return limit_s
        pause_s = max(0, wake_at_ms - self._clock.now_ms()) / 1000
        return pause_s if limit_s is None else min(pause_s, limit_s)


class LocalCluster:
    """`WorkerPool` of threads of this process, for one job."""

    def __init__(self, clock: Clock, io: IoPool) -> None:
        self._clock = clock
        self._io = io
        self._network = LocalNetwork()
        self._workers: dict[SubtaskId, LocalWorker] = {}
        self._pickled: bytes | None = None
        self._ended: list[LocalWorker] = []
        self._lock = threading.Lock()
        self._events: WorkerEvents | None = None
        # Of the process, so the same for all its subtasks.
        self._garbage = GarbageMeter()

    def report_to(self, events: WorkerEvents) -> None:
        """Tell `events` what happens to workers; to be called once, before all else."""
        self._events = events

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """Start a worker for `subtask` unless it has one. Resources are not reserved here."""
        events = self._told()
        with self._lock:
            if subtask in self._workers:
                return
            worker = self._workers[subtask] = LocalWorker(
                subtask,
                self._network.endpoint(),
                self._clock,
                self._io,
                events,
                self._crashed,
                self._garbage,
            )
            # Still under the lock: told ready before anybody can find it lost.
            worker.start()
            events.on_worker_ready(subtask, worker.address, NODE_ID, os.getpid())

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Put the message into the worker's mailbox. A graph goes as a copy, by way of pickle as on Ray: sinks and
        functions keep what they are doing in themselves, and no two subtasks or attempts may share them."""
        worker = self._workers.get(subtask)
        if worker is None:
            return
        if isinstance(message, Deploy):
            message = replace(message, graph=pickle.loads(self.ship(message.graph)))
        worker.post(message)

    def ship(self, graph: JobGraph) -> bytes:
        """Return the job's graph pickled, once for all workers. Raises PlanError where it cannot be."""
        if self._pickled is None:
            self._pickled = ship_graph(graph)
        return self._pickled

    def kill(self, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        """End the worker for good, without telling."""
        worker = self._take(subtask)
        if worker is not None:
            worker.die("its worker was killed")

    def crash(self, subtask: SubtaskId) -> bool:
        """Make the worker die as if its process had been killed; False if there is none."""
        worker = self._take(subtask)
        if worker is None:
            return False
        worker.die("its process died")
        self._told().on_worker_lost(subtask, "its worker was crashed on purpose")
        return True

    def shutdown(self) -> None:
        """End all workers, without waiting for their threads."""
        for subtask in list(self._workers):
            self.kill(subtask)

    def join(self, timeout_s: float) -> None:
        """Give the threads of ended workers so long in all to end, and close what they leave. A thread that is in
        a user's function is left alone: it is a daemon, and nothing listens to it any more."""
        deadline_s = time.monotonic() + timeout_s
        self._bury(deadline_s)
        self._garbage.close()

    def _crashed(self, worker: LocalWorker, error: BaseException) -> None:
        """The worker's thread ended with an error (called on that thread)."""
        if self._take(worker.subtask, worker) is not None:
            worker.die("its thread crashed")
            self._told().on_worker_lost(worker.subtask, f"{type(error).__name__}: {error}")

    def _take(self, subtask: SubtaskId, which: LocalWorker | None = None) -> LocalWorker | None:
        with self._lock:
            # One that was killed in a long call may crash after it, when another works in its place.
            if which is not None and self._workers.get(subtask) is not which:
                return None
            worker = self._workers.pop(subtask, None)
        # A job that restarts for days must not keep all who ever worked for it.
        self._bury(time.monotonic())
        if worker is not None:
            with self._lock:
                self._ended.append(worker)
        return worker

    def _bury(self, deadline_s: float) -> None:
        """Close the workers whose threads have ended by then, and forget them."""
        with self._lock:
            ended, self._ended = self._ended, []
        alive = [worker for worker in ended if not worker.join(max(0.0, deadline_s - time.monotonic()))]
        with self._lock:
            self._ended += alive

    def _told(self) -> WorkerEvents:
        assert self._events is not None, "report_to must be called first"
        return self._events


class LocalWorker:
    """One subtask's thread, engine and endpoint; also the engine's `MasterLink`."""

    def __init__(
        self,
        subtask: SubtaskId,
        endpoint: LocalTransport,
        clock: Clock,
        io: IoPool,
        events: WorkerEvents,
        on_crash: Callable[[LocalWorker, BaseException], None],
        garbage: GarbageMeter,
    ) -> None:
        self.subtask = subtask
        self._endpoint = endpoint
        self._garbage = garbage
        self._events: WorkerEvents | None = events
        self._thread = TaskThread(
            str(subtask), clock, lambda error: on_crash(self, error), lambda: self._engine.waiting_for()
        )
        self._engine = SubtaskEngine(
            subtask=subtask,
            link=self,
            transport=endpoint,
            io=io,
            open_store=open_store,
            wake=self._thread.wake,
            host_statistics=self._statistics,
        )

    @property
    def address(self) -> str:
        """Where its endpoint listens."""
        return self._endpoint.address

    def start(self) -> None:
        """Start the thread."""
        self._thread.start(self._engine)

    def post(self, message: ToSubtask) -> None:
        """Hand a message to the engine."""
        if self._engine.accepts(message):
            self._engine.post(message)

    def report(self, message: FromSubtask) -> None:
        """Hand a message to the master, unless this worker is dead."""
        events = self._events
        if events is not None:
            events.on_message(message)

    def die(self, reason: str) -> None:
        """Be gone for everyone else at once; the thread ends when it next can."""
        self._events = None
        self._endpoint.fail(reason)
        self._thread.stop(0)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread of a dead worker; close its engine, and return True, if it ended."""
        if not self._thread.stop(timeout_s):
            return False
        self._engine.close()
        return True

    def _statistics(self) -> dict[str, Any]:
        return {
            **self._thread.account.ratios(time.monotonic()),
            **self._garbage.statistics(),
            "pid": os.getpid(),
            "rss_bytes": resident_bytes(),
        }


@contextmanager
def _storage(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the configuration completed for a local run: without a storage of its own, a temporary one."""
    complete = {"checkpoint.interval": "off", **config}
    settings = JobConfig.from_flat(complete)
    if settings.checkpoint_storage is not None:
        try:
            open_store(settings.checkpoint_storage, settings.storage_options)
        except ConfigError as error:
            raise ConfigError(f"checkpoint.storage: {error}") from None
        yield complete
        return
    with tempfile.TemporaryDirectory(prefix="rayflow-", ignore_cleanup_errors=True) as directory:
        yield {**complete, "checkpoint.storage": f"file://{directory}"}
