"""Joins, while a job is written down.

The result has the key columns once, under the left side's names, then the left side's other columns, then the
right side's; of these a name that is taken already gets a suffix, as in Polars. Keys must have equal types on both
sides, since rows find each other by the hash of their keys. A null key matches nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa

from rayflow.api.planning import (
    StreamInfo,
    at_user_line,
    duration_ns,
    known_schema,
    output_schema,
    plan_error,
    require_columns,
)
from rayflow.api.specs import Duration
from rayflow.api.steps import Steps
from rayflow.batch.hashing import check_key_type
from rayflow.graph.plan import Exchange, StreamEdge
from rayflow.operators.joins.columns import How, JoinColumns, JoinSide
from rayflow.operators.joins.regular import Changes, RegularJoinOperator

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
        how: How = "inner",
        ttl: Duration | None = None,
        suffix: str = "_right",
    ) -> DataStream:
        """Pair rows of both streams whose columns `on` are equal: a name, several, or `{"left": "right"}`.

        Every pair comes once, as soon as both rows are there, so the rows of both streams are kept for ever, or for
        `ttl` (processing time). `how`: `"left"`, `"right"` and `"full"` also give rows without a match, beside nulls,
        and take that back when a match comes: such a result changes, as an upsert stream does, and so does a join of
        upsert streams. The result has no event time.
        """
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
        joined = self._then("join", payload, info, detail=sides.detail(), edges=sides.hash_edges())
        for stream in (self, other):
            if stream._info.is_upsert:
                self._env._wants_old_rows.add(joined._node.id)
        if ttl_ns is None and sides.unbounded():
            joined._node.warnings = (
                f"join ({joined._node.spec.location or 'unknown line'}) keeps all rows of both inputs for ever, and "
                "an input never ends: give it ttl=, or use a window or interval join",
            )
        return joined


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
            raise plan_error(f"{what}: expected another stream; got {self.right!r}")
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
            raise plan_error(
                f"{self.what}: column {left.name!r} is {left.type} on the left, column {right.name!r} is "
                f"{right.type} on the right; cast one of them, such as "
                f".with_columns({right.name}=col({right.name!r}).cast({_type_call(left.type)}))"
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

    def unbounded(self) -> bool:
        """Whether an input of either stream never ends."""
        return is_unbounded(self.left) or is_unbounded(self.right)


def is_unbounded(stream: Steps) -> bool:
    """Return whether a source of `stream` never ends."""
    env = stream._env
    specs = [env._nodes[node].spec for node in env._upstream([stream._node.id])]
    return any(spec.kind == "source" and not spec.payload.bounded for spec in specs)


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


def _type_call(type_: pa.DataType) -> str:
    if pa.types.is_timestamp(type_):
        zone = f", {type_.tz!r}" if type_.tz else ""
        return f"pa.timestamp({type_.unit!r}{zone})"
    return f"pa.{type_}()" if str(type_).isidentifier() else f"{str(type_)!r}"
