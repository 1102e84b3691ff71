"""Which event times of a batch can be believed, and which are too far in the future to be true.

A time is believed if it is at most `limit`, or at most `step` later than another believed one: going up the sorted
times, so that steady progress is believed however much of it one batch holds, and a gap that is too wide ends it.
Where there is no limit yet, at a split's first rows, their median is believed: one row with a wrong clock does not
decide what all others are measured by, unless it comes alone.

Times that are not believed become null, which is how event time says "unknown": whoever goes by event time treats
such rows as late.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True)
class BelievedTimes:
    """A batch whose wrong times are null; the `newest` believed time (ns, None: none), and how many were `nulls`
    before, and how many are too far in the `future`."""

    batch: pa.RecordBatch
    newest: int | None
    nulls: int
    future: int


def believed_times(
    batch: pa.RecordBatch, column: str, unit_ns: int, limit: int | None, step: int | None
) -> BelievedTimes:
    """Judge the times in `column`, a timestamp of `unit_ns` nanoseconds; `limit` and `step` are nanoseconds.
    Without `step` all times are believed."""
    index = batch.schema.get_field_index(column)
    if step is not None and not batch.schema.field(index).nullable:
        # Whether or not one of these is wrong: a stream has one schema.
        nullable = batch.schema.set(index, batch.schema.field(index).with_nullable(True))
        batch = pa.RecordBatch.from_arrays(batch.columns, schema=nullable)
    times = batch.column(index)
    ticks = times.view(pa.int64())
    newest = pc.max(ticks).as_py()
    nulls = times.null_count
    if newest is None or step is None or (limit is not None and newest * unit_ns <= limit):
        return BelievedTimes(batch, None if newest is None else newest * unit_ns, nulls, 0)
    ordered = np.sort(ticks.drop_null().to_numpy())
    first = None if limit is None else limit // unit_ns
    believed = _believed(ordered, first, step // unit_ns)
    bound = int(ordered[believed - 1]) if believed else None
    future = len(ordered) - believed
    if future:
        true = pa.scalar(False) if bound is None else pc.less_equal(ticks, bound)
        times = pc.if_else(true, times, pa.scalar(None, times.type))
        batch = batch.set_column(index, batch.schema.field(index), times)
    return BelievedTimes(batch, None if bound is None else bound * unit_ns, nulls, future)


def _believed(ordered: np.ndarray[tuple[int], np.dtype[np.int64]], limit: int | None, step: int) -> int:
    """Return how many of the sorted times are believed."""
    if limit is None:
        start = (len(ordered) + 1) // 2
    else:
        start = int(np.searchsorted(ordered, limit, side="right"))
        if start == 0:
            return 0
    # In Python's integers the difference of the extremes would fit; in 64 bits it wraps to something negative.
    gaps = np.diff(ordered[start - 1 :].astype(np.uint64))
    wide = np.flatnonzero(gaps > step)
    return len(ordered) if not len(wide) else start + int(wide[0])
