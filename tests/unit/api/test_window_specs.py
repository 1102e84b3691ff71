from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import rayflow as rf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rf.Tumbling("0s"), "longer than zero"),
        (lambda: rf.Sliding("5m", "0s"), r"rf.Sliding\(slide\).*longer than zero"),
        (lambda: rf.Sliding("5m", "soon"), "expected a duration"),
        (lambda: rf.Tumbling("5m", time="wall"), "'event' or 'processing'; got 'wall'"),  # type: ignore[arg-type]
        (lambda: rf.Session("0s"), "longer than zero"),
        (lambda: rf.CountWindow(0), "whole number from 1; got 0"),
        (lambda: rf.OnCount(True), "whole number from 1; got True"),
        (lambda: rf.OnProcessingTime("0s"), "longer than zero"),
    ],
)
def test_a_wrong_specification_fails_where_it_is_made(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(rf.PlanError, match=message) as caught:
        make()
    assert "test_window_specs.py" in str(caught.value.location)


def test_specifications_are_shown_in_plans_as_they_are_written() -> None:
    shown = [
        rf.Tumbling("60s", offset="90s"),
        rf.Sliding("5m", "1s", time="processing"),
        rf.Session("30s"),
        rf.CountWindow(3),
        rf.GlobalWindow(),
        rf.OnWatermark(),
        rf.OnCount(5),
        rf.OnProcessingTime("1s"),
    ]
    assert [str(spec) for spec in shown] == [
        "tumbling 1m offset 30s",
        "sliding 5m every 1s of processing time",
        "session gap 30s",
        "every 3 rows",
        "global",
        "on watermark",
        "every 5 rows",
        "every 1s of processing time",
    ]
