from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.durations import format_duration_ns, parse_duration_ms, parse_duration_ns, parse_size
from rayflow.model.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "nanos"),
    [
        ("500ms", 500_000_000),
        ("10s", 10 * 10**9),
        ("5m", 300 * 10**9),
        ("5min", 300 * 10**9),
        ("2h", 7_200 * 10**9),
        ("1d", 86_400 * 10**9),
        ("1h30m", 5_400 * 10**9),
        (" 1.5 s ", 1_500_000_000),
        ("0", 0),
        ("0s", 0),
        ("250us", 250_000),
    ],
)
def test_durations_are_read_in_their_unit(text: str, nanos: int) -> None:
    assert parse_duration_ns(text) == nanos


@pytest.mark.parametrize("bad", ["", "10", "s", "-1s", "10 parsecs", "1h-2m", 5, 2.5, True, None])
def test_what_is_no_duration_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="expected a duration"):
        parse_duration_ns(bad)  # type: ignore[arg-type]


def test_a_negative_timedelta_is_refused() -> None:
    with pytest.raises(ConfigError, match="negative"):
        parse_duration_ns(timedelta(seconds=-1))


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=10_000)))
def test_a_timedelta_is_exact(value: timedelta) -> None:
    assert parse_duration_ns(value) == value // timedelta(microseconds=1) * 1_000


@given(st.integers(0, 10**20))
def test_formatting_a_duration_reads_back(nanos: int) -> None:
    assert parse_duration_ns(format_duration_ns(nanos)) == nanos


@given(st.integers(0, 10**15))
def test_milliseconds_round_up_so_nothing_positive_becomes_zero(nanos: int) -> None:
    millis = parse_duration_ms(f"{nanos}ns")
    assert millis * 10**6 - 10**6 < nanos <= millis * 10**6


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("64MiB", 64 << 20), ("8g", 8 << 30), ("1k", 1024), ("1.5 GB", 3 << 29), ("10", 10), (7, 7), ("3b", 3)],
)
def test_sizes_are_binary(text: str | int, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("bad", ["", "big", "-1", "1x", -1, True, 1.5, None])
def test_what_is_no_size_is_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="expected a size"):
        parse_size(bad)  # type: ignore[arg-type]
