"""What a job can be watched by: numbers that the engine keeps about itself, without knowing who reads them.

Beside `protocol`, and as pure: no Arrow, no clock, no I/O, no threads. Writers add to counters and set gauges on
their own thread, once per batch and never per row; readers take snapshots whenever they like. `metrics` has the
counters, gauges and groups of them that operators, sources, sinks and the engine share; `imbalance` tells when rows lie
unevenly on the subtasks of an operator.
"""
