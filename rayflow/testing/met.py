"""Which faults a run has really met, and in which situation.

A fault that was drawn may strike nobody, or nothing that matters. So it is counted where it happens; `ROWS` is the
table that a sweep has to fill (`python -m tests.simulation --coverage`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayflow.testing.managers import SimManager
    from rayflow.testing.simulation import Simulation
    from rayflow.testing.workers import SimWorker

ROWS = (
    "subtask killed while processing",
    "subtask killed while aligning",
    "subtask killed while snapshotting",
    "subtask killed after its ack",
    "subtask killed during recovery",
    "job manager killed before the manifest is published",
    "job manager killed after the manifest is published",
    "job manager and subtasks killed at once",
    "partition: job manager, subtask",
    "partition: subtask, subtask",
    "partition: one way",
    "partition: flapping",
    "zombie writes after healing",
    "stopped beyond the lease, then continued",
    "storage: error",
    "storage: slow",
    "storage: applied, no answer",
    "storage: torn",
    "storage: flipped",
    "storage: missing",
    "storage: latest checkpoint corrupt",
    "sink: stalled",
    "sink: outcome unknown",
    "control message lost",
)


def killed(sim: Simulation, worker: SimWorker) -> None:
    """A subtask's process is about to be killed."""
    engine = worker.engine
    phase = engine._checkpoint_phase(engine._task)
    attempt = worker.pool.manager.master._ctx.attempt
    if attempt > 1 and not (engine.is_running and engine._fence.attempt == attempt):
        sim.injector.met["subtask killed during recovery"] += 1
    elif phase is not None:
        doing = "aligning" if phase["phase"] == "aligning" else "snapshotting"
        sim.injector.met[f"subtask killed while {doing}"] += 1
    elif _acked(sim, worker) > _announced(sim):
        sim.injector.met["subtask killed after its ack"] += 1
    elif engine.is_running:
        sim.injector.met["subtask killed while processing"] += 1


def manager_killed(sim: Simulation, manager: SimManager) -> None:
    """The job manager's process is about to be killed."""
    published = sim.storage.newest_published(manager.job.id)
    if published > _announced(sim):
        sim.injector.met["job manager killed after the manifest is published"] += 1
    elif any(_acked(sim, worker) > published for worker in manager.pool.workers.values()):
        sim.injector.met["job manager killed before the manifest is published"] += 1


def cut(sim: Simulation, pairs: list[tuple[str, str]]) -> None:
    """These machines are about to be cut off from one another, the first of each pair from the second."""
    managers = {manager.process.machine for manager in sim.managers.values() if manager.process.alive}
    workers = {worker.process.machine for worker in sim.workers.values() if worker.process.alive}
    met = sim.injector.met
    if any((a in managers and b in workers) or (b in managers and a in workers) for a, b in pairs):
        met["partition: job manager, subtask"] += 1
    if any(a in workers and b in workers for a, b in pairs):
        met["partition: subtask, subtask"] += 1
    if any((b, a) not in pairs and (b, a) not in sim.world.cuts for a, b in pairs):
        met["partition: one way"] += 1


def _acked(sim: Simulation, worker: SimWorker) -> int:
    """The newest checkpoint that the worker has acknowledged in this attempt, 0 where there is none."""
    attempt, checkpoint = worker.acked
    return checkpoint if worker.process.alive and attempt == worker.engine._fence.attempt else 0


def _announced(sim: Simulation) -> int:
    return 0 if sim.job is None else sim.storage.announced.get(sim.job.id, 0)
