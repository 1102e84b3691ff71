"""Tumbling and sliding windows against the naive model: aggregates × disorder × lateness × cutting × restarts."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.changelog import INSERT, UPDATE_AFTER, UPDATE_BEFORE
from rayflow.batch.expressions import col
from rayflow.model.times import WATERMARK_MAX
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.running_windows import RunningWindows
from rayflow.windows.sliced_windows import SlicedWindows

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
    emit_before, kind = options.pop("emit_before", False), options.pop("kind", None)
    windows = TimeWindows(
        keys=("k",), size_ns=size * MS, slide_ns=slide * MS, offset_ns=offset * MS, time_column="t", **options
    )
    aggregates = [(name, kit.aggregates[name][0]) for name in names]
    return lambda: (kind or time_window_operator)(windows, aggregates, kit.schema, emit_before)


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


@given(
    steps=STEPS,
    grid=st.sampled_from([(10, 3, 1), (12, 4, 0), (40, 2, 0), (60, 1, 5), (3, 2, 0)]),
    names=st.sampled_from(
        [["count"], ["sum", "values"], ["min", "most", "mean"], ["halves", "least", "some"]]
    ),
    cut=st.sampled_from([1, 7, 100]),
    restart_at=st.integers(0, 8),
    before=st.integers(1, 3),
    after=st.integers(1, 3),
    batch_rows=st.sampled_from([1, 5, 1000]),
    turns=st.sampled_from([(False, False), (False, True), (True, False)]),
)
@settings(max_examples=150, deadline=None)
def test_results_kept_up_equal_the_model_and_restore_what_the_other_way_wrote(
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
    turns: tuple[bool, bool],
) -> None:
    model = kit.time_windows(*grid)
    kept_up = maker(kit, grid, names)
    assert type(kept_up()) is RunningWindows
    merged = maker(kit, grid, names, kind=SlicedWindows)
    made: list[bool] = []

    def make() -> Any:
        # Those of the first generation, then those that restore.
        made.append(True)
        return merged() if turns[len(made) > before] else kept_up()

    driven = subtasks(make, ["k"], before, batch_rows=batch_rows)
    play(kit, driven, model, steps, cut, restart_at, after)
    found = emitted(kit, driven, names)
    assert len(dict(found)) == len(found)
    assert {window: values for window, (_, values) in found} == model.results(names)
    assert driven.count("late_rows") == len(model.late)


@pytest.mark.parametrize(("size", "slide"), [(7, 3), (5, 8), (3, 1)])
def test_windows_of_nanoseconds_end_with_the_job(harness: Any, size: int, slide: int) -> None:
    # What the last watermark has reached is the last instant of all: slices have no numbers beyond it.
    schema = pa.schema([("k", pa.int64()), ("t", pa.timestamp("ns"))])
    windows = TimeWindows(keys=("k",), size_ns=size, slide_ns=slide, time_column="t")
    driven = harness(lambda: time_window_operator(windows, [("n", count())], schema))
    driven.feed(pa.record_batch([pa.array([1, 1]), pa.array([0, 9], pa.timestamp("ns"))], schema=schema))
    driven.watermark(WATERMARK_MAX)
    found = [(row["window_start"].value, row["n"]) for row in driven.rows]
    starts = range(-size // slide * slide, 10, slide)
    counted = [(start, sum(start <= time < start + size for time in (0, 9))) for start in starts]
    assert found == [(start, n) for start, n in counted if n]
    assert driven.operator._panes.key_count == 0


def test_sums_of_doubles_are_the_same_to_the_last_digit_after_a_restart(kit: Any, harness: Any) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(size=400) * 10.0 ** rng.integers(-8, 8, 400)
    keys, times = rng.integers(0, 5, 400), np.sort(rng.integers(0, 300, 400))
    schema = pa.schema([("k", pa.int64()), ("t", pa.timestamp("ms")), ("v", pa.float64())])
    rows = pa.record_batch(
        [pa.array(keys), pa.array(times).cast(pa.timestamp("ms")), pa.array(values)], schema=schema
    )
    windows = TimeWindows(keys=("k",), size_ns=40 * MS, slide_ns=2 * MS, time_column="t")
    aggregates = [("total", col("v").sum()), ("mean", col("v").mean())]

    def run(restart_at: int | None) -> pa.Table:
        driven = harness(lambda: time_window_operator(windows, aggregates, schema))
        batches: list[pa.RecordBatch] = []
        for at in range(0, 400, 20):
            if at == restart_at:
                batches += driven.batches
                driven = harness(
                    lambda: time_window_operator(windows, aggregates, schema), restored=driven.snapshot(1)
                )
            driven.feed(rows.slice(at, 20)).watermark((int(times[at + 19]) - 1) * MS)
        driven.watermark(WATERMARK_MAX)
        return pa.Table.from_batches([*batches, *driven.batches]).sort_by(
            [("window_start", "ascending"), ("k", "ascending")]
        )

    whole = run(None)
    for restart_at in (20, 140, 260, 380):
        assert run(restart_at).equals(whole)


@pytest.mark.parametrize(
    ("grid", "names"),
    [
        ((10, 10, 0), ["count", "sum", "list"]),
        ((40, 2, 0), ["count", "sum", "list"]),
        ((40, 2, 0), ["sum", "most"]),
    ],
)
def test_closed_windows_leave_nothing_behind(
    kit: Any, harness: Any, grid: tuple[int, int, int], names: list[str]
) -> None:
    driven = harness(maker(kit, grid, names))
    sizes = []
    for time in range(0, 4000, 10):
        driven.feed(kit.batch([(float(k), time, k, "a", k) for k in range(20)])).watermark((time - 1) * MS)
        operator = driven.operator
        merged = [getattr(operator, name).nbytes for name in ("_tree", "_running") if hasattr(operator, name)]
        sizes.append((operator._panes.nbytes, operator._columns.nbytes, sum(merged)))
    for memory in zip(*sizes):
        assert max(memory[250:]) <= max(memory[100:250])


@pytest.mark.parametrize(("keys", "batch_rows"), [(3, 1000), (50, 64), (200, 64)])
def test_results_come_in_batches_of_bounded_size_whatever_the_number_of_keys(
    harness: Any, keys: int, batch_rows: int
) -> None:
    # Keys come and go: each is there for 30 ms of every 100.
    times = np.repeat(np.arange(0, 400, 5), keys)
    names = np.tile(np.arange(keys), 80)
    there = (times + 7 * names) % 100 < 30
    times, names = times[there], names[there]
    schema = pa.schema([("k", pa.string()), ("t", pa.timestamp("ms"))])
    column = pa.array([f"key {name}" for name in names])
    rows = pa.record_batch([column, pa.array(times).cast(pa.timestamp("ms"))], schema=schema)
    windows = TimeWindows(keys=("k",), size_ns=40 * MS, slide_ns=2 * MS, time_column="t")
    driven = harness(lambda: time_window_operator(windows, [("n", count())], schema), batch_rows=batch_rows)
    for at in range(0, len(times), 100):
        driven.feed(rows.slice(at, 100)).watermark((int(times[min(at + 99, len(times) - 1)]) - 1) * MS)
    driven.watermark(WATERMARK_MAX)
    assert max(batch.num_rows for batch in driven.batches) <= batch_rows
    counted = Counter(
        (f"key {name}", start)
        for time, name in zip(times.tolist(), names.tolist())
        for start in range(time // 2 * 2 - 38, time // 2 * 2 + 1, 2)
    )
    starts = [batch["window_start"].cast(pa.int64()).to_pylist() for batch in driven.batches]
    found = [
        ((key, start), n)
        for batch, own in zip(driven.batches, starts)
        for key, start, n in zip(batch["k"].to_pylist(), own, batch["n"].to_pylist())
    ]
    assert len(found) == len(counted)
    assert dict(found) == counted
    assert [start for (_, start), _ in found] == sorted(start for (_, start), _ in found)
