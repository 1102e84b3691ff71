# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Compiled loops that go through a batch row by row, in order, and decide which rows are the first of their key."""

from __future__ import annotations

import numpy as np
from numba import njit

from rayflow.state.key_kernels import _mix

NEVER = np.iinfo(np.int64).min
"""The time of a slot whose key has no row."""


@njit(cache=True, nogil=True)
def first_within(slots, times, seen, clock, ttl, kept):
    """Write the numbers of the rows to keep into `kept`, and return how many there are.

    `seen` has the time of each slot's kept row. Of one that is kept again the newest time stays."""
    count = 0
    for row in range(len(slots)):
        slot, time = slots[row], times[row]
        before = seen[slot]
        known = before != NEVER and before + ttl > clock
        if not (known and time < before + ttl and before < time + ttl):
            seen[slot] = max(before, time)
            kept[count] = row
            count += 1
    return count


@njit(cache=True, nogil=True)
def first_in_batch(words, valid, periods, known, reach, cells, kept):
    """Write the numbers of the rows to keep into `kept`, and return how many there are.

    A row is kept unless it is `known` (uint8), or a row kept before it in the batch has the same word (both null: the
    same), and its period no further than `reach` away. `cells` (int32, a power of two of them, at least twice the
    rows, all −1) is scratch. `valid` (uint8) is empty where no row is null."""
    mask = np.uint64(len(cells) - 1)
    nullable = len(valid) > 0
    count = 0
    for row in range(len(words)):
        if known[row]:
            continue
        at = _mix(words[row] + np.uint64(0x9E3779B97F4A7C15)) & mask
        while cells[at] >= 0:
            other = cells[at]
            if words[other] == words[row] and (not nullable or valid[other] == valid[row]):
                break
            at = (at + np.uint64(1)) & mask
        other = cells[at]
        if other < 0 or abs(periods[other] - periods[row]) > reach:
            if other < 0 or periods[row] > periods[other]:
                cells[at] = row
            kept[count] = row
            count += 1
    return count
