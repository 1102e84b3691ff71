"""Which operator keeps time windows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.windows.pane_windows import PaneWindows
from rayflow.windows.parameters import TimeWindows
from rayflow.windows.running_windows import RunningWindows
from rayflow.windows.sliced_windows import SlicedWindows
from rayflow.windows.time_windows import TimeWindowOperator


def time_window_operator(
    windows: TimeWindows,
    aggregates: Sequence[tuple[str, AggregateExpr]],
    input_schema: pa.Schema,
    emit_before: bool = False,
) -> TimeWindowOperator:
    """Return a fresh operator for `windows`; see `TimeWindowOperator`."""
    return _kind(windows, aggregates, input_schema)(windows, aggregates, input_schema, emit_before)


def _kind(
    windows: TimeWindows, aggregates: Sequence[tuple[str, AggregateExpr]], input_schema: pa.Schema
) -> type[TimeWindowOperator]:
    if windows.by_window:
        return PaneWindows
    if not windows.updates and AggregateColumns(aggregates, input_schema).lanes() is not None:
        return RunningWindows
    return SlicedWindows
