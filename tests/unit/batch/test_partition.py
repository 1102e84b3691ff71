from __future__ import annotations

from collections import Counter, defaultdict
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.hashing import key_groups
from rayflow.batch.partition import Partitioner, PartitionKind, make_partitioner
from rayflow.graph.execution import consumer_indices
from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.key_groups import key_group_range, subtask_of_key_group


def partitioner(kind: PartitionKind, consumers: int, *, index: int = 0, producers: int = 1) -> Partitioner:
    return make_partitioner(kind, ["k"], 128, consumers, index, producers)


def numbers(batch: pa.RecordBatch | None) -> list[int]:
    return [] if batch is None else batch.column("n").to_pylist()


def rows(keys: list, start: int = 0) -> pa.RecordBatch:
    count = len(keys)
    return pa.record_batch(
        {
            "k": pa.array(keys, pa.int64()),
            "n": range(start, start + count),
            "s": [None if i % 3 == 0 else f"s{i}" for i in range(count)],
            "f": pa.array([i / 2 for i in range(count)], pa.float32()),
            "b": pa.array([i % 2 == 0 for i in range(count)], pa.bool_()),
        }
    )


KEYS = st.lists(st.one_of(st.none(), st.integers(0, 40), st.integers(-(2**63), 2**63 - 1)), max_size=60)


@settings(max_examples=80)
@given(st.lists(KEYS, min_size=1, max_size=3), st.sampled_from([1, 2, 3, 4, 7, 128]), st.integers(0, 3))
def test_hash_split_agrees_with_a_row_by_row_model(batches: list, consumers: int, offset: int) -> None:
    split = partitioner("hash", consumers).split
    start = 0
    for keys in batches:
        batch = rows(keys, start).slice(offset)
        start += len(keys)
        expected: dict[int, list[dict]] = defaultdict(list)
        for row, group in zip(batch.to_pylist(), key_groups(batch, ["k"], 128).tolist()):
            expected[subtask_of_key_group(group, 128, consumers)].append(row)
        parts = split(batch)
        assert len(parts) == consumers
        for consumer, part in enumerate(parts):
            assert (None if part is None else part.to_pylist()) == expected.get(consumer)


@pytest.mark.parametrize("consumers", [2, 5, 100])
def test_consumers_get_only_key_groups_of_their_range(consumers: int) -> None:
    parts = make_partitioner("hash", ["k"], 100, consumers, 0, 1).split(rows(list(range(3000))))
    for index, part in enumerate(parts):
        assert part is not None
        groups = set(key_groups(part, ["k"], 100).tolist())
        assert all(group in key_group_range(100, consumers, index) for group in groups)


@pytest.mark.parametrize("consumers", [255, 256, 257, 1000])
def test_hundreds_of_consumers_are_told_apart(consumers: int) -> None:
    split = make_partitioner("hash", ["k"], 1024, consumers, 0, 1).split
    parts = split(rows(list(range(5000))))
    assert sorted(n for part in parts for n in numbers(part)) == list(range(5000))
    for index, part in enumerate(parts):
        if part is not None:
            groups = key_groups(part, ["k"], 1024).tolist()
            assert {subtask_of_key_group(g, 1024, consumers) for g in groups} == {index}
            assert split(part)[index] is part


def test_a_batch_of_one_key_is_passed_on_uncopied() -> None:
    batch = rows([7] * 10)
    parts = partitioner("hash", 4).split(batch)
    assert [part is batch for part in parts if part is not None] == [True]


def test_composite_keys_split_by_all_their_columns() -> None:
    batch = pa.record_batch({"a": [1] * 200, "b": range(200)})
    by_both = make_partitioner("hash", ["a", "b"], 128, 4, 0, 1).split(batch)
    assert all(part is not None for part in by_both)
    by_one = make_partitioner("hash", ["a"], 128, 4, 0, 1).split(batch)
    assert sum(part is not None for part in by_one) == 1


@pytest.mark.parametrize("kind", ["hash", "rebalance", "broadcast"])
def test_empty_batches_go_nowhere(kind: PartitionKind) -> None:
    parts = partitioner(kind, 3, index=1, producers=3).split(rows([]))
    assert parts == [None, None, None]


def test_rebalance_deals_small_batches_in_turn() -> None:
    split = partitioner("rebalance", 3).split
    dealt = [[numbers(p) for p in split(rows([0], start=i))] for i in range(4)]
    assert dealt == [[[0], [], []], [[], [1], []], [[], [], [2]], [[3], [], []]]


def test_rebalance_cuts_large_batches_evenly_and_goes_on_in_turn() -> None:
    split = partitioner("rebalance", 3).split
    parts = split(rows([0] * 9000))
    assert [len(numbers(p)) for p in parts] == [4500, 4500, 0]
    assert numbers(parts[0]) + numbers(parts[1]) == list(range(9000))
    assert [len(numbers(p)) for p in split(rows([0]))] == [0, 0, 1]


def test_producers_of_a_rebalance_begin_at_different_consumers() -> None:
    firsts = [partitioner("rebalance", 3, index=i, producers=3).split(rows([0])) for i in range(3)]
    assert [[p is not None for p in parts].index(True) for parts in firsts] == [0, 1, 2]


@given(st.integers(1, 20), st.integers(1, 20))
def test_rescale_has_one_entry_for_each_channel_of_the_execution_graph(
    producers: int, consumers: int
) -> None:
    for index in range(producers):
        split = partitioner("rescale", consumers, index=index, producers=producers).split
        assert len(split(rows([0]))) == len(consumer_indices("rescale", producers, consumers, index))


def test_rescale_deals_in_turn_within_its_share() -> None:
    split = partitioner("rescale", 4, index=1, producers=2).split
    targets = [[p is not None for p in split(rows([0]))].index(True) for _ in range(3)]
    assert targets == [0, 1, 0]


def test_broadcast_gives_everyone_the_same_batch() -> None:
    batch = rows([1, 2])
    assert all(part is batch for part in partitioner("broadcast", 3).split(batch))


def test_forward_passes_on_whole_batches_to_its_one_consumer() -> None:
    batch = rows([0] * 20_000)
    assert partitioner("forward", 2, index=1, producers=2).split(batch) == [batch]


def test_forward_between_unequal_parallelisms_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="from 2 to 3"):
        partitioner("forward", 3, producers=2)


def test_hash_without_keys_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="key columns"):
        make_partitioner("hash", [], 128, 2, 0, 1)


def test_split_rows_keep_their_types_and_hidden_columns() -> None:
    batch = pa.record_batch(
        {
            "k": range(50),
            "t": pa.array(range(50), pa.timestamp("ms", "UTC")),
            "d": pa.array([Decimal(i) for i in range(50)], pa.decimal128(20, 2)),
            "l": [[i] for i in range(50)],
            "c": pa.array(["x", "y"] * 25).dictionary_encode(),
        }
    )
    for part in make_partitioner("hash", ["k"], 128, 2, 0, 1).split(batch):
        assert part is not None
        assert part.schema == batch.schema
        by_key = {row["k"]: row for row in batch.to_pylist()}
        assert part.to_pylist() == [by_key[k] for k in part.column("k").to_pylist()]


@pytest.mark.parametrize(("salts", "spread"), [(1, 1), (2, 2), (4, 4), (100, 4)])
def test_salts_spread_a_key_evenly_over_subtasks_from_its_owner_on(salts: int, spread: int) -> None:
    plain = partitioner("hash", 4)
    salted = make_partitioner("hash", ["k"], 128, 4, 0, 1, salts=salts)
    for key in range(20):
        batch = rows([key] * 1000)
        (owner,) = [i for i, part in enumerate(plain.split(batch)) if part is not None]
        sizes = Counter[int]()
        for _ in range(3):
            for i, part in enumerate(salted.split(batch)):
                sizes[i] += 0 if part is None else part.num_rows
        reached = {(owner + salt) % 4 for salt in range(spread)}
        assert {i for i, size in sizes.items() if size} == reached
        assert max(sizes[i] for i in reached) - min(sizes[i] for i in reached) <= 1


def test_salts_by_producer_keep_what_one_sends_of_a_key_together() -> None:
    batch = rows([7] * 100)
    targets = []
    for producer in range(4):
        salted = make_partitioner("hash", ["k"], 128, 4, producer, 4, salts=2, by_producer=True)
        (target,) = [i for i, part in enumerate(salted.split(batch)) if part is not None]
        targets.append(target)
    assert targets[0] != targets[1]
    assert targets == [targets[0], targets[1]] * 2


@pytest.mark.parametrize(("salts", "spread"), [(2, 2), (3, 3), (4, 4)])
def test_salted_rows_are_dealt_out_evenly_whatever_the_order_of_keys(salts: int, spread: int) -> None:
    plain = partitioner("hash", 4)

    def owner(key: int) -> int:
        return [part is not None for part in plain.split(rows([key]))].index(True)

    # One key of each owner, in the order in which turns and owners would cancel.
    one_of_each = [next(key for key in range(1_000) if owner(key) == i) for i in (3, 2, 1, 0)]
    salted = make_partitioner("hash", ["k"], 128, 4, 0, 1, salts=salts)
    sizes = Counter[int]()
    for _ in range(5):
        for i, part in enumerate(salted.split(rows(one_of_each * 101))):
            sizes[i] += 0 if part is None else part.num_rows
    assert max(sizes.values()) - min(sizes.values()) <= spread
