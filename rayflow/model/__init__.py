"""Plain values every layer may use: ids, errors, durations, sizes, configuration, source locations.

The lowest layer: it imports nothing of rayflow, and neither Arrow nor Ray.

| module | has |
|---|---|
| `ids` | identifiers as types of their own |
| `errors` | errors that say who must act |
| `passing`, `tracebacks` | which errors may be gone next time; what to say of one that a user's code raised |
| `config`, `durations` | the configuration of a job; durations and sizes as people write them |
| `memory` | the memory model |
| `error_policy` | what becomes of rows on which an operator raises |
| `times` | event time as the engine counts it |
| `location` | the user's line of code |
| `results` | what a caller that waited for a job gets |
"""
