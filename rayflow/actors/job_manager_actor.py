"""The Ray actor around a job master: detached, named, restarted by Ray as often as it dies.

It is made with a `JobSpec` only and gets the job's graph with `start`; after a restart by Ray it reads the graph, with
everything else that the dead one knew, from checkpoint storage. The workers of the dead one live on for as long
as their lease lasts, and are taken over (`launcher`). All calls return at once; the master runs on a
thread of its own. With `jobmanager.standby` there are two such actors, and one of them leads (`standby`).

After the job's end the actor writes what the subtasks said to `<job id>/logs/` on the storage, stays for
`GRACE_S` so that whoever waits can read the outcome, and removes itself. From then on clients read the storage.
One that learns that another manages the job (`tenure`) ends its process at once and touches nothing: its
actor may be the very one that Ray has brought up elsewhere.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote

import ray

from rayflow.actors.code_path import use_code_paths
from rayflow.actors.lease import LAPSED, lease_s
from rayflow.actors.object_store import open_any_store
from rayflow.actors.output_capture import OutputBuffer, OutputLine, capture_output
from rayflow.actors.output_log import OutputLog
from rayflow.actors.ray_pool import RayWorkerPool
from rayflow.actors.specs import JobSpec, WorkerSpec
from rayflow.actors.standby import await_leaders_end, find_seat, leads, start_seat
from rayflow.actors.tenure import claim_patiently, watch_tenure
from rayflow.actors.warm_up import warm_up
from rayflow.graph.plan import JobGraph
from rayflow.model.config import JobConfig
from rayflow.model.errors import StorageError
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.clock import SystemClock
from rayflow.runtime.io_pool import ThreadIoPool
from rayflow.runtime.job_master import FailureArgs, JobMaster
from rayflow.runtime.messages import FromSubtask
from rayflow.runtime.task_thread import TaskThread
from rayflow.state.storage import LostObjects, ObjectStore

_log = logging.getLogger(__name__)

GRACE_S = 10.0
_POLL_S = 0.2
_STANDBY_AFTER_S = 3.0
_RECOVERY_S = 300.0
_RESTARTED_PATIENCE = 4
_CRASHED = 70
_SUPERSEDED = 71
_OUTPUT_LIMIT = 10_000


class JobManagerActor:
    """One job's manager. Calls never block and may be repeated."""

    def __init__(self, spec: JobSpec, seat: int = 0) -> None:
        self._spec = spec
        self._seat = seat
        self._config = JobConfig.from_flat(spec.config)
        self._output = OutputLog()
        self._own_output = OutputBuffer("job manager")
        capture_output(self._own_output)
        use_code_paths(spec.code_paths)
        self._context = ray.get_runtime_context()
        self._self = self._context.current_actor
        self._lock = threading.Lock()
        self._master: JobMaster | None = None
        self._standing_by = False
        if _is_restarted(self._context):
            self._begin("recovery", self._recover)

    def start(self, graph: bytes) -> None:
        """Run the job with this pickled graph; harmless when it runs already."""
        self._launch(pickle.loads(graph), graph)

    def leads(self) -> bool:
        """Whether this actor runs the job, or has."""
        return self._master is not None

    def stand_by(self, graph: bytes) -> None:
        """Be ready to run the job; take over when the actor in the other seat is gone. May be repeated."""
        with self._lock:
            if self._master is None and not self._standing_by:
                self._standing_by = True
                self._await_leaders_end(graph)

    def report(self, message: FromSubtask | None, lines: Sequence[OutputLine]) -> None:
        """Take what a subtask says, to the master and to people."""
        self._output.extend(lines)
        if message is not None and self._master is not None:
            self._master.on_message(message)

    def status(self) -> tuple[str, FailureArgs | None]:
        """Return the job's state, and if that is FAILED, why."""
        if self._master is None and self._seat == 0 and not self._standing_by:
            return "CREATED", None
        master = self._running()
        return master.state.value, master.failure if master.state is JobState.FAILED else None

    def describe(self) -> dict[str, Any]:
        """Return the job's description (API.md section 6)."""
        return self._running().describe()

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the job's checkpoints, oldest first."""
        return self._running().checkpoints()

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the job's events numbered `since` and up."""
        return self._running().events(since)

    def metrics(self) -> dict[str, Any]:
        """Return the metrics of all subtasks."""
        return self._running().metrics()

    def output(self, since: int = 0) -> tuple[int, list[OutputLine]]:
        """Return what subtasks said from line number `since` on, and the number to ask for next."""
        if self._standing_by:
            self._running()
        self._output.extend(self._own_output.take())
        return self._output.since(since, _OUTPUT_LIMIT)

    def logs(self) -> dict[str, str]:
        """Return the last lines of each process, by process."""
        self._output.extend(self._own_output.take())
        return self._output.by_subtask()

    def cancel(self) -> None:
        """End the job; nothing new is committed."""
        self._running().cancel()

    def _begin(self, name: str, work: Callable[[], None]) -> None:
        """Run `work` on a thread of its own. Where it raises, the process ends, for Ray to start it again: without that
        thread it would live on, and the job stand still."""

        def run() -> None:
            try:
                work()
            except Exception as e:
                self._on_crash(e)

        threading.Thread(target=run, name=name, daemon=True).start()

    def _running(self) -> JobMaster:
        if self._master is None:
            raise RuntimeError(f"job {self._spec.job_id} is not, or not yet, run by this actor; ask again")
        return self._master

    def _recover(self) -> None:
        """Read the graph back. If it was never stored the job had not begun, and `start` may yet come."""
        path = f"{self._spec.job_id}/graph.pkl"
        given_up_s = time.monotonic() + _RECOVERY_S
        while self._master is None:
            if time.monotonic() > given_up_s:
                ray.kill(self._self, no_restart=True)
            try:
                stored = self._store().read(path)
            except LostObjects as e:
                _log.error("the job is lost: %s", e)
                ray.kill(self._self, no_restart=True)
                return
            except StorageError as e:
                _log.warning("cannot read the job's graph, trying again: %s", e)
                time.sleep(1)
                continue
            other = find_seat(self._spec.job_id, 1 - self._seat) if self._config.jobmanager_standby else None
            # Also where it does not lead yet: it has been standing by, and may be taking over right now.
            if other is not None and leads(other, self._timeout_s) is not None:
                self.stand_by(stored)
                return
            self._launch(pickle.loads(stored), stored)

    def _await_leaders_end(self, pickled: bytes) -> None:
        other = find_seat(self._spec.job_id, 1 - self._seat)
        graph = pickle.loads(pickled)
        warm_up(graph)

        # Who was restarted leaves it to the one that has been standing by.
        patience = _RESTARTED_PATIENCE if _is_restarted(self._context) else 1

        def wait() -> None:
            await_leaders_end(lambda: None if other is None else leads(other, self._timeout_s), patience)
            _log.warning("the manager of job %s is gone: taking over", self._spec.job_id)
            self._launch(graph, pickled)
            self._standing_by = False

        self._begin("standby", wait)

    def _keep_standby(self, pickled: bytes) -> None:
        """Have the other seat taken, once the job has had time to begin."""
        time.sleep(_STANDBY_AFTER_S)
        while self._master is not None and not self._master.closed:
            try:
                other = start_seat(JobManagerActor, self._spec, 1 - self._seat, self._context.get_node_id())
                ray.get(other.stand_by.remote(pickled), timeout=_RECOVERY_S)
                return
            except Exception as e:
                # Whatever it is: the job can do without.
                _log.warning("the job has no standby manager yet: %s", e)
                time.sleep(_STANDBY_AFTER_S)

    @property
    def _timeout_s(self) -> float:
        return self._config.heartbeat_timeout_ms / 1000

    def _launch(self, graph: JobGraph, pickled: bytes) -> None:
        with self._lock:
            if self._master is not None:
                return
            thread = TaskThread("job master", SystemClock(), self._on_crash)
            pool = RayWorkerPool(
                self._worker_spec(),
                pickled,
                spares=self._config.restart_spares,
                manager=self._self,
                claim=self._claim,
                superseded=self._on_superseded,
                crashed=self._on_crash,
            )
            master = JobMaster(
                job_id=self._spec.job_id,
                graph=graph,
                config=self._spec.config,
                workers=pool,
                io=ThreadIoPool(),
                open_store=open_any_store,
                wake=thread.wake,
                clock=SystemClock(),
                restore_from=self._spec.restore_from,
                allow_duplicates=self._spec.allow_duplicates,
                node_id=self._context.get_node_id(),
                recovering=_is_restarted(self._context) or self._standing_by,
            )
            pool.report_to(master)
            self._master = master
            thread.start(master)
        self._begin("end", lambda: self._see_off(master))
        if self._config.jobmanager_standby:
            self._begin("seats", lambda: self._keep_standby(pickled))

    def _worker_spec(self) -> WorkerSpec:
        config = self._config
        return WorkerSpec(
            job_id=self._spec.job_id,
            code_paths=self._spec.code_paths,
            token=self._spec.token,
            lease_s=lease_s(self._timeout_s),
            reset_timeout_s=config.restart_reset_timeout_ms / 1000,
            heartbeat_interval_s=config.heartbeat_interval_ms / 1000,
            heartbeat_timeout_s=self._timeout_s,
        )

    def _claim(self) -> int:
        try:
            tenure = claim_patiently(self._store, self._spec.job_id, os.getpid(), _RECOVERY_S)
        except StorageError as e:
            self._on_crash(e)
            raise
        watch_tenure(self._store(), self._spec.job_id, tenure, self._timeout_s, self._on_superseded)
        return tenure

    def _store(self) -> ObjectStore:
        return open_any_store(str(self._config.checkpoint_storage), self._config.storage_options)

    def _on_superseded(self) -> None:
        _log.error("another manager has taken over job %s: ending this process", self._spec.job_id)
        os._exit(_SUPERSEDED)

    def _see_off(self, master: JobMaster) -> None:
        """Wait for the job's end, keep its logs, and remove this actor."""
        while not master.closed:
            time.sleep(_POLL_S)
        if master.superseded:
            self._on_superseded()
        self._end_standby()
        try:
            self._store_output()
        except StorageError as e:
            _log.warning("the job's logs cannot be stored: %s", e)
        self._outlive_zombies(master)
        # Once more: it may have been asked for just before the end, and would wait for its first call for ever.
        self._end_standby()
        ray.kill(self._self, no_restart=True)

    def _outlive_zombies(self, master: JobMaster) -> None:
        """Stay for those who want to read the outcome. Where a worker was lost that may live on, cut off, stay until
        its lease has lapsed, and have the sinks clean up once more."""
        left_s = 0.0
        if master.lost_ms is not None:
            left_s = LAPSED * lease_s(self._timeout_s) - (SystemClock().now_ms() - master.lost_ms) / 1_000
        time.sleep(max(GRACE_S, left_s))
        if left_s > 0:
            try:
                master.clean_up_again()
            except Exception:
                _log.warning("the sinks cannot clean up once more", exc_info=True)

    def _end_standby(self) -> None:
        if (other := find_seat(self._spec.job_id, 1 - self._seat)) is not None:
            ray.kill(other, no_restart=True)

    def _store_output(self) -> None:
        self._output.extend(self._own_output.take())
        store = self._store()
        for subtask, text in self._output.by_subtask().items():
            store.write(f"{self._spec.job_id}/logs/{quote(subtask, safe='[] ')}.log", text.encode())

    def _on_crash(self, error: BaseException) -> None:
        _log.error("the job manager crashed: %s: %s", type(error).__name__, error, exc_info=error)
        os._exit(_CRASHED)


def _is_restarted(context: Any) -> bool:
    with warnings.catch_warnings():
        # Ray's own property uses one that Ray deprecated.
        warnings.simplefilter("ignore")
        return bool(context.was_current_actor_reconstructed)
