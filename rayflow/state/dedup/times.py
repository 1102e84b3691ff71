"""When two rows of one key are duplicates, and when a key can be forgotten.

Theory of operation. Times are nanoseconds: of a row its event time, or the clock's when it came; of the *clock* the
watermark, or the clock's. A row is a duplicate if a row of its key was kept whose time is less than the time to live
away from its own, earlier or later, and which the clock has not passed by the time to live. So what counts is the
rows' own times: with rows in any order, and however they are batched, the same rows of a key are kept, as long as
none is late by the time to live (the clock may have passed what it would have been compared with).

Times are kept away from the ends of 64 bits, so that a time to live can be added to any of them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.model.times import NANOS_PER_UNIT

I64 = npt.NDArray[np.int64]

_LIMIT = 2**63 - 2


class TimeToLive:
    """How long a kept row's key is remembered: `ttl_ns`, at least 1 and at most 2^62 − 1 (146 years)."""

    def __init__(self, ttl_ns: int) -> None:
        self.ttl_ns = ttl_ns
        self._limit = _LIMIT - 2 * ttl_ns

    def clamped(self, time_ns: int) -> int:
        """Return a time that a time to live can be added to, or taken from."""
        return max(-self._limit, min(self._limit, time_ns))

    def of_column(self, column: pa.Array, unknown_ns: int) -> I64:
        """Return the times in a column of timestamps; `unknown_ns` where there is none."""
        unit = NANOS_PER_UNIT[column.type.unit]
        ticks = column.cast(pa.int64()).fill_null(0).to_numpy()
        bound = self._limit // unit
        times: I64 = np.clip(ticks, -bound, bound) * unit
        if column.null_count:
            times[column.is_null().to_numpy(zero_copy_only=False)] = self.clamped(unknown_ns)
        return times


def timestamps(times_ns: I64, unit: str) -> pa.Array:
    """Return times as a column of timestamps of that unit, rounded down."""
    return pa.array(times_ns // NANOS_PER_UNIT[unit]).cast(pa.timestamp(unit))


def nanoseconds(column: pa.Array) -> I64:
    """Return what `timestamps` made a column of, as nanoseconds."""
    times: I64 = column.cast(pa.int64()).to_numpy() * NANOS_PER_UNIT[column.type.unit]
    return times
