"""Aggregates over tumbling and sliding windows: from the plan of a windowed stream to an operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from rayflow.api.aggregations import checked_aggregates, shown_aggregates
from rayflow.api.planning import StreamInfo, at_user_line
from rayflow.api.skew import combination_of
from rayflow.api.window_plan import WindowPlan
from rayflow.api.window_specs import OnCount, OnProcessingTime, Sliding, Tumbling
from rayflow.batch.aggregates import AggregateExpr
from rayflow.graph.plan import Traits
from rayflow.skew.combining import Combination
from rayflow.windows.bounds import WINDOW_END, WINDOW_START
from rayflow.windows.making import time_window_operator
from rayflow.windows.parameters import TimeWindows

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

_NANOS_PER_MS = 1_000_000


def aggregate_time_windows(plan: WindowPlan, aggs: Mapping[str, AggregateExpr]) -> DataStream:
    """Return the stream of one row per key and window that has rows."""
    stream, spec = plan.stream, plan.spec
    assert isinstance(spec, Tumbling | Sliding)
    schema = plan.input_schema("aggregate")
    results = checked_aggregates(stream._info, aggs)
    by_event_time = plan.time_column is not None
    info = StreamInfo(
        schema=plan.output_schema(results, "aggregate"),
        time_column=WINDOW_START if by_event_time else None,
        is_upsert=plan.updates,
        upsert_key=tuple(dict.fromkeys((*plan.keys, WINDOW_START, WINDOW_END))) if plan.updates else None,
        partitioned_by=plan.keys,
        window_ns=(spec.slide_ns, spec.offset_ns) if by_event_time else None,
    )
    windows = _windows(plan, spec)
    make = partial(time_window_operator, windows, tuple(aggs.items()), schema)
    with at_user_line():
        grid = make().grid  # it checks more than types, such as a size against the unit of the event time
    combination: Combination | str = "a row of processing time belongs to the window in which it arrives"
    if by_event_time:
        combination = combination_of(
            stream,
            plan.keys,
            tuple(aggs.items()),
            schema,
            time_column=plan.time_column,
            grid=grid,
            whole_rows=plan.late_to is not None,
        )
    rows = plan.input(combination)
    made = stream._then(
        "window",
        partial(make, False),
        info,
        detail=f"{plan.detail}: {shown_aggregates(aggs)}",
        edges=rows.edges,
        changelog=(lambda emit_before: partial(make, emit_before)) if plan.updates else None,
        side_outputs=plan.side_outputs(),
        traits=Traits(sliding_ns=(spec.size_ns, spec.slide_ns)),
    )
    return rows.warn(made)


def _windows(plan: WindowPlan, spec: Tumbling | Sliding) -> TimeWindows:
    trigger = plan.trigger
    every_ns = trigger.every_ns if isinstance(trigger, OnProcessingTime) else None
    return TimeWindows(
        keys=plan.keys,
        size_ns=spec.size_ns,
        slide_ns=spec.slide_ns,
        offset_ns=spec.offset_ns,
        time_column=plan.time_column,
        lateness_ns=plan.lateness_ns,
        late_to=plan.late_to,
        early_rows=trigger.n if isinstance(trigger, OnCount) else None,
        early_ms=None if every_ns is None else max(1, every_ns // _NANOS_PER_MS),
    )
