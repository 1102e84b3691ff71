from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import PlanError, col


@pytest.fixture
def stream() -> rf.DataStream:
    schema = pa.schema({"k": pa.string(), "t": pa.timestamp("ms"), "v": pa.int32()})
    env = rf.StreamEnvironment()
    return env.from_arrow(schema.empty_table()).assign_watermarks(rf.Watermark("t"))


def windowed(stream: rf.DataStream, window: Any) -> Any:
    return stream.key_by("k").window(window)


def test_a_sessions_event_time_is_its_end(stream: rf.DataStream) -> None:
    result = windowed(stream, rf.Session("10s")).aggregate(n=rf.count())
    assert result.schema.names == ["k", "window_start", "window_end", "n"]
    assert result.schema.field("window_end").type == pa.timestamp("ms")
    assert (result._info.time_column, result._info.is_upsert) == ("window_end", False)


def test_updated_sessions_are_an_upsert_stream_by_key_and_window(stream: rf.DataStream) -> None:
    for window in (
        windowed(stream, rf.Session("10s")).allowed_lateness("1s"),
        windowed(stream, rf.Session("10s")).trigger(rf.OnCount(3)),
    ):
        result = window.aggregate(n=rf.count())
        assert result._info.upsert_key == ("k", "window_start", "window_end")


def test_late_rows_have_the_columns_of_the_input(stream: rf.DataStream) -> None:
    result = (
        windowed(stream, rf.Session("10s")).allowed_lateness("0s", late_to="late").aggregate(n=rf.count())
    )
    assert not result._info.is_upsert
    assert result.side_output("late").schema.names == ["k", "t", "v"]


def test_windows_without_bounds_show_the_event_times_of_their_rows(stream: rf.DataStream) -> None:
    for window in (rf.CountWindow(3), rf.GlobalWindow()):
        timed = windowed(stream, window).aggregate(v=col("v").sum())
        assert timed.schema.names == ["k", "window_start", "window_end", "v"]
        assert timed.schema.field("window_start").type == pa.timestamp("ms")
        untimed = windowed(rf.StreamEnvironment().from_rows([{"k": 1, "v": 2}]), window)
        assert untimed.aggregate(v=col("v").sum()).schema.names == ["k", "v"]


def test_what_cannot_work_is_a_plan_error(stream: rf.DataStream) -> None:
    with pytest.raises(PlanError, match="gap of 1000 ns is no multiple"):
        windowed(stream, rf.Session("1us")).aggregate(n=rf.count())
    with pytest.raises(PlanError, match=r"take rf.GlobalWindow\(\) with that trigger"):
        windowed(stream, rf.CountWindow(3)).trigger(rf.OnCount(1)).aggregate(n=rf.count())
    with pytest.raises(PlanError, match="two columns are named 'window_end'"):
        windowed(stream, rf.CountWindow(3)).aggregate(window_end=rf.count())
    with pytest.raises(PlanError, match="know no late rows"):
        windowed(stream, rf.GlobalWindow()).allowed_lateness("1s")
    with pytest.raises(PlanError, match="unknown column 'w'"):
        windowed(stream, rf.Session("1s")).aggregate(n=col("w").sum())
