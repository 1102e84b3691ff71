"""What windows of all kinds have in common: the names and types of their bounds, and units of event time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.model.errors import PlanError
from rayflow.model.times import NANOS_PER_UNIT

I64 = npt.NDArray[np.int64]

WINDOW_START, WINDOW_END = "window_start", "window_end"

PROCESSING_TIME_TYPE = pa.timestamp("ms")
"""Type of the bounds of windows that go by processing time."""

_INT64 = np.iinfo(np.int64)


def unit_ns(column: str, type_: pa.DataType) -> int:
    """Return the nanoseconds of one unit of event-time column `column`. Raises PlanError unless a timestamp."""
    if not pa.types.is_timestamp(type_):
        raise PlanError(f"window: event-time column {column!r} is {type_}, expected a timestamp; cast it")
    return NANOS_PER_UNIT[type_.unit]


def in_units(duration_ns: int, unit: int, what: str, column: str | None) -> int:
    """Return a duration in units of event time (`column` None: of processing time). Raises PlanError where it is
    no multiple of the unit."""
    if duration_ns % unit:
        of = (
            "processing time; choose a longer one"
            if column is None
            else f"event-time column {column!r}; choose a longer one, or cast the column to a finer unit"
        )
        raise PlanError(f"window: {what} of {duration_ns} ns is no multiple of the unit ({unit} ns) of {of}")
    return duration_ns // unit


def reached(watermark: int, unit: int) -> int:
    """Return the last instant, in units that fit int64, that a watermark (ns) has reached."""
    return max(_INT64.min, min(_INT64.max, watermark // unit))
