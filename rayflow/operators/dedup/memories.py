"""What `deduplicate` asks of the ways to remember keys, and how it is told what to do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from rayflow.operators.contracts import OperatorContext
from rayflow.state.dedup.times import I64, TimeToLive
from rayflow.state.parts import RestoredPart, StatePart

Method = Literal["exact", "bitmap", "bloom"]

CHUNK_COLUMN = "__chunk"
"""The hidden column by which ids lie that are deduplicated in bitmaps: all of an id but its lower 16 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deduplication:
    """What is to be done with rows of `schema`.

    `columns` tell rows apart; they lie by the columns `partition` (among them, or, for bitmaps, `CHUNK_COLUMN`, which
    is not passed on). `ttl_ns` None: for ever; `time_column` None: by the clock. `false_positive_rate` and `expected`
    keys in the whole job (with a time to live: within that) are those of Bloom filters."""

    method: Method
    schema: pa.Schema
    columns: tuple[str, ...]
    partition: tuple[str, ...]
    ttl_ns: int | None = None
    time_column: str | None = None
    false_positive_rate: float = 0.01
    expected: int = 1_000_000

    @property
    def ttl(self) -> TimeToLive | None:
        """The time to live."""
        return None if self.ttl_ns is None else TimeToLive(self.ttl_ns)

    @property
    def time_unit(self) -> str:
        """The unit in which times are written down: that of the event time, or of the clock."""
        unit: str = "ms" if self.time_column is None else self.schema.field(self.time_column).type.unit
        return unit

    @property
    def columns_read(self) -> tuple[str, ...]:
        """All columns that are looked at."""
        times = () if self.ttl_ns is None or self.time_column is None else (self.time_column,)
        return (*self.columns, *self.partition, *times)

    @property
    def key_schema(self) -> pa.Schema:
        """Schema of the columns that tell rows apart."""
        return pa.schema([self.schema.field(name) for name in self.columns])


class Memory(ABC):
    """Remembers keys. `part` names its state in checkpoints."""

    part: str

    def __init__(self, todo: Deduplication, ctx: OperatorContext) -> None:
        self.todo = todo
        self.ctx = ctx

    @property
    def now_ns(self) -> int:
        """What the clock shows."""
        return self.ctx.now_ms() * 1_000_000

    @abstractmethod
    def __len__(self) -> int:
        """Return about how many keys it remembers."""

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Bytes of memory held."""

    @abstractmethod
    def first(self, rows: pa.RecordBatch, times: I64 | None, clock: int) -> I64:
        """Return the numbers (ascending) of the rows that are the first of their keys, and remember these. With a
        time to live, `times` (ns) are those of the rows, and `clock` is the time that it is (`state.dedup.times`)."""

    @abstractmethod
    def expire(self, clock: int) -> None:
        """Give back the memory of all that the clock has passed by the time to live."""

    @abstractmethod
    def snapshot(self, checkpoint_id: int) -> StatePart:
        """Return what it remembers as of now."""

    def completed(self, checkpoint_id: int) -> None:
        """The checkpoint is complete."""

    def close(self) -> None:
        """Release what is held outside of memory."""

    @abstractmethod
    def restore(self, parts: Sequence[RestoredPart]) -> None:
        """Take what `snapshot` gave, of the own key groups. Raises ValueError, saying what differs, where that is of
        other columns."""

    def false_positive_rate(self) -> float:
        """Return how likely a new key is taken for one that it remembers, as of now."""
        return 0.0
