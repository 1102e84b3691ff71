"""`DataStream`: steps on whole columns, exchanges, and grouping by key.

Each call adds a node to the environment's stream graph and returns a new stream; nothing runs. What is
known of the result (columns, event time, upsert key) is inferred at once, so a mistake is reported at the
line where it was made.

Upsert streams. Rows of one key must stay in order up to the sink, so every step behind a running aggregate
is reached by a hash exchange on the upsert key; the planner leaves it out where the rows lie that way anyhow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayflow.api.deduplicating import deduplicated
from rayflow.api.functions import FunctionSteps, OnError
from rayflow.api.joins import Joins
from rayflow.api.keyed import KeyedStream
from rayflow.api.outputs import Outputs
from rayflow.api.planning import (
    StreamInfo,
    at_user_line,
    event_time_unit,
    known_schema,
    plan_error,
    refuse_upsert,
    require_columns,
)
from rayflow.api.processing import ConnectedStreams, connected
from rayflow.api.projection import (
    Columns,
    as_column,
    detail,
    plain_column,
    projected,
    result_type,
    selected_columns,
)
from rayflow.api.side_outputs import read_side_output
from rayflow.api.skew import Skew
from rayflow.api.specs import Watermark
from rayflow.api.window_specs import Duration
from rayflow.batch.expressions import Expr, col
from rayflow.batch.hashing import check_key_type
from rayflow.graph.plan import Exchange, StreamNode
from rayflow.model.durations import format_duration_ns
from rayflow.operators.dedup.memories import Method
from rayflow.operators.stateless import (
    AssignWatermarksOperator,
    ExplodeOperator,
    IdentityOperator,
    ProjectOperator,
)

if TYPE_CHECKING:
    from rayflow.api.plan_builder import PlanBuilder


class DataStream(FunctionSteps, Joins, Outputs):
    """A stream of rows with named, typed columns. Made by a `StreamEnvironment`; see API.md section 2."""

    def __init__(
        self,
        env: PlanBuilder,
        node: StreamNode,
        info: StreamInfo,
        exchange: Exchange | None = None,
        tag: str | None = None,
    ) -> None:
        super().__init__(env, node)
        self._info = info
        self._exchange = exchange
        self._tag = tag

    @property
    def schema(self) -> pa.Schema | None:
        """The stream's columns; None where a Python function without `returns=` made them."""
        return self._info.schema

    # ---------------------------------------------------------------------------------------- columns

    def select(self, *cols: str | Expr, **exprs: Any) -> DataStream:
        """Keep these columns, in this order: names, named expressions, and `name=expression`."""
        columns = selected_columns(self._info, cols, exprs, "select")
        return self._project("select", columns)

    def with_columns(self, *cols: Expr, **exprs: Any) -> DataStream:
        """Add columns, or replace those of the same name; the others stay."""
        new = selected_columns(self._info, cols, exprs, "with_columns")
        known_schema(self._info, "with_columns")
        named = dict(new)
        if len(named) < len(new):
            raise plan_error("with_columns: two columns have the same name")
        kept = [(name, named.pop(name, col(name))) for name in self._names("with_columns")]
        shown = detail(new)
        return self._project("with_columns", [*kept, *named.items()], shown)

    def drop(self, *cols: str | Expr) -> DataStream:
        """Leave out these columns."""
        gone = self._column_names(cols, "drop")
        columns = [(name, col(name)) for name in self._names("drop") if name not in gone]
        return self._project("drop", columns, ", ".join(gone))

    def rename(self, mapping: dict[str, str] | None = None, /, **names: str) -> DataStream:
        """Rename columns: `rename({"old": "new"})` or `rename(old="new")`."""
        new_names = {**(mapping or {}), **names}
        require_columns(self._info, new_names, "rename")
        columns = [(new_names.get(name, name), col(name)) for name in self._names("rename")]
        return self._project("rename", columns, ", ".join(f"{a} → {b}" for a, b in new_names.items()))

    def filter(
        self, predicate: Expr | Callable[[Any], bool], *, on_error: OnError | None = None
    ) -> DataStream:
        """Keep the rows for which an expression, or a function of the row, is true (null is not). `on_error`: see
        `.on_error()`."""
        kept = self._filter(predicate)
        return kept if on_error is None else kept.on_error(on_error)

    def _filter(self, predicate: Expr | Callable[[Any], bool]) -> DataStream:
        if not isinstance(predicate, Expr):
            return self._filter_by_function(predicate)
        found = result_type(self._info, predicate, "filter")
        if not pa.types.is_boolean(found):
            raise plan_error(f"filter: expected a condition (bool), got {predicate}, which is {found}")
        return self._filtered(predicate, False, str(predicate))

    def explode(self, column: str | Expr) -> DataStream:
        """Make one row per element of a list column; rows with an empty list or null vanish."""
        refuse_upsert(self._info, "explode")
        (name,) = self._column_names([column], "explode")
        schema = require_columns(self._info, [name], "explode")
        found = schema.field(name).type
        if not (
            pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
        ):
            raise plan_error(f"explode: column {name!r} is {found}, expected a list")
        index = schema.get_field_index(name)
        info = replace(
            self._info,
            schema=schema.set(index, pa.field(name, found.value_type)),
            time_column=None if self._info.time_column == name else self._info.time_column,
            partitioned_by=None if name in (self._info.partitioned_by or ()) else self._info.partitioned_by,
        )
        return self._then("explode", partial(ExplodeOperator, name), info, detail=name)

    # ------------------------------------------------------------------------------------ duplicates

    def deduplicate(
        self,
        *cols: str | Expr,
        method: Method = "exact",
        ttl: Duration | None = None,
        false_positive_rate: float | None = None,
        expected: int | None = None,
    ) -> DataStream:
        """Keep the first row of each combination of values in these columns (none: in all), and drop the others.

        The rows that are kept come at once, unchanged: an append stream. First is what arrives first. Nulls are equal
        to each other, as are NaNs, and −0.0 to 0.0. `rows_deduplicated` counts what was dropped.

        `method` says how keys are remembered:

        * `"exact"`: the keys themselves; 25 to 45 bytes each for numbers, strings their length more.
        * `"bitmap"`: a single column of integers, exactly; a bit each where ids are dense, which is what it is for,
          and about 70 bytes where they are scattered over 64 bits. All rows of 65,536 neighbouring ids go to one
          subtask.
        * `"bloom"`: a Bloom filter, which takes a new key for a known one, and loses its row, at a rate of
          `false_positive_rate` (default 0.01) at most; 1.7 bytes a key at 0.01. `expected` is how many different keys
          will come (within `ttl`, in all subtasks; default 1,000,000); with more it grows, and the rate holds.

        `ttl`: how long a key is remembered, counted from its row that was kept; by event time if the stream has one,
        else by the clock (as Flink's state TTL). Without, for ever. By event time, rows of one key whose times are
        less than `ttl` apart are duplicates, however they are ordered, as long as no row is `ttl` behind the
        watermark; one that is comes through, and is counted (`rows_past_ttl`). `"bitmap"` and `"bloom"` forget by
        quarters of `ttl`: up to a quarter later."""
        names = self._column_names(cols, "deduplicate")
        return deduplicated(self, (), names, method, ttl, false_positive_rate, expected)

    # ------------------------------------------------------------------------------------------ time

    def assign_watermarks(self, watermark: Watermark) -> DataStream:
        """Make `watermark.column` the event time from here on; watermarks that come in are replaced."""
        if not isinstance(watermark, Watermark):
            raise plan_error(f"assign_watermarks: expected rf.Watermark(column, …); got {watermark!r}")
        if watermark.max_drift is not None:
            raise plan_error(
                "assign_watermarks: max_drift works on a source's splits only; give it to the source"
            )
        require_columns(self._info, [watermark.column], "assign_watermarks")
        event_time_unit(self._info, watermark.column, "assign_watermarks")
        spec = watermark.time_spec()
        payload = partial(AssignWatermarksOperator, spec.column, spec.delay, spec.idle_after, spec.max_ahead)
        schema = watermark.stamped(self._info.schema)
        info = replace(self._info, schema=schema, time_column=watermark.column, window_ns=None)
        shown = f"{spec.column}, delay {format_duration_ns(spec.delay)}"
        return self._then("assign_watermarks", payload, info, detail=shown)

    # ------------------------------------------------------------------------- exchanges and grouping

    def union(self, *others: DataStream) -> DataStream:
        """Merge with streams of the same columns; their order among each other is not defined. Costs no task of
        its own, unless the union is given a name, a uid, a parallelism or resources."""
        streams = [self, *others]
        for other in streams:
            self._check_union(other)
        same_time = len({s._info.time_column for s in streams}) == 1
        schemas = [s._info.schema for s in streams]
        info = StreamInfo(
            schema=None if None in schemas else schemas[0],
            time_column=self._info.time_column if same_time else None,
        )
        edges = [s._edge() for s in streams]
        stream = self._then("union", IdentityOperator, info, edges=edges, partitioned_by=None)
        stream._node.virtual = True
        return stream

    def key_by(self, *cols: str | Expr, skew: Skew | None = None) -> KeyedStream:
        """Group rows by columns: all rows of a key come to one subtask. Compute keys with `with_columns`.

        `skew`: for aggregates of keys of which some are much more frequent than others (see `rf.Skew`).
        An upsert stream can be grouped by other keys than its own, for `aggregate` and `top_n`."""
        if not cols:
            raise plan_error("key_by: expected at least one column")
        keys = self._column_names(cols, "key_by")
        schema = require_columns(self._info, keys, "key_by")
        if len(set(keys)) < len(keys):
            raise plan_error(f"key_by: a column is named twice in {', '.join(keys)}")
        with at_user_line():
            for key in keys:
                check_key_type(key, schema.field(key).type)
        if skew is not None and not isinstance(skew, Skew):
            raise plan_error(f"key_by(skew=): expected rf.Skew(…); got {skew!r}")
        return KeyedStream(self, keys, skew)

    def connect(self, other: DataStream | KeyedStream) -> ConnectedStreams:
        """Join up with another stream for one two-input function: `.connect(other).process(fn)`. Both are keyed,
        or the other is `.broadcast()`, or neither is keyed."""
        return connected(self, other)

    def side_output(self, tag: str, returns: Any = None) -> DataStream:
        """Read what the operator puts aside under `tag`: a window's late rows (`allowed_lateness(d, late_to=tag)`),
        or what a function gives to `ctx.output(tag, row)`.

        Late rows have the columns of the window's input. A function's have those of `returns` (an Arrow schema
        or type hints); without it they are not known, and naming one later is a plan error.
        """
        return read_side_output(self, tag, returns)

    def rebalance(self) -> DataStream:
        """Deal rows out evenly to all subtasks of the next operator."""
        return self._exchanged("rebalance")

    def rescale(self) -> DataStream:
        """Deal rows out evenly within groups: each subtask sends only to its share of the next ones."""
        return self._exchanged("rescale")

    def broadcast(self) -> DataStream:
        """Send every row to every subtask of the next operator."""
        return self._exchanged("broadcast")

    # -------------------------------------------------------------------------------------- internal

    def _project(self, name: str, columns: Columns, shown: str | None = None) -> DataStream:
        info = projected(self._info, columns, name)
        shown = detail(columns) if shown is None else shown
        return self._then(name, partial(ProjectOperator, columns), info, detail=shown)

    def _exchanged(self, kind: Any) -> DataStream:
        refuse_upsert(self._info, kind)
        info = replace(self._info, partitioned_by=None)
        return DataStream(self._env, self._node, info, Exchange(kind), self._tag)

    def _check_union(self, other: Any) -> None:
        if not isinstance(other, DataStream):
            raise plan_error(f"union: expected streams; got {other!r}")
        if other._env is not self._env:
            raise plan_error("union: the streams belong to different environments")
        refuse_upsert(other._info, "union")
        mine, its = self._info.schema, other._info.schema
        if mine is not None and its is not None and not mine.equals(its):
            raise plan_error(
                f"union: the streams have different columns: {_columns(mine)}; and {_columns(its)}"
            )

    def _names(self, what: str) -> list[str]:
        names: list[str] = known_schema(self._info, what).names
        return names

    def _column_names(self, cols: Any, what: str) -> list[str]:
        names = []
        for value in cols:
            name = plain_column(as_column(value, what))
            if name is None:
                raise plan_error(
                    f"{what}: expected a column; got {value}; compute it first with .with_columns()"
                )
            names.append(name)
        require_columns(self._info, names, what)
        return names


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)
