"""`name=aggregate` arguments: checked when a plan is built, and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rayflow.api.planning import StreamInfo, at_user_line, plan_error
from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.user_aggregates import as_aggregate


def as_aggregates(aggs: Mapping[str, Any]) -> dict[str, AggregateExpr]:
    """Return what the user gave as expressions. Raises PlanError, at the user's line, for what is no aggregate."""
    if not aggs:
        raise plan_error("aggregate: expected at least one name=aggregate, such as n=rf.count()")
    with at_user_line():
        return {name: as_aggregate(agg, f"aggregate: {name}=") for name, agg in aggs.items()}


def checked_aggregates(info: StreamInfo, aggs: Mapping[str, AggregateExpr]) -> list[pa.Field]:
    """Return the fields of the results. Raises PlanError, at the user's line, for anything wrong."""
    schema, fields = info.schema, []
    for name, agg in aggs.items():
        with at_user_line():
            fields.append(pa.field(name, agg.output_type(schema)))
    return fields


def shown_aggregates(aggs: Mapping[str, AggregateExpr]) -> str:
    """Return a short rendering of `name=aggregate`."""
    return ", ".join(f"{name}={agg}" for name, agg in aggs.items())
