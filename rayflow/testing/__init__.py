"""Deterministic simulation of a whole cluster: the runtime's own engines on a virtual clock, in an order that a seed
decides, under faults that it chooses. Without Ray, threads (but for `io`), sockets or sleeps.

Users test their own jobs with `rf.testing.simulate(env)`; `rf.testing.Faults` says what may go wrong.

| module | holds |
|---|---|
| `runs` | `simulate`: a user's job under the faults of many seeds, its outputs compared with the run without faults |
| `simulation` | `Simulation`: runs any job graph under faults, and says what became of it |
| `faults` | `Faults`: what may go wrong; `draw_faults` makes one from a seed; the injector decides when |
| `mishaps` | the faults that strike machines, processes and streams, carried out |
| `invariants` | what holds whatever the job; more is checked where it is seen (`network`, `storage`) |
| `world` | the clock, the scheduler, what is under way, the trace |
| `network`, `storage`, `io` | the data plane; object stores; the I/O pool |
| `workers`, `managers` | simulated processes, and the pool through which a manager has its workers |
| `restoring`, `losses` | what is checked of restores and of a job's failure; of lost control messages |
| `coordination`, `patience`, `tidiness` | of checkpoints' messages; of whom a manager gives up; of files left behind |
| `sending` | what is checked of outputs |
| `met` | which rows of the table of faults a run has really met |
| `outputs`, `comparison` | file sinks pointed elsewhere; lost, duplicated and differing rows of two outputs |
"""

from rayflow.testing.faults import Faults, Strike, draw_faults
from rayflow.testing.runs import SimulatedRun, SimulationReport, simulate

__all__ = ["Faults", "SimulatedRun", "SimulationReport", "Strike", "draw_faults", "simulate"]
