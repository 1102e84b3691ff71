"""What an operator gets of the disk backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from rayflow.observe.metrics import MetricGroup
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.disk.row_codec import RowCodec
from rayflow.state.disk.row_store import RowStore
from rayflow.state.disk.slot_rows import SlotRows


@dataclass(frozen=True, slots=True)
class DiskShare:
    """What an operator gets of the disk backend: a way to its store, and how much memory it may use in all.

    Of the memory, three eighths are for columns by slot and the key index, a quarter is for the store itself, and the
    rest for rows on their way between the two and to checkpoints, and for columns that are being joined. `open_rows`
    takes the store's bytes of memory, and whether keys are appended (`runtime.ports.Disk`). `ticks_ns` is a clock for
    durations, `give_back` is called when much was freed.
    """

    open_rows: Callable[[int, bool], RowStore]
    memory_bytes: int
    ticks_ns: Callable[[], int]
    metrics: MetricGroup
    give_back: Callable[[], None] = lambda: None

    def keys(self, schema: pa.Schema, rows: SlotRows) -> CachedKeys:
        """Return an empty index of keys of `schema` whose rows are `rows`. Raises TypeError where they cannot lie on
        disk."""
        RowCodec(rows.schema)
        store = self.open_rows(self.memory_bytes // 4, False)
        return CachedKeys(
            schema, rows, store, 3 * self.memory_bytes // 8, self.ticks_ns, self.metrics, self.give_back
        )
