"""`name=aggregate` arguments: checked when a plan is built, and shown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from rayflow.api.planning import StreamInfo, at_user_line, plan_error
from rayflow.batch.aggregates import AggregateExpr


def checked_aggregates(info: StreamInfo, aggs: Mapping[str, Any]) -> list[pa.Field]:
    """Return the fields of the results. Raises PlanError, at the user's line, for anything wrong."""
    if not aggs:
        raise plan_error("aggregate: expected at least one name=aggregate, such as n=rf.count()")
    schema, fields = info.schema, []
    for name, agg in aggs.items():
        if not isinstance(agg, AggregateExpr):
            raise plan_error(
                f"aggregate: {name}={agg} is not an aggregate; expected one such as rf.count() or col('x').sum()"
            )
        with at_user_line():
            fields.append(pa.field(name, agg.output_type(schema)))
    return fields


def shown_aggregates(aggs: Mapping[str, Any]) -> str:
    """Return a short rendering of `name=aggregate`."""
    return ", ".join(f"{name}={agg}" for name, agg in aggs.items())
