"""Every decision that must be right, as small pure machines.

A machine is told events (past tense) and answers commands (imperative): `handle(event) -> tuple[Command, ...]`.
Events and commands are frozen values; what a machine remembers belongs to it alone. Nothing here reads a clock,
does I/O, starts threads, draws random numbers or knows Arrow or Ray: time comes with the events, and somebody
else (the runtime, in production as in simulation) carries commands out and tells what became of them. So the
same code runs under the simulator's virtual clock and in a Ray actor, and equal events give equal commands.

Each module opens with its theory of operation and numbered invariants. They are checked always, once per event:
an event that breaks one raises `ProtocolViolation`, which is a bug in rayflow, and leaves the machine as it was.
What only *may* come late, twice or from the past (messages cross processes) is not an error: it is ignored, or
dropped and counted, and the event's docstring says so.

| module | decides |
|---|---|
| `key_groups` | which subtask owns which keys |
| `credit` | how much each producer may send: bounded memory, no channel starved |
| `network_budget` | what the network share is spent on, so that all that waits stays within it |
| `alignment` | when a task may snapshot, aligned or not, and what it records |
| `departures` | when barriers that are stuck at outputs overtake |
| `split_watermarks`, `watermark_merging` | how far event time has come: at a source, and where channels meet |
| `watermarks` | what both say |
| `splits` | which source subtask reads what, and how far event time may go meanwhile |
| `sequencing` | what is stale, repeated or missing on a channel |
| `delivery` | which control message is accepted, and which is sent again |
| `coordinator` (values in `checkpointing`) | when checkpoints begin, are complete, and go |
| `increments`, `retention` | what a checkpoint may build on; when the files of one that was discarded may go |
| `commits` | when a staged transaction may be published |
| `replication`, `replication_messages` | which holder of replicated objects may answer, and who succeeds whom |
| `lifecycle` | the states of jobs and subtasks |
| `failover` | whether and when a failed attempt is followed by another |
| `salting` | which keys are spread over subtasks, where hot ones are to be |
| `batching` (values in `batching_messages`) | when rows are written to a system outside, and what follows a failure |
| `rate`, `pace` | static rate limits; how many rows a task takes at a time |
| `memory_pressure` | when a process sheds buffers, and when it ends for its size |
| `unhandled` | the end of an exhaustive `match` |
"""
