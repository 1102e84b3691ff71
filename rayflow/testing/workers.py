"""Simulated worker processes, and the pool through which one job manager has them.

What is promised. Control messages of one sender to one receiver arrive in order, if they do; they are lost by chance,
or with the process that should get them, wait while it is frozen or cut off, and may be delivered twice, the second
time whenever. That a process died is noticed after a while. A kill is an order like others: it does not reach who is
cut off, and such a worker lives on (a *zombie*) until its lease lapses or the cut heals; meanwhile it writes and
commits what it can.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from rayflow.graph.plan import Resources
from rayflow.graph.shipping import ship_graph
from rayflow.model.ids import Attempt, SubtaskId
from rayflow.operators.async_calls import Completion, Coroutine
from rayflow.runtime.messages import (
    Cancel,
    CheckpointAcked,
    CheckpointCompleted,
    Deploy,
    Deployed,
    FromSubtask,
    Heartbeat,
    ToSubtask,
)
from rayflow.runtime.ports import WorkerEvents
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.state.disk.row_store import MemoryRows, RowStore
from rayflow.state.storage import MemoryStore, ObjectStore
from rayflow.testing.losses import Debt
from rayflow.testing.network import SimTransport
from rayflow.testing.restoring import check_acked, check_deploy, check_deployed
from rayflow.testing.world import Process

if TYPE_CHECKING:
    from rayflow.testing.managers import SimManager
    from rayflow.testing.simulation import Simulation

_DETECTION_MS = 1_100
_START_MS = 3_000
_KILL_MS = 50
_DUPLICATE_MS = 3_000
LEASE_FACTOR = 4
_LEASE_TICKS = 10


class SimWorker:
    """One simulated subtask process."""

    def __init__(self, pool: SimPool, subtask: SubtaskId, process: Process) -> None:
        sim = pool.sim
        self.pool = pool
        self.sim = sim
        self.subtask = subtask
        self.process = process
        self.name = process.name
        self.given_up = False
        """Its manager has it no more."""
        self.acked = (0, 0)
        """Attempt and number of the checkpoint that it acknowledged last."""
        self._debt = Debt(sim.world, f"the manager of {self.name}")
        self.tenure = pool.manager.tenure
        # As `actors.lease`: time in which the process stands still does not count.
        self._lease_ms = self._lease_left_ms = LEASE_FACTOR * sim.heartbeat_timeout_ms
        self.engine = SubtaskEngine(
            subtask=subtask,
            link=self,
            transport=SimTransport(sim.network, self),
            io=sim.io.pool(process),
            open_store=sim.storage.opener(process),
            wake=partial(sim.world.wake, process),
            async_runner=lambda wake: SimCalls(self, wake),
            disk=SimDisk(),
        )

    def start(self) -> None:
        """The process is up."""
        self.process.step = self.engine.step
        self._tick()

    def report(self, message: FromSubtask) -> None:
        """`MasterLink`."""
        manager = self.pool.manager
        self._debt.sent(message)
        if isinstance(message, CheckpointAcked):
            self.acked = message.attempt, message.checkpoint_id
            check_acked(self, message)
        if isinstance(message, Deployed):
            check_deployed(self, message)
            self.sim.network.check_closed(self, message.attempt)
        self.sim.send(
            ("from", self.name, manager.name),
            f"{type(message).__name__} from {self.name}",
            partial(self.sim.reported, self, manager, message),
            source=self.process,
            target=manager.process,
        )

    def adopt(self, pool: SimPool) -> None:
        """A new manager takes it over: what an earlier one wanted done is dropped."""
        if not self.process.alive or pool.manager.tenure < self.tenure or self.given_up:
            return
        self.pool, self.tenure = pool, pool.manager.tenure
        self._lease_left_ms = self._lease_ms
        attempt = self.engine.statistics()["attempt"]
        if attempt:
            self.engine.post(Cancel(attempt))
        pool.say_up(self)

    def receive(self, pool: SimPool, message: ToSubtask) -> None:
        """A message of a manager arrived. One that was superseded is told so."""
        if not self.process.alive:
            return
        if pool.manager.tenure < self.tenure:
            self.sim.superseded(pool.manager, self.process)
            return
        self._lease_left_ms = self._lease_ms
        if not self.engine.accepts(message):
            return
        # What crosses a process is a copy.
        if isinstance(message, Heartbeat):
            self._debt.told(message)
        self.engine.post(pool.copied(message) if isinstance(message, Deploy) else message)
        self._debt.settle(self.engine._master._outgoing)

    def _tick(self) -> None:
        if not self.process.alive:
            return
        tick_ms = self._lease_ms // _LEASE_TICKS
        self._lease_left_ms -= tick_ms
        if self._lease_left_ms <= 0:
            self.sim.world.note(f"lease of {self.name} lapsed")
            self.sim.end_worker(self)
            return
        self.sim.world.post(
            ("lease", self.name), f"lease of {self.name}", self._tick, tick_ms, target=self.process
        )


class SimDisk:
    """`Disk` of one simulated worker: gone with its process."""

    def __init__(self) -> None:
        self._spools = 0

    def open_rows(self, folder: str | None, name: str, memory_bytes: int, appended: bool) -> RowStore:
        """See `Disk`."""
        return MemoryRows()

    def spool(self, folder: str | None) -> ObjectStore:
        """See `Disk`."""
        self._spools += 1
        store = MemoryStore(f"memory://spool-{id(self)}-{self._spools}")
        weakref.finalize(store, MemoryStore(store.url).delete_prefix, "")
        return store

    def give_back(self) -> None:
        """See `Disk`."""

    def ticks_ns(self) -> int:
        """See `Disk`. Nothing takes time."""
        return 0


class SimCalls:
    """`AsyncCalls` of one simulated worker: each call is answered at some later turn, in any order; or, where the seed
    says so, never or late: what is cancelled meanwhile may have completed before. Coroutines must not wait for anything
    else."""

    def __init__(self, worker: SimWorker, wake: Callable[[], None]) -> None:
        self._worker = worker
        self._wake = wake
        self._running: set[int] = set()
        self._cancelled: set[int] = set()
        self._completed: list[Completion] = []

    def start(self, calls: Sequence[tuple[int, Coroutine]]) -> None:
        """See `AsyncCalls`."""
        sim, worker = self._worker.sim, self._worker
        for call, make in calls:
            self._running.add(call)
            hangs = call >= 0 and sim.injector.chance(sim.injector.faults.hanging_calls)
            if hangs and sim.world.happens(0.5):
                continue
            sim.world.post(
                ("async", worker.name, id(self), call),
                f"answer {call} to {worker.name}",
                partial(self._answer, call, make),
                sim.injector.duration_ms() if hangs else 0,
                target=worker.process,
            )

    def _answer(self, call: int, make: Coroutine) -> None:
        if call not in self._running or not self._worker.process.alive:
            return
        self._running.remove(call)
        if call in self._cancelled and self._worker.sim.world.happens(0.5):
            return
        try:
            make().send(None)  # type: ignore[attr-defined]
        except StopIteration as returned:
            self._completed.append(Completion(call, returned.value, None))
        except Exception as error:
            self._completed.append(Completion(call, None, error))
        self._wake()

    def cancel(self, call: int) -> None:
        """See `AsyncCalls`."""
        self._cancelled.add(call)

    @property
    def ready(self) -> bool:
        """See `AsyncCalls`."""
        return bool(self._completed)

    def completed(self) -> list[Completion]:
        """See `AsyncCalls`."""
        done, self._completed = self._completed, []
        return done

    def close(self, last: Coroutine | None) -> None:
        """See `AsyncCalls`."""
        self._running.clear()


class SimPool:
    """`WorkerPool` of one simulated job manager. Its workers outlive it, and may be taken over by the next."""

    def __init__(self, sim: Simulation, manager: SimManager) -> None:
        self.sim = sim
        self.manager = manager
        self.workers: dict[SubtaskId, SimWorker] = {}
        self.left_behind: dict[SubtaskId, SimWorker] = {}
        self._deployed: set[tuple[SubtaskId, Attempt]] = set()
        self._pickled: Mapping[str, bytes] = {}

    @property
    def events(self) -> WorkerEvents:
        """Whom it tells what happens to workers."""
        return self.manager.master

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """See `WorkerPool`."""
        if subtask in self.workers:
            return
        left = self.left_behind.pop(subtask, None)
        if left is not None:
            self.workers[subtask] = left
            self._adopt(left)
            return
        world = self.sim.world
        worker = SimWorker(self, subtask, self.sim.new_process(str(subtask)))
        self.workers[subtask] = worker
        self.sim.workers[worker.name] = worker
        if world.cut_off(self.manager.process, worker.process):
            # Nothing starts there: the pool finds out, and may try elsewhere.
            world.end(worker.process)
            self.sim.lose(worker, "its node does not answer", world.draw(2 * _START_MS))
            # It never runs, so it has no lease that would end it, should it be given up before that.
            world.end(worker.process)
            return

        def ready() -> None:
            if worker.process.alive and not worker.given_up:
                worker.start()
                self.say_up(worker)

        world.post(("start", worker.name), f"start {worker.name}", ready, world.draw(_START_MS))

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """See `WorkerPool`."""
        worker = self.workers.get(subtask)
        self.manager.sends(subtask, message)
        if isinstance(message, CheckpointCompleted):
            self.sim.storage.announce(self.manager.job.id, message.checkpoint_id, message.attempt)
        elif isinstance(message, Deploy):
            if (subtask, message.attempt) not in self._deployed:  # it may be sent again much later
                check_deploy(self.manager, message)
            self._deployed.add((subtask, message.attempt))
        if worker is not None:
            self.sim.send(
                ("to", worker.name, self.manager.name),
                f"{type(message).__name__} to {worker.name}",
                partial(worker.receive, self, message),
                source=self.manager.process,
                target=worker.process,
            )

    def kill(self, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        """See `WorkerPool`."""
        worker = self.workers.pop(subtask, None)
        if worker is not None:
            self.manager.patience.ends(worker, unreachable=unreachable)
            self.order_death(worker, self.manager.process)

    def shutdown(self) -> None:
        """See `WorkerPool`."""
        for subtask in list(self.workers):
            self.kill(subtask)
        for worker in self.left_behind.values():
            self.order_death(worker, self.manager.process)

    def say_up(self, worker: SimWorker) -> None:
        """The worker tells that it is there."""
        self.sim.world.post(
            ("up", worker.name),
            f"{worker.name} is up",
            lambda: self._up(worker),
            source=worker.process,
            target=self.manager.process,
        )

    def take_over(self, workers: Sequence[SimWorker]) -> None:
        """Earlier managers left these: keep one for each subtask that can be reached, end the others."""
        for worker in workers:
            here, there = self.manager.process, worker.process
            cut_off = self.sim.world.cut_off(here, there) or self.sim.world.cut_off(there, here)
            if cut_off or there.frozen or there.step is None or worker.subtask in self.left_behind:
                worker.given_up = True
                self.order_death(worker, here)
            else:
                self.left_behind[worker.subtask] = worker

    def _adopt(self, worker: SimWorker) -> None:
        if not worker.process.alive:
            self.sim.lose(worker, "its process died", 0, pool=self)
            return
        self.sim.world.post(
            ("to", worker.name, self.manager.name),
            f"adopt {worker.name}",
            lambda: worker.adopt(self),
            source=self.manager.process,
            target=worker.process,
        )

    def order_death(self, worker: SimWorker, source: Process | None, delay_ms: int = _KILL_MS) -> None:
        """The worker shall die, once the order reaches it. A frozen process dies all the same."""
        worker.given_up |= worker.pool is self
        world = self.sim.world
        gate = Process(worker.name, worker.process.machine)
        world.post(
            ("kill", worker.name),
            f"kill {worker.name}",
            lambda: self.sim.end_worker(worker),
            world.draw(delay_ms),
            source=source,
            target=gate,
        )

    def copied(self, deploy: Deploy) -> Deploy:
        """Return a copy as another process has it. The graph is pickled once."""
        if "graph" not in self._pickled:
            self._pickled = {"graph": ship_graph(deploy.graph)}
        copy = object.__new__(Deploy)
        for name in Deploy.__dataclass_fields__:
            object.__setattr__(copy, name, getattr(deploy, name))
        object.__setattr__(copy, "graph", pickle.loads(self._pickled["graph"]))
        return copy

    def _up(self, worker: SimWorker) -> None:
        if not worker.given_up and self.manager.process.alive:
            self.events.on_worker_ready(worker.subtask, worker.name, worker.process.machine, 1)
