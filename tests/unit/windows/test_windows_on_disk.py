"""Tumbling and sliding windows whose panes outgrow their memory, against the naive model; and over both backends."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.windows.test_time_windows import GRIDS, STEPS, emitted, maker, play

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
