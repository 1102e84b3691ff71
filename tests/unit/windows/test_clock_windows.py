"""Windows of processing time, and early results by processing time, on a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from rayflow.batch.changelog import INSERT, UPDATE_AFTER, UPDATE_BEFORE
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows

MS = 1_000_000


class Clock:
    """Stands still until told."""

    def __init__(self, now_ms: int) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms

    def set(self, driven: Any, now_ms: int) -> None:
        """It becomes `now_ms`; timers that are due fire first, as in the engine."""
        self.now_ms = now_ms
        for subtask in driven.subtasks:
            timer = subtask.operator.next_timer_ms()
            if timer is not None and timer <= now_ms:
                subtask.operator.on_timer(now_ms)


def started(
    kit: Any, subtasks: Any, now_ms: int, emit_before: bool = False, **spec: Any
) -> tuple[Any, Clock]:
    clock = Clock(now_ms)
    options = {key: value * MS if key.endswith("_ns") else value for key, value in spec.items()}
    windows = TimeWindows(keys=("k",), **options)
    aggregates = [(name, kit.aggregates[name][0]) for name in ("count", "list")]
    driven = subtasks(
        lambda: time_window_operator(windows, aggregates, kit.schema, emit_before), ["k"], 2, now_ms=clock
    )
    return driven, clock


def shown(kit: Any, driven: Any) -> list[Any]:
    batches = [b for subtask in [*driven.done, *driven.subtasks] for b in subtask.batches]
    return [(window, *values) for window, (_, values) in kit.results(batches, ["count", "list"])]


def row(key: float, number: int, time: int | None = None) -> tuple[Any, ...]:
    return (key, time, 1, "a", number)


def test_rows_belong_to_the_window_in_which_they_come_whatever_their_time(kit: Any, subtasks: Any) -> None:
    driven, clock = started(kit, subtasks, 1005, size_ns=10, slide_ns=10)
    driven.feed(kit.batch([row(1.0, 0, -500), row(1.0, 1)]))
    driven.watermark(WATERMARK_MIN)
    clock.set(driven, 1009)
    assert shown(kit, driven) == []
    driven.feed(kit.batch([row(1.0, 2)]))
    clock.set(driven, 1010)
    assert shown(kit, driven) == [((1.0, 1000, 1010), 3, [0, 1, 2])]
    driven.feed(kit.batch([row(1.0, 3)]))
    driven.watermark(WATERMARK_MAX)
    assert shown(kit, driven)[1:] == [((1.0, 1010, 1020), 1, [3])]
    assert driven.subtasks[0].watermarks == [WATERMARK_MIN, WATERMARK_MAX]


def test_sliding_windows_of_processing_time_fire_one_by_one(kit: Any, subtasks: Any) -> None:
    driven, clock = started(kit, subtasks, 100, size_ns=30, slide_ns=10)
    driven.feed(kit.batch([row(1.0, 0)]))
    timers = []
    while (timer := driven.subtasks[0].operator.next_timer_ms()) or driven.subtasks[
        1
    ].operator.next_timer_ms():
        timers.append(timer or driven.subtasks[1].operator.next_timer_ms())
        clock.set(driven, timers[-1])
    assert timers == [110, 120, 130]
    assert [window[1:] for window, *_ in shown(kit, driven)] == [(80, 110), (90, 120), (100, 130)]


@pytest.mark.parametrize("later", [990, 1000, 1007, 1500])
def test_windows_of_processing_time_survive_a_restart_even_if_the_clock_went_back(
    kit: Any, subtasks: Any, later: int
) -> None:
    driven, clock = started(kit, subtasks, 1005, size_ns=10, slide_ns=10)
    driven.feed(kit.batch([row(1.0, 0)]))
    clock.set(driven, 1010)
    driven.feed(kit.batch([row(1.0, 1), row(2.0, 2)]))
    driven.restart(1, 3)
    clock.set(driven, later)
    driven.feed(kit.batch([row(1.0, 3)]))
    driven.watermark(WATERMARK_MAX)
    windows = [window for window, *_ in shown(kit, driven)]
    assert len(set(windows)) == len(windows)
    lists = [numbers for _, _, numbers in shown(kit, driven)]
    assert sorted(n for numbers in lists for n in numbers) == [0, 1, 2, 3]


@pytest.mark.parametrize("slide", [1000, 500])
def test_changed_results_are_shown_every_so_often_and_once_more_at_the_end(
    kit: Any, subtasks: Any, slide: int
) -> None:
    driven, clock = started(
        kit, subtasks, 5, True, size_ns=1000, slide_ns=slide, time_column="t", early_ms=100
    )
    driven.feed(kit.batch([row(1.0, 0, 600)]))
    clock.set(driven, 99)
    assert shown(kit, driven) == []
    clock.set(driven, 100)
    driven.feed(kit.batch([row(1.0, 1, 601)]))
    driven.restart(1, 1)
    clock.set(driven, 200)
    clock.set(driven, 300)
    driven.feed(kit.batch([row(1.0, 2, 602)]))
    driven.watermark(WATERMARK_MAX)
    batches = [b for subtask in [*driven.done, *driven.subtasks] for b in subtask.batches]
    last = [(op, n) for window, (op, (n,)) in kit.results(batches, ["count"]) if window == (1.0, 0, 1000)]
    assert last == [(INSERT, 1), (UPDATE_BEFORE, 1), (UPDATE_AFTER, 2), (UPDATE_BEFORE, 2), (UPDATE_AFTER, 3)]


def early(kit: Any, harness: Any) -> Any:
    windows = TimeWindows(keys=("k",), size_ns=10 * MS, slide_ns=10 * MS, time_column="t", early_ms=100)
    aggregates = [("count", kit.aggregates["count"][0])]
    driven = harness(lambda: time_window_operator(windows, aggregates, kit.schema), now_ms=lambda: 5)
    assert driven.operator.drained()
    driven.feed(kit.batch([row(1.0, 0, 1)]))
    assert not driven.operator.drained()
    return driven


def test_an_early_result_is_owed_until_the_clock_has_shown_it(kit: Any, harness: Any) -> None:
    driven = early(kit, harness)
    driven.operator.on_timer(100)
    assert driven.operator.drained()
    assert len(driven.rows) == 1


def test_the_end_does_not_wait_for_an_early_result(kit: Any, harness: Any) -> None:
    driven = early(kit, harness).watermark(WATERMARK_MAX)
    assert driven.operator.drained()
    assert driven.operator.next_timer_ms() is None


def test_windows_by_the_clock_hold_no_event_time_back(kit: Any, harness: Any) -> None:
    windows = TimeWindows(keys=("k",), size_ns=10 * MS, slide_ns=10 * MS)
    aggregates = [("count", kit.aggregates["count"][0])]
    driven = harness(lambda: time_window_operator(windows, aggregates, kit.schema), now_ms=lambda: 5)
    assert driven.feed(kit.batch([row(1.0, 0)])).operator.drained()


def test_a_result_that_was_shown_as_it_is_does_not_come_again_at_the_end(kit: Any, harness: Any) -> None:
    windows = TimeWindows(keys=("k",), size_ns=10 * MS, slide_ns=10 * MS, time_column="t", early_rows=2)
    aggregates = [("count", kit.aggregates["count"][0])]
    driven = harness(lambda: time_window_operator(windows, aggregates, kit.schema))
    driven.feed(kit.batch([row(1.0, 0, 1), row(1.0, 1, 2), row(2.0, 2, 3)])).watermark(WATERMARK_MAX)
    found = [(window[0], op, n) for window, (op, (n,)) in kit.results(driven.batches, ["count"])]
    assert found == [(1.0, INSERT, 2), (2.0, INSERT, 1)]
