"""First and last values by time.

The winner is found without sorting: the extreme of the times goes into the state first, then the rows whose
time equals it are those that may assign. Of rows with equal times the one that arrived first is the first,
the one that arrived last the last.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.numeric import int64s
from rayflow.state.accumulators.parts import SlotArray, values_by_slot

_INT64 = np.iinfo(np.int64)


class ByTime(Accumulator):
    """The value with the smallest or largest time; null where there were no values."""

    _parts = ("_times", "_seen", "_values")

    def __init__(self, type_: pa.DataType, *, last: bool) -> None:
        self._last = last
        self._times = SlotArray(np.int64, _INT64.min if last else _INT64.max)
        self._seen = SlotArray(np.bool_)
        self._values = values_by_slot(type_)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        assert values is not None
        if len(slots) == 0:
            return
        self.latest_time = max(self.latest_time, int(times.max()))
        known = self._times.values
        before, seen = known[slots], self._seen.values[slots]
        if self._last:
            np.maximum.at(known, slots, times)
            wins = times == known[slots]
        else:
            np.minimum.at(known, slots, times)
            wins = (times == known[slots]) & ((times < before) | ~seen)
        rows = np.flatnonzero(wins)
        # Of several for one slot the last put stays, which for `first` must be the first that came.
        rows = rows if self._last else rows[::-1]
        self._seen.values[slots] = True
        self._values.put(slots[rows], values.take(pa.array(rows)))

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        times = columns["time"]
        rows = times.is_valid().to_numpy(zero_copy_only=False)
        values = columns["value"].filter(times.is_valid())
        self.update(slots[rows], values, int64s(times.drop_null()))

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        times = pa.array(self._times.values[slots], mask=~self._seen.values[slots])
        return [("time", times), ("value", self._values.get(slots))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return self._values.get(slots)
