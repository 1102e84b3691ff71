"""`WindowedStream`: aggregates per key and window.

A window's result is final and comes once, when the watermark passes the window's end.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pyarrow as pa

from rayflow.api.aggregations import checked_aggregates, shown_aggregates
from rayflow.api.planning import StreamInfo, at_user_line, output_schema, plan_error, require_columns
from rayflow.api.specs import Tumbling
from rayflow.batch.aggregates import AggregateExpr
from rayflow.graph.plan import Exchange
from rayflow.windows.tumbling import WINDOW_END, WINDOW_START, TumblingWindowOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


class WindowedStream:
    """Rows grouped by key and window. Made by `KeyedStream.window`."""

    def __init__(self, stream: DataStream, keys: tuple[str, ...], spec: Tumbling, time_column: str) -> None:
        self._stream = stream
        self._keys = keys
        self._spec = spec
        self._time_column = time_column

    def aggregate(self, **aggs: AggregateExpr) -> DataStream:
        """Make one row per key and window that has rows: the key columns, `window_start`, `window_end`
        (of the type of the event-time column), then `name=aggregate`. The result's event time is `window_start`,
        so that coarser windows of a multiple of the size may follow."""
        stream, spec = self._stream, self._spec
        schema = require_columns(stream._info, (*self._keys, self._time_column), "aggregate")
        results = checked_aggregates(stream._info, aggs)
        bounds = [pa.field(name, schema.field(self._time_column).type) for name in (WINDOW_START, WINDOW_END)]
        fields = [*(schema.field(key) for key in self._keys), *bounds, *results]
        info = StreamInfo(
            schema=output_schema(fields, "aggregate"),
            time_column=WINDOW_START,
            partitioned_by=self._keys,
            window_ns=(spec.size_ns, spec.offset_ns),
        )
        payload = partial(
            TumblingWindowOperator,
            self._keys,
            spec.size_ns,
            spec.offset_ns,
            tuple(aggs.items()),
            schema,
            self._time_column,
        )
        with at_user_line():
            payload()  # it checks more than types, such as a size against the unit of the event time
        return stream._then(
            "window",
            payload,
            info,
            detail=f"{spec} on {self._time_column} by {', '.join(self._keys)}: {shown_aggregates(aggs)}",
            edges=[stream._edge(Exchange("hash", self._keys))],
        )


def check_nested(inner_ns: tuple[int, int] | None, outer: Tumbling) -> None:
    """Windows over windows' results: each inner window must lie within one outer window."""
    if inner_ns is None:
        return
    size_ns, offset_ns = inner_ns
    if outer.size_ns % size_ns or (outer.offset_ns - offset_ns) % size_ns:
        inner = Tumbling(f"{size_ns}ns", f"{offset_ns}ns")
        raise plan_error(
            f"window: {outer} windows cannot group the results of {inner} windows, which would not lie within "
            "one; use a multiple of the size, or choose an event time with .assign_watermarks(…)"
        )
