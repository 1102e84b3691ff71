from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.changelog import DELETE, INSERT, OP_SYMBOLS, ops
from rayflow.batch.expressions import col
from rayflow.model.times import WATERMARK_MAX
from rayflow.windows.global_window import GlobalWindowOperator

MS = 1_000_000
SCHEMA = pa.schema([("k", pa.string()), ("t", pa.timestamp("ms")), ("v", pa.int64())])
AGGREGATES = [("n", count()), ("total", col("v").sum()), ("last", col("v").last())]


def maker(**options: Any) -> Any:
    return lambda: GlobalWindowOperator(("k",), AGGREGATES, SCHEMA, **options)


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    arrays = [pa.array([row[i] for row in rows], SCHEMA.field(i).type) for i in range(3)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def shown(driven: Any) -> list[tuple[Any, ...]]:
    return [
        (OP_SYMBOLS[op], row["k"], row["n"])
        for b in driven.batches
        for op, row in zip(ops(b).tolist(), b.to_pylist())
    ]


def test_a_key_gives_one_row_when_the_input_ends(harness: Any) -> None:
    driven = harness(maker(time_column="t"), batch_rows=1)
    driven.feed(batch(("a", 5, 1), ("b", 7, 2), ("a", 3, 4))).watermark(1000 * MS)
    assert driven.rows == []
    driven.watermark(WATERMARK_MAX)
    assert [e[0] for e in driven.events] == ["watermark", "rows", "rows", "watermark"]
    assert [(r["k"], r["n"], r["total"], r["last"]) for r in driven.rows] == [("a", 2, 5, 1), ("b", 1, 2, 2)]
    assert driven.batches[0].schema.names == ["k", "window_start", "window_end", "n", "total", "last"]
    assert driven.batches[0]["window_start"].cast(pa.int64()).to_pylist() == [3]
    # A restart after the end shows nothing twice.
    again = harness(maker(time_column="t"), restored=driven.snapshot(1)).watermark(WATERMARK_MAX)
    assert again.rows == []


def test_without_event_time_there_are_no_bounds(harness: Any) -> None:
    driven = harness(maker()).feed(batch(("a", None, 1))).watermark(WATERMARK_MAX)
    assert driven.batches[0].schema.names == ["k", "n", "total", "last"]


def test_a_trigger_by_count_shows_results_early_and_what_is_left_in_the_end(harness: Any) -> None:
    driven = harness(maker(early_rows=2)).feed(batch(("a", None, 1), ("b", None, 1), ("a", None, 1)))
    assert shown(driven) == [("+I", "a", 2)]
    driven.feed(batch(("a", None, 1))).feed(batch(("a", None, 1), ("a", None, 1)))
    assert shown(driven)[1:] == [("+U", "a", 5)]
    driven.watermark(WATERMARK_MAX)
    assert shown(driven)[2:] == [("+I", "b", 1)]


def test_old_rows_are_deleted_where_asked(harness: Any) -> None:
    driven = harness(maker(early_rows=1, emit_before=True)).feed(batch(("a", None, 1)))
    driven.feed(batch(("a", None, 2)))
    assert shown(driven) == [("+I", "a", 1), ("-D", "a", 1), ("+I", "a", 2)]


def test_a_trigger_by_the_clock_shows_what_changed(harness: Any) -> None:
    driven = harness(maker(early_ns=50 * MS), now_ms=lambda: 1000)
    assert driven.operator.next_timer_ms() is None
    driven.feed(batch(("a", None, 1), ("b", None, 1)))
    assert driven.operator.next_timer_ms() == 1050
    assert not driven.operator.drained()
    driven.operator.on_timer(1050)
    assert driven.operator.drained()
    driven.feed(batch(("a", None, 1)))
    driven.operator.on_timer(1050)
    assert shown(driven) == [("+I", "a", 1), ("+I", "b", 1), ("+U", "a", 2)]
    driven.watermark(WATERMARK_MAX)
    assert (len(driven.rows), driven.operator.next_timer_ms()) == (3, None)
    assert driven.operator.drained()


ROW = st.tuples(
    st.sampled_from([1.0, 2.0, -0.0, 0.0, math.nan, None]),
    st.none() | st.integers(-9, 9),
    st.none() | st.integers(-3, 9),
    st.sampled_from(["a", "b", "", None]),
)
ALL = [["first", "last", "count"], ["list", "sum", "max"], ["mean", "distinct", "some"], ["min", "values"]]


@given(
    st.lists(ROW, max_size=40),
    st.sampled_from(ALL),
    st.sampled_from([{}, {"early_rows": 1}, {"early_rows": 3}, {"early_rows": 2, "emit_before": True}]),
    st.booleans(),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 100),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from([1, 1000]),
    st.sampled_from([None, 1, 1 << 20]),
    st.sampled_from([None, 1, 1 << 20]),
)
@settings(max_examples=200, deadline=None)
def test_the_last_rows_are_those_of_a_naive_model(
    kit: Any,
    subtasks: Any,
    given_rows: list[Any],
    names: list[str],
    options: dict[str, Any],
    timed: bool,
    cut: int,
    restart_at: int,
    before: int,
    after: int,
    batch_rows: int,
    disk_before: int | None,
    disk_after: int | None,
) -> None:
    rows = [(*row, number) for number, row in enumerate(given_rows)]
    aggregates = [(name, kit.aggregates[name][0]) for name in names]
    time_column = "t" if timed else None
    driven = subtasks(
        lambda: GlobalWindowOperator(("k",), aggregates, kit.schema, time_column, **options),
        ["k"],
        before,
        batch_rows=batch_rows,
        disk_bytes=disk_before,
    )
    # The restart comes after so many percent of the rows, wherever a batch ends.
    at = len(rows) * restart_at // 100
    for number, part in enumerate((rows[:at], rows[at:])):
        if number:
            driven.restart(1, after, disk_bytes=disk_after)
        for begin in range(0, len(part), cut):
            driven.feed(kit.batch(part[begin : begin + cut]))
            # However far event time is: nothing is late for a window without end.
            driven.watermark(begin * MS)
    driven.watermark(WATERMARK_MAX)
    assert last_shown(kit, driven, names, timed) == expected(kit, rows, names, timed)


def test_more_keys_than_memory_holds_come_once_from_disk(subtasks: Any) -> None:
    driven = subtasks(maker(), ["k"], 2, disk_bytes=40_000, batch_rows=100)
    for begin in range(0, 6_000, 500):
        driven.feed(batch(*((f"key {i % 4_000}", None, i) for i in range(begin, begin + 500))))
    assert driven.count("state_evicted_keys") > 2_000
    driven.restart(1, 3)
    assert driven.rows == []
    driven.watermark(WATERMARK_MAX)
    expected = {f"key {i}": (2, 2 * i + 4_000, i + 4_000) if i < 2_000 else (1, i, i) for i in range(4_000)}
    assert len(driven.rows) == 4_000
    assert {row["k"]: (row["n"], row["total"], row["last"]) for row in driven.rows} == expected


def last_shown(kit: Any, driven: Any, names: list[str], timed: bool) -> dict[Any, Any]:
    """Return the last row of every key; operations must fit what was shown before."""
    got: dict[Any, Any] = {}
    for b in [b for subtask in [*driven.done, *driven.subtasks] for b in subtask.batches]:
        bounds = [b[name].cast(pa.int64()).to_pylist() for name in ("window_start", "window_end") if timed]
        for index, (op, row) in enumerate(zip(ops(b).tolist(), b.to_pylist(), strict=True)):
            key, shown = kit.key_of(row["k"]), tuple(row[name] for name in names)
            assert (key in got) == (op != INSERT)
            row_shown = (tuple(bound[index] for bound in bounds), shown)
            if op == DELETE:
                assert got.pop(key) == row_shown
            else:
                got[key] = row_shown
    return got


def expected(kit: Any, rows: list[Any], names: list[str], timed: bool) -> dict[Any, Any]:
    by_key: dict[Any, list[Any]] = defaultdict(list)
    for row in rows:
        # The kit's models order by time: here, without event time, by arrival, and with it nulls come first.
        order = row[4] if not timed else -100 if row[1] is None else row[1]
        by_key[kit.key_of(row[0])].append((row[0], order, *row[2:]))
    found = {}
    for key, own in by_key.items():
        times = [rows[row[4]][1] for row in own if rows[row[4]][1] is not None]
        bounds = (min(times, default=None), max(times, default=None)) if timed else ()
        found[key] = (bounds, tuple(kit.aggregates[name][1](own) for name in names))
    return found
