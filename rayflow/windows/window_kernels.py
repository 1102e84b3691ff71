# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of session and count windows: which open window a row belongs to, and which are complete.

Theory of operation. Open sessions are rows of a table of int64 (`sessions[slot, field]`). Those of one key form
a list linked both ways, latest first, that begins at `heads[key]`; they lie more than the gap apart, so a row
joins at most two of them. Rows that are nearly in order are answered by the first of the list; a row walks past
the sessions that begin after it. Where that gets long (many sessions of a key open, rows far out of order), the rest
of a batch is gone through from the latest row to the earliest, each walk going on where the key's last one ended.

When a session is complete is found by a heap of (instant, slot, serial). Rows only ever move that instant on, so
an entry may be too early, never too late: one that comes up too early goes back with the present instant.
Serials tell a session from a later one in the same slot. A session may have several entries; the caller
rebuilds the heap when it has outgrown what is open.

Compiled on first use and cached on disk; arguments must be writable C-contiguous arrays.
"""

from __future__ import annotations

import numpy as np
from numba import njit

START, LAST, KEY, FOLLOWING, PREVIOUS, SERIAL, FLAGS = 0, 1, 2, 3, 4, 5, 6
"""Fields of a session: smallest and largest time, its key's number, neighbours in the list of the key
(`FOLLOWING` of one that was absorbed: by which), serial number (-1: it is none any more), flags."""
FIELDS = 8

SHOWN, DIRTY, ABSORBED = 1, 2, 4
"""Flags: a result is out; rows came since; it became part of another session."""

NEXT, FREE, HEAP, ISSUED, NEW, GONE, REOPENED = 0, 1, 2, 3, 4, 5, 6
"""Fields of `meta`: slots ever used; slots on the free stack; entries of the heap; serials issued; of the last
call: new sessions, absorbed sessions, sessions that became dirty although a result is out."""
META_FIELDS = 7


@njit(cache=True, nogil=True)
def _copy(heap, source, target):
    for field in range(3):
        heap[target, field] = heap[source, field]


@njit(cache=True, nogil=True)
def _push(heap, meta, instant, slot, serial):
    at = meta[HEAP]
    meta[HEAP] += 1
    while at > 0:
        above = (at - 1) // 2
        if heap[above, 0] <= instant:
            break
        _copy(heap, above, at)
        at = above
    heap[at, 0], heap[at, 1], heap[at, 2] = instant, slot, serial


@njit(cache=True, nogil=True)
def _pop(heap, meta):
    meta[HEAP] -= 1
    end = meta[HEAP]
    _sink(heap, 0, end, heap[end, 0], heap[end, 1], heap[end, 2])


@njit(cache=True, nogil=True)
def _sink(heap, at, end, instant, slot, serial):
    # Puts an entry at `at`, or as far below as it belongs; what is above `end` is not looked at.
    below = 2 * at + 1
    while below < end:
        if below + 1 < end and heap[below + 1, 0] < heap[below, 0]:
            below += 1
        if heap[below, 0] >= instant:
            break
        _copy(heap, below, at)
        at, below = below, 2 * below + 1
    heap[at, 0], heap[at, 1], heap[at, 2] = instant, slot, serial


@njit(cache=True, nogil=True)
def rebuild(slots, sessions, heap, meta, gap, lateness):
    """Fill the heap anew with one entry for each of `slots`; there must be room for them."""
    for at in range(len(slots)):
        slot = slots[at]
        wait = 0 if sessions[slot, FLAGS] & DIRTY != 0 else lateness
        heap[at, 0], heap[at, 1] = sessions[slot, LAST] + gap - 1 + wait, slot
        heap[at, 2] = sessions[slot, SERIAL]
    meta[HEAP] = len(slots)
    for at in range(len(slots) // 2 - 1, -1, -1):
        _sink(heap, at, len(slots), heap[at, 0], heap[at, 1], heap[at, 2])


@njit(cache=True, nogil=True)
def _take_slot(free, meta):
    if meta[FREE] > 0:
        meta[FREE] -= 1
        return np.int64(free[meta[FREE]])
    meta[NEXT] += 1
    return meta[NEXT] - 1


@njit(cache=True, nogil=True)
def _unlink(sessions, heads, slot):
    before, after = sessions[slot, PREVIOUS], sessions[slot, FOLLOWING]
    if before < 0:
        heads[sessions[slot, KEY]] = after
    else:
        sessions[before, FOLLOWING] = after
    if after >= 0:
        sessions[after, PREVIOUS] = before


@njit(cache=True, nogil=True)
def _link(sessions, heads, slot, key, before, after):
    sessions[slot, PREVIOUS], sessions[slot, FOLLOWING] = before, after
    if before < 0:
        heads[key] = slot
    else:
        sessions[before, FOLLOWING] = slot
    if after >= 0:
        sessions[after, PREVIOUS] = slot


@njit(cache=True, nogil=True)
def _open(sessions, heads, key, time, before, after, free, meta):
    slot = _take_slot(free, meta)
    sessions[slot, START], sessions[slot, LAST], sessions[slot, KEY] = time, time, key
    sessions[slot, SERIAL], sessions[slot, FLAGS] = meta[ISSUED], DIRTY
    meta[ISSUED] += 1
    meta[NEW] += 1
    _link(sessions, heads, slot, key, before, after)
    return slot


@njit(cache=True, nogil=True)
def assign(
    order,
    begin,
    steps,
    keys,
    times,
    gap,
    late_until,
    sessions,
    heads,
    fingers,
    free,
    heap,
    meta,
    out,
    absorbed,
    reopened,
):
    """Write the session of the rows `order[begin:]` into `out`: one that it joins, or a new one; -1 where the row
    is not after `late_until` and joins none. There must be room for a session and a heap entry a row.

    Stops when more than `steps` sessions have been walked past, and returns where in `order`. With `fingers` (by
    key, -1 at first; else empty) rows must come from the latest to the earliest. `absorbed` gets sessions that became
    part of others, `reopened` those that became dirty while a result of them is out; `meta` says how many."""
    for number in range(begin, len(order)):
        if steps < 0:
            return number
        row = order[number]
        key, time = keys[row], times[row]
        before, at = np.int64(-1), heads[key]
        if len(fingers) > 0 and fingers[key] >= 0:
            # The next row joins this one, or walks past it: what precedes it does not matter.
            at = fingers[key]
        while at >= 0 and sessions[at, START] - gap > time:
            before, at = at, sessions[at, FOLLOWING]
            steps -= 1
        if at >= 0 and _holds(sessions, at, time, gap):
            slot = at
            sessions[at, LAST] = max(sessions[at, LAST], time)
        else:
            slot = _join(
                key, time, before, at, gap, late_until, sessions, heads, free, heap, meta, absorbed, reopened
            )
        out[row] = slot
        if len(fingers) > 0 and slot >= 0:
            fingers[key] = slot
    return len(order)


@njit(cache=True, nogil=True)
def _holds(sessions, at, time, gap):
    # The usual case: a row of an open session that moves no more than its end.
    if time < sessions[at, START] or time > sessions[at, LAST] + gap:
        return False
    return sessions[at, FLAGS] & DIRTY != 0


@njit(cache=True, nogil=True)
def _join(key, time, before, at, gap, late_until, sessions, heads, free, heap, meta, absorbed, reopened):
    # `at` is the latest session that begins at most the gap after `time`, if any; `before` precedes it.
    if at < 0 or sessions[at, LAST] + gap < time:
        if time <= late_until:
            return np.int64(-1)
        slot = _open(sessions, heads, key, time, before, at, free, meta)
        _push(heap, meta, time + gap - 1, slot, sessions[slot, SERIAL])
        return slot
    sessions[at, LAST] = max(sessions[at, LAST], time)
    earlier = sessions[at, FOLLOWING]
    if time < sessions[at, START]:
        sessions[at, START] = time
        if earlier >= 0 and sessions[earlier, LAST] + gap >= time:
            _unlink(sessions, heads, earlier)
            sessions[at, START] = sessions[earlier, START]
            sessions[earlier, FLAGS] |= ABSORBED
            sessions[earlier, SERIAL] = -1
            sessions[earlier, FOLLOWING] = at
            absorbed[meta[GONE]] = earlier
            meta[GONE] += 1
    if sessions[at, FLAGS] & DIRTY == 0:
        sessions[at, FLAGS] |= DIRTY
        _push(heap, meta, sessions[at, LAST] + gap - 1, at, sessions[at, SERIAL])
        reopened[meta[REOPENED]] = at
        meta[REOPENED] += 1
    return at


@njit(cache=True, nogil=True)
def survivors(sessions, slots):
    """Replace absorbed sessions in `slots` (-1: none) by those that they are part of now."""
    for row in range(len(slots)):
        slot = slots[row]
        while slot >= 0 and sessions[slot, FLAGS] & ABSORBED != 0:
            absorber = sessions[slot, FOLLOWING]
            if sessions[absorber, FLAGS] & ABSORBED != 0:
                # Halves the way for whoever comes next: long chains would be walked by every row.
                sessions[slot, FOLLOWING] = sessions[absorber, FOLLOWING]
            slot = absorber
        slots[row] = slot


@njit(cache=True, nogil=True)
def complete(sessions, heap, meta, gap, lateness, reached, fired, closed):
    """Find sessions whose last instant is not after `reached`, in order of that instant.

    `fired` gets those with rows not shown yet, which count as shown then; `closed` those that no row can join
    any more. Return how many of each; called again until there are none, since no more than the arrays hold
    are found at once."""
    fires, closes = 0, 0
    while meta[HEAP] > 0 and heap[0, 0] <= reached and fires < len(fired) and closes < len(closed):
        instant, slot, serial = heap[0, 0], heap[0, 1], heap[0, 2]
        if sessions[slot, SERIAL] != serial:
            _pop(heap, meta)
            continue
        due = sessions[slot, LAST] + gap - 1
        is_dirty = sessions[slot, FLAGS] & DIRTY != 0
        wanted = due if is_dirty else due + lateness
        _pop(heap, meta)
        if instant < wanted:
            _push(heap, meta, wanted, slot, serial)
            continue
        if is_dirty:
            sessions[slot, FLAGS] ^= DIRTY
            fired[fires] = slot
            fires += 1
            if lateness > 0:
                _push(heap, meta, due + lateness, slot, serial)
                continue
        sessions[slot, SERIAL] = -1
        closed[closes] = slot
        closes += 1
    return fires, closes


@njit(cache=True, nogil=True)
def close(slots, sessions, heads, emptied):
    """Take `slots` out of their lists; return how many keys, put into `emptied`, have no session left."""
    count = 0
    for slot in slots:
        _unlink(sessions, heads, slot)
        key = sessions[slot, KEY]
        if heads[key] < 0:
            emptied[count] = key
            count += 1
    return count


@njit(cache=True, nogil=True)
def release(slots, free, meta):
    """Give back `slots`, which are in no list."""
    for slot in slots:
        free[meta[FREE]] = slot
        meta[FREE] += 1


@njit(cache=True, nogil=True)
def restore(keys, starts, lasts, shown, slots, sessions, heads, free, meta):
    """Open sessions as they were, and write their slots. They are in no order before `link`."""
    for row in range(len(keys)):
        slot = _open(sessions, heads, keys[row], starts[row], -1, -1, free, meta)
        sessions[slot, LAST] = lasts[row]
        sessions[slot, FLAGS] = SHOWN if shown[row] else DIRTY
        slots[row] = slot


@njit(cache=True, nogil=True)
def link(slots, sessions, heads):
    """Make the lists anew: `slots` are all sessions, in order of start for each key."""
    heads[:] = -1
    for at in range(len(slots)):
        slot = slots[at]
        key = sessions[slot, KEY]
        _link(sessions, heads, slot, key, -1, heads[key])


@njit(cache=True, nogil=True)
def count_off(keys, size, counts, owners, current, free, meta, out, full):
    """Write the window of every row into `out`: the open one of its key (`current[key]`, -1: none), or a new
    one. A window of `size` rows is put into `full`, in order of completion; return how many.
    There must be room for a window a row."""
    fulls = 0
    for row in range(len(keys)):
        key = keys[row]
        slot = current[key]
        if slot < 0:
            slot = _take_slot(free, meta)
            counts[slot], owners[slot], current[key] = 0, key, slot
        out[row] = slot
        counts[slot] += 1
        if counts[slot] >= size:
            current[key] = -1
            full[fulls] = slot
            fulls += 1
    return fulls
