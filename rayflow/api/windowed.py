"""`WindowedStream`: rows by key and window, and what can be made of them.

What a kind of windows can do is in the tables at the end: each entry takes the `WindowPlan` and makes the stream
of results. By default a window's result is final and comes once; with `allowed_lateness`, or a trigger that fires
early, results are updated, and the output is an upsert stream by key, `window_start` and `window_end`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayflow.api.aggregations import as_aggregates
from rayflow.api.planning import duration_ns, plan_error
from rayflow.api.row_windows import aggregate_count_windows, aggregate_global_window, aggregate_sessions
from rayflow.api.skew import no_merging
from rayflow.api.time_windows import aggregate_time_windows
from rayflow.api.window_functions import process_windows
from rayflow.api.window_plan import WindowPlan
from rayflow.api.window_specs import (
    CountWindow,
    Duration,
    GlobalWindow,
    OnCount,
    OnProcessingTime,
    OnWatermark,
    Session,
    Sliding,
    Trigger,
    Tumbling,
)
from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.user_aggregates import Aggregate
from rayflow.operators.map_batches import BatchFormat

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


class WindowedStream:
    """Rows grouped by key and window. Made by `KeyedStream.window`."""

    def __init__(self, plan: WindowPlan) -> None:
        self._plan = plan

    def allowed_lateness(self, lateness: Duration, late_to: str | None = None) -> WindowedStream:
        """Keep windows for `lateness` of event time after the watermark has reached their end: a row that comes
        so late gives an updated result, and the output is an upsert stream by key and window (not for `"0s"`).

        Rows later than that are dropped and counted (`late_rows`). With `late_to` they go, with the columns of
        the window's input, to the side output of that name; so do rows without a time and those beyond
        `max_ahead` of the watermark. Read it with `.side_output(late_to)` behind the window's results.
        """
        if self._plan.time_column is None:
            raise plan_error(f"allowed_lateness: {self._plan.spec} windows know no late rows")
        if late_to is not None and (not isinstance(late_to, str) or not late_to):
            raise plan_error(f"allowed_lateness(late_to=): expected a tag, which is a text; got {late_to!r}")
        lateness_ns = duration_ns("allowed_lateness", lateness)
        return WindowedStream(replace(self._plan, lateness_ns=lateness_ns, late_to=late_to))

    def trigger(self, trigger: Trigger) -> WindowedStream:
        """Say when results are shown. `rf.OnWatermark()`, the default: once, at the end of the window. The others
        show early results too, so the output is an upsert stream by key and window: `rf.OnCount(n)` whenever n
        more rows of a key came into a window, `rf.OnProcessingTime(d)` every d, where something changed."""
        if not isinstance(trigger, OnWatermark | OnCount | OnProcessingTime):
            raise plan_error(f"trigger: expected a trigger such as rf.OnCount(100); got {trigger!r}")
        return WindowedStream(replace(self._plan, trigger=trigger))

    def aggregate(self, **aggs: AggregateExpr | Aggregate) -> DataStream:
        """Make one row per key and window that has rows: the key columns, `window_start`, `window_end` (of the
        type of the event-time column), then `name=aggregate`. The event time of a time window's result is its
        `window_start`, so that coarser windows of a multiple of the slide may follow; a session's is `window_end`.

        `rf.CountWindow` and `rf.GlobalWindow` are no stretches of time: where the stream has event time,
        `window_start` and `window_end` are the smallest and the largest one of their rows; without, these two
        columns are missing. Rows left over in a count window when the input ends give no result, as in Flink
        (counted in `unfinished_window_rows`). A global window gives its result when the input ends; with a
        trigger it is an upsert stream by key."""
        make = _AGGREGATE.get(type(self._plan.spec))
        if make is None:
            raise plan_error(f"aggregate: not possible over {self._plan.spec} windows yet")
        return make(self._plan, as_aggregates(aggs))

    def process(self, fn: Any, returns: Any = None, batch_format: BatchFormat | None = None) -> DataStream:
        """Give all rows of a key and window to `fn(rows, ctx)`, when the window is complete, and make rows of what
        it returns.

        `rows` is a list of dicts, or in `batch_format` ("pyarrow": a RecordBatch; "pandas", "polars", "numpy"), in
        order of event time, those of one time as they came. `ctx` has `current_key` (a value, or a tuple of several),
        `window_start`, `window_end`, `watermark`, `subtask_index`, `parallelism`, `counter(name)` and
        `output(tag, row)`, which `.side_output(tag, returns=…)` reads. `fn` returns a row, returns or yields several,
        or none (None): dicts, or values of the one column; with `batch_format`, whatever `map_batches` takes. It may
        be a class with `__call__(self, rows, ctx)` or `process(self, rows, ctx)`, and `open(ctx)` and `close()`.

        Results come behind the key columns, `window_start` and `window_end`; a column of one of these names that is
        in `returns` replaces it. Where windows are updated (`allowed_lateness`, `trigger`) the output is an upsert
        stream: `fn` is called again with the rows as they were, and what it gives for them goes. All rows of open
        windows are kept until then: where an aggregate will do, it costs less."""
        make = _AGGREGATE.get(type(self._plan.spec))
        if make is None:
            raise plan_error(f"process: not possible over {self._plan.spec} windows yet")
        if self._plan.skew is not None:
            raise no_merging("process of a window")
        return process_windows(self._plan, make, fn, returns, batch_format)


_AGGREGATE: dict[type, Callable[[WindowPlan, dict[str, AggregateExpr]], DataStream]] = {
    Tumbling: aggregate_time_windows,
    Sliding: aggregate_time_windows,
    Session: aggregate_sessions,
    CountWindow: aggregate_count_windows,
    GlobalWindow: aggregate_global_window,
}
