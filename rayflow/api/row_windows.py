"""Aggregates over windows that their rows make: sessions, count windows, the global window.

From the plan of a windowed stream to an operator, as `time_windows` does for tumbling and sliding ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from rayflow.api.aggregations import checked_aggregates, shown_aggregates
from rayflow.api.planning import StreamInfo, at_user_line, output_schema, plan_error, require_columns
from rayflow.api.skew import combination_of, no_merging
from rayflow.api.traits import keeps_aggregates
from rayflow.api.window_plan import WindowPlan
from rayflow.api.window_specs import CountWindow, OnCount, OnProcessingTime, OnWatermark, Session
from rayflow.batch.aggregates import AggregateExpr
from rayflow.windows.arrivals import with_bounds
from rayflow.windows.bounds import WINDOW_END, WINDOW_START
from rayflow.windows.count import CountWindowOperator
from rayflow.windows.global_window import GlobalWindowOperator
from rayflow.windows.session import SessionSpec, SessionWindowOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


def aggregate_sessions(plan: WindowPlan, aggs: Mapping[str, AggregateExpr]) -> DataStream:
    """Return the stream of one row per key and session."""
    stream, spec = plan.stream, plan.spec
    assert isinstance(spec, Session)
    schema = plan.input_schema("aggregate")
    early_rows, early_ns = _early(plan)
    session = SessionSpec(
        gap_ns=spec.gap_ns,
        lateness_ns=plan.lateness_ns,
        late_to=plan.late_to,
        early_rows=early_rows,
        early_ns=early_ns,
    )
    info = StreamInfo(
        schema=plan.output_schema(checked_aggregates(stream._info, aggs), "aggregate"),
        time_column=None if plan.time_column is None else WINDOW_END,
        is_upsert=plan.updates,
        upsert_key=(*plan.keys, WINDOW_START, WINDOW_END) if plan.updates else None,
        partitioned_by=plan.keys,
    )
    make = partial(SessionWindowOperator, plan.keys, session, tuple(aggs.items()), schema, plan.time_column)
    with at_user_line():
        make()  # it checks more than types, such as the gap against the unit of the event time
    rows = plan.input("only all rows of a key tell where its sessions begin and end")
    made = stream._then(
        "window",
        make,
        info,
        detail=f"{plan.detail}: {shown_aggregates(aggs)}",
        edges=rows.edges,
        changelog=(lambda emit_before: partial(make, emit_before)) if plan.updates else None,
        side_outputs=plan.side_outputs(),
    )
    return rows.warn(made)


def aggregate_count_windows(plan: WindowPlan, aggs: Mapping[str, AggregateExpr]) -> DataStream:
    """Return the stream of one row per key and so many rows."""
    stream, spec = plan.stream, plan.spec
    assert isinstance(spec, CountWindow)
    if not isinstance(plan.trigger, OnWatermark):
        raise plan_error(
            f"trigger: a window of rf.CountWindow({spec.n}) is shown when it is full, not {plan.trigger}; to see "
            "results early take rf.GlobalWindow() with that trigger"
        )
    if plan.skew is not None:
        raise no_merging("a window of rf.CountWindow")
    time = stream._info.time_column
    info = StreamInfo(
        schema=_output_schema(plan, aggs),
        time_column=None if time is None else WINDOW_END,
        partitioned_by=plan.keys,
    )
    schema = plan.input_schema("aggregate")
    payload = partial(CountWindowOperator, plan.keys, spec.n, tuple(aggs.items()), schema, time)
    detail = f"{plan.detail}: {shown_aggregates(aggs)}"
    traits = keeps_aggregates(schema, plan.keys)
    return stream._then("window", payload, info, detail=detail, edges=plan.input("").edges, traits=traits)


def aggregate_global_window(plan: WindowPlan, aggs: Mapping[str, AggregateExpr]) -> DataStream:
    """Return the stream of one row per key; with a trigger, an upsert stream by key."""
    stream = plan.stream
    early_rows, early_ns = _early(plan)
    info = StreamInfo(
        schema=_output_schema(plan, aggs),
        is_upsert=plan.updates,
        upsert_key=plan.keys if plan.updates else None,
        partitioned_by=plan.keys,
    )
    schema, time = plan.input_schema("aggregate"), stream._info.time_column
    make = partial(GlobalWindowOperator, plan.keys, tuple(aggs.items()), schema, time, early_rows, early_ns)
    combination = combination_of(
        stream, plan.keys, with_bounds(tuple(aggs.items()), time), schema, time_column=time
    )
    rows = plan.input(combination)
    made = stream._then(
        "window",
        make,
        info,
        detail=f"{plan.detail}: {shown_aggregates(aggs)}",
        edges=rows.edges,
        changelog=(lambda emit_before: partial(make, emit_before)) if plan.updates else None,
        traits=keeps_aggregates(plan.input_schema("aggregate"), plan.keys),
    )
    return rows.warn(made)


def _early(plan: WindowPlan) -> tuple[int | None, int | None]:
    """Return after how many rows, and after how many nanoseconds of processing time, results are shown early."""
    trigger = plan.trigger
    return (
        trigger.n if isinstance(trigger, OnCount) else None,
        trigger.every_ns if isinstance(trigger, OnProcessingTime) else None,
    )


def _output_schema(plan: WindowPlan, aggs: Mapping[str, AggregateExpr]) -> pa.Schema:
    """Return keys, bounds where the stream has event time, and results."""
    info = plan.stream._info
    results = checked_aggregates(info, aggs)
    time = info.time_column
    schema = require_columns(info, plan.keys if time is None else (*plan.keys, time), "aggregate")
    bounds = () if time is None else (WINDOW_START, WINDOW_END)
    fields = [pa.field(name, schema.field(time).type) for name in bounds]
    return output_schema([*(schema.field(key) for key in plan.keys), *fields, *results], "aggregate")
