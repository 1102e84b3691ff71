"""How many rows a task takes at a time: so that it is never busy with them for long (`Pace`), and so that they take no
more memory than they may (`Portion`).

Theory of operation. What waits for a task (barriers that overtake, above all) waits until the call of its operators
that is under way returns. Large batches are cheap where a row costs microseconds, and take minutes where a user's
function needs milliseconds for each. So the rows of one call follow from how long calls took: a long one lowers them in
proportion, to what would have been in time; a short one doubles them.

Invariant: 1 ≤ `rows` ≤ `most_rows`.
"""

from __future__ import annotations

_FIRST_ROWS = 256
_UNKNOWN_ROWS = 4096


class Pace:
    """`busy_ms` is how long a call should take at most; without it (None) every call gets `most_rows`."""

    __slots__ = ("_busy_ms", "_most_rows", "rows")

    def __init__(self, busy_ms: int | None, most_rows: int = 1 << 62) -> None:
        self._busy_ms = busy_ms
        self._most_rows = most_rows
        self.rows = most_rows if busy_ms is None else min(_FIRST_ROWS, most_rows)

    def worked(self, rows: int, took_ms: int) -> None:
        """A call with so many rows took so long."""
        if self._busy_ms is None:
            return
        if took_ms > self._busy_ms:
            self.rows = max(1, min(self.rows, rows * self._busy_ms // took_ms))
        elif took_ms <= self._busy_ms // 2:
            self.rows = min(self._most_rows, self.rows * 2)


class Portion:
    """How many rows make about `most_bytes`, `most_rows` at most: as many as the last ones were large. `row_bytes` is
    what a row takes where that is known beforehand; else the first portion is a small one.

    Invariant: 1 ≤ `rows` ≤ `most_rows`.
    """

    __slots__ = ("_most_bytes", "_most_rows", "rows")

    def __init__(self, most_bytes: int, most_rows: int, row_bytes: float | None = None) -> None:
        self._most_bytes = most_bytes
        self._most_rows = most_rows
        self.rows = min(_UNKNOWN_ROWS, most_rows)
        if row_bytes is not None:
            self._fit(row_bytes)

    def took(self, rows: int, nbytes: int) -> None:
        """So many rows (≥ 1) took so many bytes."""
        self._fit(nbytes / rows)

    def _fit(self, row_bytes: float) -> None:
        self.rows = max(1, min(self._most_rows, int(self._most_bytes / max(row_bytes, 1 / 8))))
