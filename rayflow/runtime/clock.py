"""The machine's wall clock, as the engines see it."""

from __future__ import annotations

import time


def wall_clock_ms() -> int:
    """Return milliseconds since the Unix epoch."""
    return time.time_ns() // 1_000_000


class SystemClock:
    """`Clock` of production and of `--local`."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        return wall_clock_ms()
