# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loop of sliding windows: numbering the keys of several slices together.

Compiled on first use and cached on disk; arguments must be writable C-contiguous arrays.
"""

from __future__ import annotations

from numba import njit


@njit(cache=True, nogil=True)
def number(keys, where, places, distinct):
    """Number `keys` by first appearance: into `places` for each, into `distinct` the keys in order; return how
    many are distinct. `where` (int32, by key) is −1 everywhere, and is left so."""
    count = 0
    for i in range(len(keys)):
        key = keys[i]
        place = where[key]
        if place < 0:
            place = count
            where[key] = place
            distinct[count] = key
            count += 1
        places[i] = place
    for i in range(count):
        where[distinct[i]] = -1
    return count
