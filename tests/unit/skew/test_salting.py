"""Hot keys take another way: from a barrier on, or soon where none comes; every row takes exactly one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayflow.batch.hashing import hash_columns
from rayflow.skew.salting import SALTED, SWITCH_MS, SaltOperator


class Clock:
    now_ms = 1_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def salting(harness: Any, clock: Clock) -> Any:
    return harness(lambda: SaltOperator(["a", "b"]), now_ms=clock)


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


def ways(driven: Any) -> tuple[list[int], list[int]]:
    """Return the numbers of the rows that went directly, and of those that went aside."""
    direct = [n for batch in driven.batches for n in batch["n"].to_pylist()]
    aside = [n for tag, batch in driven.side for n in batch["n"].to_pylist()]
    assert {tag for tag, _ in driven.side} <= {SALTED}
    driven.events.clear()
    return direct, aside


def test_a_new_set_takes_effect_at_the_barrier(salting: Any) -> None:
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
    assert told["rows"] == 100
    assert max(told["counts"], key=lambda count: count[1]) == [*hashes("x"), 60]
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
    shares = {key: count / told["rows"] for key, count in told["counts"]}
    assert shares[hashes("y")[0]] > 0.9
    assert shares.get(hashes("x")[0], 0) < 0.1


def test_many_salted_keys_are_told_apart_from_the_others(salting: Any) -> None:
    random = np.random.default_rng(3)
    keys: list[str | None] = [f"k{n}" for n in random.integers(0, 500, 5_000)]
    hot = {f"k{n}" for n in range(0, 500, 9)}
    salting.operator.salt(hashes(*sorted(hot)))
    salting.snapshot(1)
    salting.feed(rows(keys))
    direct, aside = ways(salting)
    assert aside == [n for n, key in enumerate(keys) if key in hot]
    assert direct == [n for n, key in enumerate(keys) if key not in hot]
