"""Where Arrow begins: record batches, key hashing, splitting among consumers, expressions and their kernels.

Everything here is a function of its arguments: no state of a job, no I/O, no clock, no threads.

| module | holds |
|---|---|
| `changelog` | the hidden column of upsert streams |
| `memory` | room for columns that come and go with every batch |
| `tables` | joining, cutting, measuring and showing batches |
| `hashing` | the stable hash of key columns, and key groups |
| `partition` | splitting batches among the consumers of an exchange |
| `key_traffic`, `heavy_hitters` | which keys and key groups rows go to; the most frequent keys, in bounded memory |
| `expressions` | what users write: `col`, `lit`, `when` and their methods |
| `nodes`, `kernels` | how expressions are evaluated: trees over Arrow kernels |
| `event_times` | which event times can be believed |
| `modulo` | `%` and its truncating sister |
| `ordering` | what rows are ordered by: `col("x").desc()` |
| `python_values`, `type_hints` | Arrow values and types as users' Python sees and writes them |
| `user_aggregates` | aggregates that users write |
| `aggregates` | what an aggregate computes, and its result type |
"""
