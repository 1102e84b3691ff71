"""State: in memory by key, and in checkpoints on storage.

In memory: `key_index` turns keys into slots (`key_codec`, `key_table` and the compiled `key_kernels` are its
layers), `accumulators` keep columns by slot, `rows` whole rows found by slot, `top_rows` whole rows by slot
in an order (`sort_codes`, `top_kernels`), `cells` and `map_cells` users' own states, `timers` their timers
(`value_types`: which values fit, `plain_data`: these as text). `pair_table` finds values by slot; `fixed_width`
shows columns as numbers, `pair_kernels` and `row_kernels` are more compiled loops. `partials` are aggregates on their
way to where they are merged, `dedup` is what `deduplicate` remembers. `measuring` finds how much memory all that takes.
`disk` keeps the rows of keys that do not fit. On the way to storage: `parts` is what operators hand over at a barrier,
`files` and `manifest` what a checkpoint consists of (`in_flight`: the rows under way; `chains`: files that several
checkpoints share), `finding` which there are, `storage` where they lie (`s3`, `s3_uploads`: on S3), `publishing` how a
write whose answer got lost is resolved, `claims` who owns the next attempt, `pins` which checkpoints another job is
about to start from.
"""
