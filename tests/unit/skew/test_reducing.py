"""`reduce` in parts, by an associative function: same results, fewer rows, in order, and nothing to restore."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.config import JobConfig
from rayflow.model.errors import UserFunctionError
from rayflow.operators.reduce import ReduceOperator
from rayflow.skew.reducing import ReduceBeforeOperator
from rayflow.skew.reduction import SAMPLE_ROWS

SCHEMA = pa.schema([("k", pa.string()), ("n", pa.int64()), ("all", pa.list_(pa.int64()))])


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Associative, but not commutative."""
    return {
        "n": None if None in (old["n"], new["n"]) else old["n"] + new["n"],
        "all": old["all"] + new["all"],
    }


def batch(rows: list[tuple[str | None, int | None]], first: int = 0) -> pa.RecordBatch:
    found = [{"k": k, "n": n, "all": [first + i]} for i, (k, n) in enumerate(rows)]
    return pa.RecordBatch.from_pylist(found, schema=SCHEMA)


def sending(harness: Any, **config: Any) -> Any:
    return harness(lambda: ReduceBeforeOperator(joined, ("k",), SCHEMA), config=JobConfig(**config))


def deliver(sender: Any, to: Any) -> None:
    events, sender.events = sender.events, []
    for event in events:
        to.feed(event[1])


def last_rows(driven: Any) -> dict[Any, Any]:
    return {row["k"]: (row["n"], row["all"]) for row in driven.rows}


KEYS = st.sampled_from(["x", "y", "", None])
STEPS = st.lists(
    st.lists(st.tuples(KEYS, st.none() | st.integers(-9, 9)), min_size=1, max_size=9), max_size=8
)


@given(STEPS, st.sampled_from([1, 2, 1000]), st.sampled_from([1, 1 << 20]), st.booleans(), st.integers(0, 7))
@settings(max_examples=60, deadline=None)
def test_reduced_in_parts_keys_have_the_rows_they_had(
    harness: Any, steps: list[Any], rows: int, nbytes: int, middle: bool, barrier_at: int
) -> None:
    def make() -> ReduceOperator:
        return ReduceOperator(joined, ("k",), SCHEMA, False)

    plain, merged = harness(make), harness(make)
    sender = sending(harness, skew_rows=rows, skew_bytes=nbytes)
    between = sending(harness, skew_rows=2)
    first = 0
    for step, found in enumerate(steps):
        given_rows = batch(found, first)
        first += len(found)
        plain.feed(given_rows)
        sender.feed(given_rows)
        if step == barrier_at:
            assert sender.snapshot(1) == []
        deliver(sender, between if middle else merged)
        if middle:
            deliver(between, merged)
    sender.operator.end()
    deliver(sender, between if middle else merged)
    between.operator.end()
    deliver(between, merged)
    assert last_rows(merged) == last_rows(plain)


def test_one_row_a_key_leaves_and_a_watermark_waits_behind_it(harness: Any) -> None:
    sender = sending(harness)
    sender.feed(batch([("x", 1), ("y", 2), ("x", 3)])).feed(batch([("x", 5)], 3))
    assert sender.operator.on_watermark(7) is None
    assert sender.events == []
    sender.operator.on_timer(JobConfig().skew_linger_ms)
    (rows, found), watermark = sender.events
    assert rows == "rows"
    assert found.to_pylist() == [
        {"k": "x", "n": 9, "all": [0, 2, 3]},
        {"k": "y", "n": 2, "all": [1]},
    ]
    assert watermark == ("watermark", 7)
    # Forgotten: what comes now begins anew.
    sender.events.clear()
    sender.feed(batch([("x", 1)], 9)).snapshot(1)
    assert sender.batches[0].to_pylist() == [{"k": "x", "n": 1, "all": [9]}]


def test_keys_that_hardly_repeat_are_passed_on(harness: Any) -> None:
    sender = sending(harness, skew_rows=1_000)
    rows = (SAMPLE_ROWS // 1_000 + 3) * 1_000
    for begin in range(0, rows, 1_000):
        sender.feed(batch([(f"k{n}", 1) for n in range(begin, begin + 1_000)], begin))
    assert sender.metrics.counter("rows_passed_on").value >= 1_000
    assert sum(found.num_rows for found in sender.batches) == rows


def test_what_the_function_does_wrong_is_told_where_it_happens(harness: Any) -> None:
    sender = harness(lambda: ReduceBeforeOperator(lambda old, new: 3, ("k",), SCHEMA))
    with pytest.raises(UserFunctionError, match="expected a dict"):
        sender.feed(batch([("x", 1), ("x", 2)]))
