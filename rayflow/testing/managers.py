"""Simulated job manager processes. Each has a job master of its own over the same storage; the newest is the one that
the cluster believes in: it has the highest *tenure* (`actors.tenure`). Older ones may live on behind a cut, until
they find out: from a worker; as they look at the tenures on storage now and then (`actors.tenure`; not behind a cut,
for the worst case); or when another has claimed an attempt after theirs."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from rayflow.model.config import JobConfig
from rayflow.model.ids import JobId, SubtaskId
from rayflow.runtime.job_master import JobMaster
from rayflow.runtime.messages import FromSubtask, HeartbeatAnswered, ToSubtask
from rayflow.runtime.stepping import StepResult
from rayflow.testing.coordination import Coordination
from rayflow.testing.losses import Debt
from rayflow.testing.patience import Patience
from rayflow.testing.tidiness import check_tidied
from rayflow.testing.workers import SimPool, SimWorker
from rayflow.testing.world import Process

_RESTART_MS = 1_000

if TYPE_CHECKING:
    from rayflow.testing.simulation import SimJob, Simulation


class SimManager:
    """One job manager process of `job`."""

    def __init__(self, sim: Simulation, job: SimJob, process: Process, tenure: int) -> None:
        self.sim = sim
        self.tenure = tenure
        self.job = job
        self.process = process
        self.pool = SimPool(sim, self)
        self.master = JobMaster(
            job_id=JobId(job.id),
            graph=job.graph,
            config=job.config,
            workers=self.pool,
            io=sim.io.pool(process),
            open_store=sim.storage.opener(process),
            wake=partial(sim.world.wake, process),
            clock=sim.world,
            restore_from=job.restore_from,
            allow_duplicates=False,
            node_id=process.machine,
            recovering=tenure > 1,
        )
        process.step = self._step
        self._look_at_ms = sim.world.now + sim.heartbeat_timeout_ms
        self._debts: dict[SubtaskId, Debt] = {}
        config = JobConfig.from_flat(job.config)
        self.coordination = Coordination(sim.world, self.name, config)
        self.patience = Patience(self, config)
        self._looked_tidy = False

    def hear(self, worker: SimWorker, message: FromSubtask) -> None:
        """A subtask's report arrived."""
        self.patience.heard(worker, message)
        if isinstance(message, HeartbeatAnswered) and message.lacks:
            debt = self._debts.setdefault(message.subtask, Debt(self.sim.world, str(message.subtask)))
            debt.told(message)
        self.master.on_message(message)

    def sends(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """The master sends a message."""
        if subtask in self._debts:
            self._debts[subtask].sent(message)
        if self.master._run is not None:
            self.coordination.sent(subtask, message, self.master._run)

    def _settle(self) -> None:
        """All that came is handled: what a subtask that is here lacks has been sent again."""
        debts, self._debts = self._debts, {}
        for subtask, debt in debts.items():
            worker = self.master._ctx.fleet.ready.get(subtask)
            if worker is not None:
                debt.settle(worker.outgoing)

    def _step(self, now_ms: int) -> StepResult:
        result = self.master.step(now_ms)
        self.patience.stepped()
        if self.master._run is not None:
            self.coordination.stepped(self.master._run)
            closing = self.master._run._ending._closing
            if closing is not None and closing._begun and not self._looked_tidy:
                self._looked_tidy = True
                check_tidied(self, self.coordination)
        if self._debts and not self.master._mailbox:
            self._settle()
        if self.master.superseded:
            # Who outbid it may be the older one: its process is started again, unless there is another (as Ray does).
            self.sim.end_manager(self, _RESTART_MS)
        elif now_ms >= self._look_at_ms:
            self._look_at_ms = now_ms + self.sim.heartbeat_timeout_ms
            if self.tenure < self.job.tenures and not self.sim.world.is_cut(self.process.machine):
                self.sim.end_manager(self, None)
        return result

    @property
    def name(self) -> str:
        """The process's name."""
        return self.process.name
