"""`WorkerPool` of Ray actors: one `SubtaskActor` per subtask, owned by the job manager, so that they end with it.

Calls are fired and forgotten by the caller; their references go to a reaper thread, which learns from them
when an actor has died. A call that failed since its actor was unreachable says nothing (it may come back,
and the heartbeats will tell); `ActorDiedError` is final. Nothing here waits without a bound.

Invariant W1: for each worker at most one of `kill` and `on_worker_lost` takes effect, and that once.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from rayflow.actors.specs import JobSpec, SubtaskSpec
from rayflow.actors.subtask_actor import SubtaskActor
from rayflow.graph.plan import Resources
from rayflow.model.ids import SubtaskId
from rayflow.runtime.messages import Deploy, ToSubtask
from rayflow.runtime.ports import WorkerEvents

_log = logging.getLogger(__name__)

_INLINE_BYTES = 100_000
"""Ray passes arguments up to about this size within the call, larger ones through its object store."""

_REAP_INTERVAL_S = 0.05
_GET_TIMEOUT_S = 5.0


@dataclass(slots=True, eq=False)
class _Worker:
    subtask: SubtaskId
    actor: Any
    gone: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """`locates`: its result says where the worker is."""

    worker: _Worker
    locates: bool


class RayWorkerPool:
    """The subtask actors of one job. `ensure`, `send`, `kill`, `shutdown` on the master's thread."""

    def __init__(self, spec: JobSpec, graph: bytes, lease_s: float, manager: Any) -> None:
        self._spec = spec
        self._lease_s = lease_s
        self._graph: Any = graph if len(graph) < _INLINE_BYTES else ray.put(graph)
        self._manager = manager
        self._lock = threading.Lock()
        self._workers: dict[SubtaskId, _Worker] = {}
        self._new_calls: SimpleQueue[tuple[Any, _Call] | None] = SimpleQueue()

    def report_to(self, events: WorkerEvents) -> None:
        """Tell `events` what happens to workers; to be called once, before all else."""
        self._events = events
        threading.Thread(target=self._reap_all, name="reaper", daemon=True).start()

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """Start an actor for `subtask` unless there is one; spread over the nodes."""
        if subtask in self._workers:
            return
        spec = SubtaskSpec(
            job_id=self._spec.job_id,
            subtask=subtask,
            code_paths=self._spec.code_paths,
            token=self._spec.token,
            lease_s=self._lease_s,
        )
        options = {
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "memory": resources.memory,
            "scheduling_strategy": "SPREAD",
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        actor = ray.remote(SubtaskActor).options(**options).remote(spec, self._manager)
        worker = self._workers[subtask] = _Worker(subtask, actor)
        self._new_calls.put((actor.locate.remote(), _Call(worker, locates=True)))

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Send without waiting; dropped when there is no worker."""
        worker = self._workers.get(subtask)
        if worker is None:
            return
        if isinstance(message, Deploy):
            # The graph is pickled once for all subtasks and attempts, not once per message.
            bare: Any = replace(message, graph=None)  # type: ignore[arg-type]
            call = worker.actor.control.remote(bare, self._graph)
        else:
            call = worker.actor.control.remote(message)
        self._new_calls.put((call, _Call(worker, locates=False)))

    def kill(self, subtask: SubtaskId) -> None:
        """End the actor of `subtask` for good, if there is one."""
        worker = self._workers.get(subtask)
        if worker is not None and self._take(worker):
            ray.kill(worker.actor, no_restart=True)

    def shutdown(self) -> None:
        """End all actors, and the reaper."""
        for subtask in list(self._workers):
            self.kill(subtask)
        self._new_calls.put(None)

    def _take(self, worker: _Worker) -> bool:
        """Forget the worker; whether this call is the one that ends it (W1)."""
        with self._lock:
            if worker.gone:
                return False
            worker.gone = True
            del self._workers[worker.subtask]
            return True

    def _reap_all(self) -> None:
        calls: dict[Any, _Call] = {}
        while True:
            try:
                # Without calls under way there is nothing to wait for but the next one.
                item = self._new_calls.get(block=not calls, timeout=None)
                while item is not None:
                    calls[item[0]] = item[1]
                    item = self._new_calls.get_nowait()
                return
            except Empty:
                pass
            ready, _ = ray.wait(
                list(calls), num_returns=len(calls), timeout=_REAP_INTERVAL_S, fetch_local=False
            )
            for ref in ready:
                self._reap(ref, calls.pop(ref))

    def _reap(self, ref: Any, call: _Call) -> None:
        worker = call.worker
        try:
            result = ray.get(ref, timeout=_GET_TIMEOUT_S)
        except ActorUnavailableError as e:
            _log.warning("%s cannot be reached: %s", worker.subtask, e)
            if call.locates:
                self._lose(worker, "its process could not be reached when it started")
        except RayActorError as e:
            self._lose(worker, f"its process ended: {_first_line(e)}")
        except RayError as e:
            self._lose(worker, f"a control call failed: {_first_line(e)}")
        else:
            if call.locates and not worker.gone:
                self._events.on_worker_ready(worker.subtask, *result)

    def _lose(self, worker: _Worker, reason: str) -> None:
        if self._take(worker):
            ray.kill(worker.actor, no_restart=True)
            self._events.on_worker_lost(worker.subtask, reason)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"
