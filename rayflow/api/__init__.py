"""What users write: environments, streams and their specifications. Plans only; nothing here touches data.

| module | what |
|---|---|
| `environment` | `StreamEnvironment`: holds the stream graph, plans and executes it |
| `sources` | its `read_*`, `from_*` and `generate` |
| `stage`, `steps` | what every operator has: name, uid, parallelism, resources; adding one behind a stream |
| `streams` | `DataStream`: relational steps, exchanges, grouping |
| `joins` | its joins with another stream |
| `functions` | its steps that run users' Python functions |
| `outputs` | its sinks |
| `keyed`, `windowed` | `KeyedStream`, `WindowedStream` |
| `skew` | `Skew`: what is put before an aggregate of hot keys |
| `deduplicating` | what `deduplicate` is asked for |
| `top_n` | the first rows of each key: orders, and what is known of the result |
| `processing` | process functions of keyed and of connected streams |
| `projection` | columns in, columns out: what select, rename and drop share |
| `returns` | the columns of Python functions, from `returns=` or type hints |
| `specs` | `Watermark` |
| `window_specs`, `window_plan`, `time_windows` | windows and triggers; a windowed stream's plan; tumbling and sliding |
| `row_windows`, `window_functions` | sessions, count windows, the global window; functions of whole windows |
| `aggregations`, `reducing` | `name=aggregate` arguments; `reduce` |
| `async_functions`, `side_outputs` | what `map_async` may be asked; tags and their rows |
| `error_policies` | `on_error`: which operators can leave out rows on which they raise |
| `plan_builder` | the stream graph as it grows, and its planning |
| `planning` | what is known of a stream, and errors at the user's line |
| `traits`, `state_places`, `code_reading` | what the plan warns of: about operators, their state, and users' code |
| `pruning` | columns that nobody reads are not read from files |
| `execution` | running a plan, here or on Ray, and collecting rows |
"""
