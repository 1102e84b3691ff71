from __future__ import annotations

from collections import Counter
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


@given(
    st.lists(st.lists(st.sampled_from(["a", "b", "", None]), max_size=9), max_size=8),
    st.sampled_from([{}, {"early_rows": 1}, {"early_rows": 3}, {"early_rows": 2, "emit_before": True}]),
    st.integers(0, 8),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=100, deadline=None)
def test_the_last_rows_are_those_of_a_naive_model(
    subtasks: Any, steps: list[Any], options: dict[str, Any], restart_at: int, before: int, after: int
) -> None:
    driven = subtasks(maker(**options), ["k"], before)
    for number, keys in enumerate(steps):
        if number == restart_at:
            driven.restart(1, after)
        driven.feed(batch(*((key, None, 1) for key in keys)))
    driven.watermark(WATERMARK_MAX)
    got: dict[Any, int] = {}
    for subtask in [*driven.done, *driven.subtasks]:
        for b in subtask.batches:
            for op, row in zip(ops(b).tolist(), b.to_pylist()):
                assert (row["k"] in got) == (op != INSERT)
                got[row["k"]] = row["n"]
                if op == DELETE:
                    del got[row["k"]]
    assert got == Counter(key for keys in steps for key in keys)
