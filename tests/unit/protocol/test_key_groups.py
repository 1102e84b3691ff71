from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.key_groups import KeyGroupRange, key_group_range, subtask_of_key_group, subtask_table

PARALLELISMS = st.integers(1, 400).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m)))


def test_ranges_are_those_of_flink():
    assert [key_group_range(128, 3, i) for i in range(3)] == [
        KeyGroupRange(0, 43),
        KeyGroupRange(43, 86),
        KeyGroupRange(86, 128),
    ]


@given(PARALLELISMS)
def test_ranges_cover_every_key_group_once_and_evenly(case):
    max_parallelism, parallelism = case
    ranges = [key_group_range(max_parallelism, parallelism, i) for i in range(parallelism)]
    assert [g for r in ranges for g in range(r.start, r.stop)] == list(range(max_parallelism))
    sizes = [len(r) for r in ranges]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1


@given(PARALLELISMS)
def test_owner_of_a_key_group_is_the_subtask_whose_range_holds_it(case):
    max_parallelism, parallelism = case
    table = subtask_table(max_parallelism, parallelism)
    assert table == tuple(subtask_of_key_group(g, *case) for g in range(max_parallelism))
    assert all(g in key_group_range(*case, owner) for g, owner in enumerate(table))


@given(*[st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)] * 2)
def test_ranges_overlap_when_they_share_a_key_group(first, second):
    a, b = KeyGroupRange(*first), KeyGroupRange(*second)
    assert a.overlaps(b) == bool(set(range(a.start, a.stop)) & set(range(b.start, b.stop)))


@pytest.mark.parametrize(
    ("max_parallelism", "parallelism", "index"), [(4, 5, 0), (4, 0, 0), (4, 2, 2), (4, 2, -1)]
)
def test_impossible_parallelism_or_index_is_refused(max_parallelism, parallelism, index):
    with pytest.raises(ProtocolViolation):
        key_group_range(max_parallelism, parallelism, index)


def test_key_group_beyond_the_maximum_is_refused():
    with pytest.raises(ProtocolViolation):
        subtask_of_key_group(4, 4, 2)
    with pytest.raises(ProtocolViolation):
        KeyGroupRange(3, 2)
