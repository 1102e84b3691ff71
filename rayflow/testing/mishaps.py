"""What goes wrong with the simulated machines, processes and streams, carried out. The injector decides when.

A worker's process dies, or a manager's, or a machine with all that is on it; a process is frozen and thawed later; or
machines are cut off from one another, in one direction or both, perhaps again and again. Whoever has been cut off from
most of the cluster for a while is given up, and lives on behind the cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from rayflow.testing import met
from rayflow.testing.faults import Action
from rayflow.testing.managers import SimManager
from rayflow.testing.workers import LEASE_FACTOR, SimWorker
from rayflow.testing.world import Process

if TYPE_CHECKING:
    from rayflow.testing.simulation import Simulation

_GIVEN_UP_MS = 15_000
_RESTART_MS = 6_000
_STANDBY_MS = 1_000

_ABOUT = re.compile(r"[\w.\-]+\[\d+\]/\d+|manager/\d+")


class Mishaps:
    """Carries faults out on the cluster of `sim`."""

    def __init__(self, sim: Simulation) -> None:
        self._sim = sim

    def act(self, action: Action, line: str | None) -> bool:
        """Carry a fault out, where `line` is told on whom it is about; return whether it could be."""
        about = [] if line is None else _ABOUT.findall(line)
        worker = self._worker(about)
        match action:
            case "crash":
                return worker is not None and self._crash(worker)
            case "freeze":
                return worker is not None and self._freeze(worker.process)
            case "crash master":
                return self._crash_master()
            case "freeze master":
                manager = self._manager()
                return manager is not None and self._freeze(manager.process)
            case "cut":
                return self._cut(worker)
            case "isolate master":
                return self._isolate_master()
            case "crash machine":
                return worker is not None and self._crash_machine(worker.process.machine)
            case "crash all":
                return self._crash_all()
            case "damage":
                return worker is not None and self._damage(worker)

    def _worker(self, about: list[str]) -> SimWorker | None:
        for name in about:
            worker = self._sim.workers.get(name)
            if worker is not None and worker.process.alive:
                return worker
        running = [w for w in self._sim.workers.values() if w.process.alive and w.process.step is not None]
        return running[self._sim.world.draw(len(running))] if running else None

    def _manager(self) -> SimManager | None:
        manager = None if self._sim.job is None else self._sim.job.manager
        return manager if manager is not None and manager.process.alive else None

    def _crash(self, worker: SimWorker) -> bool:
        self._sim.world.note(f"fault: crash {worker.name}")
        met.killed(self._sim, worker)
        self._sim.end_worker(worker)
        return True

    def _crash_master(self) -> bool:
        manager = self._manager()
        if manager is None:
            return False
        self._sim.world.note(f"fault: crash {manager.name}")
        met.manager_killed(self._sim, manager)
        self._sim.end_manager(manager, self._sim.world.draw(_RESTART_MS))
        return True

    def _crash_machine(self, machine: str) -> bool:
        self._sim.world.note(f"fault: crash {machine}")
        workers = [w for w in self._sim.workers.values() if w.process.alive and w.process.machine == machine]
        managers = [m for m in self._sim.managers.values() if m.process.machine == machine]
        if workers and any(manager.process.alive for manager in managers):
            self._sim.injector.met["job manager and subtasks killed at once"] += 1
        for worker in workers:
            self._sim.end_worker(worker)
        for manager in managers:
            self._sim.end_manager(manager, self._sim.world.draw(_RESTART_MS))
        return True

    def _crash_all(self) -> bool:
        self._sim.world.note("fault: crash all")
        self._sim.injector.met["job manager and subtasks killed at once"] += 1
        for manager in list(self._sim.managers.values()):
            self._sim.end_manager(manager, self._sim.world.draw(_RESTART_MS))
        for worker in [w for w in self._sim.workers.values() if w.process.alive]:
            self._sim.end_worker(worker)
        return True

    def _damage(self, worker: SimWorker) -> bool:
        """A file that the newest checkpoint needs rots on storage; then somebody dies, so that it is restored."""
        job = self._sim.job
        path = None if job is None else self._sim.storage.rot(self._sim.storage_url, job.id)
        if path is None:
            return False
        self._sim.world.note(f"fault: {path} is damaged")
        return self._crash(worker)

    def _freeze(self, process: Process) -> bool:
        if process.frozen:
            return False
        for_ms = self._sim.injector.duration_ms()
        self._sim.world.note(f"fault: freeze {process.name} for {for_ms} ms")
        process.frozen = True
        beyond_lease = for_ms > LEASE_FACTOR * self._sim.heartbeat_timeout_ms
        self._sim.world.after(
            for_ms, f"thaw {process.name}", partial(self._thaw, process, beyond_lease=beyond_lease)
        )
        return True

    def _thaw(self, process: Process, *, beyond_lease: bool = False) -> None:
        if process.frozen and process.alive and beyond_lease:
            self._sim.injector.met["stopped beyond the lease, then continued"] += 1
        if process.frozen:
            self._sim.world.thawed.add(process.name)
        process.frozen = False
        process.woken = True

    def _cut(self, worker: SimWorker | None) -> bool:
        machines = self._sim.machine_names
        one = worker.process.machine if worker is not None else machines[self._sim.world.draw(len(machines))]
        others = [m for m in machines if m != one]
        if not others:
            return False
        if self._sim.world.happens(0.5):
            others = [others[self._sim.world.draw(len(others))]]
        ways = self._sim.world.draw(3)
        pairs = {(one, other) for other in others if ways != 1} | {
            (other, one) for other in others if ways != 2
        }
        pairs -= self._sim.world.cuts
        if not pairs:
            return False
        for_ms = self._sim.injector.duration_ms()
        flaps = 1 + (self._sim.world.draw(4) if self._sim.world.happens(0.2) else 0)
        self._begin_cut(sorted(pairs), for_ms, flaps)
        return True

    def _isolate_master(self) -> bool:
        """The manager's machine is cut off from all others, and a standby takes over before the manager knows."""
        manager = self._manager()
        if manager is None:
            return False
        here = manager.process.machine
        others = [machine for machine in self._sim.machine_names if machine != here]
        pairs = {(here, other) for other in others} | {(other, here) for other in others}
        if not pairs - self._sim.world.cuts:
            return False
        self._begin_cut(sorted(pairs), self._sim.injector.duration_ms() + _STANDBY_MS, 1)
        self._sim.world.note(f"{manager.name} is given up")
        self._sim.succeed(manager, self._sim.world.draw(_STANDBY_MS))
        self._bury_later(manager)
        return True

    def _begin_cut(self, pairs: list[tuple[str, str]], for_ms: int, flaps: int) -> None:
        said = ", ".join(f"{a}→{b}" for a, b in pairs)
        self._sim.world.note(f"fault: cut {said} for {for_ms} ms")
        met.cut(self._sim, pairs)
        self._sim.world.cuts |= set(pairs)
        self._sim.network.cut()
        self._sim.world.after(for_ms, f"heal {said}", partial(self._end_cut, pairs, for_ms, flaps))
        self._give_up_across(pairs)

    def _end_cut(self, pairs: list[tuple[str, str]], for_ms: int, flaps: int) -> None:
        self._sim.world.cuts -= set(pairs)
        self._sim.world.healed |= {machine for pair in pairs for machine in pair}
        if flaps > 1 and self._sim.injector.active:
            again = partial(self._begin_cut, pairs, for_ms, flaps - 1)
            self._sim.world.after(
                1 + self._sim.world.draw(for_ms),
                "flap",
                lambda: self._flap(again),
            )

    def _flap(self, cut_again: Callable[[], None]) -> None:
        if self._sim.injector.active:
            self._sim.injector.met["partition: flapping"] += 1
            cut_again()

    def _give_up_across(self, pairs: list[tuple[str, str]]) -> None:
        """The cluster gives up whoever has been cut off from most of it for a while: workers are reported lost, and a
        manager is replaced. What is given up lives on behind the cut."""
        manager = self._manager()
        if manager is None:
            return
        for worker in list(manager.pool.workers.values()):
            if {(worker.process.machine, manager.process.machine)} & set(pairs):
                self._sim.world.after(
                    self._sim.world.draw(_GIVEN_UP_MS),
                    f"is {worker.name} cut off",
                    partial(self._lose_if_cut, worker),
                )
        self._sim.world.after(
            self._sim.world.draw(_GIVEN_UP_MS),
            f"is {manager.name} cut off",
            partial(self._replace_if_cut, manager),
        )

    def _lose_if_cut(self, worker: SimWorker) -> None:
        if self._sim.world.cut_off(worker.process, worker.pool.manager.process) and not worker.given_up:
            self._sim.lose(worker, "its node died", 0)

    def _replace_if_cut(self, manager: SimManager) -> None:
        here = manager.process.machine
        cut = all((here, other) in self._sim.world.cuts for other in self._sim.machine_names if other != here)
        if cut and manager.process.alive and manager.job.manager is manager and manager.job is self._sim.job:
            self._sim.world.note(f"{manager.name} is given up")
            self._sim.succeed(manager, self._sim.world.draw(_RESTART_MS))
            self._bury_later(manager)

    def _bury_later(self, manager: SimManager) -> None:
        """A manager that was given up dies once it can be reached again."""

        def bury() -> None:
            here = manager.process.machine
            if any((here, other) in self._sim.world.cuts for other in self._sim.machine_names):
                self._sim.world.after(
                    1_000 + self._sim.world.draw(_GIVEN_UP_MS), f"reach {manager.name}", bury
                )
            else:
                self._sim.end_manager(manager, None)

        bury_in = 1_000 + self._sim.world.draw(_GIVEN_UP_MS)
        self._sim.world.after(bury_in, f"reach {manager.name}", bury)

    def break_stream(self) -> bool:
        """Break some open stream; return whether there is one."""
        channels = self._sim.network.channels
        if not channels:
            return False
        channel = channels[self._sim.world.draw(len(channels))]
        self._sim.world.note(f"fault: break {channel.id} a{channel.attempt}")
        self._sim.network.break_off(channel, "connection reset")
        return True

    def heal(self) -> None:
        """What is cut, frozen or slow is so no more."""
        self._sim.world.healed |= {machine for pair in self._sim.world.cuts for machine in pair}
        self._sim.world.cuts.clear()
        for process in list(self._sim.world.processes.values()):
            if process.frozen:
                self._thaw(process)
        self._sim.slow_machines.clear()
        for process in self._sim.world.processes.values():
            process.slowness_ms = 0
