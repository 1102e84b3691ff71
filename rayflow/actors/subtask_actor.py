"""The Ray actor around a subtask: decode, hand on, report, or die.

Threads of the process: Ray's calls arrive one at a time on the actor's thread, which answers heartbeats at
once; everything else goes, in order, through a loader thread (unpickling a job can import much) to the
engine's mailbox; the task thread drives the engine; network threads belong to the transport.

Outward calls (`report`) go to the job manager from any thread and are never waited for. What the user printed
is sent before each report, so that by the time the manager knows of an end it has every line before it.
"""

from __future__ import annotations

import logging
import os
import pickle
import threading
import time
from queue import SimpleQueue
from typing import Any

import ray

from rayflow.actors.code_path import use_code_paths
from rayflow.actors.flight import FlightTransport
from rayflow.actors.lease import Lease, watch
from rayflow.actors.output_capture import OutputBuffer, capture_output
from rayflow.actors.specs import SubtaskSpec
from rayflow.model.ids import Attempt
from rayflow.runtime.clock import SystemClock
from rayflow.runtime.io_pool import ThreadIoPool
from rayflow.runtime.messages import (
    Deploy,
    FromSubtask,
    Heartbeat,
    TaskFailed,
    ToSubtask,
)
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task_thread import TaskThread
from rayflow.state.storage import open_store

_log = logging.getLogger(__name__)

_OUTPUT_INTERVAL_S = 0.1
_CRASHED = 70


class SubtaskActor:
    """One subtask's process. All calls may be repeated; only their order per caller matters."""

    def __init__(self, spec: SubtaskSpec, manager: Any) -> None:
        self._spec = spec
        self._output = OutputBuffer(str(spec.subtask))
        capture_output(self._output)
        use_code_paths(spec.code_paths)
        self._link = _ManagerLink(manager, self._output)
        self._inbox: SimpleQueue[ToSubtask | tuple[Deploy, bytes]] = SimpleQueue()
        self._lease = Lease(spec.lease_s)
        clock = SystemClock()
        self._node_id = ray.get_runtime_context().get_node_id()
        self._transport = FlightTransport(
            job_id=spec.job_id,
            token=spec.token,
            host=ray.util.get_node_ip_address(),
        )
        name = str(spec.subtask)
        self._thread = TaskThread(name, clock, self._on_crash, lambda: self._engine.waiting_for())
        self._engine = SubtaskEngine(
            subtask=spec.subtask,
            link=self._link,
            transport=self._transport,
            io=ThreadIoPool(),
            open_store=open_store,
            wake=self._thread.wake,
            host_statistics=self._host_statistics,
        )
        threading.Thread(target=self._load_all, name="loader", daemon=True).start()
        threading.Thread(target=self._send_output, name="output", daemon=True).start()
        self._thread.start(self._engine)
        watch(self._lease, self._on_lapsed)

    def locate(self) -> tuple[str, str, int]:
        """Return the transport's address, the Ray node's id, and the process id."""
        return self._transport.address, self._node_id, os.getpid()

    def control(self, message: ToSubtask, graph: bytes | None = None) -> None:
        """Take a message of the master; `graph` is the pickled graph of a Deploy that comes without one."""
        self._lease.renew()
        if isinstance(message, Heartbeat):
            self._engine.post(message)
        elif isinstance(message, Deploy) and graph is not None:
            self._inbox.put((message, graph))
        else:
            self._inbox.put(message)

    def _host_statistics(self) -> dict[str, Any]:
        ratios = self._thread.account.ratios(time.monotonic())
        return {**ratios, "pid": os.getpid(), "rss_bytes": _rss_bytes()}

    def _load_all(self) -> None:
        while True:
            item = self._inbox.get()
            if isinstance(item, tuple):
                self._load(*item)
            else:
                self._engine.post(item)

    def _load(self, deploy: Deploy, graph: bytes) -> None:
        try:
            object.__setattr__(deploy, "graph", pickle.loads(graph))
        except Exception as e:
            cause = (
                f"the job's code cannot be loaded on node {self._node_id}: {type(e).__name__}: {e}. "
                "Modules that the job imports must be installed there, or lie beside the job file"
            )
            self._link.report(
                TaskFailed(subtask=deploy.subtask, attempt=deploy.attempt, cause=cause, retryable=False)
            )
            return
        self._engine.post(deploy)

    def _send_output(self) -> None:
        while True:
            time.sleep(_OUTPUT_INTERVAL_S)
            self._link.send_output()

    def _on_crash(self, error: BaseException) -> None:
        self._link.report(
            TaskFailed(
                subtask=self._spec.subtask,
                attempt=Attempt(0),
                cause=f"the engine crashed: {type(error).__name__}: {error}",
            )
        )
        os._exit(_CRASHED)

    def _on_lapsed(self) -> None:
        _log.error("no heartbeat from the job manager for %s s: ending this process", self._lease.duration_s)
        os._exit(_CRASHED)


class _ManagerLink:
    """The way to the job manager. Any thread; the lock keeps the order of output and reports."""

    def __init__(self, manager: Any, output: OutputBuffer) -> None:
        self._manager = manager
        self._output = output
        self._lock = threading.Lock()

    def report(self, message: FromSubtask) -> None:
        """Send without waiting, after what was printed before."""
        with self._lock:
            self._manager.report.remote(message, self._output.take())

    def send_output(self) -> None:
        """Send what was printed, if anything was."""
        with self._lock:
            if lines := self._output.take():
                self._manager.report.remote(None, lines)


def _rss_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as f:
        return int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
