"""States and timers of users' functions as rows, for keys that lie on disk (see `cached_keys`).

A row has the columns of each state, and for each kind of timer the list of their times, ascending, or null. What has
outlived its time is written as it is: it goes when the row is in memory again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.state.cells import Cells, list_column
from rayflow.state.timers import TimerQueue

I64 = npt.NDArray[np.int64]


class StateRows:
    """The `SlotRows` of `cells` and timers: `queues` by the names of their columns, with times of `time_type`."""

    def __init__(
        self, cells: Sequence[Cells], queues: Mapping[str, TimerQueue], time_type: pa.DataType
    ) -> None:
        self._cells = cells
        self._queues = queues
        self._times_type = pa.list_(time_type)
        self.schema = pa.schema(
            [field for own in cells for field in own.fields] + [(name, self._times_type) for name in queues]
        )
        self.kinds_of_due = len(queues)
        self.away = dict.fromkeys(queues, 0)
        """How many timers are on disk."""
        for queue in queues.values():
            queue.keep_by_slot()

    @property
    def nbytes(self) -> int:
        """See `SlotRows`."""
        holders: list[Cells | TimerQueue] = [*self._cells, *self._queues.values()]
        return sum(holder.nbytes for holder in holders)

    def reserve(self, slot_limit: int) -> None:
        """See `SlotRows`."""
        holders: list[Cells | TimerQueue] = [*self._cells, *self._queues.values()]
        for holder in holders:
            holder.reserve(slot_limit)

    def rows(self, slots: I64) -> pa.RecordBatch:
        """See `SlotRows`."""
        columns = [column for own in self._cells for _, column in own.columns(slots)]
        for queue in self._queues.values():
            occupied = queue.occupied(slots)
            times = [queue.times(slot) if has else [] for slot, has in zip(slots.tolist(), occupied.tolist())]
            plain = list_column(times, pa.list_(pa.int64()))
            columns.append(plain.cast(self._times_type))
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def restore(self, slots: I64, rows: pa.RecordBatch) -> None:
        """See `SlotRows`."""
        names = rows.schema.names
        for own in self._cells:
            updated = rows.column(own.updated_column) if own.updated_column in names else None
            own.restore(slots, rows.column(own.column), updated, 0)
        for name in self._queues:
            self.away[name] -= self.restore_timers(name, slots, rows.column(name))

    def restore_timers(self, name: str, slots: I64, times: pa.ListArray) -> int:
        """Set the timers of a column of `rows`; return how many."""
        counts = pc.fill_null(pc.list_value_length(times), 0).to_numpy(zero_copy_only=False)
        flat = times.flatten().cast(self._times_type.value_type, safe=False).cast(pa.int64())
        self._queues[name].restore(zip(flat.to_pylist(), np.repeat(slots, counts).tolist()))
        return len(flat)

    def clear(self, slots: I64) -> None:
        """See `SlotRows`."""
        for own in self._cells:
            own.forget(slots)
        for name, queue in self._queues.items():
            self.away[name] += queue.forget(slots)

    def pinned(self) -> list[int]:
        """See `SlotRows`. What was set while timers fire, for a time that has passed, fires next time only."""
        return [slot for queue in self._queues.values() for slot in queue.waiting()]

    def due(self, kind: int, slots: I64) -> dict[int, int]:
        """See `SlotRows`."""
        queue = list(self._queues.values())[kind]
        return {slot: queue.times(slot)[0] for slot in slots[queue.occupied(slots)].tolist()}
