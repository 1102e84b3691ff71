"""Bloom filters by key group that never give more false positives than they were asked for.

Theory of operation. Each key group has filters of its own, so that a snapshot can be dealt out to any number of
subtasks. They are blocked (`bloom_sizing`): 512 bits a block, a block a key. A group begins with one for its share of
the keys that are expected, plus four standard deviations, since hashing does not share out evenly. When that is full
the next one begins, twice as large and half as often wrong: a scalable Bloom filter (Almeida, Baquero, Preguiça,
Hutchison, "Scalable Bloom Filters", 2007). A key is there if any of the group's *layers* says so, so their rates add
up: rate/2 + rate/4 + … stays below the rate, whatever comes. A key that seems to be there is not added.

Keys are 64-bit hashes (`batch.hashing`): that two different keys have one and the same has a chance of 2^-64 a pair,
10^-12 for a new key among 20 million.

All filters of a subtask lie in one array of words, at the boundaries of cache lines; `layers` say where.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from rayflow.state.dedup.bloom_sizing import BLOCK_BITS, best_load, rate_at

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_WORDS_PER_BLOCK = BLOCK_BITS // 64
_MAX_LAYERS = 32
_RATE_POINTS = 33


@dataclass(frozen=True, slots=True)
class HashedKeys:
    """The hash of each row's key, and the number of its key group among those of the subtask."""

    words: U64
    groups: I64
    valid: npt.NDArray[np.uint8]
    """Empty: null has a hash like any key."""

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True, slots=True)
class Layer:
    """One filter: `room` keys in `blocks` of 512 bits, each of which sets `bits`."""

    blocks: int
    bits: int
    room: int


@dataclass(frozen=True)
class BloomSizes:
    """`expected` keys a key group, and the `rate` of false positives that all layers of a group may have together."""

    expected: float
    rate: float

    def layer(self, number: int) -> Layer:
        """Return the sizes of layer `number`, from 0."""
        load, bits = best_load(self.rate / 2 ** (number + 1))
        wanted = (self.expected + 4 * math.sqrt(self.expected) + 8) * 2**number
        blocks = max(1, math.ceil(wanted / load))
        return Layer(blocks=blocks, bits=bits, room=max(1, int(blocks * load)))

    @cached_property
    def first(self) -> Layer:
        """The layer that every group begins with."""
        return self.layer(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenLayer:
    """A layer of a group as it was at one moment."""

    group: int
    layer: Layer
    count: int
    words: U64


class BloomFilters:
    """Filters of the key groups 0 to `groups` − 1."""

    def __init__(self, groups: int, sizes: BloomSizes) -> None:
        from rayflow.state.dedup import bloom_kernels

        self._kernels = bloom_kernels
        self._sizes = sizes
        self._words = _aligned(0)
        self._used = 0
        shape = (groups, _MAX_LAYERS)
        self._starts, self._blocks, self._bits, self._rooms, self._counts = (
            np.zeros(shape, np.int64) for _ in range(5)
        )
        self._depths: I64 = np.zeros(groups, np.int64)

    def __len__(self) -> int:
        """Return the number of keys that were added."""
        return int(self._counts.sum())

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        arrays = (self._starts, self._blocks, self._bits, self._rooms, self._counts, self._depths)
        return 8 * self._used + sum(array.nbytes for array in arrays)

    def contains(self, keys: HashedKeys, rows: I64) -> npt.NDArray[np.bool_]:
        """Return which of `rows` have a key that seems to be there."""
        found = np.zeros(len(rows), np.uint8)
        self._kernels.contains(
            rows, keys.words, keys.groups, self._words, self._starts, self._blocks, self._bits, self._depths,
            found,
        )  # fmt: skip
        return found.view(np.bool_)

    def add_new(self, keys: HashedKeys, rows: I64) -> I64:
        """Add the keys of `rows`, in order; return those rows whose key did not seem to be there."""
        fresh = np.empty(len(rows), np.int64)
        at, done = 0, 0
        while True:
            at, done = self._kernels.add_new(
                rows, at, keys.words, keys.groups, self._words, self._starts, self._blocks, self._bits,
                self._rooms, self._counts, self._depths, fresh, done,
            )  # fmt: skip
            if at == len(rows):
                return fresh[:done]
            group = int(keys.groups[rows[at]])
            depth = int(self._depths[group])
            self._open(group, self._sizes.layer(depth) if depth else self._sizes.first, 0)

    def rate(self) -> float:
        """Return the false-positive rate for a new key, from the numbers of keys: the mean over the groups."""
        rates = np.zeros(len(self._depths))
        for depth in range(int(self._depths.max(initial=0))):
            open_ = self._depths > depth
            loads = self._counts[open_, depth] / self._blocks[open_, depth]
            # One number of bits a depth, but for what was restored of other sizes.
            rates[open_] += _interpolated(loads, self._bits[open_, depth])
        return float(rates.mean()) if len(rates) else 0.0

    def _open(self, group: int, layer: Layer, count: int) -> int:
        depth = int(self._depths[group])
        if depth == _MAX_LAYERS:
            raise OverflowError(
                f"a Bloom filter got {2**_MAX_LAYERS} times the keys that it was made for; give deduplicate a "
                "larger expected="
            )
        words = layer.blocks * _WORDS_PER_BLOCK
        self._reserve(self._used + words)
        start, self._used = self._used, self._used + words
        places = (self._starts, self._blocks, self._bits, self._rooms, self._counts)
        for place, value in zip(places, (start, layer.blocks, layer.bits, layer.room, count)):
            place[group, depth] = value
        self._depths[group] = depth + 1
        return start

    def _reserve(self, words: int) -> None:
        if words > len(self._words):
            # All groups begin alike. Pages that nobody wrote to cost nothing.
            least = len(self._depths) * self._sizes.first.blocks * _WORDS_PER_BLOCK
            larger = _aligned(max(words, least, len(self._words) + len(self._words) // 2))
            larger[: self._used] = self._words[: self._used]
            self._words = larger

    def freeze(self) -> list[FrozenLayer]:
        """Return the layers as they are now; for any thread."""
        words = self._words[: self._used].copy()
        return [
            FrozenLayer(
                group=group,
                layer=Layer(*(int(a[group, depth]) for a in (self._blocks, self._bits, self._rooms))),
                count=int(self._counts[group, depth]),
                words=_piece(words, int(self._starts[group, depth]), int(self._blocks[group, depth])),
            )
            for group in range(len(self._depths))
            for depth in range(int(self._depths[group]))
        ]

    def restore(self, frozen: FrozenLayer) -> None:
        """Take a layer; those of a group in their order."""
        start = self._open(frozen.group, frozen.layer, frozen.count)
        self._words[start : start + len(frozen.words)] = frozen.words


def _aligned(words: int) -> U64:
    """Return zeros that begin at a cache line."""
    raw = np.zeros(words + _WORDS_PER_BLOCK, np.uint64)
    skipped = (-raw.ctypes.data % (BLOCK_BITS // 8)) // 8
    return raw[skipped : skipped + words]


def _piece(words: U64, start: int, blocks: int) -> U64:
    return words[start : start + blocks * _WORDS_PER_BLOCK]


def _interpolated(loads: Any, bits: I64) -> Any:
    rates = np.empty(len(loads))
    for number in np.unique(bits).tolist():
        own = bits == number
        points, values = _rate_curve(number)
        rates[own] = np.interp(loads[own], points, values)
    return rates


_CURVES: dict[int, tuple[Any, Any]] = {}


def _rate_curve(bits: int) -> tuple[Any, Any]:
    if bits not in _CURVES:
        points = np.linspace(0.0, 1.5 * BLOCK_BITS / bits, _RATE_POINTS)
        _CURVES[bits] = (points, np.array([rate_at(float(point), bits) for point in points]))
    return _CURVES[bits]
