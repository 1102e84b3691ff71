"""Where a task's time goes: busy, back-pressured or idle, as ratios over the last seconds.

The task thread says when it changes from one to the other; anyone may ask for the ratios, also in the middle
of a long wait or a long call. Totals are sampled once a second of a monotonic clock; a ratio is the difference
between now and the sample five seconds back.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal

Activity = Literal["busy", "backpressured", "idle"]

_WINDOW_S = 5


class TimeAccount:
    """Ratios of the last five seconds. `switch` on the task thread, `ratios` on any."""

    def __init__(self, now_s: float) -> None:
        self._activity: Activity = "idle"
        self._now_s = now_s
        self._totals: dict[Activity, float] = {"busy": 0.0, "backpressured": 0.0, "idle": 0.0}
        self._samples: deque[tuple[float, dict[Activity, float]]] = deque(maxlen=_WINDOW_S + 1)
        self._samples.append((now_s, dict(self._totals)))
        self._lock = threading.Lock()

    def switch(self, activity: Activity, now_s: float) -> None:
        """From now on the task does `activity`."""
        if activity != self._activity:
            with self._lock:
                self._catch_up(now_s)
                self._activity = activity

    def ratios(self, now_s: float) -> dict[str, float]:
        """Return the share of each activity; they sum to 1."""
        with self._lock:
            self._catch_up(now_s)
            start_s, before = self._samples[0]
            elapsed_s = self._now_s - start_s
            if elapsed_s <= 0:
                return {name: float(name == self._activity) for name in self._totals}
            return {name: round((self._totals[name] - before[name]) / elapsed_s, 4) for name in self._totals}

    def _catch_up(self, now_s: float) -> None:
        # A span longer than the window fills it: skip to where its samples still matter.
        last_s = max(self._samples[-1][0], now_s - _WINDOW_S - 1)
        while last_s + 1 <= now_s:
            last_s += 1
            self._pass_until(last_s)
            self._samples.append((last_s, dict(self._totals)))
        self._pass_until(now_s)

    def _pass_until(self, time_s: float) -> None:
        if time_s > self._now_s:
            self._totals[self._activity] += time_s - self._now_s
            self._now_s = time_s
