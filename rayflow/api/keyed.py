"""`KeyedStream` and `WindowedStream`: aggregates per key, running or per window.

A running aggregate is an upsert stream: each change of a key's row replaces the one before. A window's result
is final and comes once, when the watermark passes the window's end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayflow.api.planning import (
    StreamInfo,
    at_user_line,
    event_time_unit,
    output_schema,
    plan_error,
    require_columns,
)
from rayflow.api.specs import Tumbling
from rayflow.batch.aggregates import AggregateExpr
from rayflow.graph.plan import Exchange
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.windows.tumbling import TumblingWindowOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

WINDOW_START, WINDOW_END = "window_start", "window_end"


class KeyedStream:
    """Rows grouped by key columns. Made by `DataStream.key_by`."""

    def __init__(self, stream: DataStream, keys: list[str]) -> None:
        self._stream = stream
        self._keys = tuple(keys)

    def __getattr__(self, name: str) -> Any:
        """Whatever a `DataStream` offers, on rows that lie by key: `.key_by("k").map_batches(fn)`."""
        if name.startswith("_"):
            raise AttributeError(name)
        stream = self._stream
        info = replace(stream._info, partitioned_by=self._keys)
        by_key = type(stream)(stream._env, stream._node, info, Exchange("hash", self._keys))
        return getattr(by_key, name)

    def window(self, spec: Tumbling) -> WindowedStream:
        """Group each key's rows into windows of event time; the stream needs a watermark."""
        if not isinstance(spec, Tumbling):
            raise plan_error(f"window: expected a window such as rf.Tumbling('1h'); got {spec!r}")
        time = self._stream._info.time_column
        if time is None:
            raise plan_error(
                f"window: {spec} windows need event time, but the stream has no watermark; read it with "
                "watermark=rf.Watermark(column, delay=…), or call .assign_watermarks(…) before .key_by()"
            )
        event_time_unit(self._stream._info, time, "window")
        _check_nested(self._stream._info.window_ns, spec)
        for name in (WINDOW_START, WINDOW_END):
            if name in self._keys:
                raise plan_error(f"window: key column {name!r} has the name of a result; rename it first")
        return WindowedStream(self._stream, self._keys, spec, time)

    def aggregate(self, **aggs: AggregateExpr) -> DataStream:
        """Keep one row per key: the key columns, then `name=aggregate`. An upsert stream by key."""
        stream = self._stream
        schema = require_columns(stream._info, self._keys, "aggregate")
        results = checked_aggregates(stream._info, aggs)
        fields = [*(schema.field(key) for key in self._keys), *results]
        info = StreamInfo(
            schema=output_schema(fields, "aggregate"),
            is_upsert=True,
            upsert_key=self._keys,
            partitioned_by=self._keys,
        )
        make = partial(
            RunningAggregateOperator,
            self._keys,
            tuple(aggs.items()),
            schema,
            time_column=stream._info.time_column,
        )
        return stream._then(
            "aggregate",
            partial(make, False),
            info,
            detail=f"{_shown(aggs)} by {', '.join(self._keys)}",
            edges=[stream._edge(Exchange("hash", self._keys))],
            changelog=lambda emit_before: partial(make, emit_before),
        )


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
            detail=f"{spec} on {self._time_column} by {', '.join(self._keys)}: {_shown(aggs)}",
            edges=[stream._edge(Exchange("hash", self._keys))],
        )


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


def _check_nested(inner_ns: tuple[int, int] | None, outer: Tumbling) -> None:
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


def _shown(aggs: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={agg}" for name, agg in aggs.items())
