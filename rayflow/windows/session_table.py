"""Open sessions by key: which session a row belongs to, which are complete, which keys are still in use.

Theory of operation. A session is the rows of a key of which each is at most the gap away from the next one: it
spans [first time, last time + gap). Its slot is where accumulators keep its aggregates. The loops are in
`window_kernels`; this is the memory that they work on, with the index of the keys.

Invariants:

1. Sessions of one key lie more than the gap apart, and are in its list from the latest to the earliest (when all that
   are restored have been: `restored`).
2. Every open session has an entry in the heap that is not later than the instant at which it has to be looked
   at next.
3. A key is in the index exactly while it has a session; `assign` and `close` see to that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.key_table import grown

I64 = npt.NDArray[np.int64]

_SPARE_ENTRIES = 4096

_STEPS_PER_ROW, _SPARE_STEPS = 16, 4096
"""How many sessions the rows of a batch may walk past before the rest are sorted."""

_NO_LIMIT = 2**62


@dataclass(frozen=True, slots=True)
class Assigned:
    """What rows did to the sessions.

    `slots`: the session of every row, -1 where it is late. `absorbed[i]` is part of `absorbers[i]` now.
    `reopened` became dirty although a result of them is out (some of them may be absorbed as well).
    """

    slots: I64
    absorbed: I64
    absorbers: I64
    reopened: I64


@dataclass(frozen=True, slots=True)
class FrozenSessions:
    """The open sessions at one moment. Immutable: may be read on any thread."""

    slots: I64
    starts: I64
    lasts: I64
    shown: npt.NDArray[np.bool_]
    key_numbers: I64
    keys: FrozenKeys

    def key_columns(self) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self.keys.keys(self.key_numbers)


class SessionTable:
    """Sessions for key columns of `key_schema`; `gap` and `lateness` are in the unit of the rows' times."""

    def __init__(self, key_schema: pa.Schema, gap: int, lateness: int) -> None:
        from rayflow.windows import window_kernels

        self._k: Any = window_kernels
        self._gap, self._lateness = gap, lateness
        self._keys = KeyIndex(key_schema)
        self._meta: I64 = np.zeros(self._k.META_FIELDS, np.int64)
        self._sessions: I64 = np.zeros((0, self._k.FIELDS), np.int64)
        self._heads: I64 = np.zeros(0, np.int64)
        self._free: I64 = np.zeros(0, np.int64)
        self._heap: I64 = np.zeros((0, 3), np.int64)
        # By key the session at which the last walk ended; -1 between batches.
        self._fingers: I64 = np.zeros(0, np.int64)
        self._warm_up()

    def _warm_up(self) -> None:
        # Compiles the loops, or loads them from the cache, before the first rows come.
        none = np.zeros(0, np.int64)
        self._reserve(1)
        self._assign(none, none, 0, none, none, none)
        self._k.survivors(self._sessions, none)
        self._k.rebuild(none, self._sessions, self._heap, self._meta, 0, 0)
        self._k.complete(self._sessions, self._heap, self._meta, 0, 0, 0, none, none)
        self._k.close(none, self._sessions, self._heads, none)
        self._k.release(none, self._free, self._meta)

    def __len__(self) -> int:
        return int(self._meta[self._k.NEXT] - self._meta[self._k.FREE])

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return int(self._meta[self._k.NEXT])

    @property
    def keys(self) -> int:
        """How many keys have a session."""
        return len(self._keys)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        arrays = (self._sessions, self._heads, self._fingers, self._free, self._heap)
        return self._keys.nbytes + sum(array.nbytes for array in arrays)

    # ------------------------------------------------------------------------------------ rows

    def assign(self, keys: pa.RecordBatch, times: I64, late_until: int) -> Assigned:
        """Put every row into a session, in the order of rows; one whose time is not after `late_until` only
        into one that is open. What was absorbed must be given to `release` before the next call."""
        numbers, fresh = self._keys.insert(keys)
        rows = len(times)
        self._reserve(rows)
        slots, absorbed, reopened = (np.empty(rows, np.int64) for _ in range(3))
        self._meta[[self._k.NEW, self._k.GONE, self._k.REOPENED]] = 0
        self._assign(numbers, np.array(times), late_until, slots, absorbed, reopened)
        gone = absorbed[: self._meta[self._k.GONE]]
        absorbers = gone.copy()
        if len(gone):
            self._k.survivors(self._sessions, slots)
            self._k.survivors(self._sessions, absorbers)
        # A key all of whose rows are late has no session.
        unused = numbers[fresh]
        self._keys.remove(unused[self._heads[unused] < 0])
        return Assigned(slots, gone, absorbers, reopened[: self._meta[self._k.REOPENED]])

    def _assign(
        self, keys: I64, times: I64, late_until: int, slots: I64, absorbed: I64, reopened: I64
    ) -> None:
        rows, no_fingers = len(times), np.zeros(0, np.int64)
        memory = (self._free, self._heap, self._meta, slots, absorbed, reopened)
        place = (keys, times, self._gap, late_until, self._sessions, self._heads)
        order = np.arange(rows)
        steps = _STEPS_PER_ROW * rows + _SPARE_STEPS
        done = self._k.assign(order, 0, steps, *place, no_fingers, *memory)
        if done == rows:
            return
        rest = order[done:]
        if int(times[rest].min()) <= late_until:
            # What is late depends on the order in which rows came.
            self._k.assign(order, done, _NO_LIMIT, *place, no_fingers, *memory)
            return
        self._fingers = grown(self._fingers, len(self._heads), -1)
        descending = rest[np.argsort(times[rest], kind="stable")[::-1]]
        self._k.assign(np.ascontiguousarray(descending), 0, _NO_LIMIT, *place, self._fingers, *memory)
        self._fingers[keys[rest]] = -1

    def _reserve(self, rows: int) -> None:
        slots = self.slot_limit + rows
        self._sessions, self._free = grown(self._sessions, slots), grown(self._free, slots)
        self._heads = grown(self._heads, self._keys.slot_limit, -1)
        if self._meta[self._k.HEAP] > 2 * len(self) + _SPARE_ENTRIES:
            self._rebuild_heap()
        self._heap = grown(self._heap, int(self._meta[self._k.HEAP]) + rows)

    def _rebuild_heap(self) -> None:
        slots = self.live()
        self._heap = grown(self._heap, len(slots))
        self._k.rebuild(slots, self._sessions, self._heap, self._meta, self._gap, self._lateness)

    def release(self, slots: I64) -> None:
        """Let the slots of absorbed sessions be used again."""
        self._k.release(slots, self._free, self._meta)

    # --------------------------------------------------------------------------------- results

    def complete(self, reached: int, limit: int) -> tuple[I64, I64]:
        """Return sessions whose last instant (of `closed`: plus the lateness) is not after `reached`: those to
        be shown, and those that are over, in order of that instant. To be called again while it finds any;
        `limit` is how many at once. What is over must be given to `close` before rows come."""
        limit = min(limit, int(self._meta[self._k.HEAP]))
        fired, closed = np.empty(limit, np.int64), np.empty(limit, np.int64)
        fires, closes = self._k.complete(
            self._sessions, self._heap, self._meta, self._gap, self._lateness, reached, fired, closed
        )
        return fired[:fires], closed[:closes]

    def next_instant(self) -> int | None:
        """Return a lower bound of the instants for which `complete` finds something; None: for none."""
        return int(self._heap[0, 0]) if self._meta[self._k.HEAP] else None

    def close(self, slots: I64) -> None:
        """Forget sessions that `complete` said are over."""
        emptied = np.empty(len(slots), np.int64)
        count = self._k.close(slots, self._sessions, self._heads, emptied)
        self._k.release(slots, self._free, self._meta)
        self._keys.remove(emptied[:count])

    def bounds(self, slots: I64) -> tuple[I64, I64]:
        """Return the smallest and the largest time of `slots`."""
        return self._sessions[slots, self._k.START], self._sessions[slots, self._k.LAST]

    def keys_of(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`."""
        return self._keys.keys(self._sessions[slots, self._k.KEY])

    def shown(self, slots: I64) -> npt.NDArray[np.bool_]:
        """Return of which of `slots` a result is out."""
        flags: npt.NDArray[np.bool_] = self._sessions[slots, self._k.FLAGS] & self._k.SHOWN != 0
        return flags

    def set_shown(self, slots: I64) -> None:
        """Note that results of `slots` are out, and nothing newer is known."""
        self._sessions[slots, self._k.FLAGS] = self._k.SHOWN

    def set_hidden(self, slots: I64) -> None:
        """Note that results of `slots`, which rows have come into since, are out no longer."""
        self._sessions[slots, self._k.FLAGS] &= ~self._k.SHOWN

    def dirty(self) -> I64:
        """Return the open sessions with rows that no result shows, ascending."""
        slots = self.live()
        dirty: I64 = slots[self._sessions[slots, self._k.FLAGS] & self._k.DIRTY != 0]
        return dirty

    # ------------------------------------------------------------------------------------ state

    def live(self) -> I64:
        """Return the slots of the open sessions, ascending."""
        return np.flatnonzero(self._sessions[: self.slot_limit, self._k.SERIAL] >= 0)

    def freeze(self) -> FrozenSessions:
        """Return the sessions as they are now, for building a snapshot on another thread."""
        slots = self.live()
        numbers = self._sessions[slots, self._k.KEY]
        return FrozenSessions(slots, *self.bounds(slots), self.shown(slots), numbers, self._keys.freeze())

    def restore(self, keys: pa.RecordBatch, starts: I64, lasts: I64, shown: npt.NDArray[np.bool_]) -> I64:
        """Open sessions as they were frozen, some of them; return their slots. `restored` must be called behind the
        last ones, since those of one key may come at any time, in any order."""
        numbers = self._keys.slots(keys)
        self._reserve(len(starts))
        slots = np.empty(len(starts), np.int64)
        self._k.restore(
            numbers, starts, lasts, shown, slots, self._sessions, self._heads, self._free, self._meta
        )
        return slots

    def restored(self) -> None:
        """All sessions that were frozen are open again."""
        slots = self.live()
        starts, keys = self._sessions[slots, self._k.START], self._sessions[slots, self._k.KEY]
        self._k.link(slots[np.lexsort((starts, keys))], self._sessions, self._heads)
        self._rebuild_heap()
