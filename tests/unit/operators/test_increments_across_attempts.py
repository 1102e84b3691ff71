"""Keyed state on disk over increments, attempts that go on with the chain restored, and rescaling: as in memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.windows.count import CountWindowOperator
from tests.unit.stored import Checkpoints

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64())])
AGGREGATES = [("n", count()), ("total", col("v").sum()), ("last", col("v").last())]

MAKERS: dict[str, Any] = {
    "aggregate": lambda: RunningAggregateOperator(("k",), AGGREGATES, SCHEMA, False),
    # Keys go when their window is full.
    "count": lambda: CountWindowOperator(("k",), 3, AGGREGATES, SCHEMA),
}
TINY, LARGE = 1, 1 << 30


def batch(keys: Any, first: int = 0) -> pa.RecordBatch:
    return pa.record_batch({"k": list(keys), "v": range(first, first + len(keys))}, schema=SCHEMA)


def shown(driven: Any) -> Counter[Any]:
    return Counter(tuple(row.values()) for row in driven.rows)


@pytest.mark.parametrize("kind", list(MAKERS))
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.integers(0, 9), max_size=12),
            st.sampled_from([None, (), (0,), (1,)]),
            st.sampled_from([None, None, 1, 2, 2, 3]),
            st.sampled_from([TINY, TINY, LARGE, None]),
        ),
        max_size=8,
    )
)
@settings(max_examples=50, deadline=None)
def test_what_increments_over_several_attempts_restore_is_what_memory_has(
    subtasks: Any, kind: str, steps: list[Any]
) -> None:
    # After each step a checkpoint, of whose end not all subtasks hear; after some of them a restart.
    plain = subtasks(MAKERS[kind], ["k"], 1)
    driven = subtasks(MAKERS[kind], ["k"], 2, disk_bytes=TINY)
    checkpoints = Checkpoints(driven)
    for number, (keys, heard, parallelism, disk_bytes) in enumerate(steps, 1):
        if keys:
            plain.feed(batch(keys, 100 * number))
            driven.feed(batch(keys, 100 * number))
        checkpoints.take(number, completes=heard)
        if parallelism is not None:
            checkpoints.restart(number, parallelism, disk_bytes=disk_bytes)
    plain.feed(batch(range(10)))
    driven.feed(batch(range(10)))
    assert shown(driven) == shown(plain)


def test_the_first_checkpoint_after_a_restart_has_what_changed_since(subtasks: Any) -> None:
    driven = subtasks(MAKERS["aggregate"], ["k"], 2, disk_bytes=20_000)
    checkpoints = Checkpoints(driven)
    driven.feed(batch(range(5_000)))
    checkpoints.take(1)
    checkpoints.restart(1, 2)
    driven.feed(batch(range(50)))
    checkpoints.take(2)
    assert checkpoints.written[2] < 0.1 * checkpoints.written[1]
    checkpoints.restart(2, 2)
    driven.feed(batch(range(4_950, 5_000)))
    checkpoints.take(3)
    assert {file.origin for file in checkpoints.files[3]} == {1, 2, None}
    # At another parallelism other subtasks have the keys: each begins with all of its own.
    checkpoints.restart(3, 3)
    checkpoints.take(4)
    assert {file.origin for file in checkpoints.files[4]} == {None}
    checkpoints.restart(4, 1)
    driven.feed(batch(range(5_000)))
    newest = {row["k"]: row["n"] for row in driven.subtasks[0].rows}
    assert newest == {k: 2 + (k < 50 or k >= 4_950) for k in range(5_000)}
