"""A subtask's lease on life: renewed by the job master's heartbeats, and the process ends when it lapses.

A process that is cut off from its master must not go on working: Ray can take many seconds to end it, while
another one already does its work. What such a process still tries is fenced by attempt; the lease
bounds how long it tries. Time in which this process itself stood still does not count, since nobody could renew then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LEASE_FACTOR = 4
MIN_LEASE_S = 20.0

_TICKS = 10

LAPSED = 1 + 2 / _TICKS
"""So many times a lease after the last renewal its process has ended, if it did not stand still."""


def lease_s(heartbeat_timeout_s: float) -> float:
    """How long a lease lasts: the master gives a subtask up well before it ends itself, and a new manager, for which
    Ray may have to start a process, finds those of a dead one still there."""
    return max(LEASE_FACTOR * heartbeat_timeout_s, MIN_LEASE_S)


class Lease:
    """Counts from the first renewal on. Any thread renews."""

    def __init__(self, duration_s: float) -> None:
        self.duration_s = duration_s
        self._left_s: float | None = None
        self._renewed_s = time.monotonic()

    @property
    def silent_s(self) -> float:
        """Seconds since the last renewal."""
        return time.monotonic() - self._renewed_s

    def renew(self) -> None:
        """The master was heard of."""
        self._left_s = self.duration_s
        self._renewed_s = time.monotonic()

    def pass_time(self, elapsed_s: float) -> bool:
        """Count time down, at most two ticks of it at once; return whether the lease has lapsed."""
        if self._left_s is None:
            return False
        self._left_s -= min(elapsed_s, 2 * self.duration_s / _TICKS)
        return self._left_s <= 0


def watch(lease: Lease, on_lapsed: Callable[[], None]) -> None:
    """Count the lease down on a thread of its own, and call `on_lapsed` once there when it lapses."""

    def run() -> None:
        before_s = time.monotonic()
        while True:
            time.sleep(lease.duration_s / _TICKS)
            now_s = time.monotonic()
            if lease.pass_time(now_s - before_s):
                on_lapsed()
                return
            before_s = now_s

    threading.Thread(target=run, name="lease", daemon=True).start()
