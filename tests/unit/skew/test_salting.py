"""Hot keys take another way: from a barrier on, or soon where none comes; every row takes exactly one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.hashing import hash_columns, key_groups
from rayflow.protocol.key_groups import subtask_of_key_group
from rayflow.protocol.salting import LEAST_ROWS
from rayflow.skew.salting import FIRST_ROWS, SALTED, SWITCH_MS, SaltOperator, _Salted

CONSUMERS = 4


class Clock:
    now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def salting(harness: Any, clock: Clock) -> Any:
    return harness(lambda: SaltOperator(["a", "b"]), now_ms=clock, consumers=CONSUMERS)


def rows(keys: list[str | None], first: int = 0) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "a": pa.array(keys, pa.string()),
            "b": pa.array([1] * len(keys), pa.int8()),
            "n": pa.array(range(first, first + len(keys)), pa.int64()),
        }
    )


def hashes(*keys: str | None) -> list[int]:
    return sorted(hash_columns(rows(list(keys)), ["a", "b"]).tolist())


def consumer(key: str | None) -> int:
    return subtask_of_key_group(int(key_groups(rows([key]), ["a", "b"], 8)[0]), 8, CONSUMERS)


def ways(driven: Any) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows that went directly, and of those that went aside."""
    direct = [n for batch in driven.batches for n in batch["n"].to_pylist()]
    aside = [n for tag, batch in driven.side for n in batch["n"].to_pylist()]
    assert {tag for tag, _ in driven.side} <= {SALTED}
    driven.events.clear()
    return direct, aside


def test_a_new_set_takes_effect_at_the_barrier(salting: Any) -> None:
    salting.feed(rows(["y"]))
    ways(salting)
    salting.operator.salt(hashes("x", None))
    salting.feed(rows(["x", "y", None]))
    assert ways(salting) == ([0, 1, 2], [])
    assert salting.snapshot(1) == []
    salting.feed(rows(["x", "y", None], 3))
    assert ways(salting) == ([4], [3, 5])
    salting.feed(rows(["x"], 6)).feed(rows(["y"], 7))
    assert ways(salting) == ([7], [6])
    salting.operator.salt([])
    salting.snapshot(2)
    salting.feed(rows(["x", "y"], 8))
    assert ways(salting) == ([8, 9], [])
    assert salting.metrics.counter("rows_salted").value == 3


def test_without_barriers_it_takes_effect_after_a_while(salting: Any, clock: Clock) -> None:
    salting.feed(rows(["y"]))
    ways(salting)
    salting.operator.salt(hashes("x"))
    clock.now_ms += SWITCH_MS - 1
    salting.feed(rows(["x"]))
    assert ways(salting) == ([0], [])
    clock.now_ms += 1
    salting.feed(rows(["x"], 1))
    assert ways(salting) == ([], [1])


def test_it_tells_how_many_rows_its_keys_had_and_what_it_salts_or_will(salting: Any) -> None:
    keys: list[str | None] = ["x"] * 60 + [f"k{n}" for n in range(40)]
    salting.feed(rows(keys))
    told = salting.operator.hot_keys()
    assert sum(told["consumers"]) == 100
    owner = consumer("x")
    assert max(told["keys"], key=lambda key: key[2]) == [*hashes("x"), owner, 60]
    belonging = [sum(consumer(key) == i for key in keys) for i in range(CONSUMERS)]
    assert told["consumers"] == belonging
    assert told["salted"] == []
    salting.operator.salt(hashes("x"))
    assert salting.operator.hot_keys()["salted"] == hashes("x")
    salting.snapshot(1)
    assert salting.operator.hot_keys()["salted"] == hashes("x")


def test_old_rows_are_forgotten(salting: Any, clock: Clock) -> None:
    salting.feed(rows(["x"] * 1000))
    for _ in range(8):
        clock.now_ms += 1_000
        salting.feed(rows(["y"] * 1000))
    told = salting.operator.hot_keys()
    shares = {key: count / sum(told["consumers"]) for key, _, count in told["keys"]}
    assert shares[hashes("y")[0]] > 0.9
    assert shares.get(hashes("x")[0], 0) < 0.1


def test_the_first_rows_show_what_is_hot_before_they_go_anywhere(salting: Any) -> None:
    keys: list[str | None] = (["x", None] * 1500) + [f"k{n}" for n in range(3_000)]
    salting.feed(rows(keys))
    direct, aside = ways(salting)
    assert aside == list(range(3_000))
    assert direct == list(range(3_000, 6_000))
    assert salting.operator.hot_keys()["salted"] == hashes("x", None)


def test_of_a_slow_stream_nothing_is_said_before_there_are_rows_enough(salting: Any) -> None:
    for begin in range(0, LEAST_ROWS - 100, 100):
        salting.feed(rows(["x"] * 100, begin))
    assert ways(salting)[1] == []
    salting.feed(rows(["x"] * 100))
    assert ways(salting) == ([], list(range(100)))


def test_what_is_first_is_looked_at_again_while_nobody_else_has_spoken(salting: Any) -> None:
    salting.feed(rows(["x"] * LEAST_ROWS)).feed(rows(["y"] * 4 * LEAST_ROWS))
    ways(salting)
    assert salting.operator.hot_keys()["salted"] == hashes("x", "y")
    for begin in range(0, 2 * FIRST_ROWS, 8_192):
        salting.feed(rows([f"k{n}" for n in range(begin, begin + 8_192)]))
    assert salting.operator.hot_keys()["salted"] == hashes("x", "y")
    assert salting.operator._first is None


def test_once_the_master_has_spoken_it_decides(salting: Any) -> None:
    salting.feed(rows(["x"] * LEAST_ROWS))
    salting.operator.salt([])
    salting.feed(rows(["x"] * 4 * LEAST_ROWS))
    salting.snapshot(1)
    ways(salting)
    salting.feed(rows(["x"] * 4 * LEAST_ROWS))
    assert ways(salting)[1] == []


def test_what_is_told_before_the_first_rows_is_salted_from_the_first_on(salting: Any) -> None:
    salting.operator.salt(hashes("x"))
    salting.feed(rows(["x", "y"]))
    assert ways(salting) == ([1], [0])


def test_what_was_salted_before_a_restart_is_salted_from_the_first_row_on(harness: Any, clock: Clock) -> None:
    restarted = harness(
        lambda: SaltOperator(["a", "b"]), now_ms=clock, consumers=CONSUMERS, salted=hashes("x")
    )
    assert restarted.operator.hot_keys()["salted"] == hashes("x")
    restarted.feed(rows(["x", "y"]))
    assert ways(restarted) == ([1], [0])
    # Few first rows of one sender do not end it; what they show comes in beside it.
    restarted.feed(rows(["y"] * LEAST_ROWS))
    assert restarted.operator.hot_keys()["salted"] == hashes("x", "y")


def test_with_one_consumer_nothing_is_salted(harness: Any) -> None:
    alone = harness(lambda: SaltOperator(["a", "b"]))
    alone.feed(rows(["x"] * 5_000))
    assert len(ways(alone)[0]) == 5_000


def test_many_salted_keys_are_told_apart_from_the_others(salting: Any) -> None:
    random = np.random.default_rng(3)
    keys: list[str | None] = [f"k{n}" for n in random.integers(0, 500, 5_000)]
    hot = {f"k{n}" for n in range(0, 500, 9)}
    salting.feed(rows(["k1"]))
    ways(salting)
    salting.operator.salt(hashes(*sorted(hot)))
    salting.snapshot(1)
    salting.feed(rows(keys))
    direct, aside = ways(salting)
    assert aside == [n for n, key in enumerate(keys) if key in hot]
    assert direct == [n for n, key in enumerate(keys) if key not in hot]


HASHES = st.one_of(
    st.integers(0, 2**64 - 1),
    # Those that differ in few bits, and in the same ones.
    st.builds(lambda bits: sum(1 << bit for bit in bits), st.sets(st.integers(0, 63), max_size=3)),
)


@given(st.sets(HASHES, min_size=1, max_size=256), st.lists(HASHES, max_size=50))
@settings(max_examples=200, deadline=None)
def test_who_is_salted_is_who_is_in_the_set(keys: set[int], others: list[int]) -> None:
    asked = np.array([*others, *sorted(keys), *(~key & (2**64 - 1) for key in sorted(keys))], np.uint64)
    assert _Salted(keys).among(asked).tolist() == [one in keys for one in asked.tolist()]


def test_keys_that_no_few_bits_tell_apart_are_found_too() -> None:
    keys = {0, 1, 1 << 60, 1 << 30}
    salted = _Salted(keys)
    assert salted._table is None
    asked = np.array([0, 1, 2, 1 << 60, 1 << 61, 2**64 - 1], np.uint64)
    assert salted.among(asked).tolist() == [True, True, False, True, False, False]
