# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of the key index: find or add keys, remove them, move them, copy key bytes.

Theory of operation. A table is an array of uint64 cells, a power of two long, probed linearly. A cell holds
the upper 32 bits of the key's hash (the *tag*) above the key's slot + 1; 0 is an empty cell, `_GRAVE` one
whose key was removed. The position of a key is its tag modulo the length, so a table can be moved into a
larger one without looking at the keys. A hit on the tag is always confirmed by comparing the keys themselves.

A table grows while it is used: `migrate` copies a bounded number of cells of the old table into the new one
per call, lookups that miss in the new table ask the old one, and a moved key may be in both (with the same
slot, so that does no harm). No single batch pays for the growth of a large table.

Kernels that add stop at the first row for which there is no room and return its number; the caller makes
room and calls again. `meta` (int64) holds the counts both sides write. Compiled on first use and cached on
disk; arguments must be writable C-contiguous arrays, since Numba compiles read-only ones anew.

Hashes: the finaliser of SplitMix64 (Steele, Lea, Flood 2014) for words; for bytes, eight at a time, a
multiply-and-fold in the manner of wyhash.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEXT, FREE, USED, NULL, FRESH, ARENA = 0, 1, 2, 3, 4, 5
"""Fields of `meta`: slots ever used; slots on the free stack; cells not empty; slot of the null key or -1;
rows of the current call that made new keys; bytes used in the arena."""
META_FIELDS = 6

_EMPTY = np.uint64(0)
_LOW = np.uint64(0xFFFFFFFF)
_GRAVE = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_HALF = np.uint64(32)
_C1 = np.uint64(0xBF58476D1CE4E5B9)
_C2 = np.uint64(0x94D049BB133111EB)
_C3 = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _mix(word):
    word = (word ^ (word >> np.uint64(30))) * _C1
    word = (word ^ (word >> np.uint64(27))) * _C2
    return word ^ (word >> np.uint64(31))


@njit(cache=True, nogil=True)
def _word_tag(word):
    return _mix(word + _C3) >> _HALF


@njit(cache=True, nogil=True)
def _bytes_tag(data, begin, length):
    state = np.uint64(length) * _C3
    whole = length - length % 8
    for at in range(begin, begin + whole, 8):
        word = np.uint64(data[at])
        for k in range(1, 8):
            word |= np.uint64(data[at + k]) << np.uint64(8 * k)
        state = (state ^ word) * _C2
        state ^= state >> _HALF
    word = np.uint64(0)
    for k in range(length % 8):
        word |= np.uint64(data[begin + whole + k]) << np.uint64(8 * k)
    return _mix((state ^ word) * _C1) >> _HALF


@njit(cache=True, nogil=True)
def hash_bytes(data, offsets, out):
    """Set `out` (uint64) to a hash of 32 bits of each row's bytes."""
    for row in range(len(out)):
        out[row] = _bytes_tag(data, offsets[row], offsets[row + 1] - offsets[row])


@njit(cache=True, nogil=True)
def _find_word(table, tag, word, stored):
    mask = np.uint64(len(table) - 1)
    at = tag & mask
    while True:
        cell = table[at]
        if cell == _EMPTY:
            return np.int64(-1)
        if cell >> _HALF == tag and cell != _GRAVE:
            slot = np.int64(cell & _LOW) - 1
            if stored[slot] == word:
                return slot
        at = (at + _ONE) & mask


@njit(cache=True, nogil=True)
def _same_bytes(left, left_at, right, right_at, length):
    for k in range(length):  # noqa: SIM110 - Numba compiles no generators
        if left[left_at + k] != right[right_at + k]:
            return False
    return True


@njit(cache=True, nogil=True)
def _find_bytes(table, tag, data, begin, length, arena, starts, lengths):
    mask = np.uint64(len(table) - 1)
    at = tag & mask
    while True:
        cell = table[at]
        if cell == _EMPTY:
            return np.int64(-1)
        if cell >> _HALF == tag and cell != _GRAVE:
            slot = np.int64(cell & _LOW) - 1
            if lengths[slot] == length and _same_bytes(data, begin, arena, starts[slot], length):
                return slot
        at = (at + _ONE) & mask


@njit(cache=True, nogil=True)
def _place(table, tag, slot, meta):
    mask = np.uint64(len(table) - 1)
    at = tag & mask
    while table[at] != _EMPTY and table[at] != _GRAVE:
        at = (at + _ONE) & mask
    if table[at] == _EMPTY:
        meta[USED] += 1
    table[at] = (tag << _HALF) | np.uint64(slot + 1)


@njit(cache=True, nogil=True)
def _erase(table, tag, slot):
    mask = np.uint64(len(table) - 1)
    wanted = (tag << _HALF) | np.uint64(slot + 1)
    at = tag & mask
    while table[at] != _EMPTY:
        if table[at] == wanted:
            table[at] = _GRAVE
            return
        at = (at + _ONE) & mask


@njit(cache=True, nogil=True)
def _take_slot(row, live, free, meta, fresh):
    if meta[FREE] > 0:
        meta[FREE] -= 1
        slot = np.int64(free[meta[FREE]])
    elif meta[NEXT] < len(live):
        slot = meta[NEXT]
        meta[NEXT] += 1
    else:
        return np.int64(-1)
    live[slot] = True
    fresh[meta[FRESH]] = row
    meta[FRESH] += 1
    return slot


@njit(cache=True, nogil=True)
def _null_slot(row, live, free, meta, fresh):
    if meta[NULL] < 0:
        meta[NULL] = _take_slot(row, live, free, meta, fresh)
    return meta[NULL]


@njit(cache=True, nogil=True)
def insert_words(words, valid, row, stored, live, free, table, old, meta, out, fresh):
    """Write the slots of `words[row:]` into `out`, adding what is new; return the first row without room.

    `valid` (uint8) is empty or says per row whether the key is not null; `old` has one cell when no table
    is being moved; `fresh` gets the rows that made new keys."""
    limit = len(table) // 2
    while row < len(words):
        if len(valid) > 0 and valid[row] == 0:
            slot = _null_slot(row, live, free, meta, fresh)
            if slot < 0:
                return row
        else:
            word = words[row]
            tag = _word_tag(word)
            slot = _find_word(table, tag, word, stored)
            if slot < 0 and len(old) > 1:
                slot = _find_word(old, tag, word, stored)
            if slot < 0:
                if meta[USED] >= limit:
                    return row
                slot = _take_slot(row, live, free, meta, fresh)
                if slot < 0:
                    return row
                stored[slot] = word
                _place(table, tag, slot, meta)
        out[row] = slot
        row += 1
    return row


@njit(cache=True, nogil=True)
def insert_bytes(data, offsets, valid, row, arena, starts, lengths, live, free, table, old, meta, out, fresh):
    """As `insert_words`, for keys `data[offsets[i]:offsets[i + 1]]`, kept in `arena`."""
    limit = len(table) // 2
    while row < len(offsets) - 1:
        if len(valid) > 0 and valid[row] == 0:
            slot = _null_slot(row, live, free, meta, fresh)
            if slot < 0:
                return row
        else:
            begin = offsets[row]
            length = offsets[row + 1] - begin
            tag = _bytes_tag(data, begin, length)
            slot = _find_bytes(table, tag, data, begin, length, arena, starts, lengths)
            if slot < 0 and len(old) > 1:
                slot = _find_bytes(old, tag, data, begin, length, arena, starts, lengths)
            if slot < 0:
                if meta[USED] >= limit or meta[ARENA] + length > len(arena):
                    return row
                slot = _take_slot(row, live, free, meta, fresh)
                if slot < 0:
                    return row
                at = meta[ARENA]
                for k in range(length):
                    arena[at + k] = data[begin + k]
                starts[slot] = at
                lengths[slot] = length
                meta[ARENA] = at + length
                _place(table, tag, slot, meta)
        out[row] = slot
        row += 1
    return row


@njit(cache=True, nogil=True)
def find_words(words, valid, stored, table, old, meta, out):
    """Write the slots of `words` into `out`, -1 where there is none; as `insert_words`, but nothing is added."""
    for row in range(len(words)):
        if len(valid) > 0 and valid[row] == 0:
            out[row] = meta[NULL]
        else:
            word = words[row]
            tag = _word_tag(word)
            slot = _find_word(table, tag, word, stored)
            if slot < 0 and len(old) > 1:
                slot = _find_word(old, tag, word, stored)
            out[row] = slot


@njit(cache=True, nogil=True)
def find_bytes(data, offsets, valid, arena, starts, lengths, table, old, meta, out):
    """As `find_words`, for keys `data[offsets[i]:offsets[i + 1]]`."""
    for row in range(len(offsets) - 1):
        if len(valid) > 0 and valid[row] == 0:
            out[row] = meta[NULL]
        else:
            begin = offsets[row]
            length = offsets[row + 1] - begin
            tag = _bytes_tag(data, begin, length)
            slot = _find_bytes(table, tag, data, begin, length, arena, starts, lengths)
            if slot < 0 and len(old) > 1:
                slot = _find_bytes(old, tag, data, begin, length, arena, starts, lengths)
            out[row] = slot


@njit(cache=True, nogil=True)
def remove_words(slots, stored, live, free, table, old, meta):
    """Remove the keys of `slots`, which must be live, and put the slots on the free stack."""
    for slot in slots:
        if slot == meta[NULL]:
            meta[NULL] = -1
        else:
            tag = _word_tag(stored[slot])
            _erase(table, tag, slot)
            if len(old) > 1:
                _erase(old, tag, slot)
        live[slot] = False
        free[meta[FREE]] = slot
        meta[FREE] += 1


@njit(cache=True, nogil=True)
def remove_bytes(slots, arena, starts, lengths, live, free, table, old, meta):
    """As `remove_words`; returns the bytes of the arena that became garbage."""
    garbage = 0
    for slot in slots:
        if slot == meta[NULL]:
            meta[NULL] = -1
        else:
            tag = _bytes_tag(arena, starts[slot], np.int64(lengths[slot]))
            _erase(table, tag, slot)
            if len(old) > 1:
                _erase(old, tag, slot)
            garbage += lengths[slot]
        live[slot] = False
        free[meta[FREE]] = slot
        meta[FREE] += 1
    return garbage


@njit(cache=True, nogil=True)
def migrate(old, begin, end, table, meta):
    """Copy the cells `old[begin:end]` into `table`."""
    for at in range(begin, min(end, len(old))):
        cell = old[at]
        if cell != _EMPTY and cell != _GRAVE:
            _place(table, cell >> _HALF, np.int64(cell & _LOW) - 1, meta)


@njit(cache=True, nogil=True)
def gather_bytes(arena, starts, offsets, out):
    """Copy the pieces of `arena` that begin at `starts` to `out[offsets[i]:offsets[i + 1]]`."""
    for i in range(len(starts)):
        begin = starts[i]
        at = offsets[i]
        for k in range(offsets[i + 1] - at):
            out[at + k] = arena[begin + k]


@njit(cache=True, nogil=True)
def put_words(out, at, words, valid):
    """Append to every row (row i ends at `at[i]`, which moves on) a word: a 1 and 8 bytes; null: a 0."""
    for i in range(len(at)):
        if len(valid) > 0 and valid[i] == 0:
            out[at[i]] = 0
            at[i] += 1
        else:
            out[at[i]] = 1
            for k in range(8):
                out[at[i] + 1 + k] = np.uint8((words[i] >> np.uint64(8 * k)) & np.uint64(255))
            at[i] += 9


@njit(cache=True, nogil=True)
def put_bytes(out, at, data, offsets, valid):
    """As `put_words`, for bytes: a 1, the length in 4 bytes, the bytes; null: a 0."""
    for i in range(len(at)):
        if len(valid) > 0 and valid[i] == 0:
            out[at[i]] = 0
            at[i] += 1
        else:
            length = offsets[i + 1] - offsets[i]
            out[at[i]] = 1
            for k in range(4):
                out[at[i] + 1 + k] = np.uint8((length >> (8 * k)) & 255)
            for k in range(length):
                out[at[i] + 5 + k] = data[offsets[i] + k]
            at[i] += 5 + length


@njit(cache=True, nogil=True)
def get_words(data, at, words, valid):
    """Read back what `put_words` wrote, from `at[i]`, which moves on."""
    for i in range(len(at)):
        valid[i] = data[at[i]]
        word = np.uint64(0)
        if valid[i] == 0:
            at[i] += 1
        else:
            for k in range(8):
                word |= np.uint64(data[at[i] + 1 + k]) << np.uint64(8 * k)
            at[i] += 9
        words[i] = word


@njit(cache=True, nogil=True)
def get_lengths(data, at, starts, lengths, valid):
    """Read where the bytes that `put_bytes` wrote lie (`starts`, `lengths`); `at` moves past them."""
    for i in range(len(at)):
        valid[i] = data[at[i]]
        lengths[i] = 0
        if valid[i] == 0:
            starts[i] = at[i]
            at[i] += 1
        else:
            for k in range(4):
                lengths[i] |= np.int64(data[at[i] + 1 + k]) << (8 * k)
            starts[i] = at[i] + 5
            at[i] += 5 + lengths[i]


@njit(cache=True, nogil=True)
def link(heads, following, slots, entries):
    """Put `entries[i]` at the head of the list of `slots[i]`. Lists end with -1."""
    for i in range(len(slots)):
        following[entries[i]] = heads[slots[i]]
        heads[slots[i]] = entries[i]


@njit(cache=True, nogil=True)
def walk(heads, following, slots, out):
    """Write the entries of the lists of `slots` into `out`, list after list, newest first."""
    at = 0
    for slot in slots:
        entry = heads[slot]
        while entry >= 0:
            out[at] = entry
            at += 1
            entry = following[entry]
