# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Compiled loops that hash values as Apache DataSketches does, and write what it reads.

`datasketches` takes values for a HyperLogLog sketch one call at a time. But it reads sketches from bytes, and a
small one is just the list of its *coupons* (32 bits a distinct value: a register's address, and the number
of leading zeros), so a batch is handed over as one such image per slot, with one call each.

The hash is MurmurHash3_x64_128 (Appleby) with the library's seed, so that these are the very sketches that the
library makes of the same values: integers and times as int64, floats as doubles, text as UTF-8.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_SEED = np.uint64(9001)
_C1 = np.uint64(0x87C37B91114253D5)
_C2 = np.uint64(0x4CF5AD432745937F)
_KEY_MASK = np.uint64((1 << 26) - 1)

IMAGE_LG_K = 21
"""log2 of the registers that an image claims: the most there are, so that it may list the most coupons."""
MAX_COUPONS = 3 << (IMAGE_LG_K - 5)
"""Coupons that one image may list: 3/4 of the 2^(lg k − 3) cells of its hash set."""
HEADER_BYTES = 12


@njit(cache=True, nogil=True)
def _rotate(word, bits):
    return (word << np.uint64(bits)) | (word >> np.uint64(64 - bits))


@njit(cache=True, nogil=True)
def _scatter(word):
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    word = (word ^ (word >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return word ^ (word >> np.uint64(33))


@njit(cache=True, nogil=True)
def _coupon(low, high, length):
    low ^= np.uint64(length)
    high ^= np.uint64(length)
    low += high
    high += low
    low, high = _scatter(low), _scatter(high)
    low += high
    high += low
    zeros = 0
    while zeros < 62 and high < (np.uint64(1) << np.uint64(63 - zeros)):
        zeros += 1
    return np.uint32((np.uint64(zeros + 1) << np.uint64(26)) | (low & _KEY_MASK))


@njit(cache=True, nogil=True)
def _first(word):
    return _rotate(word * _C1, 31) * _C2


@njit(cache=True, nogil=True)
def _second(word):
    return _rotate(word * _C2, 33) * _C1


@njit(cache=True, nogil=True)
def coupons_of_words(words, out):
    """Write the coupon of every 8-byte value."""
    for i in range(len(words)):
        out[i] = _coupon(_SEED ^ _first(words[i]), _SEED, 8)


@njit(cache=True, nogil=True)
def _word_at(data, begin, length):
    word = np.uint64(0)
    for k in range(length):
        word |= np.uint64(data[begin + k]) << np.uint64(8 * k)
    return word


@njit(cache=True, nogil=True)
def coupons_of_bytes(data, offsets, out):
    """Write the coupon of every value `data[offsets[i]:offsets[i + 1]]`."""
    for i in range(len(out)):
        low, high = _SEED, _SEED
        at, end = offsets[i], offsets[i + 1]
        length = end - at
        while end - at >= 16:
            low ^= _first(_word_at(data, at, 8))
            low = (_rotate(low, 27) + high) * np.uint64(5) + np.uint64(0x52DCE729)
            high ^= _second(_word_at(data, at + 8, 8))
            high = (_rotate(high, 31) + low) * np.uint64(5) + np.uint64(0x38495AB5)
            at += 16
        if end - at > 8:
            high ^= _second(_word_at(data, at + 8, end - at - 8))
        if end > at:
            low ^= _first(_word_at(data, at, min(end - at, 8)))
        out[i] = _coupon(low, high, length)


@njit(cache=True, nogil=True)
def write_images(coupons, bounds, out, ends):
    """Write a compact sketch in SET mode of each group `coupons[bounds[i]:bounds[i + 1]]`; it ends at `ends[i]`.

    The layout is that of DataSketches' HLL, serial version 1: sizes, flags and mode, the number of coupons, the
    coupons, all little-endian."""
    at = 0
    for i in range(len(ends)):
        count = bounds[i + 1] - bounds[i]
        lg_cells = 5
        while 3 << (lg_cells - 2) < count:
            lg_cells += 1
        header = (3, 1, 7, IMAGE_LG_K, lg_cells, 8, 0, 9)  # 8: compact; 9: set of coupons, HLL_8
        for k in range(8):
            out[at + k] = header[k]
        for k in range(4):
            out[at + 8 + k] = (count >> (8 * k)) & 255
        at += HEADER_BYTES
        for j in range(bounds[i], bounds[i + 1]):
            for k in range(4):
                out[at + k] = (coupons[j] >> np.uint32(8 * k)) & np.uint32(255)
            at += 4
        ends[i] = at
