# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `pair_table`: as those of `key_kernels`, for keys of two words that are never null."""

from __future__ import annotations

import numpy as np
from numba import njit

from rayflow.state.key_kernels import (
    _EMPTY,
    _GRAVE,
    _HALF,
    _LOW,
    _ONE,
    FREE,
    USED,
    _erase,
    _mix,
    _place,
    _take_slot,
)

_C3 = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _pair_tag(first, second):
    # Mixed twice, so that no two words cancel each other.
    return _mix(_mix(np.uint64(first) + _C3) + second) >> _HALF


@njit(cache=True, nogil=True)
def _find_pair(table, tag, first, second, firsts, seconds):
    mask = np.uint64(len(table) - 1)
    at = tag & mask
    while True:
        cell = table[at]
        if cell == _EMPTY:
            return np.int64(-1)
        if cell >> _HALF == tag and cell != _GRAVE:
            slot = np.int64(cell & _LOW) - 1
            if seconds[slot] == second and firsts[slot] == first:
                return slot
        at = (at + _ONE) & mask


@njit(cache=True, nogil=True)
def insert_pairs(first, second, row, firsts, seconds, live, free, table, old, meta, out, fresh):
    """Write the slots of the pairs from `row` on into `out`, adding what is new; return the first without room."""
    limit = len(table) // 2
    while row < len(first):
        tag = _pair_tag(first[row], second[row])
        slot = _find_pair(table, tag, first[row], second[row], firsts, seconds)
        if slot < 0 and len(old) > 1:
            slot = _find_pair(old, tag, first[row], second[row], firsts, seconds)
        if slot < 0:
            if meta[USED] >= limit:
                return row
            slot = _take_slot(row, live, free, meta, fresh)
            if slot < 0:
                return row
            firsts[slot] = first[row]
            seconds[slot] = second[row]
            _place(table, tag, slot, meta)
        out[row] = slot
        row += 1
    return row


@njit(cache=True, nogil=True)
def find_pairs(first, second, firsts, seconds, table, old, out):
    """Write the slots of the pairs into `out`, -1 where there is none."""
    for row in range(len(first)):
        tag = _pair_tag(first[row], second[row])
        slot = _find_pair(table, tag, first[row], second[row], firsts, seconds)
        if slot < 0 and len(old) > 1:
            slot = _find_pair(old, tag, first[row], second[row], firsts, seconds)
        out[row] = slot


@njit(cache=True, nogil=True)
def remove_pairs(slots, firsts, seconds, live, free, table, old, meta):
    """Remove the keys of `slots`, which must be live, and put the slots on the free stack."""
    for slot in slots:
        tag = _pair_tag(firsts[slot], seconds[slot])
        _erase(table, tag, slot)
        if len(old) > 1:
            _erase(old, tag, slot)
        live[slot] = False
        free[meta[FREE]] = slot
        meta[FREE] += 1
