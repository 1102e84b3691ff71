"""Static rate limits: a token bucket that goes into debt.

Theory of operation. A row costs a token; tokens come at `rows_per_second`, up to `burst_rows` of them. A
batch may be sent whenever there is a token, whatever its size: the bucket then holds a debt, and the next
batch waits until it is paid. That is a producer which sends a batch and sleeps rows ÷ rate, and it needs no
batch to be cut.

Invariants:

1. In any t seconds at most rows_per_second · t + burst_rows + one batch are taken, if `wait_ms` is heeded.
2. After `wait_ms` milliseconds without taking, `wait_ms` is 0.
3. Asking changes nothing. A clock set back gives and costs nothing.
"""

from __future__ import annotations

import math

from rayflow.model.errors import ProtocolViolation

# Time is whole milliseconds, tokens are not: what is missing by rounding alone counts as there.
_ROUNDING = 1e-6


class RateLimiter:
    """Limits one producer to `rows_per_second` (> 0); `burst_rows` (≥ 1) is what it may save up."""

    __slots__ = ("_burst", "_last_ms", "_rows_per_ms", "_tokens")

    def __init__(self, rows_per_second: float, burst_rows: int) -> None:
        if not 0 < rows_per_second < math.inf or burst_rows < 1:
            raise ProtocolViolation(
                f"rate of {rows_per_second} rows/s with a burst of {burst_rows}: expected more than 0, and at least 1"
            )
        self._rows_per_ms = rows_per_second / 1000
        self._burst = burst_rows
        self._tokens = float(burst_rows)
        self._last_ms: int | None = None

    def wait_ms(self, now_ms: int) -> int:
        """Return in how many milliseconds the next batch may be sent; 0: now."""
        missing = 1 - self._tokens_at(now_ms) - _ROUNDING
        return 0 if missing <= 0 else math.ceil(missing / self._rows_per_ms)

    def take(self, rows: int, now_ms: int) -> None:
        """Count `rows` (≥ 0) as sent."""
        if rows < 0:
            raise ProtocolViolation(f"{rows} rows sent: expected at least 0")
        self._tokens = self._tokens_at(now_ms) - rows
        self._last_ms = now_ms

    def _tokens_at(self, now_ms: int) -> float:
        if self._last_ms is None:
            return self._tokens
        elapsed_ms = max(0, now_ms - self._last_ms)
        return min(self._burst, self._tokens + elapsed_ms * self._rows_per_ms)
