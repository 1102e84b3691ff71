# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""The compiled loops of Bloom filters by key group (see `bloom`)."""

from __future__ import annotations

import numpy as np
from numba import njit

from rayflow.state.key_kernels import _mix

WORDS_PER_BLOCK = 8
_ONE = np.uint64(1)
_PIECE_BITS = np.uint64(9)
_PIECE = np.uint64(511)
_PIECES_PER_WORD = 7
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_PLACE = np.uint64(0xD6E8FEB86659FD93)
_STEP = np.uint64(0x9E3779B97F4A7C15)


@njit(cache=True, nogil=True)
def _block_start(key, start, blocks):
    # The upper half of a hash, scaled to the blocks: no division.
    return start + np.int64(((_mix(key ^ _PLACE) >> _HALF) * np.uint64(blocks)) >> _HALF) * WORDS_PER_BLOCK


@njit(cache=True, nogil=True)
def _has(words, at, key, bits):
    piece = _mix(key + _STEP)
    left = _PIECES_PER_WORD
    for _ in range(bits):
        if left == 0:
            key += _STEP
            piece = _mix(key + _STEP)
            left = _PIECES_PER_WORD
        bit = piece & _PIECE
        if words[at + np.int64(bit >> np.uint64(6))] & (_ONE << (bit & np.uint64(63))) == 0:
            return False
        piece >>= _PIECE_BITS
        left -= 1
    return True


@njit(cache=True, nogil=True)
def _set(words, at, key, bits):
    piece = _mix(key + _STEP)
    left = _PIECES_PER_WORD
    for _ in range(bits):
        if left == 0:
            key += _STEP
            piece = _mix(key + _STEP)
            left = _PIECES_PER_WORD
        bit = piece & _PIECE
        words[at + np.int64(bit >> np.uint64(6))] |= _ONE << (bit & np.uint64(63))
        piece >>= _PIECE_BITS
        left -= 1


@njit(cache=True, nogil=True)
def _is_there(key, group, words, starts, blocks, bits, depths):
    for layer in range(depths[group] - 1, -1, -1):
        at = _block_start(key, starts[group, layer], blocks[group, layer])
        if _has(words, at, key, bits[group, layer]):
            return True
    return False


@njit(cache=True, nogil=True)
def contains(rows, keys, groups, words, starts, blocks, bits, depths, found):
    """Set `found[i]` (uint8) where the key of row `rows[i]` seems to be there."""
    for i in range(len(rows)):
        row = rows[i]
        found[i] = _is_there(keys[row], groups[row], words, starts, blocks, bits, depths)


@njit(cache=True, nogil=True)
def add_new(rows, begin, keys, groups, words, starts, blocks, bits, rooms, counts, depths, fresh, done):
    """Add the keys of `rows[begin:]` that do not seem to be there, and write their rows into `fresh[done:]`.

    Returns how far it came, less than the rows where the newest layer of a row's group is full, and how many are in
    `fresh` now."""
    for i in range(begin, len(rows)):
        row = rows[i]
        key, group = keys[row], groups[row]
        if _is_there(key, group, words, starts, blocks, bits, depths):
            continue
        newest = depths[group] - 1
        if newest < 0 or counts[group, newest] >= rooms[group, newest]:
            return i, done
        _set(words, _block_start(key, starts[group, newest], blocks[group, newest]), key, bits[group, newest])
        counts[group, newest] += 1
        fresh[done] = row
        done += 1
    return len(rows), done


@njit(cache=True, nogil=True)
def bits_set(words):
    """Return how many bits are set."""
    total = 0
    for word in words:
        while word != np.uint64(0):
            word &= word - _ONE
            total += 1
    return total
