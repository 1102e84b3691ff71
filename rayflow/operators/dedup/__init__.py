"""`deduplicate`: the first row of each key, and none of the others.

| module | holds |
|---|---|
| `operator` | the operator: times, counting, what is emitted, when things are forgotten |
| `memories` | what the operator asks of the ways to remember keys |
| `exact`, `bitmap`, `bloom` | these ways, and their state in checkpoints |
"""
