"""Faults on purpose, in a running job: who is hit when, how, and how long it took to recover.

| module | has |
|---|---|
| `schedule` | which faults happen when, drawn by a seed or read from a file. Pure |
| `victims` | from a role to the processes that have it at the moment. Pure |
| `effects` | what does it: on every node concerned an agent that signals processes there |
| `asking` | what a user asked for, as faults |
| `injecting` | `Injector`: goes through a schedule on one job, and reports |
| `running` | what `JobHandle.chaos` and `rayflow chaos` do |
| `recoveries` | from what was seen of the job to a recovery time per fault. Pure |
| `compared_runs` | a job file run without and with faults, and its outputs compared |
"""
