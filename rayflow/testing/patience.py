"""What is checked, in any simulated job, of whom a manager gives up, by number.

I8   a worker that is well is not ended as unreachable, nor as one that does not close; one that has been silent for
     longer than any patience is not waited for. (A job gets over the one, with a restart that it did not need, and
     over the other, later than it should. So the end of a run does not show it.)

What is the matter with a worker the simulation knows, and the manager does not. Time in which the manager itself
stood still counts against nobody.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayflow.model.config import JobConfig
from rayflow.runtime.master.fleet import LOADING_FACTOR
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.messages import FromSubtask, PeerLost

if TYPE_CHECKING:
    from rayflow.testing.managers import SimManager
    from rayflow.testing.workers import SimWorker

_SUSPECT_FOR_MS = 5_000
_STOP_MS = 10_000
_LOOK_EVERY_MS = 1_000


class Patience:
    """Watches one manager."""

    def __init__(self, manager: SimManager, config: JobConfig) -> None:
        self._manager = manager
        self._world = manager.sim.world
        self._interval_ms = config.heartbeat_interval_ms
        self._longest_ms = LOADING_FACTOR * config.heartbeat_timeout_ms + 3 * config.heartbeat_interval_ms
        self._stepped_ms = self._look_at_ms = self._world.now
        self._broken_ms: int | None = None
        # When each worker, by its name, was last heard of.
        self._heard_ms: dict[str, int] = {}

    def heard(self, worker: SimWorker, message: FromSubtask) -> None:
        """A worker's report arrived."""
        self._heard_ms[worker.name] = self._world.now
        if isinstance(message, PeerLost):
            self._broken_ms = self._world.now

    def stepped(self) -> None:
        """The manager has taken a step."""
        now = self._world.now
        gap_ms, self._stepped_ms = now - self._stepped_ms, now
        if gap_ms > self._interval_ms:
            self._heard_ms = {name: heard_ms + gap_ms for name, heard_ms in self._heard_ms.items()}
            self._broken_ms = None if self._broken_ms is None else self._broken_ms + gap_ms
        if now >= self._look_at_ms:
            self._look_at_ms = now + _LOOK_EVERY_MS
            self._look(now)

    def _look(self, now: int) -> None:
        run = self._manager.master._run
        if run is None or run.phase in (Phase.CLOSING, Phase.CLOSED):
            return
        for subtask, worker in self._manager.master._ctx.fleet.ready.items():
            silent_ms = now - self._heard_ms.setdefault(worker.address, now)
            if silent_ms > self._longest_ms:
                self._world.violated(
                    f"I8: {subtask} has been silent for {silent_ms} ms, and {self._manager.name} still waits for it"
                )

    def ends(self, worker: SimWorker, *, unreachable: bool) -> None:
        """The manager ends a worker."""
        run = self._manager.master._run
        if run is None or not self._is_well(worker):
            return
        now, broken_ms = self._world.now, self._broken_ms
        if unreachable and (broken_ms is None or now - broken_ms > _SUSPECT_FOR_MS):
            self._world.violated(f"I8: {worker.name}, which is well, is given up by {self._manager.name}")
        held_up = worker.process.stalled_until_ms > now - _STOP_MS or self._was_frozen(self._manager.name)
        if run.phase in (Phase.FINISHING, Phase.ENDING) and not unreachable and not held_up:
            self._world.violated(f"I8: {worker.name}, which is well, has not closed for {self._manager.name}")

    def _is_well(self, worker: SimWorker) -> bool:
        """Whether nothing has happened to it, nor to what it says."""
        world, process = self._world, worker.process
        cut = world.cuts or world.healed or self._manager.sim.faults.lost_call
        return process.alive and not cut and not self._was_frozen(worker.name)

    def _was_frozen(self, name: str) -> bool:
        return name in self._world.thawed or self._world.processes[name].frozen
