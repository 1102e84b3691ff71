from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import PlanError, UserFunctionError
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.joins.columns import JoinColumns, JoinSide
from rayflow.windows.joins import WindowJoinOperator

MS = 1_000_000
LEFT = pa.schema([("k", pa.int64()), ("t", pa.timestamp("ms", "UTC")), ("v", pa.int64())])
RIGHT = pa.schema([("k", pa.int64()), ("u", pa.timestamp("ms")), ("w", pa.int64())])
HOWS = {"inner": (False, False), "left": (True, False), "right": (False, True), "full": (True, True)}

Row = tuple[Any, Any, Any]


def maker(size: int, slide: int, offset: int = 0, how: str = "inner") -> Any:
    outer = HOWS[how]
    left, right = JoinSide(LEFT, ("k",), outer[0]), JoinSide(RIGHT, ("k",), outer[1])
    bounds = [pa.field(name, LEFT.field("t").type) for name in ("window_start", "window_end")]
    columns = JoinColumns(left, right, "_right", bounds)
    windows = (size * MS, slide * MS, offset * MS)
    return lambda: WindowJoinOperator(left, right, columns, ("t", "u"), windows)


def batch(port: int, *rows: Row) -> pa.RecordBatch:
    schema = (LEFT, RIGHT)[port]
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def shown(driven: Any) -> list[tuple[Any, ...]]:
    """(key, start, end, v, w) of every emitted row."""
    found = []
    for subtask in [*driven.done, *driven.subtasks] if hasattr(driven, "subtasks") else [driven]:
        for b in subtask.batches:
            starts, ends = (b[name].cast(pa.int64()).to_pylist() for name in ("window_start", "window_end"))
            found += list(zip(b["k"].to_pylist(), starts, ends, b["v"].to_pylist(), b["w"].to_pylist()))
    return found


def test_pairs_of_a_window_come_when_the_watermark_reaches_its_last_instant(harness: Any) -> None:
    driven = harness(maker(10, 10, 3)).feed(batch(0, (1, 12, 0), (1, 13, 1), (2, 5, 2)))
    driven.feed(batch(1, (1, 3, 5), (1, 12, 6), (1, 22, 7)), 1).watermark(12 * MS - 1)
    assert driven.rows == []
    driven.watermark(12 * MS)
    assert shown(driven) == [(1, 3, 13, 0, 5), (1, 3, 13, 0, 6)]
    driven.watermark(WATERMARK_MAX)
    assert shown(driven)[2:] == [(1, 13, 23, 1, 7)]
    assert driven.batches[0].schema.names == ["k", "window_start", "window_end", "t", "v", "u", "w"]
    assert driven.batches[0].schema.field("window_end").type == pa.timestamp("ms", "UTC")
    # Passed on: a unit before the start of the next window that may close.
    assert driven.watermarks == [2 * MS, 12 * MS, WATERMARK_MAX]


def test_times_of_a_finer_unit_on_one_side_are_compared_as_they_are(harness: Any) -> None:
    fine = pa.schema([("k", pa.int64()), ("u", pa.timestamp("us")), ("w", pa.int64())])
    sides = JoinSide(LEFT, ("k",)), JoinSide(fine, ("k",))
    bounds = [pa.field(name, LEFT.field("t").type) for name in ("window_start", "window_end")]
    columns = JoinColumns(*sides, "_right", bounds)
    make = lambda: WindowJoinOperator(*sides, columns, ("t", "u"), (10 * MS, 10 * MS, 0))  # noqa: E731
    driven = harness(make).feed(batch(0, (1, 9, 0), (1, 10, 1))).watermark(9 * MS)
    arrays = [pa.array(a, f.type) for a, f in zip(([1, 1], [9999, 10_000], [5, 6]), fine)]
    driven.feed(pa.RecordBatch.from_arrays(arrays, schema=fine), 1).watermark(10 * MS - 1000)
    assert shown(driven) == [(1, 0, 10, 0, 5)]
    driven.watermark(WATERMARK_MAX)
    assert shown(driven)[1:] == [(1, 10, 20, 1, 6)]


def test_late_rows_and_rows_without_a_time_are_counted(harness: Any) -> None:
    driven = harness(maker(10, 5)).watermark(14 * MS)
    driven.feed(batch(0, (1, 9, 0), (1, 10, 1), (1, None, 2))).feed(batch(1, (1, 9, 5), (1, 11, 6)), 1)
    driven.watermark(WATERMARK_MAX)
    # The window from 5 had closed.
    assert shown(driven) == [(1, 10, 20, 1, 6)]
    assert driven.metrics.snapshot() == {"late_rows": 2, "null_time_rows": 1}


def test_rows_between_windows_are_counted(harness: Any) -> None:
    driven = harness(maker(2, 10)).feed(batch(0, (1, 1, 0), (1, 2, 1), (1, 9, 2)))
    driven.feed(batch(1, (1, 0, 5), (1, 2, 6)), 1).watermark(WATERMARK_MAX)
    assert shown(driven) == [(1, 0, 2, 0, 5)]
    assert driven.metrics.snapshot() == {"gap_rows": 3, "late_rows": 0, "null_time_rows": 0}


def test_a_hot_key_comes_in_batches_of_bounded_size(harness: Any) -> None:
    driven = harness(maker(10, 10), batch_rows=100).feed(batch(0, *((1, 5, i) for i in range(90))))
    driven.feed(batch(1, *((1, 5, i) for i in range(70))), 1).watermark(WATERMARK_MAX)
    assert [b.num_rows for b in driven.batches] == [100] * 63
    assert len(set(shown(driven))) == 90 * 70


def test_far_apart_windows_are_found_without_looking_at_those_between(harness: Any) -> None:
    times = [0, 10**9, 10**12]
    driven = harness(maker(10, 5)).feed(batch(0, *((1, t, i) for i, t in enumerate(times))))
    driven.feed(batch(1, *((1, t, i) for i, t in enumerate(times))), 1).watermark(WATERMARK_MAX)
    assert [(start, v) for _, start, _, v, _ in shown(driven)] == [
        (t + by, i) for i, t in enumerate(times) for by in (-5, 0)
    ]


def test_closed_windows_leave_nothing_behind(harness: Any) -> None:
    driven = harness(maker(10, 5))
    for second in range(100):
        rows = [(i, second * 10, i) for i in range(200)]
        driven.feed(batch(0, *rows)).feed(batch(1, *rows), 1).watermark(second * 10 * MS)
    assert all(len(store) <= 400 and store.nbytes < 200_000 for store in driven.operator._stores)


def test_a_window_that_its_type_cannot_hold_is_refused(harness: Any) -> None:
    with pytest.raises(UserFunctionError, match="so near the end"):
        harness(maker(10, 10)).feed(batch(1, (1, 2**63 - 5, 1)), 1)


def test_a_size_that_is_no_multiple_of_the_unit_is_a_plan_error() -> None:
    left, right = JoinSide(LEFT, ("k",)), JoinSide(RIGHT, ("k",))
    with pytest.raises(PlanError, match="no multiple of the unit"):
        WindowJoinOperator(left, right, JoinColumns(left, right), ("t", "u"), (10, 10, 0))


STEP = st.tuples(
    st.integers(0, 1),
    st.lists(st.tuples(st.none() | st.integers(0, 2), st.none() | st.integers(-40, 60)), max_size=12),
    st.integers(-60, 80),
)


def joined(left: list[Any], right: list[Any], how: str, offset: int) -> Counter[Any]:
    outer = HOWS[how]
    rows: Counter[Any] = Counter()
    windows = sorted({w for row in [*left, *right] for w in row[3]})
    for start in windows:
        a = [row for row in left if start in row[3]]
        b = [row for row in right if start in row[3]]
        bounds = (start, start + 12)
        pairs = [(x, y) for x in a for y in b if x[0] is not None and x[0] == y[0]]
        rows.update((x[0], *bounds, x[2], y[2]) for x, y in pairs)
        if outer[0]:
            met = {x[2] for x, _ in pairs}
            rows.update((x[0], *bounds, x[2], None) for x in a if x[2] not in met)
        if outer[1]:
            met = {y[2] for _, y in pairs}
            rows.update((y[0], *bounds, None, y[2]) for y in b if y[2] not in met)
    return rows


@given(
    st.lists(STEP, max_size=8),
    st.sampled_from([5, 12]),
    st.sampled_from(list(HOWS)),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 8),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_pairs_are_those_of_a_nested_loop_per_window_over_what_was_not_late(
    subtasks: Any, steps: Any, slide: int, how: str, cut: int, restart_at: int, before: int, after: int
) -> None:
    driven = subtasks(maker(12, slide, 3, how), ["k"], before, batch_rows=3)
    kept: tuple[list[Any], list[Any]] = ([], [])
    reached, late, number = -(10**6), 0, 0
    for step, (port, keys_and_times, watermark) in enumerate(steps):
        if step == restart_at:
            driven.restart(1, after)
        rows = [(k, t, number + i) for i, (k, t) in enumerate(keys_and_times)]
        number += len(rows)
        for at in range(0, len(rows), cut):
            driven.feed(batch(port, *rows[at : at + cut]), port)
        for k, t, n in rows:
            if t is not None:
                last = (t - 3) // slide * slide + 3
                starts = [s for s in range(last, t - 12, -slide) if s + 11 > reached]
                late += not starts
                kept[port].append((k, t, n, starts))
        reached = max(reached, watermark)
        driven.watermark(reached * MS)
    driven.watermark(WATERMARK_MAX)
    assert Counter(shown(driven)) == joined(*kept, how, 3)
    assert driven.count("late_rows") == late
    for subtask in [*driven.done, *driven.subtasks]:
        passed = -(2**100)
        for event in subtask.events:
            if event[0] == "watermark":
                assert event[1] >= passed
                passed = event[1]
            else:
                assert min(event[1]["window_start"].cast(pa.int64()).to_pylist()) * MS > passed
