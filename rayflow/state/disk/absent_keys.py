"""Which keys may be on disk: so that those that never were cost no read.

A Bloom filter in memory, asked for a batch at once. The store has filters of its own, but asks them key by key, in
each of its files, after each key has become an object. The filter grows with the keys (`dedup.bloom`) up to a number
of bytes; beyond that every key may be on disk. Keys that come back stay in it, until all have.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from rayflow.state.dedup.bloom import BloomFilters, BloomSizes, HashedKeys
from rayflow.state.key_codec import U64, ByteKeys, WordKeys

_RATE = 0.1
_BYTES_PER_FIRST_KEY = 4
_NO_NULLS = np.zeros(0, np.uint8)
_NULL = np.uint64(0)


class AbsentKeys:
    """A set of keys that may say of a key outside that it is in, at a rate below 10 %; of about `max_bytes` at most."""

    def __init__(self, max_bytes: int) -> None:
        from rayflow.state import key_kernels

        self._hash_bytes = key_kernels.hash_bytes
        self._max_bytes = max_bytes
        # The first layer takes about a fifth of the bytes, and with the second one, twice as large, there is room for
        # three quarters of a key a byte.
        self._sizes = BloomSizes(max_bytes / _BYTES_PER_FIRST_KEY, _RATE)
        self._filter: BloomFilters | None = BloomFilters(1, self._sizes)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return 0 if self._filter is None else self._filter.nbytes

    def add(self, keys: WordKeys | ByteKeys) -> None:
        """Put keys in."""
        if self._filter is None:
            return
        hashed = self._hashed(keys)
        self._filter.add_new(hashed, np.arange(len(hashed)))
        if self._filter.nbytes > self._max_bytes:
            self._filter = None

    def may_have(self, keys: WordKeys | ByteKeys) -> npt.NDArray[np.bool_]:
        """Return for each key whether it may be in: True for all that are."""
        if self._filter is None:
            return np.ones(len(keys), np.bool_)
        hashed = self._hashed(keys)
        return self._filter.contains(hashed, np.arange(len(hashed)))

    def clear(self) -> None:
        """Forget all keys."""
        if self._filter is None or len(self._filter):
            self._filter = BloomFilters(1, self._sizes)

    def _hashed(self, keys: WordKeys | ByteKeys) -> HashedKeys:
        return HashedKeys(self._hashes(keys), np.zeros(len(keys), np.int64), _NO_NULLS)

    def _hashes(self, keys: WordKeys | ByteKeys) -> U64:
        hashes = np.zeros(len(keys), np.uint64)
        if isinstance(keys, WordKeys):
            # The filter mixes.
            hashes[:] = keys.words
        else:
            self._hash_bytes(keys.data, keys.offsets, hashes)
        if len(keys.valid):
            # What a null is stored as says nothing.
            hashes[keys.valid == 0] = _NULL
        return hashes
