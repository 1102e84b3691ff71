# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `slice_table`: finding and adding entries of (key, slice), dropping slices.

Compiled on first use and cached on disk; arguments must be writable C-contiguous arrays.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rayflow.state.key_kernels import FREE, NEXT, USED, _erase, _place
from rayflow.state.pair_kernels import _find_pair, _pair_tag

ROW_HAS_NO_ROOM, ROW_NEEDS_SEARCH = 0, 1


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
    keys,
    begins,
    run_slices,
    run_homes,
    row,
    searchable,
    key_of,
    home_of,
    following,
    heads,
    tails,
    latest,
    latest_slice,
    live,
    free,
    table,
    meta,
    out,
):
    """Write the entries of the rows from `row` on into `out`, adding what is new. Return the first row that could
    not be done (or the number of rows), how many were searched for, and why.

    Rows come in runs of one slice: run i begins at row `begins[i]`, its slice is `run_slices[i]`, known under the
    small number `run_homes[i]`. The entries of a slice are a list from `heads` over `following` to `tails`."""
    limit, searches = len(table) // 2, 0
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
        tag = np.uint64(0)
        if searchable:
            if meta[USED] >= limit:
                return row, searches, ROW_HAS_NO_ROOM
            tag = _pair_tag(key, np.uint64(home))
        entry = np.int64(-1)
        if is_behind:
            if not searchable:
                return row, searches, ROW_NEEDS_SEARCH
            searches += 1
            entry = _find_pair(table, tag, key, home, key_of, home_of)
        if entry < 0:
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
            if searchable:
                _place(table, tag, entry, meta)
            if not is_behind:
                latest[key], latest_slice[key] = entry, slice_
        out[row] = entry
        row += 1
    return row, searches, ROW_HAS_NO_ROOM


@njit(cache=True, nogil=True)
def place_all(entries, key_of, home_of, table, meta):
    """Put `entries` into the table, which has room for them."""
    for entry in entries:
        _place(table, _pair_tag(np.int64(key_of[entry]), np.uint64(home_of[entry])), np.int64(entry), meta)


@njit(cache=True, nogil=True)
def drop(
    homes, searchable, key_of, home_of, following, heads, tails, latest, live, free, table, meta, out, gone
):
    """Forget the slices `homes`, in order of time and earlier than all others. Write their entries into `out`, and
    keys that have none left into `gone`; return how many of each."""
    count, keys_gone = 0, 0
    for home in homes:
        entry = np.int64(heads[home])
        while entry >= 0:
            if searchable:
                _erase(table, _pair_tag(np.int64(key_of[entry]), np.uint64(home)), entry)
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
        heads[home], tails[home] = -1, -1
    return count, keys_gone
