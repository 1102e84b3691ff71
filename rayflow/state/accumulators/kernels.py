# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Compiled loops of the accumulators: sums of doubles in twice the precision, lists that entries can leave.

A *double-double* is an unevaluated sum of two doubles, which together have about 106 bits: each addition keeps
its rounding error in the lower one (Knuth's TwoSum), each product its own (Dekker 1971, "A Floating-Point
Technique for Extending the Available Precision").

Compiled on first use and cached on disk; see `rayflow.state.key_kernels`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_SPLITTER = 134217729.0  # 2^27 + 1


@njit(cache=True, nogil=True)
def _two_sum(a, b):
    total = a + b
    other = total - a
    return total, (a - (total - other)) + (b - other)


@njit(cache=True, nogil=True)
def _two_product(a, b):
    product = a * b
    a_high = _SPLITTER * a
    a_high = a_high - (a_high - a)
    a_low = a - a_high
    b_high = _SPLITTER * b
    b_high = b_high - (b_high - b)
    b_low = b - b_high
    return product, ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low


@njit(cache=True, nogil=True)
def _plus(high, low, add_high, add_low):
    total, error = _two_sum(high, add_high)
    return _two_sum(total, error + (low + add_low))


@njit(cache=True, nogil=True)
def add_pairs(highs, lows, slots, add_highs, add_lows):
    """Add the double-doubles `add_highs[i] + add_lows[i]` to those of `slots[i]`."""
    for i in range(len(slots)):
        slot = slots[i]
        highs[slot], lows[slot] = _plus(highs[slot], lows[slot], add_highs[i], add_lows[i])


@njit(cache=True, nogil=True)
def square_pairs(numbers, highs, lows):
    """Write the squares of `numbers` as double-doubles."""
    for i in range(len(numbers)):
        highs[i], lows[i] = _two_product(numbers[i], numbers[i])


@njit(cache=True, nogil=True)
def spreads(counts, sum_highs, sum_lows, square_highs, square_lows, out):
    """Write the sums of squared deviations from the mean: Σx² − (Σx)² / n, for n above 0."""
    for i in range(len(counts)):
        n = counts[i]
        # n·Σx² − (Σx)², all in twice the precision: the difference may be tiny.
        a, b = _two_product(n, square_highs[i])
        b += n * square_lows[i]
        c, d = _two_product(sum_highs[i], sum_highs[i])
        d += 2.0 * sum_highs[i] * sum_lows[i]
        high, low = _plus(a, b, -c, -d)
        out[i] = max(high + low, 0.0) / n


@njit(cache=True, nogil=True)
def link_both(heads, following, preceding, slots, entries):
    """Put `entries[i]` at the head of the list of `slots[i]`. Lists end with -1; what precedes the first entry
    of a list is the slot's bitwise complement."""
    for i in range(len(slots)):
        entry, slot = entries[i], slots[i]
        first = heads[slot]
        following[entry] = first
        if first >= 0:
            preceding[first] = entry
        preceding[entry] = ~slot
        heads[slot] = entry


@njit(cache=True, nogil=True)
def unlink(heads, following, preceding, entries):
    """Take `entries` (none twice) out of their lists."""
    for entry in entries:
        before, after = preceding[entry], following[entry]
        if before >= 0:
            following[before] = after
        else:
            heads[~before] = after
        if after >= 0:
            preceding[after] = before


@njit(cache=True, nogil=True)
def take_back(counts, entries, taken):
    """Count down `counts[entries[i]]` where it is above 0; write into `taken` whether it was."""
    for i in range(len(entries)):
        entry = entries[i]
        taken[i] = counts[entry] > 0
        if taken[i]:
            counts[entry] -= 1


@njit(cache=True, nogil=True)
def take_occurrences(heads, following, times, lists, wanted, any_time, out):
    """Take one entry out of each of `lists` (repeated ones hold enough), and write it into `out`: the oldest of
    those with the time `wanted[i]`, else the oldest of the earliest. Lists run from new to old."""
    for i in range(len(lists)):
        best, best_before = np.int64(-1), np.int64(-1)
        exact = False
        before, entry = np.int64(-1), heads[lists[i]]
        while entry >= 0:
            hit = not any_time and times[entry] == wanted[i]
            if hit or (not exact and (best < 0 or times[entry] <= times[best])):
                best, best_before, exact = entry, before, hit
            before, entry = entry, following[entry]
        if best_before >= 0:
            following[best_before] = following[best]
        else:
            heads[lists[i]] = following[best]
        out[i] = best
