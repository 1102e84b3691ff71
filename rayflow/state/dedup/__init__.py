"""What `deduplicate` remembers of the keys that it has seen, and how little memory that takes.

| module | holds |
|---|---|
| `times` | when a key is forgotten: one rule for every method |
| `seen_keys` | the keys themselves, each with the time of its row (exact) |
| `id_set` | integers, in the containers of Roaring bitmaps (exact) |
| `bloom`, `bloom_sizing` | blocked Bloom filters that grow, and how large they must be (approximate) |
| `*_kernels` | their compiled loops |
"""
