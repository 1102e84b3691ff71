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
from rayflow.model.errors import PlanError, UserFunctionError
from rayflow.model.times import WATERMARK_MAX
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.time_windows import TimeWindowOperator

MS = 1_000_000
SCHEMA = pa.schema([("k", pa.float64()), ("t", pa.timestamp("ms")), ("v", pa.int64())])
AGGREGATES = [("n", count()), ("total", col("v").sum()), ("last", col("v").last())]


def tumbling(size: int, offset: int, aggregates: Any, schema: pa.Schema) -> TimeWindowOperator:
    windows = TimeWindows(keys=("k",), size_ns=size, slide_ns=size, offset_ns=offset, time_column="t")
    return time_window_operator(windows, aggregates, schema)


def make() -> TimeWindowOperator:
    return tumbling(10 * MS, 3 * MS, AGGREGATES, SCHEMA)


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    arrays = [pa.array([row[i] for row in rows], SCHEMA.field(i).type) for i in range(3)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def shown(driven: Any) -> list[tuple[Any, ...]]:
    return [
        (row["k"], start, end, row["n"], row["total"])
        for b in (driven.batches if hasattr(driven, "batches") else [])
        for row, start, end in zip(
            b.to_pylist(),
            b["window_start"].cast(pa.int64()).to_pylist(),
            b["window_end"].cast(pa.int64()).to_pylist(),
        )
    ]


def test_a_window_is_emitted_when_the_watermark_reaches_its_last_instant(harness: Any) -> None:
    driven = harness(make).feed(batch((1.0, 3, 1), (1.0, 12, 2), (2.0, 13, 3)))
    driven.watermark(12 * MS - 1)
    assert driven.rows == []
    driven.watermark(12 * MS)
    assert shown(driven) == [(1.0, 3, 13, 2, 3)]
    driven.watermark(WATERMARK_MAX)
    assert shown(driven)[1:] == [(2.0, 13, 23, 1, 3)]
    assert driven.watermarks == [2 * MS, 12 * MS, WATERMARK_MAX]
    assert driven.batches[0].schema.names == ["k", "window_start", "window_end", "n", "total", "last"]
    assert driven.batches[0].schema.field("window_end").type == pa.timestamp("ms")


def test_rows_come_before_the_watermark_that_fired_them_in_order_of_windows(harness: Any) -> None:
    driven = harness(make, batch_rows=2).feed(batch((1.0, 40, 1), (1.0, 5, 2), (1.0, -30, 3), (2.0, 41, 4)))
    driven.watermark(100 * MS)
    assert [event[0] for event in driven.events] == ["rows", "rows", "watermark"]
    assert [row[1] for row in shown(driven)] == [-37, 3, 33, 33]


def test_a_row_is_late_once_its_window_has_closed(harness: Any) -> None:
    driven = harness(make).feed(batch((1.0, 5, 1))).watermark(12 * MS)
    driven.feed(batch((1.0, 12, 9), (1.0, 13, 2), (1.0, None, 3))).watermark(22 * MS)
    assert shown(driven) == [(1.0, 3, 13, 1, 1), (1.0, 13, 23, 1, 2)]
    assert driven.metrics.snapshot() == {"late_rows": 1, "null_time_rows": 1}


def test_lateness_is_judged_the_same_after_a_restart_at_another_parallelism(subtasks: Any) -> None:
    driven = subtasks(make, ["k"])
    driven.feed(batch(*((float(k), 5, 1) for k in range(9))))
    driven.watermark(12 * MS)
    driven.restart(1, 3)
    # No watermark has come since the restart.
    driven.feed(batch(*((float(k), 6, 1) for k in range(9))))
    driven.watermark(WATERMARK_MAX)
    assert len(driven.rows) == 9
    assert driven.count("late_rows") == 9


def test_a_zone_and_times_before_the_epoch_keep_their_type(harness: Any) -> None:
    schema = pa.schema([("k", pa.int8()), ("t", pa.timestamp("us", "Europe/Berlin"))])
    driven = harness(lambda: tumbling(60_000 * MS, 0, [("n", count())], schema))
    driven.feed(
        pa.RecordBatch.from_arrays(
            [pa.array([1], pa.int8()), pa.array([-1], schema.field("t").type)], schema=schema
        )
    )
    driven.watermark(WATERMARK_MAX)
    (fired,) = driven.batches
    assert fired.schema.field("window_start").type == schema.field("t").type
    assert fired["window_start"].cast(pa.int64()).to_pylist() == [-60_000_000]


def test_a_window_that_its_type_cannot_hold_is_refused(harness: Any) -> None:
    with pytest.raises(UserFunctionError, match=r"column 't'.*so near the end"):
        harness(make).feed(batch((1.0, 2**63 - 5, 1)))


@pytest.mark.parametrize(
    ("size", "type_", "message"),
    [
        (10, pa.timestamp("ms"), "size of 10 ns is no multiple of the unit"),
        (10 * MS, pa.int64(), "column 't' is int64, expected a timestamp"),
    ],
)
def test_what_cannot_work_is_a_plan_error(size: int, type_: pa.DataType, message: str) -> None:
    schema = pa.schema([("k", pa.int64()), ("t", type_)])
    with pytest.raises(PlanError, match=message):
        tumbling(size, 0, [("n", count())], schema)


def test_closed_windows_leave_nothing_behind(harness: Any) -> None:
    driven = harness(make)
    for second in range(200):
        driven.feed(batch(*((float(k), second * 10, k) for k in range(50)))).watermark(second * 10 * MS)
    table = driven.operator._panes
    assert len(table) <= 100
    assert table.slot_limit <= 200


STEP = st.tuples(
    st.lists(
        st.tuples(
            st.sampled_from([1.0, -0.0, 0.0, math.nan, None]),
            st.none() | st.integers(-40, 60),
            st.none() | st.integers(-9, 9),
        ),
        max_size=12,
    ),
    st.integers(-60, 80),
)


def start_of(time: int) -> int:
    return (time - 3) // 10 * 10 + 3


@given(
    st.lists(STEP, max_size=8),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 8),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_results_are_those_of_a_naive_model_over_what_was_not_late(
    subtasks: Any, steps: list[Any], cut: int, restart_at: int, before: int, after: int
) -> None:
    driven = subtasks(make, ["k"], before)
    windows: dict[tuple[Any, int], list[Any]] = defaultdict(list)
    reached, late, nulls = -(10**9), 0, 0
    for number, (rows, watermark) in enumerate(steps):
        if number == restart_at:
            driven.restart(1, after)
        for at in range(0, len(rows), cut):
            driven.feed(batch(*rows[at : at + cut]))
        for key, time, value in rows:
            if time is None:
                nulls += 1
            elif start_of(time) + 9 <= reached:
                late += 1
            else:
                windows["nan" if key != key else key, start_of(time)].append((time, value))
        reached = max(reached, watermark)
        driven.watermark(reached * MS)
    driven.watermark(WATERMARK_MAX)
    expected = {}
    for (key, start), rows in windows.items():
        values = [v for _, v in rows if v is not None]
        in_order = [v for t, v in sorted(rows, key=lambda row: row[0]) if v is not None]
        total = sum(values) if values else None
        expected[key, start] = (len(rows), total, in_order[-1] if in_order else None)
    got = {}
    for subtask in [*driven.done, *driven.subtasks]:
        for b in subtask.batches:
            for row, start in zip(b.to_pylist(), b["window_start"].cast(pa.int64()).to_pylist()):
                key = "nan" if row["k"] != row["k"] else row["k"]
                assert (key, start) not in got
                got[key, start] = (row["n"], row["total"], row["last"])
    assert got == expected
    assert (driven.count("late_rows"), driven.count("null_time_rows")) == (late, nulls)


def other_windows(size_ms: int, slide_ms: int, early_rows: int | None) -> Any:
    windows = TimeWindows(
        keys=("k",), size_ns=size_ms * MS, slide_ns=slide_ms * MS, time_column="t", early_rows=early_rows
    )
    return lambda: time_window_operator(windows, AGGREGATES, SCHEMA)


@pytest.mark.parametrize("early_rows", [1, 100])
def test_windows_that_were_open_when_early_results_came_into_a_job_are_shown(
    harness: Any, early_rows: int
) -> None:
    before = harness(other_windows(10, 10, None)).feed(batch((1.0, 3, 1), (2.0, 12, 2)))
    after = harness(other_windows(10, 10, early_rows), restored=before.snapshot(1), restored_from=1)
    after.feed(batch((2.0, 13, 4))).watermark(WATERMARK_MAX)
    last = {(key, start): (n, total) for key, start, _, n, total in shown(after)}
    assert last == {(1.0, 0): (1, 1), (2.0, 10): (2, 6)}


@pytest.mark.parametrize(("before", "after"), [(None, 1), (1, None)])
def test_sliding_windows_keep_state_otherwise_with_early_results_and_say_so(
    harness: Any, before: int | None, after: int | None
) -> None:
    written = harness(other_windows(10, 5, before)).feed(batch((1.0, 3, 1), (1.0, 7, 2)))
    with pytest.raises(UserFunctionError, match="early results"):
        harness(other_windows(10, 5, after), restored=written.snapshot(1), restored_from=1)
