"""Tumbling and sliding windows whose panes outgrow their memory, against the naive model; and over both backends."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.times import WATERMARK_MAX
from rayflow.protocol.increments import MAX_LINKS
from tests.unit.stored import Checkpoints
from tests.unit.windows.test_time_windows import GRIDS, MS, STEPS, emitted, maker, numbered, play

T0 = datetime(1970, 1, 1)
TINY, SMALL, LARGE = 1, 60_000, 1 << 30
"""Bytes for state: whatever comes is written at once; some batches fit; all does."""

NAMES = [
    "count", "values", "sum", "min", "max", "mean", "first", "last", "distinct", "list", "some", "most", "halves",
]  # fmt: skip


@given(
    steps=STEPS,
    grid=st.sampled_from(GRIDS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
    cut=st.sampled_from([1, 7, 100]),
    restart_at=st.integers(0, 8),
    before=st.integers(1, 3),
    after=st.integers(1, 3),
    batch_rows=st.sampled_from([1, 5, 1000]),
    backends=st.sampled_from(
        [(TINY, TINY), (TINY, None), (None, TINY), (SMALL, TINY), (TINY, LARGE), (LARGE, LARGE)]
    ),
)
@settings(max_examples=100, deadline=None)
def test_windows_are_those_of_the_model_whatever_is_on_disk_before_and_after_a_restart(
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
    backends: tuple[int | None, int | None],
) -> None:
    model = kit.time_windows(*grid)
    driven = subtasks(maker(kit, grid, names), ["k"], before, batch_rows=batch_rows, disk_bytes=backends[0])
    restart = driven.restart
    driven.restart = lambda number, parallelism: restart(number, parallelism, disk_bytes=backends[1])
    play(kit, driven, model, steps, cut, restart_at, after)
    found = emitted(kit, driven, names)
    assert len(dict(found)) == len(found)
    assert {window: values for window, (_, values) in found} == model.results(names)
    assert driven.count("late_rows") == len(model.late)
    if backends == (TINY, TINY) and found:
        # Whatever was shown came from disk.
        assert driven.count("state_evicted_keys") > 0
        assert driven.count("state_fetched_keys") > 0


@given(
    steps=STEPS,
    grid=st.sampled_from(GRIDS),
    names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True),
    cut=st.sampled_from([1, 7, 100]),
    heard=st.lists(st.sampled_from([None, (), (0,), (1,)]), min_size=9, max_size=9),
    restarts=st.lists(
        st.tuples(st.booleans(), st.integers(1, 3), st.sampled_from([TINY, SMALL, None])),
        min_size=9,
        max_size=9,
    ),
)
@settings(max_examples=60, deadline=None)
def test_increments_restore_to_what_memory_has_at_any_parallelism_into_any_backend(
    kit: Any,
    subtasks: Any,
    steps: list[Any],
    grid: tuple[int, int, int],
    names: list[str],
    cut: int,
    heard: list[Any],
    restarts: list[Any],
) -> None:
    # After each step a checkpoint, of whose end not all subtasks hear; after some of them a restart.
    model = kit.time_windows(*grid)
    driven = subtasks(maker(kit, grid, names), ["k"], 2, disk_bytes=TINY)
    checkpoints = Checkpoints(driven)
    for number, (rows, watermark) in enumerate(numbered(steps)):
        for at in range(0, len(rows), cut):
            driven.feed(kit.batch(rows[at : at + cut]))
        model.add(rows)
        model.advance(watermark)
        driven.watermark(watermark * MS)
        checkpoints.take(number + 1, completes=heard[number])
        begins_again, parallelism, disk_bytes = restarts[number]
        if begins_again:
            checkpoints.restart(number + 1, parallelism, disk_bytes=disk_bytes)
    driven.watermark(WATERMARK_MAX)
    model.advance(math.inf)
    found = emitted(kit, driven, names)
    assert len(dict(found)) == len(found)
    assert {window: values for window, (_, values) in found} == model.results(names)


def rows_of_keys(kit: Any, keys: range, time: int) -> Any:
    return kit.batch([(float(key), time, key % 7, "text", key) for key in keys])


@pytest.mark.parametrize("grid", [(100, 100, 0), (100, 10, 0)])
def test_after_one_percent_of_the_keys_changed_a_checkpoint_uploads_little(
    kit: Any, subtasks: Any, grid: Any
) -> None:
    driven = subtasks(maker(kit, grid, ["count", "last"]), ["k"], 1, disk_bytes=200_000)
    checkpoints = Checkpoints(driven)
    driven.feed(rows_of_keys(kit, range(20_000), 5))
    checkpoints.take(1)
    # Up to the last link, and more often than runs of a slice lie side by side: merged ones are uploaded again.
    for number in range(2, MAX_LINKS + 1):
        driven.feed(rows_of_keys(kit, range(200 * number, 200 * (number + 1)), 5))
        checkpoints.take(number)
        assert checkpoints.written[number] < 0.1 * checkpoints.written[1]
        assert {file.origin for file in checkpoints.files[number]} >= {1, None}
    # Another attempt goes on.
    checkpoints.restart(10, 1)
    driven.feed(rows_of_keys(kit, range(200), 5))
    checkpoints.take(11)
    assert checkpoints.written[11] < 0.1 * checkpoints.written[1]
    assert {file.origin for file in checkpoints.files[11]} >= {1, 10, None}
    checkpoints.restart(11, 2, disk_bytes=None)
    driven.watermark(WATERMARK_MAX)
    shown = sorted((row["k"], row["count"]) for row in driven.rows if row["window_start"] == T0)
    assert shown == [(float(key), 2 if key < 200 or 400 <= key < 2200 else 1) for key in range(20_000)]


def test_a_window_that_was_closed_is_in_no_checkpoint_after_it(kit: Any, subtasks: Any) -> None:
    driven = subtasks(maker(kit, (10, 10, 0), ["count"]), ["k"], 1, disk_bytes=TINY)
    checkpoints = Checkpoints(driven)
    driven.feed(rows_of_keys(kit, range(1_000), 5))
    driven.feed(rows_of_keys(kit, range(5_000), 15))
    checkpoints.take(1)
    driven.watermark(10 * MS)
    # Nothing is new: what is gone is known all the same.
    checkpoints.take(2)
    assert checkpoints.written[2] < 0.1 * checkpoints.written[1]
    checkpoints.restart(2, 1, disk_bytes=None)
    (windows,) = [part for part in driven.subtasks[0].snapshot(3) if part.name == "windows"]
    assert windows.table.num_rows == 5_000
    driven.watermark(20 * MS)
    checkpoints.take(4)
    assert [file for file in checkpoints.files[4] if file.part == "windows"] == []


def test_what_few_rows_are_left_of_is_written_anew(kit: Any, subtasks: Any) -> None:
    # A link to a base of which next to nothing is left would keep all of it on storage.
    driven = subtasks(maker(kit, (10, 10, 0), ["count"]), ["k"], 1, disk_bytes=TINY)
    checkpoints = Checkpoints(driven)
    driven.feed(rows_of_keys(kit, range(5_000), 5))
    checkpoints.take(1)
    driven.feed(rows_of_keys(kit, range(500), 15))
    driven.watermark(10 * MS)
    checkpoints.take(2)
    assert {file.origin for file in checkpoints.files[2]} == {None}


def test_runs_after_a_restart_are_told_from_those_that_were_dropped_before_it(
    kit: Any, subtasks: Any
) -> None:
    driven = subtasks(maker(kit, (10, 10, 0), ["count"]), ["k"], 1, disk_bytes=TINY)
    checkpoints = Checkpoints(driven)
    driven.feed(rows_of_keys(kit, range(5_000), 15))
    # Of a source that is behind: the run written last is of the window that closes first.
    driven.feed(rows_of_keys(kit, range(500), 5))
    checkpoints.take(1)
    driven.watermark(10 * MS)
    checkpoints.take(2)
    checkpoints.restart(2, 1)
    # A link to the base in which the closed window still lies.
    driven.feed(rows_of_keys(kit, range(100), 15))
    checkpoints.take(3)
    assert {file.origin for file in checkpoints.files[3]} >= {1, None}
    checkpoints.restart(3, 1)
    driven.watermark(11 * MS)
    driven.watermark(20 * MS)
    shown = sorted((row["k"], row["count"]) for row in driven.subtasks[0].rows)
    assert shown == [(float(key), 2 if key < 100 else 1) for key in range(5_000)]
