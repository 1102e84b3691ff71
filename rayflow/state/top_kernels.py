# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of `TopRows`: which rows can enter, entering, coming and going, comparing lists.

Theory of operation. Every slot (key) has a list of row ids in order, best first, in a segment of `entries` that begins
at `start[slot]` and holds `cap[slot]` ids, a power of two, of which `count[slot]` are used. A list that outgrows its
segment moves to one twice as long; segments left are kept by size for other lists (`free[k]`: the first one of 2^k ids,
whose own first entry leads to the next). `codes` orders rows: smaller lines of words come first.

Short lists, of which nothing goes, take rows one by one (`enter`). Where rows come and go (`match`), a batch costs
each list that it touches one pass (`merge`), however many of its rows change. `enter` and `merge` stop where `entries`
has no room and return how far they came; the caller makes room and calls again. Arguments must be writable C-contiguous
arrays, since Numba compiles read-only ones anew.
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
def _place(codes, new, entries, begin, used, before_equals):
    low, high = 0, used
    while low < high:
        middle = (low + high) // 2
        order = _compare(codes, new, codes, entries[begin + middle])
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
def enter(
    slots, ids, row, start, count, cap, entries, free, meta, codes, alive, limit, last_wins
):  # fmt: skip
    """From `row` on, let row `ids[i]` enter its slot's list, which keeps its best `limit` rows."""
    while row < len(slots):
        slot, new = slots[row], ids[row]
        used = count[slot]
        if used == limit:
            worst = entries[start[slot] + used - 1]
            order = _compare(codes, new, codes, worst)
            if order > 0 or (order == 0 and not last_wins):
                row += 1
                continue
            alive[worst] = False
            used -= 1
        elif used == cap[slot] and not _grow(slot, start, count, cap, entries, free, meta):
            return row
        begin = start[slot]
        at = begin + _place(codes, new, entries, begin, used, last_wins)
        for k in range(begin + used, at, -1):
            entries[k] = entries[k - 1]
        entries[at] = new
        alive[new] = True
        count[slot] = used + 1
        row += 1
    return row


@njit(cache=True, nogil=True)
def match(ids, comes, idents, newest, older, alive, gone):
    """Let row `ids[i]` come where `comes`, else let the newest row with the ident `idents[i]` go: set `alive`, and
    `gone[i]` to its id (-1: there was none). `newest` leads from an ident to its rows, `older` from row to row."""
    for row in range(len(ids)):
        ident = idents[row]
        if comes[row]:
            new = ids[row]
            older[new] = newest[ident]
            newest[ident] = new
            alive[new] = True
            gone[row] = -1
        else:
            found = newest[ident]
            gone[row] = found
            if found >= 0:
                newest[ident] = older[found]
                alive[found] = False


@njit(cache=True, nogil=True)
def merge(
    slots, order, bounds, ids, at, start, count, cap, entries, free, meta, codes, alive, last_wins, new, spare
):  # fmt: skip
    """From slot number `at` on, drop from each slot's list the rows not `alive`, and merge those in that came:
    `ids[order[bounds[i]:bounds[i + 1]]]`, in order of arrival, -1 for none. `new` and `spare` are as long as `ids`."""
    while at < len(slots):
        slot = slots[at]
        news = 0
        for k in range(bounds[at], bounds[at + 1]):
            came = ids[order[k]]
            if came >= 0 and alive[came]:
                new[news] = came
                news += 1
        kept = 0
        begin = start[slot]
        for k in range(begin, begin + count[slot]):
            if alive[entries[k]]:
                entries[begin + kept] = entries[k]
                kept += 1
        count[slot] = kept
        while cap[slot] < kept + news:
            if not _grow(slot, start, count, cap, entries, free, meta):
                return at
        _sort(new, spare, news, codes, last_wins)
        _merge_behind(start[slot], kept, new, news, entries, codes, last_wins)
        count[slot] = kept + news
        if kept + news == 0:
            _release(entries, free, start[slot], cap[slot])
            cap[slot] = 0
        at += 1
    return at


@njit(cache=True, nogil=True)
def _merge_behind(begin, olds, new, news, entries, codes, last_wins):
    # From the back, so that the old ones can stay where they are.
    to = begin + olds + news - 1
    while news > 0:
        order = -1
        if olds > 0:
            order = _compare(codes, entries[begin + olds - 1], codes, new[news - 1])
        if order > 0 or (order == 0 and last_wins):
            olds -= 1
            entries[to] = entries[begin + olds]
        else:
            news -= 1
            entries[to] = new[news]
        to -= 1


@njit(cache=True, nogil=True)
def _sort(ids, spare, length, codes, last_wins):
    # A merge sort: rows come in order of arrival, which decides between equals.
    if last_wins:
        for k in range(length // 2):
            ids[k], ids[length - 1 - k] = ids[length - 1 - k], ids[k]
    width = 1
    while width < length:
        for low in range(0, length, 2 * width):
            middle, high = min(low + width, length), min(low + 2 * width, length)
            left, right = low, middle
            for to in range(low, high):
                if right >= high or (left < middle and _compare(codes, ids[left], codes, ids[right]) <= 0):
                    spare[to] = ids[left]
                    left += 1
                else:
                    spare[to] = ids[right]
                    right += 1
        for k in range(length):
            ids[k] = spare[k]
        width *= 2


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
