"""Sets that forget by time: one set per period, dropped as a whole.

Theory of operation. Neither a bitmap nor a Bloom filter can say when an element came, so time is cut into periods of
a quarter of the time to live, aligned to the epoch, and an element goes into the set of its row's period. It is a
duplicate if it is in the set of a period no further away than the time to live, whichever comes first in time: so
elements are remembered for the time to live to five quarters of it. A set is dropped, and its memory with it, when
the clock has passed all it could hold by the time to live. Besides these, `state.dedup.times` holds.

Within a batch the rows are decided in their order, whatever periods they are of: first it is looked up which are
known from the batches before, then `kernels.first_in_batch` goes through the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from rayflow.state.dedup.times import I64, TimeToLive
from rayflow.state.key_codec import U8, U64

PERIODS_PER_TTL = 4
PERIODS_LOOKED_AT = 2 * PERIODS_PER_TTL + 1
"""Most sets that a row is looked up in."""

_NONE = 2**62


class Elements(Protocol):
    """A batch of elements. `words` tell them apart, with `valid` (empty, or 0 where an element is null)."""

    @property
    def words(self) -> U64:
        """A word a row."""

    @property
    def valid(self) -> U8:
        """Empty, or a byte a row."""

    def __len__(self) -> int: ...


E = TypeVar("E", bound=Elements, contravariant=True)


class Members(Protocol[E]):
    """A set of elements."""

    def __len__(self) -> int: ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""

    def contains(self, elements: E, rows: I64) -> npt.NDArray[np.bool_]:
        """Return which of `rows` have an element that is there."""

    def add_new(self, elements: E, rows: I64) -> I64:
        """Add the elements of `rows`; return the rows, in order, whose element was not there."""


M = TypeVar("M", bound=Members[Any])


class Generations(Generic[M]):
    """Sets made by `make`, by period; without a time to live there is one, of period 0."""

    def __init__(self, make: Callable[[], M], ttl: TimeToLive | None) -> None:
        from rayflow.state.dedup import kernels

        self._kernels = kernels
        self._make = make
        self._ttl = ttl
        self.period_ns = 1 if ttl is None else -(-ttl.ttl_ns // PERIODS_PER_TTL)
        self.sets: dict[int, M] = {}
        """By period."""

    def warm_up(self, nothing: Elements) -> None:
        """Compile the loops, or load them from the cache, before the first rows come; `nothing` has no rows."""
        members, rows = self._make(), np.zeros(0, np.int64)
        members.contains(nothing, rows)
        members.add_new(nothing, rows)
        if self._ttl is not None:
            self._unknown(nothing, rows)

    def __len__(self) -> int:
        return sum(map(len, self.sets.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(members.nbytes for members in self.sets.values())

    def of_period(self, period: int) -> M:
        """Return the set of a period, made where there is none."""
        if period not in self.sets:
            self.sets[period] = self._make()
        return self.sets[period]

    def by_begin(self) -> list[tuple[int | None, M]]:
        """Return the sets, each with when its period began, in microseconds; None without a time to live."""
        if self._ttl is None:
            return [(None, members) for members in self.sets.values()]
        # Up, so that it is found again in its period.
        return [
            (-(-period * self.period_ns // 1000), members) for period, members in sorted(self.sets.items())
        ]

    def of_begin(self, begin_us: int | None, now_ns: int) -> M:
        """Return the set for what `by_begin` gave, perhaps with another time to live. What had none begins now."""
        if self._ttl is None:
            return self.of_period(0)
        return self.of_period((now_ns if begin_us is None else begin_us * 1000) // self.period_ns)

    def first(self, elements: Elements, times: I64 | None, clock: int) -> I64:
        """Return the numbers (ascending) of the rows that are no duplicates, and remember them. `times` only with a
        time to live."""
        rows = np.arange(len(elements))
        if self._ttl is None:
            return self.of_period(0).add_new(elements, rows)
        assert times is not None
        self.expire(clock)
        periods = times // self.period_ns
        kept = self._unknown(elements, periods)
        for period in np.unique(periods[kept]).tolist():
            if not self._is_over(period, clock):
                self.of_period(period).add_new(elements, kept[periods[kept] == period])
        return kept

    def _unknown(self, elements: Elements, periods: I64) -> I64:
        known = np.zeros(len(elements), np.bool_)
        first, last = int(periods.min(initial=_NONE)), int(periods.max(initial=-_NONE))
        for period, members in sorted(self.sets.items()):
            if first - PERIODS_PER_TTL <= period <= last + PERIODS_PER_TTL:
                rows = np.flatnonzero(~known & (np.abs(periods - period) <= PERIODS_PER_TTL))
                if len(rows):
                    known[rows] = members.contains(elements, rows)
        kept = np.empty(len(elements), np.int64)
        cells = np.full(1 << (2 * len(elements)).bit_length(), -1, np.int32)
        count = self._kernels.first_in_batch(
            elements.words, elements.valid, periods, known.view(np.uint8), PERIODS_PER_TTL, cells, kept
        )
        return kept[:count]

    def expire(self, clock: int) -> None:
        """Drop the sets that the clock has passed."""
        for period in [period for period in self.sets if self._is_over(period, clock)]:
            del self.sets[period]

    def _is_over(self, period: int, clock: int) -> bool:
        if self._ttl is None:
            return False
        return (period + 1) * self.period_ns - 1 + self._ttl.ttl_ns <= clock
