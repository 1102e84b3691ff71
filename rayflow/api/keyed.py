"""`KeyedStream`: what can be done per key.

A running aggregate is an upsert stream: each change of a key's row replaces the one before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from rayflow.api.aggregations import as_aggregates, checked_aggregates, shown_aggregates
from rayflow.api.deduplicating import deduplicated
from rayflow.api.joins import KeyedJoins
from rayflow.api.planning import StreamInfo, at_user_line, output_schema, refuse_upsert, require_columns
from rayflow.api.processing import ConnectedStreams, connected, keyed_process
from rayflow.api.reducing import reduced
from rayflow.api.skew import Skew, combination_of, keyed_input, no_merging
from rayflow.api.top_n import top_n
from rayflow.api.traits import keeps_aggregates
from rayflow.api.window_plan import opened
from rayflow.api.window_specs import Duration, WindowSpec
from rayflow.api.windowed import WindowedStream
from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.expressions import Expr
from rayflow.batch.user_aggregates import Aggregate
from rayflow.graph.plan import Exchange
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.operators.dedup.memories import Method
from rayflow.operators.process_functions import KeyedProcessFunction
from rayflow.state.accumulators.columns import AggregateColumns

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


class KeyedStream(KeyedJoins):
    """Rows grouped by key columns. Made by `DataStream.key_by`."""

    def __init__(self, stream: DataStream, keys: list[str], skew: Skew | None = None) -> None:
        self._input = stream
        self._keys = tuple(keys)
        self._skew = skew

    @property
    def _changes(self) -> DataStream:
        """The stream, for steps that want all rows of a key in one subtask."""
        if self._skew is not None:
            raise no_merging("a step of a keyed stream other than aggregate, reduce and window")
        return self._input

    @property
    def _stream(self) -> DataStream:
        """The stream, for steps that want rows which stay: an upsert stream is refused."""
        refuse_upsert(self._changes._info, "a step of a keyed stream other than aggregate and top_n")
        return self._changes

    def __getattr__(self, name: str) -> Any:
        """Whatever a `DataStream` offers, on rows that lie by key: `.key_by("k").map_batches(fn)`."""
        if name.startswith("_"):
            raise AttributeError(name)
        stream = self._stream
        info = replace(stream._info, partitioned_by=self._keys)
        by_key = type(stream)(stream._env, stream._node, info, Exchange("hash", self._keys))
        return getattr(by_key, name)

    def window(self, spec: WindowSpec) -> WindowedStream:
        """Group each key's rows into windows: `rf.Tumbling`, `rf.Sliding` or `rf.Session` by event time (the
        stream needs a watermark) or by processing time, `rf.CountWindow`, `rf.GlobalWindow`."""
        return WindowedStream(opened(self._input, self._keys, spec, self._skew))

    def top_n(
        self, n: int, order_by: Any, *, rank: str | None = None, ties: Literal["first", "last"] = "first"
    ) -> DataStream:
        """Keep the `n` first rows of each key. An upsert stream of the rows as they are.

        `order_by`: columns or expressions, several in a list; largest first, unless `col("x").asc()` (or
        `("x", "asc")`) says otherwise. NaN comes after numbers, null after everything, in both directions. Of rows
        that are equal in that, the one that came first is first (`ties="last"`: the one that came last).
        `rank` names a column for the rank, from 1. The upsert key is the key columns and the rank; without
        rank the key columns for n = 1, else rows are told apart by all their columns.

        On an append stream it holds n rows a key in memory. On an upsert stream it holds all rows, so that the next
        best can take the place of one that is deleted.
        """
        return top_n(self._changes, self._keys, n, order_by, rank, ties)

    def deduplicate(
        self,
        *cols: str | Expr,
        method: Method = "exact",
        ttl: Duration | None = None,
        false_positive_rate: float | None = None,
        expected: int | None = None,
    ) -> DataStream:
        """Keep the first row of each combination of the key and these columns; without columns, of each key.

        As `DataStream.deduplicate`, but that rows lie by the stream's key: `.key_by("user").deduplicate("item")`
        keeps a user's first row of each item, and what follows finds all rows of a user in one place. `expected`
        counts combinations."""
        names = self._changes._column_names(cols, "deduplicate")
        return deduplicated(self._changes, self._keys, names, method, ttl, false_positive_rate, expected)

    def reduce(self, fn: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]) -> DataStream:
        """Keep one row per key: the first, then `fn(row so far, next row)` for each further one. An upsert stream by
        key with the columns of this one. Rows are dicts of all columns; a returned dict may lack the keys, which a
        row keeps, and other columns it lacks are null.

        With `skew=` rows are reduced in parts, and what comes of these is reduced again: `fn` must be associative,
        `fn(a, fn(b, c)) == fn(fn(a, b), c)`. Rows of a key that one subtask sends stay in their order."""
        return reduced(self._input, self._keys, fn, self._skew)

    def aggregate(self, **aggs: AggregateExpr | Aggregate) -> DataStream:
        """Keep one row per key: the key columns, then `name=aggregate`. An upsert stream by key.

        Of an upsert stream it aggregates the rows that are there now: those that are updated or deleted are taken
        back, and a key without rows is deleted."""
        stream = self._input
        schema = require_columns(stream._info, self._keys, "aggregate")
        exprs = as_aggregates(aggs)
        results = checked_aggregates(stream._info, exprs)
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
            tuple(exprs.items()),
            schema,
            time_column=stream._info.time_column,
            retracts=stream._info.is_upsert,
        )
        combination = combination_of(
            stream, self._keys, tuple(exprs.items()), schema, time_column=stream._info.time_column
        )
        rows = keyed_input(stream, self._keys, self._skew, combination)
        made = stream._then(
            "aggregate",
            partial(make, False),
            info,
            detail=f"{shown_aggregates(exprs)} by {', '.join(self._keys)}",
            edges=rows.edges,
            changelog=lambda emit_before: partial(make, emit_before),
            traits=keeps_aggregates(schema, self._keys),
        )
        if stream._info.is_upsert:
            with at_user_line():
                AggregateColumns(tuple(exprs.items()), schema, retractable=True)
            stream._env._wants_old_rows.add(made._node.id)
        return rows.warn(made)

    def process(
        self, fn: KeyedProcessFunction | type[KeyedProcessFunction], returns: Any = None
    ) -> DataStream:
        """Hand each row to `fn.process(row, ctx)`, with state and timers of the row's key, and emit what it yields.

        `fn`: an `rf.KeyedProcessFunction`, or its class, which is made once per subtask. `returns`: the columns
        (an Arrow schema or type hints); the event time stays where its column does."""
        return keyed_process(self._stream, self._keys, fn, returns)

    def connect(self, other: KeyedStream | DataStream) -> ConnectedStreams:
        """Join up with another stream for one two-input function: `.connect(other).process(fn)`. The other is keyed
        too, by equal types, or `.broadcast()`."""
        return connected(self, other)
