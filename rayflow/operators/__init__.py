"""What runs inside a task: the contracts of operators, sources and sinks, and the operators of a plain stream.

`contracts` comes first, `source_contract` what sources add. `stateless`, `map_batches` and `assign_watermarks` work
row by row or batch by batch, `aggregate`, `reduce`, `top_n` and `dedup` keep state by key, `joins` the rows of two
inputs, `sink` runs a `Sink` with two-phase commit. `functions` holds what operators that call users' Python share,
`keyed_parts` what those with keyed state do. `process` runs process functions: `process_functions` and `states` are
what users derive from and declare, `bound_states` and `keyed_states` what becomes of these in a subtask. Operators
know neither the graph they are part of nor the engine that drives them. `poison` says what becomes of rows on which an
operator raises. `transactions` is what users derive sinks with two-phase commit from. `batched_sink` is what users
derive sinks for systems outside from, `batched_writes` runs them. `untimed` lets rows without event time meet rows
that have it, `event_ticks` has event times as whole numbers.

`map_async` has many calls of a coroutine under way (`call_queue`), by way of the port `async_calls`.
"""
