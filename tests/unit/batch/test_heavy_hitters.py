"""Space-Saving against exact counts: its bounds, whatever comes, however it is cut and merged."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.batch.heavy_hitters import HeavyHitters
from rayflow.model.errors import ProtocolViolation

# Few keys beside many, so that counters are taken over, and huge hashes, so that a sign would show.
KEYS = st.integers(0, 9) | st.integers(0, 60) | st.integers(2**64 - 20, 2**64 - 1)
BATCHES = st.lists(st.lists(KEYS, max_size=40), max_size=8)
CAPACITIES = st.integers(1, 12)


def sketch_of(batches: list[list[int]], capacity: int) -> HeavyHitters:
    sketch = HeavyHitters(capacity)
    for batch in batches:
        sketch.update(np.array(batch, np.uint64))
    return sketch


def exact(batches: list[list[int]]) -> Counter[int]:
    return Counter(key for batch in batches for key in batch)


def check_bounds(sketch: HeavyHitters, counts: Counter[int] | dict[int, float], capacity: int) -> None:
    """Invariants 1 and 2."""
    total = sum(counts.values())
    assert sketch.total == total
    assert len(sketch) <= capacity
    assert sketch.floor <= total / capacity
    entries = {entry.hash: entry for entry in sketch.top()}
    assert len(entries) == len(sketch)
    for entry in entries.values():
        assert entry.guaranteed <= counts.get(entry.hash, 0) <= entry.estimate
        assert entry.error <= total / capacity
    for key, count in counts.items():
        if key not in entries:
            assert count <= sketch.floor


@given(batches=BATCHES, capacity=CAPACITIES)
def test_estimates_bound_the_exact_counts(batches: list[list[int]], capacity: int) -> None:
    check_bounds(sketch_of(batches, capacity), exact(batches), capacity)


@given(batches=BATCHES)
def test_with_room_for_every_key_counts_are_exact(batches: list[list[int]]) -> None:
    found = {entry.hash: (entry.estimate, entry.error) for entry in sketch_of(batches, 200).top()}
    assert found == {key: (count, 0) for key, count in exact(batches).items()}


@given(parts=st.lists(st.tuples(BATCHES, CAPACITIES), min_size=1, max_size=4))
def test_merged_sketches_bound_the_counts_of_all(parts: list[tuple[list[list[int]], int]]) -> None:
    merged = HeavyHitters(12)
    for batches, capacity in parts:
        merged.merge(sketch_of(batches, capacity))
    every = exact([batch for batches, _ in parts for batch in batches])
    check_bounds(merged, every, min(capacity for _, capacity in parts))


@given(batches=BATCHES, more=BATCHES, capacity=CAPACITIES, limit=st.integers(1, 12))
def test_a_cut_copy_bounds_the_counts_to_its_own_size(
    batches: list[list[int]], more: list[list[int]], capacity: int, limit: int
) -> None:
    data = json.loads(json.dumps(sketch_of(batches, capacity).to_data(limit)))
    copy = HeavyHitters.from_data(data)
    check_bounds(copy, exact(batches), min(capacity, limit))
    for batch in more:
        copy.update(np.array(batch, np.uint64))
    check_bounds(copy, exact([*batches, *more]), min(capacity, limit))


@given(steps=st.lists(st.lists(KEYS, max_size=40), max_size=6), capacity=CAPACITIES)
def test_halved_sketches_bound_the_halved_counts(steps: list[list[int]], capacity: int) -> None:
    sketch, counts = HeavyHitters(capacity), Counter[int]()
    halved: dict[int, float] = {}
    for batch in steps:
        sketch.scale(0.5)
        halved = {key: count / 2 for key, count in halved.items()}
        sketch.update(np.array(batch, np.uint64))
        counts = Counter(batch)
        halved = {key: halved.get(key, 0) + counts[key] for key in {*halved, *counts}}
    check_bounds(sketch, halved, capacity)


@given(batches=BATCHES, capacity=CAPACITIES)
def test_the_order_of_rows_in_a_batch_and_a_copy_change_nothing(
    batches: list[list[int]], capacity: int
) -> None:
    sketch, turned = sketch_of(batches, capacity), HeavyHitters(capacity)
    for batch in batches:
        turned.update(np.array(batch[::-1], np.uint64))
        turned = HeavyHitters.from_data(turned.to_data())
    assert turned.to_data() == sketch.to_data()


def test_rows_that_stand_for_others_count_as_many() -> None:
    sketch = HeavyHitters(4)
    sketch.update(np.array([7, 7, 9], np.uint64), rows_each=64)
    assert [(entry.hash, entry.estimate) for entry in sketch.top()] == [(7, 128), (9, 64)]
    assert sketch.total == 192


def test_a_new_hot_key_leads_after_two_halvings() -> None:
    # 10,000 rows of key 1, then 4,000 of key 2 in each of two spans: 2,500 + … against 4,000 + 2,000.
    sketch = HeavyHitters(8)
    sketch.update(np.full(10_000, 1, np.uint64))
    for _ in range(2):
        sketch.scale(0.5)
        sketch.update(np.full(4_000, 2, np.uint64))
    assert [entry.hash for entry in sketch.top()] == [2, 1]


def test_the_hottest_keys_of_a_skewed_stream_are_found_among_many() -> None:
    keys = np.random.default_rng(3).zipf(1.3, 200_000).astype(np.uint64)
    sketch = HeavyHitters(128)
    for start in range(0, len(keys), 4096):
        sketch.update(keys[start : start + 4096])
    wanted = [key for key, _ in Counter(keys.tolist()).most_common(8)]
    assert [entry.hash for entry in sketch.top(8)] == wanted


def test_a_text_stays_with_its_entry_and_goes_with_it() -> None:
    sketch = HeavyHitters(1)
    sketch.update(np.array([5, 5], np.uint64))
    sketch.name(5, "five")
    sketch.name(6, "not held")
    assert [entry.key for entry in sketch.top()] == ["five"]
    assert HeavyHitters.from_data(sketch.to_data()).top()[0].key == "five"
    sketch.update(np.array([6, 6, 6], np.uint64))
    assert [(entry.hash, entry.key) for entry in sketch.top()] == [(6, None)]


def test_texts_survive_a_merge() -> None:
    mine, other = HeavyHitters(4), HeavyHitters(4)
    mine.update(np.array([1], np.uint64))
    other.update(np.array([2, 2], np.uint64))
    mine.name(1, "one")
    other.name(2, "two")
    mine.merge(other)
    assert [entry.key for entry in mine.top()] == ["two", "one"]


@pytest.mark.parametrize("factor", [-0.1, 1.5])
def test_a_scale_that_would_grow_counts_is_refused(factor: float) -> None:
    with pytest.raises(ProtocolViolation, match="expected 0 to 1"):
        HeavyHitters(4).scale(factor)


def test_a_sketch_without_room_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="at least 1"):
        HeavyHitters(0)
