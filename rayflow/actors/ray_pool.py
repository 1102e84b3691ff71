"""`WorkerPool` of Ray actors: one `SubtaskActor` per subtask, owned by the job manager, so that they end with it.

Everything that talks to Ray's control store, which may be slow or away, happens on one thread: it starts actors,
and it looks at the references of all calls, which are otherwise fired and forgotten, to learn when an actor has died.
A call that failed since its actor was unreachable says nothing (it may come back, and the heartbeats will tell);
`ActorDiedError` is final. Nothing here waits without a bound.

Invariant W1: for each worker at most one of `kill` and `on_worker_lost` takes effect, and that once.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.actors.placement import Placement
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
    """`actor` is None until the pool's thread has started it, and messages wait; `node` where Ray was told
    to put it, if it was told."""

    subtask: SubtaskId
    resources: Resources
    actor: Any = None
    node: str | None = None
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
        self._placement = Placement()
        self._lock = threading.Lock()
        self._workers: dict[SubtaskId, _Worker] = {}
        self._calls: dict[Any, _Call] = {}
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def report_to(self, events: WorkerEvents) -> None:
        """Tell `events` what happens to workers; to be called once, before all else."""
        self._events = events
        threading.Thread(target=self._run, name="worker pool", daemon=True).start()

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """Start an actor for `subtask` unless there is one."""
        if subtask not in self._workers:
            worker = self._workers[subtask] = _Worker(subtask, resources)
            self._work.put(lambda: self._start(worker))

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Send without waiting; dropped when there is no worker that was told ready."""
        worker = self._workers.get(subtask)
        if worker is None or worker.actor is None:
            return
        if isinstance(message, Deploy):
            # The graph is pickled once for all subtasks and attempts, not once per message.
            bare: Any = replace(message, graph=None)  # type: ignore[arg-type]
            ref = worker.actor.control.remote(bare, self._graph)
        else:
            ref = worker.actor.control.remote(message)
        self._work.put(lambda: self._watch(ref, _Call(worker, locates=False)))

    def kill(self, subtask: SubtaskId) -> None:
        """End the actor of `subtask` for good, if there is one."""
        worker = self._workers.get(subtask)
        if worker is not None and self._take(worker):
            self._work.put(lambda: self._end(worker, lost=False))

    def shutdown(self) -> None:
        """End all actors, and the pool's thread."""
        for subtask in list(self._workers):
            self.kill(subtask)
        self._work.put(None)

    def _take(self, worker: _Worker) -> bool:
        """Forget the worker; whether this call is the one that ends it (W1)."""
        with self._lock:
            if worker.gone:
                return False
            worker.gone = True
            del self._workers[worker.subtask]
            return True

    # ------------------------------------------------------------------------------- the pool's thread

    def _run(self) -> None:
        while self._do_work():
            ready, _ = ray.wait(
                list(self._calls), num_returns=len(self._calls), timeout=_REAP_INTERVAL_S, fetch_local=False
            )
            for ref in ready:
                self._reap(ref, self._calls.pop(ref))

    def _do_work(self) -> bool:
        """Do what the master asked for; wait for it only while no call is under way. False: shut down."""
        try:
            while (work := self._work.get(block=not self._calls)) is not None:
                work()
            return False
        except Empty:
            return True

    def _watch(self, ref: Any, call: _Call) -> None:
        self._calls[ref] = call

    def _start(self, worker: _Worker) -> None:
        if worker.gone:
            return
        spec = SubtaskSpec(
            job_id=self._spec.job_id,
            subtask=worker.subtask,
            code_paths=self._spec.code_paths,
            token=self._spec.token,
            lease_s=self._lease_s,
        )
        wanted = worker.resources
        options = {
            "num_cpus": wanted.num_cpus,
            "num_gpus": wanted.num_gpus,
            "memory": wanted.memory,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        try:
            strategy = self._strategy(worker)
            actor = ray.remote(SubtaskActor).options(**options, scheduling_strategy=strategy)
            worker.actor = actor.remote(spec, self._manager)
            self._watch(worker.actor.locate.remote(), _Call(worker, locates=True))
        except Exception as e:
            self._lose(worker, f"its process could not be started: {_first_line(e)}")

    def _strategy(self, worker: _Worker) -> Any:
        wanted = worker.resources
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        if wanted.num_cpus or wanted.num_gpus or wanted.memory or not nodes:
            return "SPREAD"
        worker.node = self._placement.choose(nodes, time.monotonic())
        # Soft affinity would leave actors without resources wherever Ray likes. If the node is just dying the
        # actor dies too, is reported lost, and the next one goes elsewhere.
        return NodeAffinitySchedulingStrategy(worker.node, soft=False)

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
            self._end(worker, lost=True)
            self._events.on_worker_lost(worker.subtask, reason)

    def _end(self, worker: _Worker, *, lost: bool) -> None:
        if worker.node is not None:
            self._placement.remove(worker.node, time.monotonic(), lost=lost)
        if worker.actor is not None:
            ray.kill(worker.actor, no_restart=True)


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"
