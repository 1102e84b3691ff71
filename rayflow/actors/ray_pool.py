"""`WorkerPool` of Ray actors: one `SubtaskActor` per subtask, and warm spares for those that die.

Everything that talks to Ray's control store, which may be slow or away, happens on one thread: it starts actors,
and it looks at the references of all calls, which are otherwise fired and forgotten, to learn when an actor has died.
A call that failed since its actor was unreachable says nothing (it may come back, and the heartbeats will tell);
`ActorDiedError` is final. Nothing here waits without a bound.

Where a worker comes from is no concern of the master: it asks for one, and is told when it is ready. It is taken
from what an earlier manager of the job left (`launcher`), else from the spares, else started anew. A worker
that resources were asked for is always started anew: a spare holds none.

Invariants
 W1  For each worker at most one of `kill` and `on_worker_lost` takes effect, and that once.
 W2  No worker is started, taken over or spoken to before the tenure is claimed (`tenure`).
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError, RayError

from rayflow.actors.last_words import crash_report
from rayflow.actors.launcher import Launcher, Process
from rayflow.actors.spares import Spares
from rayflow.actors.specs import Located, WorkerSpec
from rayflow.graph.plan import Resources
from rayflow.model.ids import SubtaskId
from rayflow.runtime.messages import Deploy, ToSubtask
from rayflow.runtime.ports import WorkerEvents

_log = logging.getLogger(__name__)

_INLINE_BYTES = 100_000
"""Ray passes arguments up to about this size within the call, larger ones through its object store."""

_REAP_INTERVAL_S = 0.05
_IDLE_INTERVAL_S = 0.5
_GET_TIMEOUT_S = 5.0
_SPARE_PAUSE_S = 30.0
_NO_RESOURCES = Resources()


@dataclass(slots=True, eq=False)
class _Worker:
    """`process` is None until the pool's thread has found or started it, and messages wait."""

    subtask: SubtaskId
    resources: Resources
    process: Process | None = None
    stderr: str = ""
    gone: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    """`locates`: its result says where the worker is."""

    worker: _Worker
    locates: bool


class RayWorkerPool:
    """The worker actors of one job. `ensure`, `send`, `kill`, `shutdown` on the master's thread.

    Called on the pool's thread: `claim` claims the manager's tenure (may block), `superseded` is told when workers obey
    a later manager, `crashed` when the pool cannot go on (Ray's control store was away at a bad moment, say).
    """

    def __init__(
        self,
        spec: WorkerSpec,
        graph: bytes,
        *,
        spares: int,
        manager: Any,
        claim: Callable[[], int],
        superseded: Callable[[], None],
        crashed: Callable[[BaseException], None],
    ) -> None:
        self._spec = spec
        self._graph: Any = graph if len(graph) < _INLINE_BYTES else ray.put(graph)
        self._manager = manager
        self._claim = claim
        self._superseded = superseded
        self._crashed = crashed
        self._tenure = 0
        self._spares = Spares(self, spares)
        self._spares_from_s = 0.0
        self._left_behind: dict[SubtaskId, tuple[Process, Located]] = {}
        self._starting = 0
        self._wanting: list[_Worker] = []
        self._lock = threading.Lock()
        self._workers: dict[SubtaskId, _Worker] = {}
        self._calls: dict[Any, _Call] = {}
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def report_to(self, events: WorkerEvents) -> None:
        """Tell `events` what happens to workers; to be called once, before all else."""
        self._events = events
        threading.Thread(target=self._run, name="worker pool", daemon=True).start()

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """Find or start an actor for `subtask` unless there is one."""
        if subtask not in self._workers:
            worker = self._workers[subtask] = _Worker(subtask, resources)
            self._work.put(lambda: self._wanting.append(worker))

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Send without waiting; dropped when there is no worker that was told ready."""
        worker = self._workers.get(subtask)
        if worker is None or worker.process is None:
            return
        control = worker.process.actor.control
        if isinstance(message, Deploy):
            # The graph is pickled once for all subtasks and attempts, not once per message.
            bare: Any = replace(message, graph=None)  # type: ignore[arg-type]
            ref = control.remote(self._tenure, bare, self._graph)
        else:
            ref = control.remote(self._tenure, message)
        self._work.put(lambda: self._watch(ref, _Call(worker, locates=False)))

    def kill(self, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        """End the actor of `subtask` for good, if there is one."""
        worker = self._workers.get(subtask)
        if worker is not None and self._take(worker):
            self._work.put(lambda: self._end(worker, lost=unreachable))

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
        try:
            self._serve()
        except Exception as e:
            self._crashed(e)

    def _serve(self) -> None:
        self._begin()
        while self._do_work():
            self._supply()
            ready, _ = ray.wait(
                list(self._calls), num_returns=len(self._calls), timeout=_REAP_INTERVAL_S, fetch_local=False
            )
            for ref in ready:
                self._reap(ref, self._calls.pop(ref))
        self._spares.stop()
        for process, _ in self._left_behind.values():
            self._launcher.end(process, lost=False)

    def _begin(self) -> None:
        """Claim the job, and take over what an earlier manager left."""
        self._tenure = self._claim()
        self._launcher = Launcher(self._spec, self._manager, self._tenure)
        if self._tenure == 1:
            return
        for process, located in self._launcher.survivors():
            if located is None:
                self._superseded()
            elif located.subtask is None:
                self._spares.add(process, time.monotonic())
            elif located.subtask in self._left_behind:
                self._launcher.end(process, lost=False)
            else:
                self._left_behind[located.subtask] = process, located

    def _do_work(self) -> bool:
        """Do what the master asked for; wait for it only while no call is under way. False: shut down."""
        idle = not self._calls
        wait_s = _REAP_INTERVAL_S if self._wanting else _IDLE_INTERVAL_S
        try:
            while (work := self._work.get(block=idle, timeout=wait_s)) is not None:
                work()
                idle = False
            return False
        except Empty:
            return True

    def _watch(self, ref: Any, call: _Call) -> None:
        self._calls[ref] = call

    def _supply(self) -> None:
        """Give every worker that waits a process, if one can be had by now."""
        waiting, self._wanting = self._wanting, []
        for worker in waiting:
            if worker.gone:
                continue
            try:
                self._find(worker)
            except Exception as e:
                self._lose(worker, f"its process could not be started: {_first_line(e)}")
        if not self._starting:
            self._tick_spares()

    def _find(self, worker: _Worker) -> None:
        left = self._left_behind.pop(worker.subtask, None)
        if left is not None:
            worker.process, located = left
            self._ready(worker, located)
            return
        now_s = time.monotonic()
        self._spares.busy(now_s)
        if worker.resources == _NO_RESOURCES:
            spare, certain = self._spares.take(now_s)
            if not certain:
                self._wanting.append(worker)
                return
            worker.process = spare
        if worker.process is None:
            worker.process = self._launcher.start(worker.resources)
        self._starting += 1
        ref = worker.process.actor.become.remote(self._tenure, worker.subtask)
        self._watch(ref, _Call(worker, locates=True))

    def _reap(self, ref: Any, call: _Call) -> None:
        worker = call.worker
        self._starting -= call.locates
        try:
            result = ray.get(ref, timeout=_GET_TIMEOUT_S)
        except ActorUnavailableError as e:
            _log.warning("%s cannot be reached: %s", worker.subtask, e)
            if call.locates:
                self._lose(worker, "its process could not be reached when it started")
        except RayActorError as e:
            crash = crash_report(worker.stderr)
            self._lose(worker, what_ended(e) if crash is None else f"its process crashed: {crash}")
        except RayError as e:
            self._lose(worker, f"a control call failed: {_first_line(e)}")
        else:
            if result is None:
                self._superseded()
            elif call.locates and not worker.gone:
                self._ready(worker, result)

    def _ready(self, worker: _Worker, located: Located) -> None:
        worker.stderr = located.stderr
        self._spares.busy(time.monotonic())
        self._events.on_worker_ready(
            worker.subtask, located.address, located.node_id, located.pid, located.silent_ms
        )

    def _lose(self, worker: _Worker, reason: str) -> None:
        if self._take(worker):
            self._end(worker, lost=True)
            self._events.on_worker_lost(worker.subtask, reason)

    def _end(self, worker: _Worker, *, lost: bool) -> None:
        self._spares.lost(time.monotonic())
        if worker.process is not None:
            self._launcher.end(worker.process, lost=lost)

    # ------------------------------------------------------------------------------- what spares need done

    def _tick_spares(self) -> None:
        now_s = time.monotonic()
        if now_s >= self._spares_from_s:
            try:
                self._spares.tick(now_s)
            except Exception as e:
                _log.warning("a spare process could not be started: %s", _first_line(e))
                self._spares_from_s = now_s + _SPARE_PAUSE_S

    def launch(self) -> Process:
        """See `Crew`."""
        process = self._launcher.start(_NO_RESOURCES)
        process.actor.prepare.remote(self._graph)
        return process

    def ping(self, process: Process) -> Hashable:
        """See `Crew`."""
        ref: Hashable = process.actor.ping.remote(self._tenure)
        return ref

    def answered(self, pings: Sequence[Hashable]) -> dict[Hashable, bool]:
        """See `Crew`."""
        ready, _ = ray.wait(list(pings), num_returns=len(pings), timeout=0, fetch_local=False)
        return {ref: _succeeded(ref) for ref in ready}

    def discard(self, process: Process, *, dead: bool) -> None:
        """See `Crew`."""
        self._launcher.end(process, lost=dead)


def _succeeded(ref: Any) -> bool:
    try:
        ray.get(ref, timeout=_GET_TIMEOUT_S)
        return True
    except RayError:
        return False


def what_ended(error: RayActorError) -> str:
    """Say what became of a worker's process, in plain words."""
    text = str(error)
    if "NODE_OUT_OF_MEMORY" in text or "running low on memory" in text:
        return "Ray ended its process since the node ran low on memory"
    if "its node has died" in text:
        return "its node died"
    if "ray.kill" in text:
        return "its process was ended through Ray"
    if "worker process has died" in text:
        # Ray does not tell more: only the parent of a process learns its exit code.
        return "its process died without a word: killed (for lack of memory?), or crashed in native code"
    return f"its process ended: {_first_line(error)}"


def _first_line(error: BaseException) -> str:
    cause = error.__cause__ or error
    return f"{type(cause).__name__}: {(str(cause).strip() or 'no message').splitlines()[0]}"
