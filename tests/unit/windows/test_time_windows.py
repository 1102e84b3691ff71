"""Tumbling and sliding windows against the naive model: aggregates × disorder × lateness × cutting × restarts."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import INSERT, UPDATE_AFTER, UPDATE_BEFORE
from rayflow.model.times import WATERMARK_MAX
from rayflow.windows.making import time_window_operator
from rayflow.windows.time_windows import TimeWindows

MS = 1_000_000

GRIDS = [(10, 10, 3), (10, 3, 1), (12, 4, 0), (5, 8, 2), (3, 5, 4), (40, 2, 0), (7, 7, 0), (60, 1, 5)]

STEPS = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.sampled_from([1.0, 2.0, -0.0, 0.0, math.nan, None]),
                st.none() | st.integers(-40, 60),
                st.none() | st.integers(-9, 9),
                st.sampled_from(["a", "b", "cc", None]),
            ),
            max_size=14,
        ),
        st.integers(-60, 90),
    ),
    max_size=8,
)


def maker(kit: Any, grid: tuple[int, int, int], names: list[str], **options: Any) -> Any:
    size, slide, offset = grid
    emit_before = options.pop("emit_before", False)
    windows = TimeWindows(
        keys=("k",), size_ns=size * MS, slide_ns=slide * MS, offset_ns=offset * MS, time_column="t", **options
    )
    aggregates = [(name, kit.aggregates[name][0]) for name in names]
    return lambda: time_window_operator(windows, aggregates, kit.schema, emit_before)


def numbered(steps: list[Any]) -> list[Any]:
    """Give every row its number, so that no two are the same."""
    at = 0
    result = []
    for rows, watermark in steps:
        result.append(([(*row, at + i) for i, row in enumerate(rows)], watermark))
        at += len(rows)
    return result


def play(kit: Any, driven: Any, model: Any, steps: list[Any], cut: int, restart_at: int, after: int) -> None:
    for number, (rows, watermark) in enumerate(numbered(steps)):
        if number == restart_at:
            driven.restart(1, after)
        for at in range(0, len(rows), cut):
            driven.feed(kit.batch(rows[at : at + cut]))
        model.add(rows)
        model.advance(watermark)
        driven.watermark(watermark * MS)
    driven.watermark(WATERMARK_MAX)
    model.advance(math.inf)


def emitted(kit: Any, driven: Any, names: list[str]) -> list[Any]:
    batches = [b for subtask in [*driven.done, *driven.subtasks] for b in subtask.batches]
    return kit.results(batches, names)


@given(
    steps=STEPS,
    grid=st.sampled_from(GRIDS),
    names=st.lists(
        st.sampled_from(
            sorted(
                AGG
                for AGG in (
                    "count",
                    "values",
                    "sum",
                    "min",
                    "max",
                    "mean",
                    "first",
                    "last",
                    "distinct",
                    "list",
                    "some",
                )
            )
        ),
        min_size=1,
        max_size=4,
        unique=True,
    ),
    cut=st.sampled_from([1, 7, 100]),
    restart_at=st.integers(0, 8),
    before=st.integers(1, 3),
    after=st.integers(1, 3),
    batch_rows=st.sampled_from([1, 5, 1000]),
)
@settings(max_examples=150, deadline=None)
def test_every_window_comes_once_with_the_rows_that_were_not_late(
    kit: Any,
    subtasks: Any,
    steps: list[Any],
    grid: tuple[int, int, int],
    names: list[str],
    cut: int,
    restart_at: int,
    before: int,
    after: int,
    batch_rows: int,
) -> None:
    model = kit.time_windows(*grid)
    driven = subtasks(maker(kit, grid, names), ["k"], before, batch_rows=batch_rows)
    play(kit, driven, model, steps, cut, restart_at, after)
    found = emitted(kit, driven, names)
    assert len(dict(found)) == len(found)
    assert {window: values for window, (_, values) in found} == model.results(names)
    assert driven.count("late_rows") == len(model.late)
    assert driven.count("null_time_rows") == len(model.null_times)
    assert driven.count("gap_rows") == len(model.gaps)


@given(
    steps=STEPS,
    grid=st.sampled_from(GRIDS),
    names=st.sampled_from([["count", "first"], ["list"], ["sum", "max", "distinct"]]),
    lateness=st.sampled_from([1, 6, 25, 1000]),
    cut=st.sampled_from([1, 7, 100]),
    restart_at=st.integers(0, 8),
    after=st.integers(1, 3),
    early=st.sampled_from([None, 1, 3]),
    batch_rows=st.sampled_from([2, 1000]),
)
@example(  # A new key beside a late row: keys were numbered differently before and after it came.
    steps=[([(2.0, -1, None, "a")], 0), ([(1.0, 0, None, "a"), (2.0, -3, None, "a")], 0)],
    grid=(40, 2, 0),
    names=["count", "first"],
    lateness=6,
    cut=7,
    restart_at=0,
    after=1,
    early=None,
    batch_rows=2,
)
@settings(max_examples=60, deadline=None)
def test_late_rows_that_are_allowed_update_results_and_old_rows_are_what_was_shown(
    kit: Any,
    subtasks: Any,
    steps: list[Any],
    grid: tuple[int, int, int],
    names: list[str],
    lateness: int,
    cut: int,
    restart_at: int,
    after: int,
    early: int | None,
    batch_rows: int,
) -> None:
    model = kit.time_windows(*grid, lateness=lateness)
    make = maker(
        kit, grid, names, lateness_ns=lateness * MS, late_to="late", early_rows=early, emit_before=True
    )
    driven = subtasks(make, ["k"], 2, batch_rows=batch_rows)
    play(kit, driven, model, steps, cut, restart_at, after)
    shown: dict[Any, Any] = {}
    retracted = None
    for window, (op, values) in emitted(kit, driven, names):
        # An update comes as the old row, then at once the new one.
        assert (op == UPDATE_AFTER) == (retracted == window)
        if op == UPDATE_BEFORE:
            assert shown.pop(window) == values
            retracted = window
            continue
        assert op in (INSERT, UPDATE_AFTER)
        assert window not in shown
        shown[window], retracted = values, None
    assert shown == model.results(names)
    assert driven.count("late_rows") == len(model.late)
    aside = [
        row["n"]
        for subtask in [*driven.done, *driven.subtasks]
        for event in subtask.events
        if event[0] == "side" and event[1] == "late"
        for row in event[2].to_pylist()
    ]
    assert sorted(aside) == sorted(row[4] for row in [*model.late, *model.null_times])


@pytest.mark.parametrize("grid", GRIDS)
def test_results_are_never_late_for_whoever_comes_behind(
    kit: Any, harness: Any, grid: tuple[int, int, int]
) -> None:
    driven = harness(maker(kit, grid, ["count"]))
    for time in range(-20, 120):
        driven.feed(kit.batch([(1.0, time, 1, "a", time)])).watermark((time - 3) * MS)
    passed = -math.inf
    for event in driven.events:
        if event[0] == "watermark":
            assert event[1] >= passed
            passed = event[1]
        else:
            starts = [start for (_, start, _), _ in kit.results([event[1]], ["count"])]
            assert min(starts) * MS > passed
    # One unit before the first window that is not over.
    first = min(s for s in range(-200, 200) if (s - grid[2]) % grid[1] == 0 and s + grid[0] - 1 > 119 - 3)
    assert passed == (first - 1) * MS


@pytest.mark.parametrize("grid", [(10, 10, 0), (40, 2, 0)])
def test_closed_windows_leave_nothing_behind(kit: Any, harness: Any, grid: tuple[int, int, int]) -> None:
    driven = harness(maker(kit, grid, ["count", "sum", "list"]))
    sizes = []
    for time in range(0, 4000, 10):
        driven.feed(kit.batch([(float(k), time, k, "a", k) for k in range(20)])).watermark((time - 1) * MS)
        operator = driven.operator
        tree = operator._tree.nbytes if grid[0] != grid[1] else 0
        sizes.append((operator._panes.nbytes, operator._columns.nbytes, tree))
    for memory in zip(*sizes):
        assert max(memory[250:]) <= max(memory[100:250])
