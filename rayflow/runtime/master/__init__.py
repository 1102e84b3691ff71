"""What the job master is made of; `rayflow.runtime.job_master` puts it together.

| module | has |
|---|---|
| `job` | facts about the job that never change: graph, configuration, subtasks, sources, sinks |
| `run`, `phases` | the job's life: its phases, and what moves between them |
| `context` | what the parts of one running master share |
| `opening`, `deployment` | from the end of one attempt to the next; every subtask into it |
| `running`, `board` | a running attempt, and how far each subtask has come in it |
| `recovery` | how long a recovery takes, and where |
| `restarts` | whether another attempt follows a failure |
| `ending`, `closing` | the job's state, and its end; what is done at the end |
| `sink_cleanup` | what the sinks of an ended job clean up, and tell |
| `records` | the job's metadata on storage, up to date |
| `background` | work on the I/O pool, answered on the master's own thread |
| `storage` | the job's directory on checkpoint storage: attempts, metadata, manifests (blocking) |
| `beginning` | what happens before an attempt deploys: claim, sink hooks, choice of the checkpoint (blocking) |
| `restore` | which state file goes to which subtask |
| `fleet` | the workers: ready or lost, addresses, heartbeats, statistics |
| `salting` | which keys are salted where hot ones are to be |
| `key_skew` | how rows lie on subtasks and keys, and the warning where they lie badly |
| `sources`, `discovery` | the assignment of splits, and their discovery |
| `checkpoints` | the coordinator's shell: triggers, acks, manifests, retention |
| `checkpoint_books` | what became of each checkpoint |
| `events` | the job's event log |
| `reports` | `describe`, `metrics`: what the inspecting commands print |
"""
