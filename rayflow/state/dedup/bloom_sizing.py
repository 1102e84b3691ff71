"""How many keys a block of a blocked Bloom filter may hold for a false-positive rate.

Theory of operation. A blocked filter (Putze, Sanders, Singler, "Cache-, Hash- and Space-Efficient Bloom Filters",
2007) sets all bits of a key in one block the size of a cache line, so that a look-up costs one miss. The price: keys
spread over the blocks as a Poisson variable does, and a block that got more than its share answers wrongly more
often. So the rate is that of a block with i keys, averaged over i; the textbook's (1 − e^(−kn/m))^k is too good, by a
third at 1 %.

The rate of a block with i keys is exact as well: with X the number of bits that are set after i · k throws, it is
E[(X / 512)^k], from the distribution of X (a chain: a throw hits a set bit, or one that is not). The k positions of a
key are independent pieces of a 64-bit hash, not steps of double hashing: in 512 bits double hashing has 2^17 patterns
only, and two keys of a block that share one would put a floor under the rate."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK_BITS = 512
MAX_BITS_PER_KEY = 21

F64 = npt.NDArray[np.float64]

_THROWS = 1600
"""After so many throws a block has 95 % of its bits set: beyond any rate that can be asked for."""


@cache
def block_rates(bits: int) -> F64:
    """Return for i = 0, 1, … keys in a block the rate at which another one seems to be there; each sets `bits` bits."""
    share = np.arange(BLOCK_BITS + 1) / BLOCK_BITS
    chance = np.zeros(BLOCK_BITS + 1)
    chance[0] = 1.0
    all_set = share**bits
    rates = []
    for _ in range(_THROWS // bits):
        rates.append(float(chance @ all_set))
        for _ in range(bits):
            moved = chance * (1.0 - share)
            chance *= share
            chance[1:] += moved[:-1]
    return np.array(rates)


def rate_at(load: float, bits: int) -> float:
    """Return the false-positive rate of a filter with `load` keys per block on average, `bits` bits a key."""
    rates = block_rates(bits)
    if load <= 0:
        return 0.0
    keys = np.arange(len(rates))
    chances = np.exp(keys * math.log(load) - load - _log_factorials(len(rates)))
    # What is beyond the table counts as always wrong.
    return float(chances @ rates) + max(0.0, 1.0 - float(chances.sum()))


@cache
def best_load(rate: float) -> tuple[float, int]:
    """Return how many keys a block may hold on average for this rate, and how many bits each sets: of all numbers of
    bits the one for which that is most."""
    ideal = math.ceil(-math.log2(rate))
    candidates = range(max(1, min(ideal, MAX_BITS_PER_KEY) - 4), min(MAX_BITS_PER_KEY, ideal + 1) + 1)
    return max((_load_for(rate, bits), bits) for bits in candidates)


def _load_for(rate: float, bits: int) -> float:
    low, high = 0.0, BLOCK_BITS * 1.5 / bits
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_at(middle, bits) <= rate else (low, middle)
    return low


@cache
def _log_factorials(count: int) -> Any:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, count)))])
