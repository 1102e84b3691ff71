"""State of windows is restored into windows with the same bounds, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from rayflow.batch.aggregates import count
from rayflow.model.errors import UserFunctionError
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.session import SessionSpec, SessionWindowOperator

MS = 1_000_000


def time_windows(kit: Any, size: int, slide: int, offset: int = 0, **options: Any) -> Any:
    windows = TimeWindows(
        keys=("k",), size_ns=size * MS, slide_ns=slide * MS, offset_ns=offset * MS, time_column="t", **options
    )
    return lambda: time_window_operator(windows, [("n", count())], kit.schema)


def sessions(kit: Any, gap: int, **options: Any) -> Any:
    spec = SessionSpec(gap_ns=gap * MS, **options)
    return lambda: SessionWindowOperator(("k",), spec, [("n", count())], kit.schema, "t")


def snapshot_of(kit: Any, harness: Any, make: Any) -> Any:
    return harness(make).feed(kit.batch([(1.0, 3, 1, "a", 0)])).snapshot(1)


@pytest.mark.parametrize("changed", [(20, 10), (40, 5), (40, 10, 3), (40, 40)])
def test_windows_of_other_bounds_refuse_the_state_and_say_whose_it_is(
    kit: Any, harness: Any, changed: tuple[int, ...]
) -> None:
    parts = snapshot_of(kit, harness, time_windows(kit, 40, 10))
    with pytest.raises(UserFunctionError) as caught:
        harness(time_windows(kit, *changed), restored=parts)
    assert "size 40ms, slide 10ms, offset 0s" in str(caught.value)
    assert f"size {changed[0]}ms, slide {changed[1]}ms" in str(caught.value)
    assert "as they were" in str(caught.value)


def test_sessions_of_another_gap_refuse_the_state(kit: Any, harness: Any) -> None:
    parts = snapshot_of(kit, harness, sessions(kit, 10))
    with pytest.raises(UserFunctionError, match=r"gap 10ms.*gap 20ms"):
        harness(sessions(kit, 20), restored=parts)


@pytest.mark.parametrize("kind", [time_windows, sessions])
def test_another_lateness_is_refused_and_old_snapshots_restore_as_before(
    kit: Any, harness: Any, kind: Any
) -> None:
    bounds = (40, 10) if kind is time_windows else (10,)
    parts = snapshot_of(kit, harness, kind(kit, *bounds))
    # What is kept, and what of it was shown, depends on it.
    with pytest.raises(UserFunctionError, match=r"allowed lateness 0s.*allowed lateness 5ms"):
        harness(kind(kit, *bounds, lateness_ns=5 * MS), restored=parts)
    old = [part for part in parts if part.name != "window-parameters"]
    assert len(old) == len(parts) - 1
    other = (20, 10) if kind is time_windows else (20,)
    harness(kind(kit, *other), restored=old)


def test_one_subtask_writes_them_and_every_subtask_checks(kit: Any, subtasks: Any) -> None:
    driven = subtasks(time_windows(kit, 40, 10), ["k"], 3)
    driven.feed(kit.batch([(float(k), 3, 1, "a", k) for k in range(9)]))
    written = [part.name for subtask in driven.subtasks for part in subtask.snapshot(1)]
    assert written.count("window-parameters") == 1
    driven.make = time_windows(kit, 40, 20)
    with pytest.raises(UserFunctionError):
        driven.restart(1, 2)
