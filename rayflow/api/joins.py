"""Joins, while a job is written down.

The result has the key columns once, under the left side's names, then the left side's other columns, then the
right side's; of these a name that is taken already gets a suffix, as in Polars. Keys must have equal types on both
sides, since rows find each other by the hash of their keys. A null key matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

import pyarrow as pa

from rayflow.api.planning import (
    StreamInfo,
    at_user_line,
    duration_ns,
    event_time_unit,
    known_schema,
    output_schema,
    plan_error,
    refuse_upsert,
    require_columns,
)
from rayflow.api.steps import Steps
from rayflow.api.window_specs import Duration, Sliding, Tumbling
from rayflow.batch.hashing import check_key_type
from rayflow.graph.plan import Exchange, StreamEdge, Traits
from rayflow.operators.joins.broadcast import BroadcastJoinOperator
from rayflow.operators.joins.columns import How, JoinColumns, JoinSide
from rayflow.operators.joins.interval import IntervalJoinOperator
from rayflow.operators.joins.regular import Changes, RegularJoinOperator
from rayflow.operators.joins.temporal import TemporalJoinOperator
from rayflow.windows.bounds import WINDOW_END, WINDOW_START
from rayflow.windows.joins import WindowJoinOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

On = str | Sequence[str] | Mapping[str, str]

_NANOS_PER_MS = 1_000_000


class Joins(Steps):
    """The joins of a `DataStream`."""

    def join(
        self,
        other: DataStream,
        on: On,
        *,
        window: Tumbling | Sliding | None = None,
        how: How = "inner",
        ttl: Duration | None = None,
        suffix: str = "_right",
    ) -> DataStream:
        """Pair rows of both streams whose columns `on` are equal: a name, several, or `{"left": "right"}`.

        With `window` (`rf.Tumbling` or `rf.Sliding`, by event time) only rows in the same window; pairs come when the
        watermark passes its end, with `window_start` and `window_end` behind the keys; the event time is
        `window_start`. `how`: `"left"`, `"right"` and `"full"` also give the rows without a match in a window.

        Without, every pair comes once, as soon as both rows are there, so the rows of both streams are kept for ever,
        or for `ttl` (processing time). Rows without a match come beside nulls, and are taken back when a match comes:
        an outer join is an upsert stream, and so is a join of upsert streams. The result has no event time.
        """
        if window is not None:
            if ttl is not None:
                raise plan_error("join: ttl= and window= exclude each other; a window's rows go when it ends")
            return window_join(JoinPlan("join", self, other, on, how, suffix), window)
        sides = JoinPlan("join", self, other, on, how, suffix)
        ttl_ns = None if ttl is None else duration_ns("join(ttl=)", ttl, positive=True)
        changes = (_changes(sides.left, "join"), _changes(sides.right, "join"))
        columns = sides.columns()
        is_append = how == "inner" and not (self._info.is_upsert or other._info.is_upsert)
        info = StreamInfo(
            schema=output_schema(columns.fields, "join"),
            is_upsert=not is_append,
            upsert_key=None if is_append else sides.left_keys,
            whole_rows=not is_append,
            partitioned_by=sides.left_keys,
        )
        payload = partial(
            RegularJoinOperator,
            *sides.sides(),
            columns,
            changes,
            None if ttl_ns is None else max(1, ttl_ns // _NANOS_PER_MS),
        )
        kept = Traits(
            keeps="all rows of both inputs", instead="give it ttl=, or use a window or interval join"
        )
        joined = self._then(
            "join",
            payload,
            info,
            detail=sides.detail(),
            edges=sides.hash_edges(),
            traits=kept if ttl_ns is None else None,
        )
        if any(_moves(*side) for side in ((self, sides.left_keys), (other, sides.right_keys))):
            self._env._wants_old_rows.add(joined._node.id)
        return joined

    def temporal_join(
        self, other: DataStream, on: On, *, how: Literal["inner", "left"] = "inner", suffix: str = "_right"
    ) -> DataStream:
        """Pair each row with the version in `other` that was valid at its time: the latest row of the same key whose
        event time is not after it. Both streams need a watermark.

        A row comes out when the watermark has reached its time; its event time stays. `how="left"`: rows that no
        version is valid for come too, beside nulls.
        """
        return temporal_join(JoinPlan("temporal_join", self, other, on, how, suffix, ("inner", "left")))

    def broadcast_join(
        self, other: DataStream, on: On, *, how: Literal["inner", "left"] = "inner", suffix: str = "_right"
    ) -> DataStream:
        """Pair each row with the rows of the same key in `other`, which is small: every subtask gets all of it, and
        this stream's rows stay where they are.

        If `other` is bounded, rows wait until it has ended (in memory and in checkpoints: it should end soon). If it is
        not, rows meet the latest row of their key as of when they come. `how="left"`: rows without a match come too,
        beside nulls. Event time stays; an `other` that never ends holds watermarks back unless it has its own.
        """
        return broadcast_join(JoinPlan("broadcast_join", self, other, on, how, suffix, ("inner", "left")))


class KeyedJoins:
    """The joins of a `KeyedStream`."""

    _keys: tuple[str, ...]

    @property
    def _stream(self) -> DataStream:
        raise TypeError("KeyedStream says what its stream is")

    def interval_join(
        self, other: KeyedJoins, lower: Duration, upper: Duration, *, suffix: str = "_right"
    ) -> DataStream:
        """Pair rows of the same key with left time + `lower` ≤ right time ≤ left time + `upper`, both included; bounds
        may be negative: `"-10s"`. Both streams need a watermark, which decides what is late and what is kept.

        A pair comes as soon as both rows are there. Its event time is the left row's; the watermark passes on later by
        `upper`, if that is positive.
        """
        if not isinstance(other, KeyedJoins):
            raise plan_error(f"interval_join: expected a keyed stream, such as b.key_by('k'); got {other!r}")
        if len(other._keys) != len(self._keys):
            raise plan_error(
                f"interval_join: the streams have keys of different length: {', '.join(self._keys)}; and "
                f"{', '.join(other._keys)}"
            )
        on = dict(zip(self._keys, other._keys))
        plan = JoinPlan("interval_join", self._stream, other._stream, on, "inner", suffix)
        return interval_join(plan, lower, upper)


@dataclass(frozen=True)
class JoinPlan:
    """Two streams to be joined, checked. `what` names the call in errors."""

    what: str
    left: Steps
    right: Any
    on: Any
    how: Any
    suffix: str
    hows: tuple[str, ...] = get_args(How)

    def __post_init__(self) -> None:
        what = self.what
        if not isinstance(self.right, Joins):
            hint = " (the stream itself, not by key)" if isinstance(self.right, KeyedJoins) else ""
            raise plan_error(f"{what}: expected another stream{hint}; got {self.right!r}")
        if self.right._env is not self.left._env:
            raise plan_error(f"{what}: the streams belong to different environments")
        if self.how not in self.hows:
            expected = ", ".join(map(repr, self.hows[:-1])) + f" or {self.hows[-1]!r}"
            raise plan_error(f"{what}: how={self.how!r}: expected {expected}")
        if not isinstance(self.suffix, str) or not self.suffix:
            raise plan_error(f"{what}: suffix={self.suffix!r}: expected a text that is not empty")
        left = require_columns(self.left._info, self.left_keys, f"{what}: left stream")
        right = require_columns(self.right._info, self.right_keys, f"{what}: right stream")
        for keys in (self.left_keys, self.right_keys):
            if not keys or len(set(keys)) < len(keys):
                raise plan_error(f"{what}: on={self.on!r}: expected one or more columns, none of them twice")
        for a, b in zip(self.left_keys, self.right_keys):
            self._check_key(left.field(a), right.field(b))

    def _check_key(self, left: pa.Field, right: pa.Field) -> None:
        with at_user_line():
            check_key_type(left.name, left.type)
        if left.type != right.type:
            cast, to = (left, right) if _width(left.type) < _width(right.type) else (right, left)
            raise plan_error(
                f"{self.what}: column {left.name!r} is {left.type} on the left, column {right.name!r} is "
                f"{right.type} on the right; cast one of them, such as "
                f".with_columns({cast.name}=col({cast.name!r}).cast({_type_call(to.type)}))"
            )

    @property
    def left_keys(self) -> tuple[str, ...]:
        """The left stream's key columns."""
        return tuple(left for left, _ in self._pairs())

    @property
    def right_keys(self) -> tuple[str, ...]:
        """The right stream's key columns."""
        return tuple(right for _, right in self._pairs())

    def _pairs(self) -> list[tuple[str, str]]:
        on = self.on
        if isinstance(on, str):
            return [(on, on)]
        pairs = list(on.items()) if isinstance(on, Mapping) else None
        if pairs is None and isinstance(on, Sequence):
            pairs = [(name, name) for name in on]
        if pairs is None or not all(isinstance(name, str) for pair in pairs for name in pair):
            raise plan_error(
                f"{self.what}: on={on!r}: expected a column's name, a list of names, or {{'left': 'right'}}"
            )
        return pairs

    def sides(self) -> tuple[JoinSide, JoinSide]:
        """Return both sides, as operators take them."""
        return (
            JoinSide(known_schema(self.left._info, self.what), self.left_keys, self.how in ("left", "full")),
            JoinSide(
                known_schema(self.right._info, self.what), self.right_keys, self.how in ("right", "full")
            ),
        )

    def columns(self, bounds: Sequence[pa.Field] = ()) -> JoinColumns:
        """Return the columns of the result."""
        return JoinColumns(*self.sides(), self.suffix, bounds)

    def hash_edges(self) -> list[StreamEdge]:
        """Return the edges that bring the rows of a key together."""
        return [
            self.left._edge(Exchange("hash", self.left_keys)),
            replace(self.right._edge(Exchange("hash", self.right_keys)), port=1),
        ]

    def detail(self) -> str:
        """Return the join in a few words."""
        keys = ", ".join(a if a == b else f"{a} = {b}" for a, b in self._pairs())
        return keys if self.how == "inner" else f"{self.how}: {keys}"

    def times(self) -> tuple[str, str]:
        """Return the columns of event time. Raises PlanError where a stream has none, or changes its rows."""
        found = []
        for side, stream in (("left", self.left), ("right", self.right)):
            refuse_upsert(stream._info, self.what)
            column = stream._info.time_column
            if column is None:
                raise plan_error(
                    f"{self.what}: the {side} stream has no watermark; read it with watermark=rf.Watermark(column, "
                    "delay=…), or call .assign_watermarks(…) before"
                )
            event_time_unit(stream._info, column, self.what)
            found.append(column)
        return found[0], found[1]


def window_join(plan: JoinPlan, window: Any) -> DataStream:
    """Return the stream of pairs in the same window."""
    if not isinstance(window, Tumbling | Sliding) or window.time != "event":
        raise plan_error(f"join(window=): expected rf.Tumbling or rf.Sliding by event time; got {window!r}")
    times, schema = plan.times(), known_schema(plan.left._info, "join")
    # Results of windows, joined by their start, have their bounds already.
    have = (*plan.left_keys, *(schema.names if WINDOW_START in plan.left_keys else ()))
    shown = tuple(name not in have for name in (WINDOW_START, WINDOW_END))
    type_ = schema.field(times[0]).type
    bounds = [pa.field(name, type_) for name, is_new in zip((WINDOW_START, WINDOW_END), shown) if is_new]
    columns = plan.columns(bounds)
    info = StreamInfo(
        schema=output_schema(columns.fields, "join"),
        time_column=WINDOW_START,
        partitioned_by=plan.left_keys,
        window_ns=(window.slide_ns, window.offset_ns),
    )
    durations = (window.size_ns, window.slide_ns, window.offset_ns)
    payload = partial(WindowJoinOperator, *plan.sides(), columns, times, durations, (shown[0], shown[1]))
    with at_user_line():
        payload()  # it checks the durations against the unit of the event time
    detail = f"{plan.detail()}, {window}"
    return plan.left._then("join", payload, info, detail=detail, edges=plan.hash_edges())


def interval_join(plan: JoinPlan, lower: Any, upper: Any) -> DataStream:
    """Return the stream of pairs whose times lie close."""
    lower_ns = _signed_ns("interval_join(lower=)", lower)
    upper_ns = _signed_ns("interval_join(upper=)", upper)
    if lower_ns > upper_ns:
        raise plan_error(f"interval_join: lower={lower!r} is above upper={upper!r}, so nothing would match")
    times, columns = plan.times(), plan.columns()
    info = StreamInfo(
        schema=output_schema(columns.fields, plan.what),
        time_column=times[0],
        partitioned_by=plan.left_keys,
    )
    payload = partial(IntervalJoinOperator, *plan.sides(), columns, times, lower_ns, upper_ns)
    detail = f"{plan.detail()}, {times[1]} from {times[0]} {lower} to {upper}"
    return plan.left._then(plan.what, payload, info, detail=detail, edges=plan.hash_edges())


def temporal_join(plan: JoinPlan) -> DataStream:
    """Return the stream of left rows with the version that was valid at their time."""
    times, columns = plan.times(), plan.columns()
    info = StreamInfo(
        schema=output_schema(columns.fields, plan.what),
        time_column=times[0],
        partitioned_by=plan.left_keys,
        window_ns=plan.left._info.window_ns,
    )
    payload = partial(TemporalJoinOperator, *plan.sides(), columns, times)
    return plan.left._then(plan.what, payload, info, detail=plan.detail(), edges=plan.hash_edges())


def broadcast_join(plan: JoinPlan) -> DataStream:
    """Return the stream of left rows with the rows of a table that every subtask has."""
    for stream in (plan.left, plan.right):
        refuse_upsert(stream._info, plan.what)
    columns, left = plan.columns(), plan.left._info
    info = StreamInfo(
        schema=output_schema(columns.fields, plan.what),
        time_column=left.time_column,
        partitioned_by=left.partitioned_by,
        window_ns=left.window_ns,
    )
    payload = partial(BroadcastJoinOperator, *plan.sides(), columns, is_unbounded(plan.right))
    edges = [plan.left._edge(), replace(plan.right._edge(Exchange("broadcast")), port=1)]
    return plan.left._then(plan.what, payload, info, detail=plan.detail(), edges=edges)


def _signed_ns(what: str, value: Any) -> int:
    if isinstance(value, timedelta) and value < timedelta(0):
        return -duration_ns(what, -value)
    if isinstance(value, str) and value.lstrip().startswith("-"):
        return -duration_ns(what, value.lstrip()[1:])
    return duration_ns(what, value)


def is_unbounded(stream: Steps) -> bool:
    """Return whether a source of `stream` never ends."""
    env = stream._env
    specs = [env._nodes[node].spec for node in env._upstream([stream._node.id])]
    return any(spec.kind == "source" and not spec.payload.bounded for spec in specs)


def _moves(stream: Steps, keys: tuple[str, ...]) -> bool:
    """Return whether a change of a row of `stream` may also change its join key. Then the old row must come, for
    the subtask that has it; else the row that is kept is found by the upsert key, which the join keys are part of."""
    info = stream._info
    return info.is_upsert and (info.whole_rows or not set(keys) <= set(info.upsert_key or ()))


def _changes(stream: Steps, what: str) -> Changes:
    """Return what the batches of `stream` are to a join."""
    info = stream._info
    if not info.is_upsert:
        return Changes()
    if not info.whole_rows:
        if info.upsert_key is None:
            raise plan_error(
                f"{what}: the key of an upsert stream was dropped or changed on the way, so its rows cannot be told "
                "apart; keep the key columns"
            )
        return Changes(info.upsert_key)
    schema = known_schema(info, what)
    with at_user_line():
        for field in schema:
            check_key_type(field.name, field.type)
    return Changes(tuple(schema.names), counted=True)


def _width(type_: pa.DataType) -> int:
    return int(type_.bit_width) if pa.types.is_primitive(type_) or pa.types.is_decimal(type_) else 1 << 30


def _type_call(type_: pa.DataType) -> str:
    """Return how the type is written in Python, for the usual ones."""
    text = str(type_)
    if pa.types.is_timestamp(type_):
        zone = f", {type_.tz!r}" if type_.tz else ""
        return f"pa.timestamp({type_.unit!r}{zone})"
    if pa.types.is_decimal(type_):
        return f"pa.{text}"
    names = {"double": "float64", "float": "float32", "halffloat": "float16", "bool": "bool_"}
    return f"pa.{names.get(text, text)}()" if text.isidentifier() else f"a type equal to {text}"
