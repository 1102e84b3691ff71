"""Ray and Arrow Flight: thin shells that run the engines of `rayflow.runtime` on a cluster.

The only package, with those above it, that imports ray. `flight` is the data plane. `object_store` is `rayobj://`:
objects kept by groups (`holder_group`) of actors (`object_holder`, called through `holder_calls`).
"""
