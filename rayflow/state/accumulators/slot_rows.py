"""Aggregates as rows, for keys that lie on disk (see `state.disk.cached_keys`)."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayflow.state.accumulators.base import I64
from rayflow.state.accumulators.columns import AggregateColumns


class AggregateRows:
    """The `SlotRows` of `aggregates`."""

    kinds_of_due = 0

    def __init__(self, aggregates: AggregateColumns) -> None:
        self._aggregates = aggregates
        columns = aggregates.state_columns(np.zeros(0, np.int64))
        self.schema = pa.schema([(name, column.type) for name, column in columns])

    @property
    def nbytes(self) -> int:
        """See `SlotRows`."""
        return self._aggregates.nbytes

    def reserve(self, slot_limit: int) -> None:
        """See `SlotRows`."""
        self._aggregates.reserve(slot_limit)

    def rows(self, slots: I64) -> pa.RecordBatch:
        """See `SlotRows`."""
        columns = [_plain(column) for _, column in self._aggregates.state_columns(slots)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def restore(self, slots: I64, rows: pa.RecordBatch) -> None:
        """See `SlotRows`."""
        self._aggregates.merge(rows, slots, int(slots.max(initial=-1)) + 1)

    def clear(self, slots: I64) -> None:
        """See `SlotRows`."""
        self._aggregates.clear(slots)

    def pinned(self) -> list[int]:
        """See `SlotRows`."""
        return []

    def due(self, kind: int, slots: I64) -> dict[int, int]:
        """See `SlotRows`. Aggregates have no timers."""
        return {}


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
