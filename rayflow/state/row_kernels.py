# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `rows`: lists of row numbers by slot.

Theory of operation. The rows of a slot form a singly linked list, oldest first: `heads` and `tails` by slot,
`following` by row, -1 at the ends. A removed row is only marked in `live`; whoever walks past one takes it out
of its list, so each costs one step once. Kernels that write pairs stop when their output is full, and say where
to go on. Compiled on first use and cached on disk; arguments must be writable C-contiguous arrays.
"""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def link_rows(heads, tails, following, counts, slots, begin):
    """Append row `begin + i` to the list of `slots[i]`; a negative slot is no list."""
    for i in range(len(slots)):
        slot = slots[i]
        row = begin + i
        following[row] = -1
        if slot < 0:
            continue
        if heads[slot] < 0:
            heads[slot] = row
        else:
            following[tails[slot]] = row
        tails[slot] = row
        counts[slot] += 1


@njit(cache=True, nogil=True)
def _next_live(heads, tails, following, live, slot, last):
    """Return the live row after `last` (-1: the first) in the list of `slot`, -1 at its end; takes out dead ones."""
    row = heads[slot] if last < 0 else following[last]
    while row >= 0 and not live[row]:
        after = following[row]
        if last < 0:
            heads[slot] = after
        else:
            following[last] = after
        if after < 0:
            tails[slot] = last
        row = after
    return row


@njit(cache=True, nogil=True)
def match_rows(heads, tails, following, live, slots, place, probes, rows):
    """Write pairs (i, row of the list of `slots[i]`) into `probes` and `rows`; return how many.

    `place` is (i, last row written of that list, or -1), where to go on; it moves on. A negative slot has no rows.
    """
    at = 0
    probe, last = place[0], place[1]
    while probe < len(slots):
        slot = slots[probe]
        if slot >= 0:
            row = _next_live(heads, tails, following, live, slot, last)
            while row >= 0:
                if at == len(probes):
                    place[0], place[1] = probe, last
                    return at
                probes[at] = probe
                rows[at] = row
                at += 1
                last = row
                row = _next_live(heads, tails, following, live, slot, last)
        probe += 1
        last = -1
    place[0], place[1] = probe, -1
    return at


@njit(cache=True, nogil=True)
def match_rows_between(heads, tails, following, live, numbers, least, most, slots, place, probes, rows):
    """As `match_rows`, of the rows whose number lies between `least[i]` and `most[i]`, both included."""
    at = 0
    probe, last = place[0], place[1]
    while probe < len(slots):
        slot = slots[probe]
        if slot >= 0:
            row = _next_live(heads, tails, following, live, slot, last)
            while row >= 0:
                if least[probe] <= numbers[row] <= most[probe]:
                    if at == len(probes):
                        place[0], place[1] = probe, last
                        return at
                    probes[at] = probe
                    rows[at] = row
                    at += 1
                last = row
                row = _next_live(heads, tails, following, live, slot, last)
        probe += 1
        last = -1
    place[0], place[1] = probe, -1
    return at


@njit(cache=True, nogil=True)
def first_rows(heads, tails, following, live, slots, out):
    """Write the oldest live row of the list of each slot into `out`, -1 for none."""
    for i in range(len(slots)):
        out[i] = _next_live(heads, tails, following, live, slots[i], np.int64(-1)) if slots[i] >= 0 else -1


@njit(cache=True, nogil=True)
def latest_rows(heads, tails, following, live, numbers, slots, limits, out):
    """Write, for each slot, the row with the largest number up to `limits[i]` into `out` (of equal ones the
    newest), -1 for none."""
    for i in range(len(slots)):
        found = np.int64(-1)
        if slots[i] >= 0:
            row = _next_live(heads, tails, following, live, slots[i], np.int64(-1))
            while row >= 0:
                if numbers[row] <= limits[i] and (found < 0 or numbers[row] >= numbers[found]):
                    found = np.int64(row)
                row = _next_live(heads, tails, following, live, slots[i], np.int64(row))
        out[i] = found


@njit(cache=True, nogil=True)
def latest_sorted(row_slots, numbers, rows, slots, limits, out):
    """As `latest_rows`, by halving `rows`, which are sorted by slot and number (`row_slots`, `numbers` of each)."""
    for i in range(len(slots)):
        low, high = 0, len(rows)
        while low < high:
            middle = (low + high) // 2
            slot = row_slots[middle]
            if slot < slots[i] or (slot == slots[i] and numbers[middle] <= limits[i]):
                low = middle + 1
            else:
                high = middle
        found = low > 0 and row_slots[low - 1] == slots[i] and slots[i] >= 0
        out[i] = rows[low - 1] if found else -1
