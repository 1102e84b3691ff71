"""Aggregates over tumbling and sliding windows: from the plan of a windowed stream to an operator."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from rayflow.api.aggregations import checked_aggregates, shown_aggregates
from rayflow.api.planning import StreamInfo, at_user_line, plan_error
from rayflow.api.window_plan import WindowPlan
from rayflow.api.window_specs import Sliding, Tumbling
from rayflow.batch.aggregates import AggregateExpr
from rayflow.windows.bounds import WINDOW_START
from rayflow.windows.tumbling import TumblingWindowOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


def aggregate_time_windows(plan: WindowPlan, aggs: Mapping[str, AggregateExpr]) -> DataStream:
    """Return the stream of one row per key and window that has rows."""
    stream, spec = plan.stream, plan.spec
    assert isinstance(spec, Tumbling | Sliding)
    if isinstance(spec, Sliding) or plan.time_column is None or plan.updates or plan.late_to is not None:
        raise plan_error(f"window: {plan.detail}: not possible yet")
    schema = plan.input_schema("aggregate")
    results = checked_aggregates(stream._info, aggs)
    info = StreamInfo(
        schema=plan.output_schema(results, "aggregate"),
        time_column=WINDOW_START,
        partitioned_by=plan.keys,
        window_ns=(spec.slide_ns, spec.offset_ns),
    )
    payload = partial(
        TumblingWindowOperator,
        plan.keys,
        spec.size_ns,
        spec.offset_ns,
        tuple(aggs.items()),
        schema,
        plan.time_column,
    )
    with at_user_line():
        payload()  # it checks more than types, such as a size against the unit of the event time
    detail = f"{plan.detail}: {shown_aggregates(aggs)}"
    return stream._then("window", payload, info, detail=detail, edges=[plan.edge()])
