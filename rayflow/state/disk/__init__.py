"""State on the node's disk, with what is in use in memory.

Rows become bytes (`row_codec`, `key_bytes`) in a key-value store (`row_store`; `rocks`: RocksDB, in the folders of
`scratch`). `cached_keys` is the key index of operators whose rows lie there, `stored_rows` what a barrier sees of it,
`slot_rows` and `state_rows` what it needs of their columns and of users' states, `absent_keys` spares it reads of keys
that never were. `share` is what an operator gets of all that.
`sorted_runs` keeps states that merge: written once each time memory is full, and merged when they are wanted.
"""
