"""Bloom filters: how often they are wrong, and that this is what was computed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.state.dedup.bloom import BloomFilters, BloomSizes, HashedKeys
from rayflow.state.dedup.bloom_sizing import BLOCK_BITS, best_load, block_rates, rate_at

GROUPS = 8
NO_NULLS = np.zeros(0, np.uint8)


def hashed(seed: int, count: int, groups: int = GROUPS) -> HashedKeys:
    words = np.random.default_rng(seed).integers(0, 2**64, count, np.uint64)
    return HashedKeys(words, (words % np.uint64(groups)).astype(np.int64), NO_NULLS)


def rows(keys: HashedKeys) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.arange(len(keys))


def upper(rate: float, tries: int) -> float:
    """What a rate may be measured as: five standard deviations more."""
    return rate + 5 * (rate * (1 - rate) / tries) ** 0.5


@pytest.mark.parametrize("bits", [1, 3, 7, 14, 21])
def test_the_rate_of_a_block_is_that_of_a_simulated_one(bits: int) -> None:
    rng = np.random.default_rng(bits)
    keys = BLOCK_BITS // (2 * bits)
    hits, tries = 0, 4000
    for _ in range(tries):
        there = np.zeros(BLOCK_BITS, bool)
        there[rng.integers(0, BLOCK_BITS, keys * bits)] = True
        hits += there[rng.integers(0, BLOCK_BITS, bits)].all()
    expected = block_rates(bits)[keys]
    assert abs(hits / tries - expected) <= 5 * (expected / tries) ** 0.5
    assert block_rates(bits)[0] == 0


@pytest.mark.parametrize("rate", [0.3, 0.01, 1e-4, 1e-7])
def test_the_load_is_the_most_that_keeps_the_rate(rate: float) -> None:
    load, bits = best_load(rate)
    assert rate_at(load, bits) <= rate < rate_at(load * 1.01, bits)
    textbook = -np.log2(rate) / np.log(2)
    assert textbook <= BLOCK_BITS / load


@pytest.mark.parametrize("rate", [0.1, 0.01, 0.001])
def test_a_full_filter_is_wrong_as_often_as_computed_and_no_more_than_stated(rate: float) -> None:
    filters, keys = BloomFilters(GROUPS, BloomSizes(100_000 / GROUPS, rate)), hashed(1, 100_000)
    fresh = filters.add_new(keys, rows(keys))
    assert len(keys) - len(fresh) <= upper(rate, len(keys)) * len(keys)
    assert filters.contains(keys, rows(keys)).all()
    others = hashed(2, 400_000)
    measured = filters.contains(others, rows(others)).mean()
    assert measured <= upper(rate, len(others))
    assert (
        abs(measured - filters.rate())
        <= upper(filters.rate(), len(others)) - filters.rate() + 0.1 * filters.rate()
    )


@pytest.mark.parametrize("expected", [10, 5_000])
def test_with_more_keys_than_expected_it_grows_and_keeps_the_rate(expected: int) -> None:
    rate, count = 0.01, 20 * max(expected, 1000)
    filters, keys = BloomFilters(GROUPS, BloomSizes(expected / GROUPS, rate)), hashed(3, count)
    lost = count - len(filters.add_new(keys, rows(keys)))
    assert lost <= upper(rate, count) * count
    others = hashed(4, 400_000)
    assert filters.contains(others, rows(others)).mean() <= upper(rate, len(others))
    assert filters.contains(keys, rows(keys)).all()
    assert filters.rate() <= rate


def test_a_group_that_gets_most_keys_grows_alone() -> None:
    filters, keys = BloomFilters(GROUPS, BloomSizes(1000, 0.01)), hashed(5, 50_000)
    skewed = HashedKeys(keys.words, np.where(np.arange(len(keys)) % 50 == 0, keys.groups, 3), NO_NULLS)
    lost = len(keys) - len(filters.add_new(skewed, rows(keys)))
    assert lost <= upper(0.01, len(keys)) * len(keys)
    depths = [sum(layer.group == group for layer in filters.freeze()) for group in range(GROUPS)]
    assert depths == [1, 1, 1, depths[3], 1, 1, 1, 1]
    assert depths[3] > 3


def test_it_takes_ten_bits_a_key_for_one_in_a_hundred_and_a_little() -> None:
    count = 1_000_000
    filters, keys = BloomFilters(128, BloomSizes(count / 128, 0.01)), hashed(6, count, 128)
    filters.add_new(keys, rows(keys))
    assert max(sum(layer.group == group for layer in filters.freeze()) for group in range(128)) == 1
    # 1.44 · log2(1 / 0.005) is 11; the blocks and the spread of the groups cost the rest.
    assert filters.nbytes * 8 / count < 14


@given(
    st.lists(st.lists(st.integers(0, 60), max_size=40), max_size=6),
    st.integers(1, 30),
    st.sampled_from([0.5, 0.01, 1e-6]),
)
@settings(max_examples=20, deadline=None)
def test_what_was_added_is_there_through_growth_and_restores(
    batches: list[list[int]], expected: int, rate: float
) -> None:
    sizes = BloomSizes(expected / GROUPS, rate)
    filters, added = BloomFilters(GROUPS, sizes), set()
    for batch in batches:
        words = np.array(batch, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        keys = HashedKeys(words, (np.array(batch, np.int64) % GROUPS), NO_NULLS)
        fresh = filters.add_new(keys, rows(keys))
        assert len({batch[i] for i in fresh}) == len(fresh)
        added |= set(batch)
        assert filters.contains(keys, rows(keys)).all()
        layers = filters.freeze()
        filters = BloomFilters(GROUPS, sizes)
        for layer in layers:
            filters.restore(layer)
    everything = np.array(sorted(added), np.uint64)
    keys = HashedKeys(
        everything * np.uint64(0x9E3779B97F4A7C15),
        (everything % np.uint64(GROUPS)).astype(np.int64),
        NO_NULLS,
    )
    assert filters.contains(keys, rows(keys)).all()
    assert len(filters) <= len(added)
