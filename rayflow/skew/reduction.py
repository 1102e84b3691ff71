"""Whether combining pays: measured now and then, by counts alone, so that every run decides the same.

While rows are combined, what comes in and what goes out is counted, until so many rows have come that it says
something. Where hardly fewer went out than came in, combining stops for a stretch of rows, then is tried again; each
time that it does not pay the next stretch is twice as long, up to a bound: a change of the keys is found soon,
uniform keys are left alone.
"""

from __future__ import annotations

SAMPLE_ROWS = 16_384
LEAST_RATIO = 1.25
"""Rows in to rows out, below which combining costs more than it saves."""

FIRST_STRETCH, LONGEST_STRETCH = 16, 64
"""Stretches without combining, in samples."""


class Reduction:
    """Decides between combining and passing on."""

    def __init__(self) -> None:
        self._rows_in = self._rows_out = 0
        self._stretch = FIRST_STRETCH
        self._pass_rows = 0

    @property
    def passes(self) -> bool:
        """Whether rows are to be passed on as they are."""
        return self._pass_rows > 0

    def passed(self, rows: int) -> None:
        """So many rows were passed on."""
        self._pass_rows = max(0, self._pass_rows - rows)

    def combined(self, rows_in: int, rows_out: int) -> None:
        """So many rows became so many: all that was held has gone out."""
        self._rows_in += rows_in
        self._rows_out += rows_out
        if self._rows_in < SAMPLE_ROWS:
            return
        if self._rows_in < LEAST_RATIO * self._rows_out:
            self._pass_rows = self._stretch * self._rows_in
            self._stretch = min(2 * self._stretch, LONGEST_STRETCH)
        else:
            self._stretch = FIRST_STRETCH
        self._rows_in = self._rows_out = 0
