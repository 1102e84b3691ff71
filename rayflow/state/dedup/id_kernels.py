# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of sets of integers (see `id_set`): containers of 65,536 ids, by slot.

`rooms[slot]` is 0 for a container that is not there yet, up to `MOST_LISTED` the length of a sorted list of the lower
16 bits, and `BITMAP` for a bitmap; either begins at `starts[slot]` in the arena (uint16), of which what is beyond its
used part is zero. `meta` holds what both sides write."""

from __future__ import annotations

import numpy as np
from numba import njit

BITMAP = 4096
"""Elements of the arena that a bitmap of 65,536 bits takes."""
MOST_LISTED = 2048
USED, GARBAGE = 0, 1
"""Fields of `meta`: elements of the arena that were given out, and those of them that are not used any more."""
META_FIELDS = 2

_ONE = np.uint16(1)


@njit(cache=True, nogil=True)
def _find(arena, start, count, low):
    """Return where `low` is in a sorted list, or −1 − where it belongs."""
    first, last = 0, count
    while first < last:
        middle = (first + last) >> 1
        if arena[start + middle] < low:
            first = middle + 1
        else:
            last = middle
    if first < count and arena[start + first] == low:
        return first
    return -1 - first


@njit(cache=True, nogil=True)
def _word(start, low):
    return start + (np.int64(low) >> 4)


@njit(cache=True, nogil=True)
def _bit(low):
    return np.uint16(_ONE << (low & np.uint16(15)))


@njit(cache=True, nogil=True)
def _is_there(arena, start, count, room, low):
    if room == BITMAP:
        return arena[_word(start, low)] & _bit(low) != 0
    return count > 0 and _find(arena, start, count, low) >= 0


@njit(cache=True, nogil=True)
def contains(rows, slots, lows, arena, starts, counts, rooms, found):
    """Set `found[i]` (uint8) where the id of row `rows[i]` is there; slot −1: its container is not."""
    for i in range(len(rows)):
        slot = slots[i]
        if slot >= 0:
            found[i] = _is_there(arena, starts[slot], counts[slot], rooms[slot], lows[rows[i]])


@njit(cache=True, nogil=True)
def _enlarge(slot, arena, starts, counts, rooms, meta):
    """Give the container twice the room, or make it a bitmap; False where the arena is too short."""
    old_room, old_start, count = rooms[slot], starts[slot], counts[slot]
    room = 1 if old_room == 0 else old_room * 2
    if meta[USED] + room > len(arena):
        return False
    start = meta[USED]
    meta[USED] += room
    meta[GARBAGE] += old_room
    starts[slot] = start
    rooms[slot] = room
    for k in range(count):
        low = arena[old_start + k]
        if room == BITMAP:
            arena[_word(start, low)] |= _bit(low)
        else:
            arena[start + k] = low
    return True


@njit(cache=True, nogil=True)
def add_new(rows, begin, slots, lows, arena, starts, counts, rooms, meta, fresh, done):
    """Add the ids of `rows[begin:]`, and write the rows whose id was not there into `fresh[done:]`.

    Returns how far it came, less than the rows where the arena is too short, and how many are in `fresh` now."""
    for i in range(begin, len(rows)):
        row, slot = rows[i], slots[i]
        low = lows[row]
        if rooms[slot] == BITMAP:
            at, bit = _word(starts[slot], low), _bit(low)
            if arena[at] & bit != 0:
                continue
            arena[at] |= bit
        else:
            place = _find(arena, starts[slot], counts[slot], low)
            if place >= 0:
                continue
            if counts[slot] == rooms[slot]:
                if not _enlarge(slot, arena, starts, counts, rooms, meta):
                    return i, done
                if rooms[slot] == BITMAP:
                    arena[_word(starts[slot], low)] |= _bit(low)
                    counts[slot] += 1
                    fresh[done] = row
                    done += 1
                    continue
            start = starts[slot]
            for k in range(counts[slot], -1 - place, -1):
                arena[start + k] = arena[start + k - 1]
            arena[start + (-1 - place)] = low
        counts[slot] += 1
        fresh[done] = row
        done += 1
    return len(rows), done


@njit(cache=True, nogil=True)
def move(arena, starts, rooms, larger):
    """Copy all containers to the beginning of `larger`, side by side; return where they end."""
    end = 0
    for slot in range(len(rooms)):
        room = rooms[slot]
        for k in range(room):
            larger[end + k] = arena[starts[slot] + k]
        starts[slot] = end
        end += room
    return end


@njit(cache=True, nogil=True)
def bounds(arena, starts, counts, rooms, lowest, highest):
    """Write the smallest and the largest of the lower 16 bits in each container (none is empty)."""
    for slot in range(len(rooms)):
        start = starts[slot]
        if rooms[slot] == BITMAP:
            first, last = 0, 65535
            while arena[start + (first >> 4)] & _bit(np.uint16(first)) == 0:
                first += 1
            while arena[start + (last >> 4)] & _bit(np.uint16(last)) == 0:
                last -= 1
            lowest[slot], highest[slot] = first, last
        else:
            lowest[slot], highest[slot] = arena[start], arena[start + counts[slot] - 1]
