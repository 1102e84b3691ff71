"""The combiner before running aggregates: same results, fewer rows, bounded, and nothing to restore."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.config import JobConfig
from rayflow.skew.combiner import CombineOperator
from rayflow.skew.reduction import SAMPLE_ROWS
from rayflow.state.partials import ROWS, rows_in

ROW = st.tuples(
    st.sampled_from(["x", "y", "", None]),
    st.sampled_from([1, 2, None]),
    st.none() | st.integers(0, 6),
    st.none() | st.integers(-(2**62), 2**62),
    st.none() | st.sampled_from([0.5, -0.0, 1e9, float("inf"), float("nan")]),
    st.none() | st.decimals(-(10**15), 10**15, places=2, allow_nan=False).map(Decimal),
    st.sampled_from(["x", "yy", None]),
)

STEPS = st.lists(st.tuples(st.integers(0, 2), st.lists(ROW, min_size=1, max_size=9)), max_size=10)


@given(
    steps=STEPS,
    keys=st.sampled_from([["a"], ["b"], ["a", "b"], ["f"], ["t"], ["d", "a"]]),
    names=st.data(),
    time_column=st.sampled_from(["t", None]),
    rows=st.sampled_from([1, 3, 1000]),
    senders=st.sampled_from([1, 3]),
    passing=st.booleans(),
    restart_at=st.integers(0, 9),
    middle=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_combined_rows_give_the_results_of_the_rows(
    kit: Any,
    harness: Any,
    subtasks: Any,
    steps: list[Any],
    keys: list[str],
    names: Any,
    time_column: str | None,
    rows: int,
    senders: int,
    passing: bool,
    restart_at: int,
    middle: bool,
) -> None:
    # Of several senders which row comes first is not said, so what depends on it is compared for one.
    known = [*kit.unordered, *(kit.ordered if senders == 1 else ())]
    drawn = names.draw(st.lists(st.sampled_from(known), min_size=1, max_size=4, unique=True))
    combination = kit.combination(keys, drawn, time_column)
    make = kit.aggregate(combination)
    plain, merged = subtasks(make, keys, 2), subtasks(make, keys, 2)
    sending = [kit.combine(harness, combination, rows) for _ in range(senders)]
    between = kit.combine(harness, combination, 5) if middle else None
    if passing:
        for sender in sending:
            sender.operator._reduction._pass_rows = 10**9

    def deliver(sender: Any, to: Any) -> None:
        events, sender.events = sender.events, []
        for event in events:
            to.feed(event[1])

    number = 0
    for step, (who, drawn_rows) in enumerate(steps):
        batch = kit.batch(drawn_rows, number)
        number += batch.num_rows
        plain.feed(batch)
        sender = sending[who % senders]
        sender.feed(batch)
        deliver(sender, between or merged)
        if step == restart_at:
            for holder in [*sending, *([between] if between else [])]:
                assert holder.snapshot(1) == []
                deliver(holder, between if between and holder is not between else merged)
            merged.restart(1, 1)
    for sender in sending:
        sender.operator.end()
        deliver(sender, between or merged)
    if between:
        between.operator.end()
        deliver(between, merged)
    expected = kit.last_rows([{n: _same(v) for n, v in row.items()} for row in plain.rows], keys)
    found = {
        tuple(row[key] for key in keys): {n: v for n, v in row.items() if n != "__op"}
        for row in [{n: _same(v) for n, v in row.items()} for row in merged.rows]
    }
    assert found == expected


def _same(value: Any) -> Any:
    # A NaN is equal to itself where rows are compared, as a key and as a result.
    return "nan" if isinstance(value, float) and value != value else value


def test_at_most_one_row_a_key_leaves_with_each_flush(kit: Any, harness: Any) -> None:
    sender = kit.combine(harness, kit.combination(["a"], ["count", "sum"], None), 1000)
    for begin in range(0, 60, 6):
        sender.feed(kit.batch([(key, 1, None, 1, 0.5, None, "x") for key in ("x", "y", None) * 2], begin))
    assert sender.batches == []
    sender.operator.on_timer(JobConfig().skew_linger_ms)
    (batch,) = sender.batches
    assert sorted(zip(batch["a"].to_pylist(), batch[ROWS].to_pylist()), key=str) == [
        ("x", 20), ("y", 20), (None, 20),
    ]  # fmt: skip
    assert rows_in(batch) == 60


def test_what_is_held_is_bounded_by_keys_and_by_bytes(kit: Any, harness: Any) -> None:
    combination = kit.combination(["b"], ["list"], None)
    few = harness(lambda: CombineOperator(combination), config=JobConfig(skew_rows=10))
    few.feed(kit.batch([("x", n, None, 1, 0.5, None, "x") for n in range(9)]))
    assert few.batches == []
    few.feed(kit.batch([("x", 9, None, 1, 0.5, None, "x")]))
    assert rows_in(few.batches[0]) == 10

    small = harness(lambda: CombineOperator(combination), config=JobConfig(skew_bytes=1 << 20))
    baseline = small.operator._nbytes()
    rows = kit.batch([("x", 1, None, 1, 0.5, None, "x")] * 2000)
    for _ in range(100):
        small.feed(rows)
        assert small.operator._nbytes() < (1 << 20) + 40 * 2000
    assert len(small.batches) > 1
    small.operator.end()
    assert sum(map(rows_in, small.batches)) == 200_000
    assert small.operator._nbytes() < max(2 * baseline, 1 << 20)


def test_keys_that_hardly_repeat_are_passed_on_and_tried_again(kit: Any, harness: Any) -> None:
    combination = kit.combination(["n"], ["count", "sum"], None)
    sender = harness(lambda: CombineOperator(combination), config=JobConfig(skew_rows=SAMPLE_ROWS))
    number, size = 0, 4096
    rows = kit.batch([("x", 1, None, 1, 0.5, None, "x")] * size)

    def feed(keys: Any) -> None:
        sender.feed(rows.set_column(7, kit.schema.field("n"), pa.array(keys)))

    for _ in range(80):
        feed(np.arange(number, number + size))
        number += size
    passed = sender.metrics.counter("rows_passed_on").value
    assert number > passed > number * 0.5
    # When keys come to repeat, it is noticed.
    for _ in range(400):
        feed(np.arange(size) % 7)
        number += size
    assert sender.operator._reduction.passes is False
    sender.operator.end()
    assert sum(map(rows_in, sender.batches)) == number


def test_objects_are_combined_whatever_the_keys(kit: Any, harness: Any) -> None:
    sender = kit.combine(harness, kit.combination(["n"], ["about"], None), 1000)
    sender.operator._reduction._pass_rows = 10**9
    sender.feed(kit.batch([("x", 1, None, 1, 0.5, None, "x")] * 3))
    assert sender.batches == []


def test_names_of_results_and_keys_are_kept_apart(kit: Any) -> None:
    combination = kit.combination(["a"], ["count"], None)
    assert combination.partial_schema().names == ["a", ROWS, "count.count"]
    assert combination.numbers_arrivals is False
    assert kit.combination(["a"], ["count", "last"], None).numbers_arrivals is True
    assert kit.combination(["a"], ["last"], "t").numbers_arrivals is False


@pytest.mark.parametrize("time_column", [None, "t"])
def test_a_producers_rows_of_a_key_stay_in_order(kit: Any, harness: Any, time_column: str | None) -> None:
    # All of one time, in several flushes that travel as one batch.
    combination = kit.combination(["a"], ["list", "first", "last"], time_column)
    sender = kit.combine(harness, combination, 1000)
    receiver = harness(kit.aggregate(combination))
    for begin in range(0, 30, 3):
        sender.feed(kit.batch([("x", 1, 5, 1, 0.5, None, str(begin + i)) for i in range(3)], begin))
        sender.operator.snapshot(begin)
    receiver.feed(pa.concat_batches(sender.batches))
    assert receiver.rows[-1]["list"] == list(range(30))
    assert (receiver.rows[-1]["first"], receiver.rows[-1]["last"]) == (0, "29")
