"""What windows without bounds in time show as their bounds: the times of their first and last row.

A count or global window is no stretch of time. Where the stream has event time its result still says which rows it is
about: `window_start` is their smallest event time and `window_end` the largest (that row's own time: nothing ends
there), null if none has one. Without event time there are no such columns.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.expressions import col
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.windows.bounds import I64, WINDOW_END, WINDOW_START

_INT64 = np.iinfo(np.int64)


def columns_with_bounds(
    aggregates: Sequence[tuple[str, AggregateExpr]], input_schema: pa.Schema, time_column: str | None
) -> AggregateColumns:
    """Return the columns of `with_bounds`."""
    return AggregateColumns(with_bounds(aggregates, time_column), input_schema)


def with_bounds(
    aggregates: Sequence[tuple[str, AggregateExpr]], time_column: str | None
) -> list[tuple[str, AggregateExpr]]:
    """Return `aggregates`, with the bounds before them where there is event time."""
    if time_column is None:
        return list(aggregates)
    time = col(time_column)
    return [(WINDOW_START, time.min()), (WINDOW_END, time.max()), *aggregates]


def order_of(rows: pa.RecordBatch, time_column: str | None) -> I64 | None:
    """Return what orders the rows for `first`, `last` and `collect_list`: event time, nulls before all others;
    None, the order of arrival, where there is none."""
    if time_column is None:
        return None
    times = rows.column(time_column).cast(pa.int64())
    order: I64 = times.fill_null(_INT64.min).to_numpy()
    return order
