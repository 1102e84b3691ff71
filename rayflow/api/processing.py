"""Process functions in a plan: of keyed streams, and of two connected ones.

Both inputs of a two-input function are keyed, by equal types; or the second is broadcast; or neither is keyed,
and then there is no state. The result has the columns of `returns=`, and the event time of the input where it
still has that column.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from rayflow.api.planning import StreamInfo, plan_error, refuse_upsert, require_columns
from rayflow.api.returns import returned_schema
from rayflow.api.side_outputs import SideOutputs
from rayflow.api.traits import of_process
from rayflow.graph.plan import Exchange, StreamEdge
from rayflow.operators.process import Port, ProcessOperator
from rayflow.operators.process_functions import CoProcessFunction, KeyedProcessFunction, ProcessFunction
from rayflow.operators.states import declared_states
from rayflow.operators.untimed import UntimedOperator

if TYPE_CHECKING:
    from rayflow.api.keyed import KeyedStream
    from rayflow.api.streams import DataStream


class ConnectedStreams:
    """Two streams for one function. Made by `DataStream.connect` and `KeyedStream.connect`."""

    def __init__(self, inputs: Sequence[tuple[DataStream, tuple[str, ...]]]) -> None:
        self._inputs = tuple(inputs)

    def process(self, fn: CoProcessFunction | type[CoProcessFunction], returns: Any = None) -> DataStream:
        """Hand each row to `fn.process1` (of the first stream) or `fn.process2` (of the second), and emit what it
        yields. `fn`: an `rf.CoProcessFunction`, or its class, which is made once per subtask."""
        what = "process"
        kind = _function_type(fn, CoProcessFunction, ("process1", "process2"), what)
        (first, first_keys), (second, second_keys) = self._inputs
        first, second = _untimed_beside(first, second), _untimed_beside(second, first)
        is_broadcast = second._exchange is not None and second._exchange.kind == "broadcast"
        _check_states(kind, has_keys=bool(first_keys), has_broadcast=is_broadcast)
        ports = (
            _port("process1", first, first_keys),
            _port("process2", second, second_keys, is_broadcast=is_broadcast),
        )
        edges = [_edge(first, first_keys, 0), _edge(second, second_keys, 1)]
        same_time = is_broadcast or first._info.time_column == second._info.time_column
        schema = returned_schema(returns, fn.process1, what, flat=True)
        return _processed(first, fn, kind, ports, edges, schema, keeps_time=same_time)


def connected(left: DataStream | KeyedStream, right: Any) -> ConnectedStreams:
    """Return two streams to be processed by one function. Raises PlanError where they do not fit."""
    what = "connect"
    (first, first_keys), (second, second_keys) = _parts(left), _parts(right)
    if first._env is not second._env:
        raise plan_error("connect: the streams belong to different environments")
    for stream in (first, second):
        refuse_upsert(stream._info, what)
    if first._exchange is not None and first._exchange.kind == "broadcast":
        raise plan_error("connect: the broadcast stream comes second: rows.connect(rules.broadcast())")
    broadcast = second._exchange is not None and second._exchange.kind == "broadcast"
    if not broadcast and bool(first_keys) != bool(second_keys):
        raise plan_error(
            "connect: one stream is keyed and the other is not; give both .key_by(…), or the second .broadcast()"
        )
    if second_keys:
        _check_key_types(first, first_keys, second, second_keys)
    return ConnectedStreams([(first, first_keys), (second, second_keys)])


def keyed_process(stream: DataStream, keys: tuple[str, ...], fn: Any, returns: Any) -> DataStream:
    """Return the stream of what a `KeyedProcessFunction` makes. Raises PlanError, at the user's line."""
    refuse_upsert(stream._info, "process")
    kind = _function_type(fn, KeyedProcessFunction, ("process",), "process")
    _check_states(kind, has_keys=True, has_broadcast=False)
    schema = returned_schema(returns, fn.process, "process", flat=True)
    ports = (_port("process", stream, keys),)
    return _processed(stream, fn, kind, ports, [_edge(stream, keys, 0)], schema, keeps_time=True)


def _processed(
    first: DataStream,
    fn: Any,
    kind: type,
    ports: tuple[Port, ...],
    edges: list[StreamEdge],
    schema: pa.Schema | None,
    *,
    keeps_time: bool,
) -> DataStream:
    keys = ports[0].keys
    key_schema = None
    if keys:
        rows = require_columns(first._info, keys, "process")
        key_schema = pa.schema([rows.field(key) for key in keys])

    def made(schema: pa.Schema | None) -> StreamInfo:
        info = first._made(schema)
        return info if keeps_time else StreamInfo(schema=info.schema)

    by = f" by {', '.join(keys)}" if keys else ""
    return first._then(
        "process",
        partial(ProcessOperator, fn, ports, key_schema, schema),
        made(schema),
        detail=f"{kind.__qualname__.replace('<locals>.', '')}{by}",
        edges=edges,
        side_outputs=SideOutputs(made=made),
        traits=of_process(kind, keys, first._info.schema),
    )


def _parts(stream: Any) -> tuple[DataStream, tuple[str, ...]]:
    from rayflow.api.keyed import KeyedStream
    from rayflow.api.streams import DataStream

    if isinstance(stream, KeyedStream):
        return stream._stream, stream._keys
    if isinstance(stream, DataStream):
        return stream, ()
    raise plan_error(f"connect: expected a stream; got {stream!r}")


def _untimed_beside(stream: DataStream, other: DataStream) -> DataStream:
    """Return the stream, which does not hold the watermark back where only the other has event time."""
    if stream._info.time_column is not None or other._info.time_column is None:
        return stream
    plain = type(stream)(stream._env, stream._node, stream._info, None, stream._tag)
    made = plain._then("untimed", UntimedOperator, stream._info)
    return type(stream)(made._env, made._node, made._info, stream._exchange)


def _port(method: str, stream: DataStream, keys: tuple[str, ...], is_broadcast: bool = False) -> Port:
    time, schema = stream._info.time_column, stream._info.schema
    time_type = None if time is None or schema is None else schema.field(time).type
    return Port(
        method=method,
        keys=keys,
        time_column=None if time_type is None else time,
        time_type=time_type,
        is_broadcast=is_broadcast,
    )


def _edge(stream: DataStream, keys: tuple[str, ...], port: int) -> StreamEdge:
    edge = stream._edge(Exchange("hash", keys) if keys else None)
    edge.port = port
    return edge


def _function_type(fn: Any, base: type, methods: tuple[str, ...], what: str) -> type[ProcessFunction]:
    kind = fn if isinstance(fn, type) else type(fn)
    if not issubclass(kind, base):
        raise plan_error(f"{what}: expected an rf.{base.__name__}, or a class derived from it; got {fn!r}")
    for method in methods:
        if getattr(kind, method) is getattr(base, method):
            raise plan_error(f"{what}: {kind.__name__} has no {method}(self, row, ctx)")
    return cast(type[ProcessFunction], kind)


def _check_states(kind: type, *, has_keys: bool, has_broadcast: bool) -> None:
    for name, state in declared_states(kind).items():
        where = f"process: state {name!r} of {kind.__name__}"
        if state.is_broadcast and not has_broadcast:
            raise plan_error(
                f"{where} is broadcast state; connect with the stream that writes it: "
                "rows.connect(rules.broadcast())"
            )
        if not state.is_broadcast and not has_keys:
            raise plan_error(f"{where} is state by key, but the rows have none; give the stream .key_by(…)")


def _check_key_types(
    first: DataStream, first_keys: tuple[str, ...], second: DataStream, second_keys: tuple[str, ...]
) -> None:
    ours = require_columns(first._info, first_keys, "connect")
    theirs = require_columns(second._info, second_keys, "connect")
    if len(first_keys) != len(second_keys):
        raise plan_error(
            f"connect: one stream is keyed by {', '.join(first_keys)}, the other by {', '.join(second_keys)}; "
            "expected as many key columns on both sides"
        )
    for mine, its in zip(first_keys, second_keys):
        left, right = ours.field(mine).type, theirs.field(its).type
        if left != right:
            raise plan_error(
                f"connect: key column {mine!r} is {left}, the other stream's {its!r} is {right}, and only equal types "
                "meet; cast one of them with .with_columns(…) before .key_by(…)"
            )
