from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.joins import temporal
from rayflow.operators.joins.columns import JoinColumns, JoinSide
from rayflow.operators.joins.temporal import TemporalJoinOperator

MS = 1_000_000
LEFT = pa.schema([("k", pa.int64()), ("t", pa.timestamp("ms")), ("v", pa.int64())])
RIGHT = pa.schema([("k", pa.int64()), ("u", pa.timestamp("us")), ("w", pa.int64())])

Row = tuple[Any, Any, Any]


def maker(how: str = "left") -> Any:
    left, right = JoinSide(LEFT, ("k",), how == "left"), JoinSide(RIGHT, ("k",))
    columns = JoinColumns(left, right)
    return lambda: TemporalJoinOperator(left, right, columns, ("t", "u"))


def batch(port: int, *rows: Row) -> pa.RecordBatch:
    schema = (LEFT, RIGHT)[port]
    times = [None if row[1] is None else row[1] * (1, 1000)[port] for row in rows]
    arrays = [[row[0] for row in rows], times, [row[2] for row in rows]]
    return pa.RecordBatch.from_arrays([pa.array(a, f.type) for a, f in zip(arrays, schema)], schema=schema)


def shown(driven: Any) -> list[tuple[int, int | None]]:
    return [(row["v"], row["w"]) for row in driven.rows]


def test_a_row_waits_for_the_watermark_and_gets_the_version_of_its_time(harness: Any) -> None:
    driven = harness(maker()).feed(batch(0, (1, 10, 1), (1, 4, 0), (1, 11, 2), (2, 10, 3)))
    driven.feed(batch(1, (1, 5, 50), (1, 11, 110), (1, 10, 100)), 1).watermark(9 * MS)
    assert shown(driven) == [(0, None)]
    driven.watermark(10 * MS)
    assert shown(driven)[1:] == [(1, 100), (3, None)]
    driven.watermark(WATERMARK_MAX)
    assert shown(driven)[3:] == [(2, 110)]
    assert driven.watermarks == [9 * MS, 10 * MS, WATERMARK_MAX]
    assert driven.batches[0].schema.names == ["k", "t", "v", "u", "w"]


def test_of_versions_of_one_time_the_last_to_come_counts(harness: Any) -> None:
    driven = harness(maker()).feed(batch(1, (1, 5, 1), (1, 5, 2)), 1).feed(batch(1, (1, 5, 3), (1, 4, 4)), 1)
    driven.feed(batch(0, (1, 9, 0))).watermark(WATERMARK_MAX)
    assert shown(driven) == [(0, 3)]


def test_without_a_version_an_inner_join_gives_nothing(harness: Any) -> None:
    driven = harness(maker("inner")).feed(batch(0, (1, 4, 0), (1, 6, 1), (None, 6, 2)))
    driven.feed(batch(1, (1, 5, 50), (None, 5, 51)), 1).watermark(WATERMARK_MAX)
    assert shown(driven) == [(1, 50)]


def test_late_rows_are_dropped_late_versions_hold_from_then_on(harness: Any) -> None:
    driven = harness(maker()).feed(batch(1, (1, 1, 10)), 1).watermark(10 * MS)
    driven.feed(batch(0, (1, 10, 0), (1, 11, 1), (1, None, 2))).feed(batch(1, (1, 9, 90), (1, None, 0)), 1)
    driven.watermark(WATERMARK_MAX)
    assert shown(driven) == [(1, 90)]
    assert driven.metrics.snapshot() == {"late_rows": 1, "late_versions": 1, "null_time_rows": 2}


def test_versions_that_nobody_can_want_are_forgotten(harness: Any) -> None:
    driven = harness(maker())
    for second in range(100):
        driven.feed(batch(1, *((i, second, second) for i in range(500))), 1).watermark(second * MS)
    driven.feed(batch(0, (7, 200, 0))).watermark(WATERMARK_MAX)
    assert shown(driven) == [(0, 99)]
    assert len(driven.operator._versions) < 6000
    assert len(driven.operator._waiting) == 0


STEP = st.tuples(
    st.integers(0, 1),
    st.lists(st.tuples(st.none() | st.integers(0, 2), st.integers(-10, 30)), max_size=12),
    st.integers(-20, 40),
)


@pytest.mark.parametrize("steps_per_sorted_version", [0, 10**9])
@given(
    st.lists(STEP, max_size=8),
    st.sampled_from(["inner", "left"]),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 8),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_versions_are_those_of_a_search_through_all_that_had_come(
    subtasks: Any,
    steps_per_sorted_version: int,
    steps: Any,
    how: str,
    cut: int,
    restart_at: int,
    before: int,
    after: int,
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(temporal, "_STEPS_PER_SORTED_VERSION", steps_per_sorted_version)
        patch.setattr(temporal, "_MIN_VERSIONS_TO_FORGET", 2)
        driven = subtasks(maker(how), ["k"], before, batch_rows=3)
        waiting: list[Row] = []
        versions: list[Row] = []
        expected: list[tuple[int, int | None]] = []
        reached, late, number = -(10**9), 0, 0
        for step, (port, keys_and_times, watermark) in enumerate([*steps, (0, [], 100)]):
            if step == restart_at:
                driven.restart(1, after)
            rows = [(k, t, number + i) for i, (k, t) in enumerate(keys_and_times)]
            number += len(rows)
            for at in range(0, len(rows), cut):
                driven.feed(batch(port, *rows[at : at + cut]), port)
            if port == 1:
                versions += rows
            else:
                late += sum(t <= reached for _, t, _ in rows)
                waiting += [row for row in rows if row[1] > reached]
            reached = max(reached, watermark)
            driven.watermark(reached * MS)
            for row in [row for row in waiting if row[1] <= reached]:
                waiting.remove(row)
                valid = [b for b in versions if b[0] is not None and b[0] == row[0] and b[1] <= row[1]]
                if valid:
                    times = [b[1] for b in valid]
                    expected.append((row[2], valid[len(times) - 1 - int(np.argmax(times[::-1]))][2]))
                elif how == "left":
                    expected.append((row[2], None))
        assert sorted(shown(driven), key=str) == sorted(expected, key=str)
        assert driven.count("late_rows") == late
