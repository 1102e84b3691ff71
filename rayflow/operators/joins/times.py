"""Event time of two inputs in one unit, so that times, intervals and watermarks can be compared as integers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayflow.model.times import NANOS_PER_UNIT
from rayflow.state.rows import I64

_INT64 = np.iinfo(np.int64)


class EventTimes:
    """The columns of event time, one an input, both timestamps. A tick is one of the finer of their units."""

    def __init__(self, columns: tuple[str, str], schemas: tuple[pa.Schema, pa.Schema]) -> None:
        self.columns = columns
        types = [schema.field(name).type for schema, name in zip(schemas, columns)]
        self.units_ns = tuple(NANOS_PER_UNIT[type_.unit] for type_ in types)
        self.tick_ns = min(self.units_ns)
        finest = types[self.units_ns.index(self.tick_ns)].unit
        self._types = [pa.timestamp(finest, type_.tz) for type_ in types]

    def ticks(self, port: int, rows: pa.RecordBatch) -> I64:
        """Return the event time of each row (none null). Raises ArrowInvalid where a tick cannot hold it."""
        times = rows.column(self.columns[port])
        ticks: I64 = times.cast(self._types[port]).cast(pa.int64()).to_numpy()
        return ticks

    def reached(self, watermark: int) -> int:
        """Return the last tick that the watermark has reached, as far as 64 bits go."""
        return max(_INT64.min, min(_INT64.max, watermark // self.tick_ns))

    def not_before(self, watermark: int) -> int:
        """Return the first tick that is not before the watermark, as far as 64 bits go."""
        return max(_INT64.min, min(_INT64.max, -(-watermark // self.tick_ns)))


def shifted(ticks: I64, by: int) -> I64:
    """Return `ticks + by`, held at the ends of what 64 bits hold."""
    by = max(_INT64.min + 1, min(_INT64.max, by))
    within = np.minimum(ticks, _INT64.max - by) if by > 0 else np.maximum(ticks, _INT64.min - by)
    moved: I64 = within + by
    return moved
