# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `TopRows`: which rows can enter, entering and leaving, listing, comparing lists.

Theory of operation. Every slot (key) has a list of row ids in order, best first, in a segment of `entries` that begins
at `start[slot]` and holds `cap[slot]` ids, a power of two, of which `count[slot]` are used. A list that outgrows its
segment moves to one twice as long; segments left are kept by size for other lists (`free[k]`: the first one of 2^k ids,
whose own first entry leads to the next). `codes` orders rows: smaller lines of words come first.

`change` stops at the first row for which `entries` has no room and returns its number; the caller makes room and
calls again. Arguments must be writable C-contiguous arrays, since Numba compiles read-only ones anew.
"""

from __future__ import annotations

from numba import njit

from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE

END = 0
"""Field of `meta`: entries in use, free segments included."""
SIZES = 40
"""Sizes of segments there can be."""

_INSERT, _BEFORE, _AFTER, _DELETE = INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE


@njit(cache=True, nogil=True)
def _compare(a, i, b, j):
    for word in range(a.shape[1]):
        if a[i, word] < b[j, word]:
            return -1
        if a[i, word] > b[j, word]:
            return 1
    return 0


@njit(cache=True, nogil=True)
def can_enter(slots, new, start, count, entries, codes, limit, last_wins, out):
    """Set `out` for each row (code `new[i]`) that is better than the worst of its slot's `limit` rows."""
    for row in range(len(slots)):
        slot = slots[row]
        if count[slot] < limit:
            out[row] = True
            continue
        order = _compare(new, row, codes, entries[start[slot] + limit - 1])
        out[row] = order < 0 or (order == 0 and last_wins)


@njit(cache=True, nogil=True)
def _place(new, row, codes, entries, begin, used, before_equals):
    low, high = 0, used
    while low < high:
        middle = (low + high) // 2
        order = _compare(new, row, codes, entries[begin + middle])
        if order < 0 or (order == 0 and before_equals):
            high = middle
        else:
            low = middle + 1
    return low


@njit(cache=True, nogil=True)
def _size(cap):
    size = 0
    while (1 << size) < cap:
        size += 1
    return size


@njit(cache=True, nogil=True)
def _release(entries, free, begin, cap):
    if cap > 0:
        size = _size(cap)
        entries[begin] = free[size]
        free[size] = begin


@njit(cache=True, nogil=True)
def _grow(slot, start, count, cap, entries, free, meta):
    new_cap = max(1, 2 * cap[slot])
    size = _size(new_cap)
    begin = free[size]
    if begin >= 0:
        free[size] = entries[begin]
    elif meta[END] + new_cap <= len(entries):
        begin = meta[END]
        meta[END] += new_cap
    else:
        return False
    old = start[slot]
    for k in range(count[slot]):
        entries[begin + k] = entries[old + k]
    _release(entries, free, old, cap[slot])
    start[slot], cap[slot] = begin, new_cap
    return True


@njit(cache=True, nogil=True)
def _leave(slot, ident, new, row, start, count, cap, entries, free, codes, idents, alive):
    begin, used = start[slot], count[slot]
    at = _place(new, row, codes, entries, begin, used, True)
    while at < used and idents[entries[begin + at]] != ident:
        if _compare(new, row, codes, entries[begin + at]) != 0:
            at = used
            break
        at += 1
    if at == used:
        # Its code has changed, as that of a float may when it is computed again: look everywhere.
        at = 0
        while at < used and idents[entries[begin + at]] != ident:
            at += 1
        if at == used:
            return False
    alive[entries[begin + at]] = False
    for k in range(begin + at, begin + used - 1):
        entries[k] = entries[k + 1]
    count[slot] = used - 1
    if used == 1:
        _release(entries, free, begin, cap[slot])
        cap[slot] = 0
    return True


@njit(cache=True, nogil=True)
def change(
    slots, ids, comes, given_idents, new, row, start, count, cap, entries, free, meta, codes, idents, alive,
    limit, last_wins, done,
):  # fmt: skip
    """From `row` on, let row `ids[i]` enter its slot's list where `comes`, else let the first row with the ident
    `given_idents[i]` leave it. A list keeps its best `limit` rows. `done[i]`: it entered, or there was one that left.

    Invariant: `alive` is set exactly for the ids in lists.
    """
    while row < len(slots):
        slot = slots[row]
        if not comes[row]:
            done[row] = _leave(
                slot, given_idents[row], new, row, start, count, cap, entries, free, codes, idents, alive
            )
            row += 1
            continue
        used = count[slot]
        if used == limit:
            worst = entries[start[slot] + used - 1]
            order = _compare(new, row, codes, worst)
            if order > 0 or (order == 0 and not last_wins):
                done[row] = False
                row += 1
                continue
            alive[worst] = False
            used -= 1
            count[slot] = used
        elif used == cap[slot] and not _grow(slot, start, count, cap, entries, free, meta):
            return row
        begin = start[slot]
        at = begin + _place(new, row, codes, entries, begin, used, last_wins)
        for k in range(begin + used, at, -1):
            entries[k] = entries[k - 1]
        entries[at] = ids[row]
        alive[ids[row]] = True
        count[slot] = used + 1
        done[row] = True
        row += 1
    return row


@njit(cache=True, nogil=True)
def list_ids(slots, start, entries, offsets, out):
    """Write the first ids of each slot's list to `out[offsets[i]:offsets[i + 1]]`."""
    for i in range(len(slots)):
        begin = start[slots[i]] - offsets[i]
        for k in range(offsets[i], offsets[i + 1]):
            out[k] = entries[begin + k]


@njit(cache=True, nogil=True)
def rank_changes(old_offsets, old, new_offsets, new, pairs, out, operations, ranks):
    """Compare lists of ids rank by rank; write the rows that change and their operations and ranks (from 1), and
    return how many. `pairs`: updates come with the row before."""
    n = 0
    for i in range(len(old_offsets) - 1):
        old_begin, olds = old_offsets[i], old_offsets[i + 1] - old_offsets[i]
        new_begin, news = new_offsets[i], new_offsets[i + 1] - new_offsets[i]
        for rank in range(max(olds, news)):
            if rank < olds and rank < news:
                if old[old_begin + rank] == new[new_begin + rank]:
                    continue
                if pairs:
                    out[n], operations[n], ranks[n] = old[old_begin + rank], _BEFORE, rank + 1
                    n += 1
                out[n], operations[n], ranks[n] = new[new_begin + rank], _AFTER, rank + 1
            elif rank < news:
                out[n], operations[n], ranks[n] = new[new_begin + rank], _INSERT, rank + 1
            else:
                out[n], operations[n], ranks[n] = old[old_begin + rank], _DELETE, rank + 1
            n += 1
    return n
