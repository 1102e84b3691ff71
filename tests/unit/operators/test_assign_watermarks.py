from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from rayflow.model.errors import PlanError
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.assign_watermarks import AssignWatermarksOperator

MS = 1_000_000


def batch(*times_ms: int | None) -> pa.RecordBatch:
    return pa.record_batch({"t": pa.array(times_ms, pa.timestamp("ms"))})


def test_the_watermark_follows_the_rows_that_raised_it(harness: Any) -> None:
    driven = harness(lambda: AssignWatermarksOperator("t", 10 * MS, None, None))
    driven.feed(batch(100, 50)).feed(batch(60)).feed(batch(200))
    assert [event[0] for event in driven.events] == ["rows", "watermark", "rows", "rows", "watermark"]
    assert driven.watermarks == [89 * MS, 189 * MS]


def test_watermarks_from_above_are_replaced_but_the_end_is_passed_on(harness: Any) -> None:
    driven = harness(lambda: AssignWatermarksOperator("t", 0, None, None))
    driven.watermark(5).feed(batch(1)).watermark(7).watermark(WATERMARK_MAX)
    assert driven.watermarks == [0, WATERMARK_MAX]


def test_nulls_and_far_future_times_are_counted_and_move_nothing(harness: Any) -> None:
    driven = harness(lambda: AssignWatermarksOperator("t", 0, None, 100 * MS))
    driven.feed(batch(1_000)).feed(batch(1_050, 10**9, None)).feed(batch(None))
    assert driven.watermarks == [999 * MS, 1_049 * MS]
    assert driven.metrics.snapshot() == {"far_future_rows": 1, "null_time_rows": 2}
    assert len(driven.rows) == 5


class Clock:
    now_ms = 10_000

    def __call__(self) -> int:
        return self.now_ms


def ticking(harness: Any) -> tuple[Any, Callable[[int], None]]:
    """An operator that steps aside after a second, and a way to let time pass, in which its timers fire."""
    clock = Clock()
    driven = harness(lambda: AssignWatermarksOperator("t", 0, 1_000 * MS, None), now_ms=clock)

    def passes(ms: int) -> None:
        until = clock.now_ms + ms
        while (due := driven.operator.next_timer_ms()) is not None and due <= until:
            clock.now_ms = max(clock.now_ms, due)
            driven.operator.on_timer(clock.now_ms)
        clock.now_ms = until

    return driven, passes


def test_a_subtask_without_rows_for_long_steps_aside_once(harness: Any) -> None:
    driven, passes = ticking(harness)
    driven.feed(batch(5))
    passes(900)
    assert driven.watermarks == [4 * MS]
    assert driven.events[-1] != ("idle",)
    passes(5_000)
    assert sum(event == ("idle",) for event in driven.events) == 1
    driven.feed(batch(6))
    assert driven.watermarks == [4 * MS, 5 * MS]
    passes(2_000)
    assert sum(event == ("idle",) for event in driven.events) == 2


def test_a_subtask_that_never_gets_a_row_steps_aside_too(harness: Any) -> None:
    driven, passes = ticking(harness)
    passes(900)
    assert driven.events == []
    passes(5_000)
    assert driven.events == [("idle",)]
    assert driven.operator.next_timer_ms() is None
    driven.feed(batch(6))
    passes(5_000)
    assert [event[0] for event in driven.events] == ["idle", "rows", "watermark", "idle"]


@pytest.mark.parametrize("rows", [True, False])
def test_a_subtask_that_was_held_up_is_not_idle(harness: Any, rows: bool) -> None:
    driven, passes = ticking(harness)
    if rows:
        driven.feed(batch(5))
    passes(500)
    driven.context.now_ms.now_ms += 60_000  # back-pressure: no timer fires, and no row comes
    passes(0)
    assert ("idle",) not in driven.events
    passes(900)
    assert ("idle",) not in driven.events
    passes(1_000)
    assert ("idle",) in driven.events


def test_a_restored_operator_still_disbelieves_far_future_times(harness: Any) -> None:
    def make() -> AssignWatermarksOperator:
        return AssignWatermarksOperator("t", 0, None, 100 * MS)

    parts = harness(make).feed(batch(1_000)).snapshot(1)
    driven = harness(make, restored=parts, restored_from=1)
    driven.feed(batch(10**9)).feed(batch(1_010))
    assert driven.watermarks == [1_009 * MS]


def test_a_column_that_is_no_timestamp_is_refused(harness: Any) -> None:
    driven = harness(lambda: AssignWatermarksOperator("t", 0, None, None))
    with pytest.raises(PlanError, match="column 't' is int64, expected a timestamp"):
        driven.feed(pa.record_batch({"t": [1]}))
