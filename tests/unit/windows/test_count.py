from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.model.errors import UserFunctionError
from rayflow.model.times import WATERMARK_MAX
from rayflow.windows.count import CountWindowOperator

SCHEMA = pa.schema([("k", pa.float64()), ("t", pa.timestamp("ms")), ("v", pa.int64())])
AGGREGATES = [
    ("total", col("v").sum()),
    ("high", col("v").max()),
    ("last", col("v").last()),
    ("all", col("v").collect_list()),
    ("different", col("v").count_distinct()),
    ("odd", count().filter(col("v") % 2 == 1)),
]


def maker(size: int, time_column: str | None = None) -> Any:
    return lambda: CountWindowOperator(("k",), size, AGGREGATES, SCHEMA, time_column)


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    arrays = [pa.array([row[i] for row in rows], SCHEMA.field(i).type) for i in range(3)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def test_a_batch_may_fill_several_windows_of_a_key(harness: Any) -> None:
    driven = harness(maker(2), batch_rows=2)
    driven.feed(batch(*((k, None, v) for v in range(5) for k in (1.0, 2.0))))
    assert [(row["k"], row["all"]) for row in driven.rows] == [
        (1.0, [0, 1]), (2.0, [0, 1]), (1.0, [2, 3]), (2.0, [2, 3]),
    ]  # fmt: skip
    assert [b.num_rows for b in driven.batches] == [2, 2]
    driven.feed(batch((1.0, None, 5))).watermark(WATERMARK_MAX)
    assert driven.rows[-1]["all"] == [4, 5]
    driven.operator.end()
    assert driven.metrics.snapshot() == {"unfinished_window_rows": 1}


def test_event_times_are_shown_as_bounds_and_order_values(harness: Any) -> None:
    driven = harness(maker(3, "t")).feed(batch((1.0, 30, 3), (1.0, 10, 1), (1.0, 20, 2)))
    driven.feed(batch((1.0, None, 1), (1.0, None, 2), (1.0, None, 3)))
    (first, second) = driven.batches
    assert first.schema.names[:3] == ["k", "window_start", "window_end"]
    assert first["window_start"].cast(pa.int64()).to_pylist() == [10]
    assert first["window_end"].cast(pa.int64()).to_pylist() == [30]
    assert (first["all"].to_pylist(), first["last"].to_pylist()) == ([[1, 2, 3]], [3])
    assert (second["window_end"].to_pylist(), second["all"].to_pylist()) == ([None], [[1, 2, 3]])


def test_full_windows_leave_nothing_behind(harness: Any) -> None:
    driven = harness(maker(2))
    for start in range(0, 1000, 10):
        driven.feed(batch(*((float(k), None, 1) for k in range(start, start + 10) for _ in range(2))))
    assert (len(driven.operator._table), len(driven.rows)) == (0, 1000 // 1)
    assert driven.operator._table.slot_limit <= 20


def test_a_sum_without_room_is_a_users_error(harness: Any) -> None:
    with pytest.raises(UserFunctionError, match="aggregate 'total'"):
        harness(maker(2)).feed(batch((1.0, None, 2**63 - 1), (1.0, None, 2**63 - 1)))


def test_windows_restored_with_a_smaller_size_are_full_with_the_next_row(harness: Any) -> None:
    parts = harness(maker(5)).feed(batch((1.0, None, 1), (1.0, None, 2), (1.0, None, 3))).snapshot(1)
    driven = harness(maker(2), restored=parts).feed(batch((1.0, None, 4)))
    assert [row["all"] for row in driven.rows] == [[1, 2, 3, 4]]


ROW = st.tuples(
    st.sampled_from([1.0, -0.0, 0.0, math.nan, None]),
    st.none() | st.integers(-5, 5),
    st.none() | st.integers(-9, 9),
)


@given(
    st.lists(st.lists(ROW, max_size=20), max_size=6),
    st.integers(1, 5),
    st.booleans(),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 6),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([None, 1, 1 << 20]),
    st.sampled_from([None, 1, 1 << 20]),
)
@settings(max_examples=150, deadline=None)
def test_results_are_those_of_a_naive_model(
    subtasks: Any,
    steps: list[Any],
    size: int,
    timed: bool,
    cut: int,
    restart_at: int,
    before: int,
    after: int,
    disk_before: int | None,
    disk_after: int | None,
) -> None:
    driven = subtasks(maker(size, "t" if timed else None), ["k"], before, disk_bytes=disk_before)
    windows: dict[Any, list[Any]] = defaultdict(list)
    expected: dict[Any, list[Any]] = defaultdict(list)
    for number, rows in enumerate(steps):
        if number == restart_at:
            driven.restart(1, after, disk_bytes=disk_after)
        for at in range(0, len(rows), cut):
            driven.feed(batch(*rows[at : at + cut]))
        for key, time, value in rows:
            key = "nan" if key is not None and key != key else key
            windows[key].append((time, value))
            if len(windows[key]) == size:
                expected[key].append(_results(windows.pop(key), timed))
    got: dict[Any, list[Any]] = defaultdict(list)
    for subtask in [*driven.done, *driven.subtasks]:
        for row in subtask.rows:
            key = "nan" if row["k"] is not None and row["k"] != row["k"] else row["k"]
            got[key].append([row[name] for name, _ in AGGREGATES])
    assert got == expected
    for subtask in driven.subtasks:
        subtask.operator.end()
    assert driven.count("unfinished_window_rows") == sum(map(len, windows.values()))


def _results(rows: list[Any], timed: bool) -> list[Any]:
    in_order = sorted(rows, key=lambda r: -(10**9) if r[0] is None else r[0]) if timed else rows
    values = [v for _, v in in_order if v is not None]
    return [
        sum(values) if values else None,
        max(values, default=None),
        values[-1] if values else None,
        values or None,
        len(set(values)),
        len([v for v in values if v % 2 == 1]),
    ]
