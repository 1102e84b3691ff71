"""Deterministic simulation of a whole cluster: the runtime's own engines on a virtual clock, in an order that a seed
decides, under faults that it chooses. Without Ray, threads (but for `io`), sockets or sleeps.

| module | holds |
|---|---|
| `simulation` | `Simulation`: runs any job graph under faults, and says what became of it |
| `faults` | `Faults`: what may go wrong; `draw_faults` makes one from a seed; the injector decides when |
| `invariants` | what holds whatever the job; more is checked where it is seen (`network`, `storage`) |
| `world` | the clock, the scheduler, what is under way, the trace |
| `network`, `storage`, `io` | the data plane; object stores; the I/O pool |
| `workers`, `managers` | simulated processes, and the pool through which a manager has its workers |
"""
