"""Deterministic simulation of a whole cluster: the runtime's own engines on a virtual clock, in an order that a seed
decides, under faults that it chooses. Without Ray, threads, sockets or sleeps.

| module | holds |
|---|---|
| `world` | the clock, the scheduler, what is under way, the trace |
| `cluster` | the simulated ports of the engines: network, workers, their pool |
"""
