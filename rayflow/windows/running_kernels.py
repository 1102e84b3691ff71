# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `running`: which keys have rows in a window that moves on, and one number for each of them.

The window moves to each of [`begins[w]`, `ends[w]`) in turn, over the open slices in order of time: `slices` (their
numbers) and `heads` (their lists of entries, linked by `following`), the first of which, to before place `high`, are in
the window. `move` writes down what came and went, so that the loops for numbers follow no lists: entries `moved`, of
the keys `movers`; with window w came those from `cuts[2 * w]` to before `cuts[2 * w + 1]`, and went those from there
to before `cuts[2 * w + 2]`.

What a key has in a window is a *version*. In the first window every key has a new one, from then on those of which
an entry came or went. Versions that began with window w are `made[w]` to before `made[w + 1]`, of the keys `owners`;
the loops for numbers write one a version.

Compiled on first use and cached on disk; arguments must be writable C-contiguous arrays.
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
    slices, heads, high, begins, ends, following, key_of, entries, places, order, current, meta, shows,
    moved, movers, cuts, owners, made, rows, offsets, changes
):  # fmt: skip
    """Keep account of the keys in the window: `order[: meta[COUNT]]` are those, `places` where each stands there,
    `entries` how many of its entries are in the window, `current` the version at each place.

    Where `shows`, `rows[offsets[w] : offsets[w + 1]]` become the versions in window w, and `changes[w]` what
    `meta[CHANGES]` was: windows with the same have the same keys."""
    low, versions, at, count = 0, 0, 0, meta[COUNT]
    for w in range(len(begins)):
        since = versions
        renews = shows and w > 0
        # First what comes, then what goes: a key that does both stays where it is.
        while high < len(slices) and slices[high] < ends[w]:
            entry = np.int64(heads[high])
            while entry >= 0:
                key = key_of[entry]
                moved[at], movers[at] = entry, key
                at += 1
                if entries[key] == 0:
                    places[key], order[count], current[count] = count, key, -1
                    count += 1
                    meta[CHANGES] += 1
                entries[key] += 1
                # One version a window, however many entries come and go.
                if renews and current[places[key]] < since:
                    current[places[key]], owners[versions] = versions, key
                    versions += 1
                entry = np.int64(following[entry])
            high += 1
        cuts[2 * w + 1] = at
        while low < high and slices[low] < begins[w]:
            entry = np.int64(heads[low])
            while entry >= 0:
                key = key_of[entry]
                moved[at], movers[at] = entry, key
                at += 1
                entries[key] -= 1
                place = places[key]
                if entries[key] == 0:
                    count -= 1
                    meta[CHANGES] += 1
                    last = order[count]
                    order[place], places[last], current[place] = last, place, current[count]
                elif renews and current[place] < since:
                    current[place], owners[versions] = versions, key
                    versions += 1
                entry = np.int64(following[entry])
            low += 1
        cuts[2 * w + 2] = at
        if shows:
            if w == 0:
                for place in range(count):
                    current[place], owners[place] = place, order[place]
                versions = count
            row = offsets[w]
            rows[row : row + count] = current[:count]
            offsets[w + 1], made[w + 1], changes[w] = row + count, versions, meta[CHANGES]
    meta[COUNT] = count


@njit(cache=True, nogil=True)
def move_sums(moved, movers, cuts, numbers, totals, owners, made, out):
    """Keep the sum of `numbers` (by entry) of each key in `totals`, by adding what comes and subtracting what goes,
    and write those of the versions into `out`."""
    for w in range(len(made) - 1):
        for i in range(cuts[2 * w], cuts[2 * w + 1]):
            totals[movers[i]] += numbers[moved[i]]
        for i in range(cuts[2 * w + 1], cuts[2 * w + 2]):
            totals[movers[i]] -= numbers[moved[i]]
        for i in range(made[w], made[w + 1]):
            out[i] = totals[owners[i]]


@njit(cache=True, nogil=True)
def _combined(operation, one, other):
    # NaN is not equal to itself: it is the most, and the least only beside another.
    if operation == _ADD:
        return one + other
    if operation == _MOST:
        return one if one >= other or one != one else other
    return other if one != one or other < one else one


@njit(cache=True, nogil=True)
def _combine_front(slices, heads, low, bound, following, key_of, operation, numbers, after, fronts):
    """Combine the numbers of the slices from place `low` to before slice `bound`, from the bound backwards."""
    high = low
    while high < len(slices) and slices[high] < bound:
        high += 1
    for at in range(high - 1, low - 1, -1):
        entry = np.int64(heads[at])
        while entry >= 0:
            key = key_of[entry]
            after[entry] = fronts[key]
            fronts[key] = _combined(operation, numbers[entry], fronts[key])
            entry = np.int64(following[entry])
    return high


@njit(cache=True, nogil=True)
def move_folds(
    slices, heads, high, begins, ends, following, key_of, moved, movers, cuts, bound, width, operation, identity,
    numbers, after, fronts, backs, shows, owners, made, out
):  # fmt: skip
    """As `move_sums`, for what cannot be subtracted: see `running`. `bound` is where the back begins; return it."""
    low = 0
    for w in range(len(begins)):
        if begins[w] > bound:
            for at in range(low, high):
                entry = np.int64(heads[at])
                while entry >= 0:
                    fronts[key_of[entry]], backs[key_of[entry]] = identity, identity
                    entry = np.int64(following[entry])
            if not shows:
                # What comes next is not known yet.
                return np.iinfo(np.int64).min
            while low < len(slices) and slices[low] < begins[w]:
                low += 1
            bound = -(-begins[w] // width) * width
            high = _combine_front(
                slices, heads, low, bound, following, key_of, operation, numbers, after, fronts
            )
            while high < len(slices) and slices[high] < ends[w]:
                entry = np.int64(heads[high])
                while entry >= 0:
                    backs[key_of[entry]] = _combined(operation, backs[key_of[entry]], numbers[entry])
                    entry = np.int64(following[entry])
                high += 1
        else:
            for i in range(cuts[2 * w], cuts[2 * w + 1]):
                backs[movers[i]] = _combined(operation, backs[movers[i]], numbers[moved[i]])
            for i in range(cuts[2 * w + 1], cuts[2 * w + 2]):
                fronts[movers[i]] = after[moved[i]]
            while high < len(slices) and slices[high] < ends[w]:
                high += 1
            while low < high and slices[low] < begins[w]:
                low += 1
        for i in range(made[w], made[w + 1]):
            out[i] = _combined(operation, fronts[owners[i]], backs[owners[i]])
    return bound
