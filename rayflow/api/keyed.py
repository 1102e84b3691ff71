"""`KeyedStream`: what can be done per key.

A running aggregate is an upsert stream: each change of a key's row replaces the one before.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rayflow.api.aggregations import checked_aggregates, shown_aggregates
from rayflow.api.planning import (
    StreamInfo,
    event_time_unit,
    output_schema,
    plan_error,
    require_columns,
)
from rayflow.api.specs import Tumbling
from rayflow.api.windowed import WindowedStream, check_nested
from rayflow.batch.aggregates import AggregateExpr
from rayflow.graph.plan import Exchange
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.windows.tumbling import WINDOW_END, WINDOW_START

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


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
        check_nested(self._stream._info.window_ns, spec)
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
            detail=f"{shown_aggregates(aggs)} by {', '.join(self._keys)}",
            edges=[stream._edge(Exchange("hash", self._keys))],
            changelog=lambda emit_before: partial(make, emit_before),
        )
