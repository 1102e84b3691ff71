"""Which operator keeps time windows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.windows.pane_windows import PaneWindows
from rayflow.windows.sliced_windows import SlicedWindows
from rayflow.windows.time_windows import TimeWindowOperator, TimeWindows


def time_window_operator(
    windows: TimeWindows,
    aggregates: Sequence[tuple[str, AggregateExpr]],
    input_schema: pa.Schema,
    emit_before: bool = False,
) -> TimeWindowOperator:
    """Return a fresh operator for `windows`; see `TimeWindowOperator`."""
    is_sliced = windows.slide_ns % windows.size_ns != 0 and not windows.has_early_results
    make = SlicedWindows if is_sliced else PaneWindows
    return make(windows, aggregates, input_schema, emit_before)
