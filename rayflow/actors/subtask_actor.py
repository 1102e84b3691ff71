"""The Ray actor around a subtask: decode, hand on, report, or die.

The process starts without knowing which subtask it will be: `become` says so, once. Until then it is a spare, which
`prepare` has load the job's code. `adopt` puts it under a new job manager, when the one before has died: what it
ran is dropped, what it is stays.

Threads of the process: Ray's calls arrive one at a time on the actor's thread, which answers heartbeats at
once; everything else goes, in order, through a loader thread (unpickling a job can import much) to the
engine's mailbox; the task thread drives the engine; network threads belong to the transport.

Every call names the tenure of the manager that makes it; one of an earlier manager is refused, by the answer
None. Outward calls (`report`) go to the job manager from any thread and are never waited for. What the user printed
is sent before each report, so that by the time the manager knows of an end it has every line before it.
"""

from __future__ import annotations

import gc
import logging
import os
import pickle
import sys
import threading
import time
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import ray
from ray.exceptions import RayError

from rayflow.actors.code_path import use_code_paths
from rayflow.actors.flight import FlightTransport
from rayflow.actors.last_words import own_stderr, tell_exits
from rayflow.actors.lease import Lease, watch
from rayflow.actors.memory_watch import MemoryWatch
from rayflow.actors.object_store import open_any_store
from rayflow.actors.output_capture import OutputBuffer, capture_output
from rayflow.actors.specs import Located, WorkerSpec
from rayflow.actors.warm_up import warm_up
from rayflow.model.ids import SubtaskId
from rayflow.runtime.at_work import AtWork, operator_at_work
from rayflow.runtime.clock import SystemClock
from rayflow.runtime.io_pool import ThreadIoPool
from rayflow.runtime.memory import why_it_ends
from rayflow.runtime.messages import (
    Cancel,
    Deploy,
    FromSubtask,
    Heartbeat,
    TaskFailed,
    ToSubtask,
)
from rayflow.runtime.process_memory import GarbageMeter, resident_bytes, settle_garbage
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task_thread import TaskThread

_log = logging.getLogger(__name__)

_OUTPUT_INTERVAL_S = 0.1
_CRASHED = 70
_LAST_WORDS_S = 2.0


class SubtaskActor:
    """One subtask's process. All calls may be repeated; only their order per caller matters."""

    def __init__(self, spec: WorkerSpec, manager: Any, tenure: int) -> None:
        self._spec = spec
        self._tenure = tenure
        self._output = OutputBuffer("spare")
        capture_output(self._output)
        use_code_paths(spec.code_paths)
        self._link = _ManagerLink(manager, self._output)
        self._inbox: SimpleQueue[ToSubtask | bytes | tuple[Deploy, bytes]] = SimpleQueue()
        self._garbage = GarbageMeter()
        self._settled = False
        self._clock = SystemClock()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._subtask: SubtaskId | None = None
        self._engine: SubtaskEngine | None = None
        self._transport = FlightTransport(
            job_id=spec.job_id,
            token=spec.token,
            host=ray.util.get_node_ip_address(),
            heartbeat_interval_s=spec.heartbeat_interval_s,
            heartbeat_timeout_s=spec.heartbeat_timeout_s,
        )
        self._lease = Lease(spec.lease_s)
        self._lease.renew()
        threading.Thread(target=self._load_all, name="loader", daemon=True).start()
        threading.Thread(target=self._send_output, name="output", daemon=True).start()
        watch(self._lease, self._on_lapsed)

    def prepare(self, graph: bytes) -> None:
        """Load the job's code, in the background."""
        self._inbox.put(graph)

    def become(self, tenure: int, subtask: SubtaskId) -> Located | None:
        """Be `subtask` from now on; return where it is. None: see `ping`."""
        if self._engine is None and self.ping(tenure):
            self._subtask = subtask
            self._output.name(str(subtask))
            self._thread = TaskThread(
                str(subtask), self._clock, self._on_crash, lambda: self._running().waiting_for()
            )
            self._engine = SubtaskEngine(
                subtask=subtask,
                link=self._link,
                transport=self._transport,
                io=ThreadIoPool(),
                open_store=open_any_store,
                wake=self._thread.wake,
                host_statistics=self._host_statistics,
                collect_garbage=gc.collect,
            )
            self._thread.start(self._engine)
            tell_exits(self._tell_end)
            engine = self._engine
            watch = MemoryWatch(
                lambda: engine.memory_limit,
                lambda: engine.is_running,
                engine.memory_pressed,
                self._end_for_memory,
            )
            if not watch.start():
                _log.warning("this platform does not say what a process takes: its memory is not watched")
        return self._located() if self.ping(tenure) else None

    def adopt(self, tenure: int, manager: Any) -> Located | None:
        """Obey and report to this manager. What an earlier one wanted done is dropped. None: see `ping`."""
        silent_ms = round(1000 * self._lease.silent_s)
        if not self.ping(tenure):
            return None
        self._link.redirect(manager)
        if self._engine is not None:
            self._drop_work(self._engine)
        return self._located(silent_ms)

    def ping(self, tenure: int) -> bool | None:
        """Return True, and renew the lease; None if this process obeys a later manager."""
        if tenure < self._tenure:
            return None
        self._tenure = tenure
        self._lease.renew()
        return True

    def control(self, tenure: int, message: ToSubtask, graph: bytes | None = None) -> bool | None:
        """Take a message of the master; `graph` is the pickled graph of a Deploy that comes without one.
        Returned is what `ping` returns."""
        if not self.ping(tenure):
            return None
        engine = self._running()
        if isinstance(message, Heartbeat):
            engine.post(message)
        elif not engine.accepts(message):
            _log.info("a %s came twice, or out of turn", type(message).__name__)
        elif isinstance(message, Deploy) and graph is not None:
            self._inbox.put((message, graph))
        else:
            self._inbox.put(message)
        return True

    def _located(self, silent_ms: int = 0) -> Located:
        return Located(
            self._transport.address, self._node_id, os.getpid(), self._subtask, silent_ms, own_stderr()
        )

    def _running(self) -> SubtaskEngine:
        assert self._engine is not None, "the pool sends messages only to what has become a subtask"
        return self._engine

    def _drop_work(self, engine: SubtaskEngine) -> None:
        """Cancel the attempt that runs here. A task thread that is stuck, which its new manager could not know,
        takes the process with it."""
        attempt = engine.statistics()["attempt"]
        if attempt == 0:
            return
        engine.post(Cancel(attempt))

        def check() -> None:
            time.sleep(self._spec.reset_timeout_s)
            found = engine.statistics()
            if found["attempt"] == attempt and found["state"] != "CANCELLED":
                _log.error("stuck in attempt %s, which a new job manager has ended", attempt)
                os._exit(_CRASHED)

        threading.Thread(target=check, name="drop work", daemon=True).start()

    def _host_statistics(self) -> dict[str, Any]:
        ratios = self._thread.account.ratios(time.monotonic())
        return {
            **ratios,
            **self._garbage.statistics(),
            "pid": os.getpid(),
            "rss_bytes": resident_bytes(),
        }

    def _load_all(self) -> None:
        while True:
            item = self._inbox.get()
            if isinstance(item, bytes):
                self._warm_up(item)
            elif isinstance(item, tuple):
                self._load(*item)
            else:
                self._running().post(item)

    def _warm_up(self, graph: bytes) -> None:
        try:
            warm_up(pickle.loads(graph))
        except Exception:
            # The deployment will meet the same, and report it.
            _log.warning("the job's code cannot be loaded ahead of need", exc_info=True)
            return
        self._settle()

    def _settle(self) -> None:
        """Everything is loaded that will be, for the first time."""
        if not self._settled:
            self._settled = True
            settle_garbage()

    def _load(self, deploy: Deploy, graph: bytes) -> None:
        try:
            object.__setattr__(deploy, "graph", pickle.loads(graph))
        except Exception as e:
            cause = (
                f"the job's code cannot be loaded on node {self._node_id}: {type(e).__name__}: {e}. "
                "Modules that the job imports must be installed there, or lie beside the job file"
            )
            self._running().report(
                TaskFailed(subtask=deploy.subtask, attempt=deploy.attempt, cause=cause, retryable=False)
            )
            return
        self._settle()
        self._running().post(deploy)

    def _send_output(self) -> None:
        while True:
            time.sleep(_OUTPUT_INTERVAL_S)
            self._link.send_output()

    def _on_crash(self, error: BaseException) -> None:
        self._tell(f"the engine crashed: {type(error).__name__}: {error}")
        os._exit(_CRASHED)

    def _end_for_memory(self, used_bytes: int, limit_bytes: int, node: bool) -> None:
        engine = self._running()
        use = engine.memory_use()
        why = why_it_ends(used_bytes, limit_bytes, use)
        if node:
            why = f"the node's memory is running out, and {why}"
        found = operator_at_work(sys._current_frames().get(self._thread.ident or 0))
        if found is None or use.state_total > used_bytes // 2:
            found = AtWork(use.state[0][0] if use.state else str(self._subtask), None)
        # Numbers differ from one time to the next; the fault is the same.
        self._tell(f"operator {found.operator!r} failed: {why}", found, f"{found.operator}: memory.process")
        os._exit(_CRASHED)

    def _tell_end(self, at_work: AtWork, why: str) -> None:
        cause = f"operator {at_work.operator!r} failed: {why}"
        self._tell(cause, at_work, cause)

    def _tell(self, cause: str, at_work: AtWork | None = None, fault: str | None = None) -> None:
        """Report that this process is about to end, and wait until that is told."""
        assert self._subtask is not None, "only a subtask has anything to tell"
        self._link.tell(
            TaskFailed(
                subtask=self._subtask,
                attempt=self._running().statistics()["attempt"],
                cause=cause,
                operator=None if at_work is None else at_work.operator,
                location=None if at_work is None else at_work.location,
                fault=fault,
                process_ends=True,
            )
        )

    def _on_lapsed(self) -> None:
        _log.error("no heartbeat from the job manager for %s s: ending this process", self._lease.duration_s)
        os._exit(_CRASHED)


class _ManagerLink:
    """The way to the job manager. Any thread; the lock keeps the order of output and reports."""

    def __init__(self, manager: Any, output: OutputBuffer) -> None:
        self._manager = manager
        self._output = output
        self._lock = threading.Lock()

    def redirect(self, manager: Any) -> None:
        """Report to another manager from now on."""
        with self._lock:
            self._manager = manager

    def report(self, message: FromSubtask) -> None:
        """Send without waiting, after what was printed before."""
        with self._lock:
            self._manager.report.remote(message, self._output.take())

    def tell(self, message: FromSubtask) -> None:
        """Report, and wait a moment for that to arrive: nothing else follows from this process."""
        with self._lock, suppress(RayError):
            ray.get(self._manager.report.remote(message, self._output.take()), timeout=_LAST_WORDS_S)

    def send_output(self) -> None:
        """Send what was printed, if anything was."""
        with self._lock:
            if lines := self._output.take():
                self._manager.report.remote(None, lines)
