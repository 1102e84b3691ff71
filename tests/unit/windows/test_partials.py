"""Windows of partial aggregates: a combiner before the window operator changes nothing, late rows included."""

from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import UPDATE_BEFORE
from rayflow.model.config import JobConfig
from rayflow.model.errors import UserFunctionError
from rayflow.model.times import WATERMARK_MAX
from rayflow.skew.combiner import CombineOperator
from rayflow.skew.combining import Combination, Slices
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows

MS = 1_000_000

GRIDS = [(10, 10, 3), (10, 3, 1), (12, 4, 0), (5, 8, 2), (40, 2, 0), (7, 7, 0)]

NAMES = ["count", "values", "sum", "min", "max", "mean", "first", "last", "distinct", "list", "some"]

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


def windows_of(grid: tuple[int, int, int], **options: Any) -> TimeWindows:
    size, slide, offset = grid
    return TimeWindows(
        keys=("k",), size_ns=size * MS, slide_ns=slide * MS, offset_ns=offset * MS, time_column="t", **options
    )


def combiner(kit: Any, harness: Any, windows: TimeWindows, names: list[str], rows: int) -> Any:
    aggregates = tuple((name, kit.aggregates[name][0]) for name in names)
    grid = time_window_operator(windows, aggregates, kit.schema).grid
    combination = Combination(
        keys=("k",),
        aggregates=aggregates,
        schema=kit.schema,
        time_column="t",
        slices=Slices(size=grid.slice_size, offset=grid.offset, margin=grid.margin),
        whole_rows=windows.late_to is not None,
    )
    return harness(lambda: CombineOperator(combination), config=JobConfig(skew_rows=rows))


def deliver(sender: Any, receiver: Any) -> None:
    """Bring what the combiner has emitted to the window operator's subtasks."""
    events, sender.events = sender.events, []
    for event in events:
        if event[0] == "rows":
            receiver.feed(event[1])
        else:
            receiver.watermark(event[1])


@given(
    steps=STEPS,
    grid=st.sampled_from(GRIDS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    lateness=st.sampled_from([0, 0, 6, 25]),
    early=st.sampled_from([None, None, 3]),
    cut=st.sampled_from([1, 7, 100]),
    rows=st.sampled_from([1, 4, 1000]),
    passing=st.booleans(),
    barrier_at=st.integers(0, 8),
    after=st.integers(1, 3),
)
@settings(max_examples=50, deadline=None)
def test_combining_before_windows_changes_nothing(
    kit: Any,
    harness: Any,
    subtasks: Any,
    steps: list[Any],
    grid: tuple[int, int, int],
    names: list[str],
    lateness: int,
    early: int | None,
    cut: int,
    rows: int,
    passing: bool,
    barrier_at: int,
    after: int,
) -> None:
    windows = windows_of(grid, lateness_ns=lateness * MS, late_to="late", early_rows=early)
    aggregates = [(name, kit.aggregates[name][0]) for name in names]
    model = kit.time_windows(*grid, lateness=lateness)
    sender = combiner(kit, harness, windows, names, rows)
    if passing:
        sender.operator._reduction._pass_rows = 10**9
    make = lambda: time_window_operator(windows, aggregates, kit.schema)  # noqa: E731
    receiver = subtasks(make, ["k"], 2)
    number = 0
    for step, (given_rows, watermark) in enumerate(steps):
        if step == barrier_at:
            # All that was sent before the barrier is part of the receivers' state; the sender has none.
            assert sender.snapshot(1) == []
            deliver(sender, receiver)
            receiver.restart(1, after)
        numbered = [(*row, number + i) for i, row in enumerate(given_rows)]
        number += len(numbered)
        for at in range(0, len(numbered), cut):
            sender.feed(kit.batch(numbered[at : at + cut]))
        model.add(numbered)
        model.advance(watermark)
        sender.watermark(watermark * MS)
        sender.operator.on_timer(10**9)
        deliver(sender, receiver)
    sender.watermark(WATERMARK_MAX)
    model.advance(math.inf)
    deliver(sender, receiver)
    batches = [b for subtask in [*receiver.done, *receiver.subtasks] for b in subtask.batches]
    found: dict[Any, Any] = {}
    for window, (op, values) in kit.results(batches, names):
        assert op != UPDATE_BEFORE
        found[window] = values
    assert found == model.results(names)
    aside = [
        row["n"]
        for subtask in [*receiver.done, *receiver.subtasks]
        for _, batch in subtask.side
        for row in batch.to_pylist()
    ]
    assert sorted(aside) == sorted(row[4] for row in [*model.late, *model.null_times])
    assert receiver.count("late_rows") == len(model.late)
    assert receiver.count("null_time_rows") == len(model.null_times)
    assert receiver.count("gap_rows") == len(model.gaps)


@given(steps=STEPS, rows=st.sampled_from([2, 1000]), cut=st.sampled_from([1, 7]))
@settings(max_examples=15, deadline=None)
def test_rows_beside_a_waiting_watermark_are_kept_or_late_and_late_only_if_they_are_without_combining(
    kit: Any, harness: Any, subtasks: Any, steps: list[Any], rows: int, cut: int
) -> None:
    # A row that comes while a watermark waits is before it, not behind it.
    windows = windows_of((10, 10, 3), late_to="late")
    model = kit.time_windows(10, 10, 3)
    sender = combiner(kit, harness, windows, ["list"], rows)
    aggregates = [("list", kit.aggregates["list"][0])]
    receiver = subtasks(lambda: time_window_operator(windows, aggregates, kit.schema), ["k"], 2)
    number = 0
    for given_rows, watermark in steps:
        numbered = [(*row, number + i) for i, row in enumerate(given_rows)]
        number += len(numbered)
        for at in range(0, len(numbered), cut):
            sender.feed(kit.batch(numbered[at : at + cut]))
        model.add(numbered)
        model.advance(watermark)
        sender.watermark(watermark * MS)
        deliver(sender, receiver)
    sender.watermark(WATERMARK_MAX)
    deliver(sender, receiver)
    aside = {
        row["n"] for subtask in receiver.subtasks for _, batch in subtask.side for row in batch.to_pylist()
    }
    kept = [n for row in receiver.rows for n in row["list"]]
    assert sorted([*kept, *aside]) == list(range(number))
    assert aside <= {row[4] for row in [*model.late, *model.null_times]}


def test_early_results_by_count_count_rows_and_not_partial_aggregates(
    kit: Any, harness: Any, subtasks: Any
) -> None:
    windows = windows_of((10, 10, 0), early_rows=3)
    sender = combiner(kit, harness, windows, ["count"], 1)
    receiver = subtasks(
        lambda: time_window_operator(windows, [("count", kit.aggregates["count"][0])], kit.schema), ["k"]
    )
    sender.feed(kit.batch([(1.0, 1, 1, "a", n) for n in range(2)]))
    deliver(sender, receiver)
    assert receiver.rows == []
    sender.feed(kit.batch([(1.0, 1, 1, "a", 3)]))
    deliver(sender, receiver)
    assert [row["count"] for row in receiver.rows] == [3]


def test_rows_and_partial_aggregates_may_come_on_one_input(kit: Any, harness: Any, subtasks: Any) -> None:
    # As when rows in flight in a job without combining are restored into one with it.
    windows = windows_of((10, 5, 0))
    names = ["count", "sum", "list"]
    aggregates = [(name, kit.aggregates[name][0]) for name in names]
    receiver = subtasks(lambda: time_window_operator(windows, aggregates, kit.schema), ["k"])
    sender = combiner(kit, harness, windows, names, 100)
    receiver.feed(kit.batch([(1.0, 7, 1, "a", 0)]))
    sender.feed(kit.batch([(1.0, 6, 2, "a", 1), (1.0, 7, 3, "a", 2)])).watermark(WATERMARK_MAX)
    deliver(sender, receiver)
    assert [(row["count"], row["sum"], row["list"]) for row in receiver.rows] == [(3, 6, [1, 0, 2])] * 2


def test_a_watermark_waits_behind_what_is_held_and_word_of_idleness_too(kit: Any, harness: Any) -> None:
    sender = combiner(kit, harness, windows_of((10, 10, 0)), ["count"], 100)
    assert sender.watermark(1 * MS).watermarks == [1 * MS]
    sender.feed(kit.batch([(1.0, 5, 1, "a", 0)])).watermark(3 * MS)
    sender.watermark(4 * MS)
    assert sender.watermarks == [1 * MS]
    assert not sender.operator.drained()
    due = sender.operator.next_timer_ms()
    assert due == JobConfig().skew_linger_ms
    sender.operator.on_timer(due)
    assert [event[0] for event in sender.events] == ["watermark", "rows", "watermark"]
    assert sender.watermarks == [1 * MS, 4 * MS]
    assert sender.operator.drained()
    assert sender.operator.next_timer_ms() is None


def test_a_time_at_the_end_of_what_a_column_holds_is_refused_as_without_combining(
    kit: Any, harness: Any
) -> None:
    sender = combiner(kit, harness, windows_of((10, 10, 0)), ["count"], 100)
    rows = kit.batch([(1.0, 5, 1, "a", 0)])
    rows = rows.set_column(1, rows.schema.field(1), pa.array([2**63 - 2]).view(pa.timestamp("ms")))
    with pytest.raises(UserFunctionError, match="so near the end"):
        sender.feed(rows)
