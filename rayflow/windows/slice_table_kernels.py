# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `slice_table`: finding and adding entries of (key, slice), dropping slices.

Each slice has a hash table of its own, in a block of `cells`: `blocks[home]` is where it begins, `masks[home]` its
length less 1 (a power of two; −1: there is none). A cell holds an entry + 1, or 0; at most half of them are taken. A
block that is full moves into one twice as long behind all others (`meta[USED]`), a dropped slice leaves its own behind,
and `compact` copies those in use together. So nothing is ever taken out of a table.

Compiled on first use and cached on disk; arguments must be writable C-contiguous arrays.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rayflow.state.key_kernels import FREE, NEXT, USED, _mix

ROW_HAS_NO_ROOM, ROW_NEEDS_SEARCH = 0, 1

MIN_BLOCK = 32


@njit(cache=True, nogil=True)
def _find(cells, block, mask, key, key_of):
    at = np.int64(_mix(np.uint64(key)) & np.uint64(mask))
    while True:
        entry = np.int64(cells[block + at]) - 1
        if entry < 0 or key_of[entry] == key:
            return entry
        at = (at + 1) & mask


@njit(cache=True, nogil=True)
def _put(cells, block, mask, key, entry):
    at = np.int64(_mix(np.uint64(key)) & np.uint64(mask))
    while cells[block + at] != 0:
        at = (at + 1) & mask
    cells[block + at] = entry + 1


@njit(cache=True, nogil=True)
def _new_block(home, size, key_of, following, heads, cells, blocks, masks, meta):
    """Give a slice a block of this size, with its entries; return whether there is room."""
    block = meta[USED]
    if block + size > len(cells):
        return False
    meta[USED] += size
    cells[block : block + size] = 0
    blocks[home], masks[home] = block, size - 1
    entry = np.int64(heads[home])
    while entry >= 0:
        _put(cells, block, size - 1, key_of[entry], entry)
        entry = np.int64(following[entry])
    return True


@njit(cache=True, nogil=True)
def place_all(homes, counts, key_of, following, heads, cells, blocks, masks, meta):
    """Make the tables of `homes`, for which there must be room."""
    for home in homes:
        size = MIN_BLOCK
        while size < 2 * counts[home]:
            size *= 2
        _new_block(home, size, key_of, following, heads, cells, blocks, masks, meta)


@njit(cache=True, nogil=True)
def compact(homes, old_cells, cells, blocks, masks, meta):
    """Copy the tables of `homes` to the beginning of `cells`."""
    at = 0
    for home in homes:
        size = masks[home] + 1
        cells[at : at + size] = old_cells[blocks[home] : blocks[home] + size]
        blocks[home] = at
        at += size
    meta[USED] = at


@njit(cache=True, nogil=True)
def runs(numbers, begins):
    """Write into `begins` where a number differs from the one before; return how often."""
    count = 0
    for i in range(len(numbers)):
        if i == 0 or numbers[i] != numbers[i - 1]:
            begins[count] = i
            count += 1
    return count


@njit(cache=True, nogil=True)
def insert(
    keys, begins, run_slices, run_homes, row, searchable, key_of, home_of, following, heads, tails, counts, latest,
    latest_slice, live, free, cells, blocks, masks, meta, out
):  # fmt: skip
    """Write the entries of the rows from `row` on into `out`, adding what is new. Return the first row that could
    not be done (or the number of rows), how many were searched for, and why.

    Rows come in runs of one slice: run i begins at row `begins[i]`, its slice is `run_slices[i]`, known under the
    small number `run_homes[i]`. The entries of a slice are a list from `heads` over `following` to `tails`, `counts`
    long."""
    searches = 0
    run = np.searchsorted(begins, row, "right") - 1
    while row < len(keys):
        while run + 1 < len(begins) and begins[run + 1] <= row:
            run += 1
        key, slice_ = keys[row], run_slices[run]
        entry = np.int64(latest[key])
        if entry >= 0 and latest_slice[key] == slice_:
            out[row] = entry
            row += 1
            continue
        home = run_homes[run]
        # The key has no entry in a slice after its latest one: nothing to look for.
        is_behind = entry >= 0 and slice_ < latest_slice[key]
        if is_behind and not searchable:
            return row, searches, ROW_NEEDS_SEARCH
        entry = np.int64(-1)
        if is_behind and masks[home] >= 0:
            searches += 1
            entry = _find(cells, blocks[home], masks[home], key, key_of)
        if entry < 0:
            if searchable and 2 * (counts[home] + 1) > masks[home] + 1:
                size = max(MIN_BLOCK, 2 * (masks[home] + 1))
                if not _new_block(home, size, key_of, following, heads, cells, blocks, masks, meta):
                    return row, searches, ROW_HAS_NO_ROOM
            if meta[FREE] > 0:
                meta[FREE] -= 1
                entry = np.int64(free[meta[FREE]])
            elif meta[NEXT] < len(live):
                entry = meta[NEXT]
                meta[NEXT] += 1
            else:
                return row, searches, ROW_HAS_NO_ROOM
            live[entry] = True
            key_of[entry], home_of[entry], following[entry] = key, home, -1
            if tails[home] < 0:
                heads[home] = entry
            else:
                following[tails[home]] = entry
            tails[home] = entry
            counts[home] += 1
            if searchable:
                _put(cells, blocks[home], masks[home], key, entry)
            if not is_behind:
                latest[key], latest_slice[key] = entry, slice_
        out[row] = entry
        row += 1
    return row, searches, ROW_HAS_NO_ROOM


@njit(cache=True, nogil=True)
def drop(homes, key_of, following, heads, tails, counts, masks, latest, live, free, meta, out, gone):
    """Forget the slices `homes`, in order of time and earlier than all others. Write their entries into `out`, and
    keys that have none left into `gone`; return how many of each."""
    count, keys_gone = 0, 0
    for home in homes:
        entry = np.int64(heads[home])
        while entry >= 0:
            key = key_of[entry]
            if latest[key] == entry:
                latest[key] = -1
                gone[keys_gone] = key
                keys_gone += 1
            live[entry] = False
            free[meta[FREE]] = entry
            meta[FREE] += 1
            out[count] = entry
            count += 1
            entry = np.int64(following[entry])
        heads[home], tails[home], counts[home], masks[home] = -1, -1, 0, -1
    return count, keys_gone
