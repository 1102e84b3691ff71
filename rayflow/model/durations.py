"""Durations and sizes as people write them: `"500ms"`, `"1h30m"`, `timedelta`; `"64MiB"`, `"8g"`, `1024`.

A duration needs a unit, since a bare number would be seconds to one reader and milliseconds to another;
only zero may go without. Sizes are binary whatever the spelling (`k` = `kb` = `KiB` = 1024 bytes), as
Flink and the JVM read them; a bare number is bytes. Arithmetic is exact (fractions), never floating point.
"""

from __future__ import annotations

import functools
import re
from datetime import timedelta
from fractions import Fraction

from rayflow.model.errors import ConfigError

_NANOS_PER_DURATION_UNIT = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "sec": 1_000_000_000,
    "m": 60_000_000_000,
    "min": 60_000_000_000,
    "h": 3_600_000_000_000,
    "d": 86_400_000_000_000,
}
_NANOS_PER_MILLI = 1_000_000
_DURATION_TERM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zµ]+)\s*")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", re.IGNORECASE)
_SIZE_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_duration_ns(value: str | timedelta) -> int:
    """Return a duration in whole nanoseconds, rounded up; terms add up (`"1h30m"`).

    Raises ConfigError for anything negative, without a unit (except zero), or of another form.
    """
    if isinstance(value, timedelta):
        nanos = (value.days * 86_400 + value.seconds) * 1_000_000_000 + value.microseconds * 1_000
        if nanos < 0:
            raise ConfigError(f"a duration cannot be negative; got {value!r}")
        return nanos
    if not isinstance(value, str):
        if value == 0 and not isinstance(value, bool):
            return 0
        raise _bad_duration(value)
    return _duration_text_ns(value)


def parse_duration_ms(value: str | timedelta) -> int:
    """Return a duration in whole milliseconds, rounded up, so that no positive duration becomes zero."""
    return -(-parse_duration_ns(value) // _NANOS_PER_MILLI)


def parse_size(value: str | int) -> int:
    """Return a size in whole bytes, rounded down. Raises ConfigError for anything else than a size."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f'expected a size in bytes such as 1048576, "64MiB" or "8g"; got {value!r}')
    return int(Fraction(match[1]) * 1024 ** _SIZE_POWERS[match[2].lower()])


def format_duration_ns(nanos: int) -> str:
    """Return the shortest text that `parse_duration_ns` reads back as `nanos`, in one unit (`"90s"`)."""
    if nanos == 0:
        return "0s"
    for unit in ("d", "h", "m", "s", "ms", "us"):
        if nanos % _NANOS_PER_DURATION_UNIT[unit] == 0:
            return f"{nanos // _NANOS_PER_DURATION_UNIT[unit]}{unit}"
    return f"{nanos}ns"


@functools.lru_cache(maxsize=1_024)
def _duration_text_ns(text: str) -> int:
    if text.strip() == "0":
        return 0
    total, end = Fraction(0), 0
    while end < len(text):
        term = _DURATION_TERM.match(text, end)
        if term is None or term[2] not in _NANOS_PER_DURATION_UNIT:
            raise _bad_duration(text)
        total += Fraction(term[1]) * _NANOS_PER_DURATION_UNIT[term[2]]
        end = term.end()
    if end == 0:
        raise _bad_duration(text)
    return -(-total.numerator // total.denominator)


def _bad_duration(value: object) -> ConfigError:
    return ConfigError(
        'expected a duration with a unit such as "500ms", "10s", "5m", "2h", "1d", or a timedelta; '
        f"got {value!r}"
    )
