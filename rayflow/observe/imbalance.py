"""How evenly rows reach the subtasks of an operator, over the last seconds, and when that is worth a warning.

Counted is what senders have queued for each subtask, by key: that shows how the keys lie, whereas what subtasks have
taken in also shows which of them is slow just now.

A warning must not be a false alarm. So it takes rows enough that chance plays no part (`MIN_ROWS_PER_SUBTASK`), of a
span long enough to be more than a burst (`MIN_SPAN_MS`; all there was, once the job ends), and an imbalance that
costs something: at `SKEWED_TO_MEAN` the operator runs at three quarters of the pace that its subtasks could keep.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

WINDOW_MS = 10_000
MIN_SPAN_MS = 2_000
MIN_ROWS_PER_SUBTASK = 10_000
SKEWED_TO_MEAN = 1.3

_SPACING_MS = 500


@dataclass(frozen=True, slots=True)
class Imbalance:
    """`rows` for each subtask (at least one, not all 0) within `span_ms`."""

    rows: tuple[int, ...]
    span_ms: int

    @property
    def busiest(self) -> int:
        """The index of the subtask with the most rows."""
        return self.rows.index(max(self.rows))

    @property
    def to_mean(self) -> float:
        """How many times the mean the busiest has; 1 where all have as many."""
        return max(self.rows) * len(self.rows) / sum(self.rows)

    @property
    def to_least(self) -> float | None:
        """How many times as many the busiest has as the least busy; None where that has none."""
        return max(self.rows) / min(self.rows) if min(self.rows) else None

    def is_skewed(self, *, ended: bool = False) -> bool:
        """Whether people should be warned. `ended`: no more rows will come, however short the span."""
        return (
            len(self.rows) > 1
            and (ended or self.span_ms >= MIN_SPAN_MS)
            and sum(self.rows) >= MIN_ROWS_PER_SUBTASK * len(self.rows)
            and self.to_mean >= SKEWED_TO_MEAN
        )


class RecentRows:
    """The rows of the last `WINDOW_MS`, out of counters that only grow. Bounded: samples lie half a second apart."""

    def __init__(self, subtasks: int, now_ms: int) -> None:
        self._samples: deque[tuple[int, tuple[int, ...]]] = deque([(now_ms, (0,) * subtasks)])

    def note(self, rows: Sequence[int], now_ms: int) -> None:
        """So many rows there have been for each subtask until `now_ms`. (What a sender told last may come first.)"""
        samples = self._samples
        rows = [max(counts) for counts in zip(rows, samples[-1][1], strict=True)]
        if len(samples) > 1 and now_ms - samples[-2][0] < _SPACING_MS:
            samples.pop()
        samples.append((now_ms, tuple(rows)))
        while len(samples) > 2 and samples[1][0] <= now_ms - WINDOW_MS:
            samples.popleft()

    def imbalance(self) -> Imbalance | None:
        """Return how even they are, None where there were none."""
        (start_ms, before), (end_ms, now) = self._samples[0], self._samples[-1]
        rows = tuple(later - earlier for earlier, later in zip(before, now, strict=True))
        return Imbalance(rows, end_ms - start_ms) if any(rows) else None
