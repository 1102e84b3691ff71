"""The command line: `rayflow …`, and `python jobs/x.py …` through `rf.run`.

Commands parse, call the client or the API below, and print; they decide nothing about jobs. Modules are
imported when their command runs, so that `rayflow --help` is instant.

| module | has |
|---|---|
| `main` | the group of commands |
| `errors` | every way a command can end: exit codes and messages |
| `job_file`, `job_options` | loading a job; its options, and those of rayflow |
| `run_command`, `job_runner` | `rayflow run` and `plan`; building, submitting and watching a job |
| `progress`, `results` | what a running job does; the first rows of what it wrote |
| `inspect_commands` | `list`, `describe`, `metrics`, `cancel`, `checkpoints`, `events`, `logs` |
| `clean_command`, `state_commands` | `clean`; `state ls`, `read`, `rm` |
| `chaos_command`, `cluster_commands`, `memory_command` | `chaos`, `cluster`, `memory` |
| `tables` | tables and JSON for people and pipes |
"""
