"""What is combined before an exchange: by which keys and slices, which aggregates, of which rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.partials import ROWS, SLICE, WHOLE_ROWS, all_whole_rows

_ORDERED = ("first", "last", "collect_list")

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slices:
    """Slices of `size` from `offset`, of times in whole units of the time column; `margin` as in `ticks_of`."""

    size: int
    offset: int
    margin: int

    def of(self, ticks: I64) -> I64:
        """Return the number of the slice of every instant. As `windows.grid.WindowGrid.slices_of`."""
        slices: I64 = (ticks - self.offset) // self.size
        return slices


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """Rows of `schema` by `keys`, and by `slices` of `time_column` where there are any.

    `time_column` also orders `first`, `last` and `collect_list`; None: they go by arrival. `whole_rows`: the rows
    themselves come along, since some may have to be put aside as late."""

    keys: tuple[str, ...]
    aggregates: tuple[tuple[str, AggregateExpr], ...]
    schema: pa.Schema
    time_column: str | None = None
    slices: Slices | None = None
    whole_rows: bool = False

    @property
    def goes_by_order(self) -> bool:
        """Whether some result depends on which of two rows comes first: without event time, or of one time."""
        return any(expr.kind in _ORDERED for _, expr in self.aggregates)

    @property
    def numbers_arrivals(self) -> bool:
        """Whether states have numbers of arrival in place of event times."""
        return self.time_column is None and self.goes_by_order

    def columns(self) -> AggregateColumns:
        """Return empty accumulators of the aggregates, and of the whole rows where they come along."""
        whole = [(WHOLE_ROWS, all_whole_rows())] if self.whole_rows else []
        return AggregateColumns([*self.aggregates, *whole], self.schema)

    @property
    def key_schema(self) -> pa.Schema:
        """The key columns."""
        return pa.schema([self.schema.field(key) for key in self.keys])

    def partial_schema(self) -> pa.Schema:
        """Return the columns of partial aggregates."""
        states = self.columns().state_columns(np.zeros(0, np.int64))
        slices = [] if self.slices is None else [pa.field(SLICE, pa.int64())]
        fields = [pa.field(name, column.type) for name, column in states]
        return pa.schema([*self.key_schema, *slices, pa.field(ROWS, pa.int64()), *fields])
