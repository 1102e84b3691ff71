"""What `deduplicate` remembers of the keys that it has seen, and how little memory that takes.

| module | holds |
|---|---|
| `times`, `generations` | when a key is forgotten: one rule for every method; sets that are dropped whole |
| `seen_keys`, `seen_on_disk` | the keys themselves, each with the time of its row (exact); on disk, those not in use |
| `id_set` | integers, in the containers of Roaring bitmaps (exact) |
| `bloom`, `bloom_sizing` | blocked Bloom filters that grow, and how large they must be (approximate) |
| `kernels`, `id_kernels`, `bloom_kernels` | their compiled loops |
"""
