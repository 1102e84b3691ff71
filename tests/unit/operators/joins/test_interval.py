from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.joins.columns import JoinColumns, JoinSide
from rayflow.operators.joins.interval import IntervalJoinOperator

MS = 1_000_000
LEFT = pa.schema([("k", pa.int64()), ("t", pa.timestamp("ms")), ("v", pa.int64())])
RIGHT = pa.schema([("k", pa.int64()), ("u", pa.timestamp("us", "UTC")), ("w", pa.int64())])

Row = tuple[Any, Any, Any]


def maker(lower: int, upper: int) -> Any:
    left, right = JoinSide(LEFT, ("k",)), JoinSide(RIGHT, ("k",))
    columns = JoinColumns(left, right)
    return lambda: IntervalJoinOperator(left, right, columns, ("t", "u"), lower * MS, upper * MS)


def batch(port: int, *rows: Row) -> pa.RecordBatch:
    schema = (LEFT, RIGHT)[port]
    scale = (1, 1000)[port]
    times = [None if row[1] is None else row[1] * scale for row in rows]
    arrays = [[row[0] for row in rows], times, [row[2] for row in rows]]
    return pa.RecordBatch.from_arrays([pa.array(a, f.type) for a, f in zip(arrays, schema)], schema=schema)


def pairs(driven: Any) -> list[tuple[int, int]]:
    return [(row["v"], row["w"]) for row in driven.rows]


def test_both_ends_of_the_interval_are_included(harness: Any) -> None:
    driven = harness(maker(-2, 1)).feed(batch(0, (1, 10, 0)))
    driven.feed(batch(1, *((1, 7 + i, i) for i in range(6))), 1)
    assert pairs(driven) == [(0, 1), (0, 2), (0, 3), (0, 4)]
    assert driven.batches[0].schema.names == ["k", "t", "v", "u", "w"]


@pytest.mark.parametrize(("lower", "upper", "back"), [(-5, 3, 4), (-5, -3, 1), (2, 9, 10)])
def test_the_watermark_passes_late_enough_for_the_oldest_left_row(
    harness: Any, lower: int, upper: int, back: int
) -> None:
    driven = harness(maker(lower, upper)).watermark(100 * MS).watermark(WATERMARK_MAX)
    assert driven.watermarks == [(100 - back) * MS, WATERMARK_MAX]


def test_late_rows_rows_without_a_time_and_null_keys_are_left_out(harness: Any) -> None:
    driven = harness(maker(-10, 10)).feed(batch(1, (1, 5, 0), (None, 5, 1)), 1).watermark(9 * MS)
    driven.feed(batch(0, (1, 8, 1), (1, 9, 2), (1, None, 3), (None, 9, 4)))
    driven.feed(batch(1, (1, 8, 5), (1, 9, 6)), 1)
    assert pairs(driven) == [(2, 0), (2, 6)]
    assert driven.metrics.snapshot() == {"late_rows": 2, "null_time_rows": 1}


def test_an_interval_finer_than_the_times_is_cut_to_whole_ticks(harness: Any) -> None:
    left = JoinSide(LEFT, ("k",))
    make = lambda: IntervalJoinOperator(left, left, JoinColumns(left, left), ("t", "t"), -MS - 1, MS - 1)  # noqa: E731
    driven = harness(make).feed(batch(0, (1, 10, 0)))
    driven.feed(batch(0, (1, 8, 8), (1, 9, 9), (1, 10, 10), (1, 11, 11)), 1)
    assert [row["v_right"] for row in driven.rows] == [9, 10]


def test_times_at_the_end_of_what_a_column_holds_do_not_overflow(harness: Any) -> None:
    left = JoinSide(LEFT, ("k",))
    make = lambda: IntervalJoinOperator(left, left, JoinColumns(left, left), ("t", "t"), -5 * MS, 5 * MS)  # noqa: E731
    last = 2**63 - 1
    driven = harness(make).feed(batch(0, (1, last, 0), (1, -last, 1)))
    driven.feed(batch(0, (1, last - 3, 2), (1, 4 - last, 3)), 1)
    (pairs,) = driven.batches
    assert (pairs["v"].to_pylist(), pairs["v_right"].to_pylist()) == ([0, 1], [2, 3])


def test_what_nothing_can_pair_with_any_more_is_forgotten(harness: Any) -> None:
    driven = harness(maker(-10, 0))
    for second in range(100):
        rows = [(i, second * 10, i) for i in range(500)]
        driven.feed(batch(0, *rows)).feed(batch(1, *rows), 1).watermark(second * 10 * MS)
    sides = driven.operator._sides
    assert all(len(store) < 10_000 for store in sides.stores)
    assert len(pairs(driven)) == 100 * 500 + 99 * 500


STEP = st.tuples(
    st.integers(0, 1),
    st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.integers(-40, 60)), max_size=12),
    st.integers(-60, 80),
)


@given(
    st.lists(STEP, max_size=8),
    st.tuples(st.integers(-20, 20), st.integers(-20, 20)).map(sorted),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 8),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_pairs_are_those_of_a_nested_loop_over_what_was_not_late(
    subtasks: Any, steps: Any, bounds: Any, cut: int, restart_at: int, before: int, after: int
) -> None:
    driven = subtasks(maker(*bounds), ["k"], before, batch_rows=3)
    kept: tuple[list[Row], list[Row]] = ([], [])
    reached, late, nulls, number = -(10**9), 0, 0, 0
    for step, (port, keys_and_times, watermark) in enumerate(steps):
        if step == restart_at:
            driven.restart(1, after)
        rows = [(k, t, number + i) for i, (k, t) in enumerate(keys_and_times)]
        number += len(rows)
        for at in range(0, len(rows), cut):
            driven.feed(batch(port, *rows[at : at + cut]), port)
        nulls += sum(t is None for _, t, _ in rows)
        late += sum(t is not None and t < reached for _, t, _ in rows)
        kept[port].extend(row for row in rows if row[1] is not None and row[1] >= reached)
        reached = max(reached, watermark)
        driven.watermark(reached * MS)
        passed = driven.subtasks[0].watermarks[-1]
        assert passed <= reached * MS
    expected = Counter(
        (a[2], b[2])
        for a in kept[0]
        for b in kept[1]
        if a[0] is not None and a[0] == b[0] and a[1] + bounds[0] <= b[1] <= a[1] + bounds[1]
    )
    assert Counter((row["v"], row["w"]) for row in driven.rows) == expected
    assert (driven.count("late_rows"), driven.count("null_time_rows")) == (late, nulls)
    for subtask in [*driven.done, *driven.subtasks]:
        passed = -(2**100)
        for event in subtask.events:
            if event[0] == "watermark":
                passed = event[1]
            else:
                assert min(event[1]["t"].cast(pa.int64()).to_pylist()) * MS > passed
