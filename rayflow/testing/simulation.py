"""A whole simulated cluster that runs jobs under faults, and says what became of them.

    sim = Simulation(seed=7, faults=draw_faults(random.Random(7)))
    outcome = sim.run(env.plan(), {"checkpoint.interval": "100ms"})
    sim.close()

Any job graph will do, with the user's own sources, functions and sinks: they run in this process, on virtual time, so
they must not wait for anything. What they do to the outside is real, and may happen again in a later attempt.

What fails how. A worker's process dies: its streams break, its manager hears of it. The manager's process dies: its
workers die after it, and another manager begins, which finds the job on storage. A machine dies: all processes on it.
Machines are cut off, in one direction or both: whoever is behind the cut is given up after a while and lives on
meanwhile, until the cut has healed or its lease lapses. A process is frozen, and thawed later.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayflow.graph.plan import JobGraph
from rayflow.model.config import JobConfig
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.job_master import FailureArgs, JobMaster
from rayflow.runtime.messages import FromSubtask
from rayflow.state.storage import open_store
from rayflow.testing.faults import NO_FAULTS, Faults, Injector
from rayflow.testing.invariants import check_credit, check_leftovers, check_memory
from rayflow.testing.io import IoRuns
from rayflow.testing.managers import SimManager
from rayflow.testing.mishaps import Mishaps
from rayflow.testing.network import SimNetwork
from rayflow.testing.restoring import check_failure, check_watermark
from rayflow.testing.sending import SendingWatch
from rayflow.testing.storage import SimStorage
from rayflow.testing.workers import SimPool, SimWorker
from rayflow.testing.world import Process, QueueKey, World

MAX_TURNS = 100_000
PROGRESS_BOUND_MS = 400_000
"""Virtual time within which a job must end once nothing goes wrong any more (I8)."""

_DETECTION_MS = 1_100
_DUPLICATE_MS = 3_000
_CHECK_EVERY = 10
_CHECK_MEMORY_EVERY = 25
CancelWhen = Callable[[JobMaster, int], bool]
"""Whether to cancel the job now, given its master and the turns it has had; asked before each turn."""


@dataclass(slots=True, eq=False)
class SimJob:
    """A job in the simulation, and its newest manager."""

    id: str
    graph: JobGraph
    config: dict[str, Any]
    restore_from: str | None = None
    manager: SimManager | None = None
    tenures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a job ended. `state` None: it was still running when its time was over (safety runs)."""

    state: JobState | None
    failure: FailureArgs | None
    attempts: int
    checkpoints: int
    virtual_ms: int


@dataclass(eq=False)
class Simulation:
    """One seed's cluster. Run one job, or several one after the other; then `close`.

    With `faults.active_ms` None a job may be given up after `safety_ms`.
    """

    seed: int
    faults: Faults = NO_FAULTS
    machines: int = 3
    keep_trace: int = 400
    heartbeat_timeout_ms: int = 5_000
    safety_ms: int = 60_000
    storage_url: str = "memory://simulation"

    def __post_init__(self) -> None:
        self.world = World(self.seed, max_delay_ms=self.faults.max_delay_ms, keep_trace=self.keep_trace)
        self.injector = Injector(self.world, self.faults)
        mishaps = Mishaps(self)
        self.injector.act = mishaps.act
        self.injector.heal = mishaps.heal
        self.injector.break_stream = mishaps.break_stream
        self.io = IoRuns(self.world, self.injector)
        self.storage = SimStorage(self.world, self.injector)
        self.storage.pause = self.io.pause
        self.storage.is_current = self._is_current
        self.storage.claimed = self._claimed
        self.network = SimNetwork(self.world)
        self.network.check_watermark = check_watermark
        self.network.comes_again = lambda: self.injector.chance(self.faults.frame_twice)
        self.workers: dict[str, SimWorker] = {}
        self.managers: dict[str, SimManager] = {}
        self.machine_names = [f"machine-{i}" for i in range(self.machines)]
        self.slow_machines = {
            self.machine_names[self.world.draw(self.machines)] for _ in range(self.faults.slow_machines)
        }
        self._processes = 0
        self._turns = 0
        self._sending = SendingWatch()
        self.job: SimJob | None = None
        self.world.after_turn.append(self._check)

    # ------------------------------------------------------------------ running

    def run(
        self,
        graph: JobGraph,
        config: dict[str, Any],
        *,
        job_id: str | None = None,
        restore_from: str | None = None,
        cancel_when: CancelWhen | None = None,
        fails_only_for_damage: bool = True,
    ) -> Outcome:
        """Run a job until it ends; AssertionError where an invariant is broken, Stuck (I8) where it does not end.

        `fails_only_for_damage`: nothing but a damaged checkpoint may fail it (True: functions do not raise).
        """
        job_id = job_id or f"sim-{self.seed}"
        config = {"checkpoint.storage": self.storage_url, **config}
        self.heartbeat_timeout_ms = JobConfig.from_flat(config).heartbeat_timeout_ms
        job = self.job = SimJob(job_id, graph, config, restore_from)
        began_ms, began_turns = self.world.now, self._turns
        self._launch(job)
        self.world.run(lambda: self._over(job, began_ms, began_turns, cancel_when), max_turns=MAX_TURNS)
        ended = self._ended(job)
        assert job.manager is not None
        master = job.manager.master
        if ended:
            self._settle()
            if master.state is JobState.FINISHED:
                check_leftovers(self, job)
            elif master.state is JobState.FAILED and fails_only_for_damage:
                check_failure(job, self.storage, self.storage_url, master.failure)
        described: dict[str, Any] = (
            master.describe() if ended else {"attempt": 0, "checkpoints": {"completed": 0}}
        )
        return Outcome(
            state=master.state if ended else None,
            failure=master.failure if ended else None,
            attempts=described["attempt"],
            checkpoints=described["checkpoints"]["completed"],
            virtual_ms=self.world.now - began_ms,
        )

    @property
    def master(self) -> JobMaster:
        """The job master that the cluster believes in."""
        manager = None if self.job is None else self.job.manager
        assert manager is not None, "no job runs"
        return manager.master

    def close(self) -> None:
        """Let go of everything."""
        self.io.close()
        self.store().delete_prefix("")

    def store(self) -> Any:
        """The job's storage, seen without faults."""
        return open_store(self.storage_url, {})

    def _over(self, job: SimJob, began_ms: int, began_turns: int, cancel_when: CancelWhen | None) -> bool:
        manager = job.manager
        if cancel_when and manager and cancel_when(manager.master, self._turns - began_turns):
            manager.master.cancel()
        if self._ended(job):
            return True
        now, active_ms, ended_ms = self.world.now, self.faults.active_ms, self.injector.ended_ms
        if active_ms is None:
            return now - began_ms >= self.safety_ms
        since_ms = began_ms if ended_ms is None or ended_ms < began_ms else ended_ms
        if now - since_ms > PROGRESS_BOUND_MS + active_ms:
            raise AssertionError(f"I8: the job did not end {now - since_ms} ms after the last fault")
        return False

    def _ended(self, job: SimJob) -> bool:
        manager = job.manager
        if manager is None or not manager.process.alive:
            return False
        master = manager.master
        if self.injector.began_ms is None and master.state is not JobState.CREATED:
            # A job that cannot even be stored fails at once, by design: faults begin when it runs.
            self.injector.begin()
        return master.closed and master.state.ended

    def _settle(self) -> None:
        """The job has ended: heal, and let everything that is under way come to its end."""
        self.injector.stop()
        self.storage.closing = True
        deadline = self.world.now + PROGRESS_BOUND_MS
        for _ in range(MAX_TURNS):
            living = any(w.process.alive for w in self.workers.values())
            if not (living or self._io_under_way()) or self.world.now > deadline:
                break
            self.world.turn()
        self.storage.closing = False
        assert not self.world.violations, "; ".join(self.world.violations)
        alive = sorted(w.name for w in self.workers.values() if w.process.alive)
        assert not alive, f"I10: workers outlive the job: {alive}"

    def _io_under_way(self) -> bool:
        return any(key[0] == "io" for key in self.world.queues())

    # ------------------------------------------------------------------ processes

    def new_process(self, name: str) -> Process:
        """Start a process on some machine."""
        self._processes += 1
        machine = self.machine_names[self.world.draw(self.machines)]
        process = self.world.spawn(f"{name}/{self._processes}", machine)
        process.slowness_ms = 60 if machine in self.slow_machines else 0
        return process

    def send(
        self,
        queue: QueueKey,
        label: str,
        deliver: Callable[[], None],
        *,
        source: Process,
        target: Process,
    ) -> None:
        """Send a control message; it may arrive twice, or be lost although both ends live."""
        if not target.alive:
            return
        if self.injector.chance(self.faults.lost_call):
            self.world.note(f"lost: {label}")
            self.injector.met["control message lost"] += 1
            return
        self.world.post(queue, label, deliver, source=source, target=target)
        if self.injector.chance(self.faults.duplicate):
            self._processes += 1
            self.world.post(
                ("again", self._processes),
                f"{label} again",
                deliver,
                self.world.draw(_DUPLICATE_MS),
                source=source,
                target=target,
            )

    def reported(self, worker: SimWorker, manager: SimManager, message: FromSubtask) -> None:
        """A worker's report arrived."""
        if manager.process.alive:
            manager.hear(worker, message)

    def end_worker(self, worker: SimWorker) -> None:
        """The worker's process is gone."""
        if not worker.process.alive:
            return
        self.world.end(worker.process)
        self.network.crashed(worker)
        for kind in ("start", "lease"):
            self.world.drop((kind, worker.name))
        # Reports already sent may arrive or not: what a dead process had in its socket is nobody's promise.
        lost = self.world.happens(0.5)
        for name in self.managers:
            self.world.drop(("to", worker.name, name))
            if lost:
                self.world.drop(("from", worker.name, name))
        # Not only the manager that it obeys, and that may have given it up: a successor that just asked it to change
        # sides hears of it too.
        for manager in list(self.managers.values()):
            held = manager.pool.workers.get(worker.subtask) is worker
            given_up = worker.given_up and worker.pool is manager.pool
            if held and manager.process.alive and not given_up:
                self.lose(worker, "its process died", self.world.draw(_DETECTION_MS), pool=manager.pool)

    def lose(self, worker: SimWorker, reason: str, delay_ms: int, *, pool: SimPool | None = None) -> None:
        """The worker's manager will hear that it is lost, unless it has given it up by then."""
        pool = pool or worker.pool

        def tell() -> None:
            if pool.workers.get(worker.subtask) is worker and pool.manager.process.alive:
                del pool.workers[worker.subtask]
                pool.order_death(worker, pool.manager.process)
                pool.events.on_worker_lost(worker.subtask, reason)

        self.world.post(
            ("lost", worker.name), f"lost {worker.name}", tell, delay_ms, target=pool.manager.process
        )

    def _launch(self, job: SimJob) -> None:
        process = self.new_process("manager")
        job.tenures += 1
        before, manager = job.manager, SimManager(self, job, process, job.tenures)
        self.managers[manager.name] = manager
        job.manager = manager
        if before is not None:
            left = [w for w in self.workers.values() if w.process.alive and w.pool.manager.job is job]
            manager.pool.take_over([w for w in left if not w.given_up])

    def superseded(self, manager: SimManager, teller: Process) -> None:
        """A worker tells a manager that it obeys a later one: the manager ends its process."""
        self.world.post(
            ("superseded", manager.name),
            f"superseded {manager.name}",
            lambda: self.end_manager(manager, None),
            source=teller,
            target=manager.process,
        )

    def end_manager(self, manager: SimManager, restart_in_ms: int | None) -> None:
        """The manager's process is gone; its workers are left to the next one, or to their leases."""
        if not manager.process.alive:
            return
        self.world.end(manager.process)
        if restart_in_ms is not None:
            self.succeed(manager, restart_in_ms)

    def succeed(self, manager: SimManager, in_ms: int) -> None:
        """After a while there is another manager of the same job, unless there is by then."""
        job = manager.job

        def restart() -> None:
            if job.manager is manager and job is self.job:
                self._launch(job)

        self.world.after(in_ms, "manager restarts", restart)

    def _is_current(self, process: Process) -> bool:
        worker = self.workers.get(process.name)
        if worker is not None:
            return not worker.given_up and worker.pool.manager is worker.pool.manager.job.manager
        return self.job is not None and self.job.manager is not None and self.job.manager.process is process

    def _claimed(self, process: Process) -> None:
        manager = self.managers.get(process.name)
        if manager is not None:
            manager.coordination.claimed()

    # ------------------------------------------------------------------ checks

    def _check(self) -> None:
        self._turns += 1
        if self._turns % _CHECK_EVERY == 0:
            check_credit(self)
            self._sending.check(self)
        if self._turns % _CHECK_MEMORY_EVERY == 0:
            check_memory(self)
