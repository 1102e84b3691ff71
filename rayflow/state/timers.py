"""Timers by key slot: a set that says which exist, and a heap that says which is next.

A timer is (time, slot), its time a whole number of some unit; there is at most one of each. Deleting takes it
out of the set only: the heap's entry is skipped when it comes up, and the heap is made anew when more than half of it
is such leftovers.

Firing. `due` takes entries out of the heap in order; they stay in the set until `take` says that they fire,
so that one of them may delete another. A timer that is set meanwhile for a time after the one that fires takes its
place in the order; one set for that time or before (in the past) waits until `done`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from rayflow.state.key_table import grown

Timer = tuple[int, int]

_MIN_LEFTOVERS = 1024
_PUSHED_SHARE = 16
_BYTES_PER_TIMER = 300
"""Measured with `keep_by_slot`: a tuple and two numbers, in a set, a heap, and a set of its slot."""


class TimerQueue:
    """Timers in order of time, and of slot where times are equal."""

    def __init__(self) -> None:
        self._live: set[Timer] = set()
        self._heap: list[Timer] = []
        self._waiting: list[Timer] = []
        self._firing: int | None = None
        self._held_to: int | None = None
        self._per_slot: npt.NDArray[np.int32] = np.zeros(0, np.int32)
        self._times: dict[int, set[int]] | None = None

    def __len__(self) -> int:
        return len(self._live)

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self._per_slot = grown(self._per_slot, slot_limit)

    def keep_by_slot(self) -> None:
        """From now on (there are no timers yet) also know the timers of each slot, for `times` and `forget`."""
        self._times = defaultdict(set)

    @property
    def nbytes(self) -> int:
        """About the bytes of memory held."""
        return self._per_slot.nbytes + len(self._live) * _BYTES_PER_TIMER

    def times(self, slot: int) -> list[int]:
        """Return the times of a slot's timers, ascending."""
        assert self._times is not None, "made without keep_by_slot()"
        return sorted(self._times[slot]) if slot in self._times else []

    def forget(self, slots: npt.NDArray[np.int64]) -> int:
        """Delete all timers of `slots`; return how many there were."""
        count = 0
        for slot in slots[self.occupied(slots)].tolist():
            for time in self.times(slot):
                self.discard(time, slot)
                count += 1
        return count

    def waiting(self) -> list[int]:
        """Return the slots of timers that wait for `done`."""
        return [slot for _, slot in self._waiting]

    def occupied(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which of `slots` have timers."""
        has: npt.NDArray[np.bool_] = self._per_slot[slots] > 0
        return has

    def add(self, time: int, slot: int) -> None:
        """Set a timer; once is enough."""
        timer = (time, slot)
        if timer in self._live:
            return
        self._live.add(timer)
        self._per_slot[slot] += 1
        if self._times is not None:
            self._times[slot].add(time)
        if self._firing is not None and time <= self._firing:
            self._waiting.append(timer)
        else:
            heapq.heappush(self._heap, timer)

    def discard(self, time: int, slot: int) -> None:
        """Delete a timer, if there is one."""
        timer = (time, slot)
        if timer not in self._live:
            return
        self._gone(timer)
        if self._firing is None and len(self._heap) > 2 * len(self._live) + _MIN_LEFTOVERS:
            self._heap = sorted(self._live)

    def restore(self, timers: Iterable[Timer]) -> None:
        """Set many timers at once. While timers fire, too: these are not held back."""
        for time, slot in (new := [timer for timer in timers if timer not in self._live]):
            self._per_slot[slot] += 1
            if self._times is not None:
                self._times[slot].add(time)
        self._live.update(new)
        if len(new) * _PUSHED_SHARE < len(self._heap):
            for timer in new:
                heapq.heappush(self._heap, timer)
        else:
            self._heap += new
            heapq.heapify(self._heap)

    def clear(self) -> int:
        """Delete all; return how many there were."""
        count = len(self._live)
        self._live, self._heap, self._waiting = set(), [], []
        self._per_slot[:] = 0
        if self._times is not None:
            self._times.clear()
        return count

    def next_time(self) -> int | None:
        """Return the time of the earliest timer, None where there is none."""
        heap, live = self._heap, self._live
        while heap and heap[0] not in live:
            heapq.heappop(heap)
        return heap[0][0] if heap else None

    # -------------------------------------------------------------------------------- firing

    def hold(self, time: int) -> None:
        """Until `done`, what is set for `time` or before waits."""
        self._firing = self._held_to = time

    def due(self, limit: int, most: int) -> list[Timer]:
        """Take up to `most` timers up to time `limit` out of the order, earliest first. Each is to be
        given to `take`, and at last `done` called."""
        heap, live = self._heap, self._live
        found: list[Timer] = []
        while heap and len(found) < most and heap[0][0] <= limit:
            timer = heapq.heappop(heap)
            # What was deleted and set again is there twice.
            if timer in live and not (found and found[-1] == timer):
                found.append(timer)
        return found

    def take(self, timer: Timer) -> bool:
        """Fire a timer, which is gone from then on; False where it was deleted meanwhile."""
        if timer not in self._live:
            return False
        self._gone(timer)
        # Not always later than the last one: keys that were on disk come when their turn has gone by.
        self._firing = timer[0] if self._held_to is None else max(timer[0], self._held_to)
        return True

    def _gone(self, timer: Timer) -> None:
        time, slot = timer
        self._live.remove(timer)
        self._per_slot[slot] -= 1
        if self._times is not None:
            times = self._times[slot]
            times.discard(time)
            if not times:
                del self._times[slot]

    def before(self, timer: Timer) -> Iterator[Timer]:
        """Yield what has been set meanwhile and comes before `timer`."""
        while self._heap and self._heap[0] < timer:
            yield heapq.heappop(self._heap)

    def done(self) -> None:
        """The timers that `due` gave have fired."""
        self._firing = self._held_to = None
        for timer in self._waiting:
            heapq.heappush(self._heap, timer)
        self._waiting = []

    def freeze(self) -> list[Timer]:
        """Return all timers as they are now, in no order."""
        return list(self._live)
