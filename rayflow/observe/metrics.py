"""Counters and gauges of one subtask, written by its task thread and read by snapshots.

Only numbers, only additions and assignments: cheap enough for every batch, never per row. A reader may see
one counter a batch newer than another; nothing may depend on that.
"""

from __future__ import annotations


class Counter:
    """A number that only grows."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self, amount: int = 1) -> None:
        """Add `amount` (not negative)."""
        self.value += amount


class Gauge:
    """A number that is what it was last set to."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value: float = 0

    def set(self, value: float) -> None:
        """Assign `value`."""
        self.value = value


class MetricGroup:
    """Named counters and gauges; `counter(name)` returns the same counter every time."""

    def __init__(self) -> None:
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}

    def counter(self, name: str) -> Counter:
        """Return the counter `name`, made on first use."""
        return self._counters.setdefault(name, Counter())

    def gauge(self, name: str) -> Gauge:
        """Return the gauge `name`, made on first use."""
        return self._gauges.setdefault(name, Gauge())

    def snapshot(self) -> dict[str, float]:
        """Return all values by name."""
        # list() first: another thread may add a metric while this one reads.
        values: dict[str, float] = {n: c.value for n, c in list(self._counters.items())}
        values.update({n: g.value for n, g in list(self._gauges.items())})
        return values
