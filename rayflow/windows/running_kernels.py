# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `running`: which keys have rows in a window that moves on, and one number for each of them.

All take the open slices in order of time, `slices` (their numbers) and `heads` (their lists of entries, linked by
`following`); the first of them, to before place `high`, are in the window. The window moves to each of
[`begins[w]`, `ends[w]`) in turn. Compiled on first use and cached on disk; arguments must be writable C-contiguous
arrays.
"""

from __future__ import annotations

import numpy as np
from numba import njit

COUNT, CHANGES = 0, 1
"""Fields of `meta`: how many keys are in the window; how often one came or went."""
META_FIELDS = 2

_ADD, _MOST = 0, 1
"""As in `rayflow.state.accumulators.lanes`."""


@njit(cache=True, nogil=True)
def move(
    slices, heads, high, begins, ends, following, key_of, entries, places, order, meta, shows, keys, offsets
):
    """Keep account of the keys in the window: `order[: meta[COUNT]]` are those, `places` where each stands there,
    `entries` how many of its entries are in the window. Where `shows`, `keys[offsets[w] : offsets[w + 1]]` become
    the keys of window w. Return what `meta[CHANGES]` was at the first of them."""
    low, changes = 0, meta[CHANGES]
    for w in range(len(begins)):
        # First what comes, then what goes: a key that does both stays where it is.
        while high < len(slices) and slices[high] < ends[w]:
            entry = np.int64(heads[high])
            while entry >= 0:
                key = key_of[entry]
                if entries[key] == 0:
                    places[key] = meta[COUNT]
                    order[meta[COUNT]] = key
                    meta[COUNT] += 1
                    meta[CHANGES] += 1
                entries[key] += 1
                entry = np.int64(following[entry])
            high += 1
        while low < high and slices[low] < begins[w]:
            entry = np.int64(heads[low])
            while entry >= 0:
                key = key_of[entry]
                entries[key] -= 1
                if entries[key] == 0:
                    meta[COUNT] -= 1
                    meta[CHANGES] += 1
                    last = order[meta[COUNT]]
                    order[places[key]] = last
                    places[last] = places[key]
                entry = np.int64(following[entry])
            low += 1
        if shows:
            at, count = offsets[w], meta[COUNT]
            for i in range(count):
                keys[at + i] = order[i]
            offsets[w + 1] = at + count
        if w == 0:
            changes = meta[CHANGES]
    return changes


@njit(cache=True, nogil=True)
def move_sums(
    slices, heads, high, begins, ends, following, key_of, numbers, totals, shows, keys, offsets, out
):
    """Keep the sum of `numbers` (by entry) of each key in `totals`, by adding what comes and subtracting what goes;
    where `shows`, write those of `keys` into `out`. As `move`."""
    low = 0
    for w in range(len(begins)):
        while high < len(slices) and slices[high] < ends[w]:
            entry = np.int64(heads[high])
            while entry >= 0:
                totals[key_of[entry]] += numbers[entry]
                entry = np.int64(following[entry])
            high += 1
        while low < high and slices[low] < begins[w]:
            entry = np.int64(heads[low])
            while entry >= 0:
                totals[key_of[entry]] -= numbers[entry]
                entry = np.int64(following[entry])
            low += 1
        if shows:
            for i in range(offsets[w], offsets[w + 1]):
                out[i] = totals[keys[i]]


@njit(cache=True, nogil=True)
def _combined(operation, one, other):
    # NaN is not equal to itself: it is the most, and the least only beside another.
    if operation == _ADD:
        return one + other
    if operation == _MOST:
        return one if one >= other or one != one else other
    return other if one != one or other < one else one


@njit(cache=True, nogil=True)
def move_folds(
    slices,
    heads,
    high,
    begins,
    ends,
    bound,
    width,
    following,
    key_of,
    operation,
    identity,
    numbers,
    after,
    fronts,
    backs,
    totals,
    shows,
    keys,
    offsets,
    out,
):
    """As `move_sums`, for what cannot be subtracted: see `running`. `bound` is where the back begins; return it."""
    low = 0
    for w in range(len(begins)):
        if begins[w] > bound:
            for at in range(low, high):
                entry = np.int64(heads[at])
                while entry >= 0:
                    key = key_of[entry]
                    fronts[key], backs[key], totals[key] = identity, identity, identity
                    entry = np.int64(following[entry])
            if not shows:
                # What comes next is not known yet.
                return np.iinfo(np.int64).min
            while low < len(slices) and slices[low] < begins[w]:
                low += 1
            bound = -(-begins[w] // width) * width
            high = low
            while high < len(slices) and slices[high] < bound:
                high += 1
            for at in range(high - 1, low - 1, -1):
                entry = np.int64(heads[at])
                while entry >= 0:
                    key = key_of[entry]
                    after[entry] = fronts[key]
                    fronts[key] = _combined(operation, numbers[entry], fronts[key])
                    totals[key] = fronts[key]
                    entry = np.int64(following[entry])
        while high < len(slices) and slices[high] < ends[w]:
            entry = np.int64(heads[high])
            while entry >= 0:
                key = key_of[entry]
                backs[key] = _combined(operation, backs[key], numbers[entry])
                totals[key] = _combined(operation, fronts[key], backs[key])
                entry = np.int64(following[entry])
            high += 1
        while low < high and slices[low] < begins[w]:
            entry = np.int64(heads[low])
            while entry >= 0:
                key = key_of[entry]
                fronts[key] = after[entry]
                totals[key] = _combined(operation, fronts[key], backs[key])
                entry = np.int64(following[entry])
            low += 1
        if shows:
            for i in range(offsets[w], offsets[w + 1]):
                out[i] = totals[keys[i]]
    return bound


@njit(cache=True, nogil=True)
def repeat_bounds(starts, offsets, size, firsts, ends):
    """Write the start of window w, and its end, into places `offsets[w]` to before `offsets[w + 1]`."""
    for w in range(len(starts)):
        for i in range(offsets[w], offsets[w + 1]):
            firsts[i] = starts[w]
            ends[i] = starts[w] + size
