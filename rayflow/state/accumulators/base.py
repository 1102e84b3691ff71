"""The contract of accumulators: one aggregate's state for many keys, in columns indexed by slot.

Theory of operation. A slot stands for a key (or a key in a window); which, the caller knows. An accumulator
is fed whole columns: for every row a slot and a value. Nulls, and rows that an aggregate's filter rejects,
are taken out before. State leaves as Arrow columns, a row per slot (`state_columns`: a snapshot, or a partial
result on its way to another subtask), and comes back through `merge`, which adds to what is there, so several
partial states of one slot may be merged in any order.

Accumulators of an upsert stream also take rows back (`retract`). Every row that is taken back was added before:
of a batch that does both, all additions come first. Then results are those of the rows that are left, whatever
was there in between.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.accumulators.lanes import Lane, Numbers

I64 = npt.NDArray[np.int64]
Columns = list[tuple[str, pa.Array]]


class Accumulator(ABC):
    """State of one aggregate by slot. Subclasses list their parts in `_parts` (names of attributes)."""

    _parts: tuple[str, ...] = ()

    is_columnar: bool = True
    """Whether a slot's state is in columns, rather than an object of its own."""

    latest_time: int = -1
    """Largest time seen, by accumulators that go by time."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(getattr(self, name).nbytes for name in self._parts)

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`. Called before a slot is first used."""
        for name in self._parts:
            getattr(self, name).reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Forget `slots` (none given twice): they are as if never used."""
        for name in self._parts:
            getattr(self, name).clear(slots)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """Take back rows that `update` added, as if they had never come. Only where made for it (`making`).

        Without `times` the earliest of several equal values is the one that goes."""
        raise TypeError(f"{type(self).__name__} was not made to take rows back")

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """Add the states of the slots `from_` of `source` (one made alike; None: of this one, where no slot may
        be in both) to `into`: `from_[i]` to `into[i]`. Slots may occur more than once."""
        self.merge(into, dict((self if source is None else source).state_columns(from_)))

    def states_of(self, rows: int, values: pa.Array | None) -> Columns | None:
        """Return the states that `rows` rows make, each in a slot of its own, as `state_columns` would after `update`;
        nothing is changed. None: by way of slots only."""
        return None

    def lanes(self) -> tuple[Lane, ...] | None:
        """Return the state as numbers that are combined each by itself; None where it is more than that."""
        return None

    def results_of(self, numbers: Sequence[Numbers]) -> pa.Array:
        """As `results`, for states given as one array a lane, which may be changed or become the result's own."""
        raise TypeError(f"the state of {type(self).__name__} is not lanes")

    def freeze(self) -> Accumulator:
        """Return a copy for `state_columns` on another thread, unaffected by later changes."""
        frozen = copy.copy(self)
        for name in self._parts:
            setattr(frozen, name, getattr(self, name).freeze())
        return frozen

    @abstractmethod
    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """Add rows: `values[i]` (not null) to `slots[i]`. `values` is None for `count()` of rows.

        `times` orders the rows for aggregates that go by time: event times, or numbers of arrival."""

    @abstractmethod
    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """Add states that `state_columns` returned, `columns[name][i]` to `slots[i]`."""

    @abstractmethod
    def state_columns(self, slots: I64) -> Columns:
        """Return the state of `slots` as named columns, a row per slot."""

    @abstractmethod
    def results(self, slots: I64) -> pa.Array:
        """Return the aggregate's values for `slots`. Raises OverflowError where one has no room."""
