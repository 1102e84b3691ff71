"""Adding an operator behind a stream: the one place where `DataStream` touches the stream graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rayflow.api.planning import StreamInfo, plan_error
from rayflow.api.side_outputs import SideOutputs
from rayflow.api.stage import Stage
from rayflow.graph.plan import Exchange, NodeKind, StreamEdge, StreamNode, Traits

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

_SAME: Any = object()


class Steps(Stage):
    """A stage that others can be added behind. `_exchange` is what the user asked for by name, `_tag` the side
    output that the stream is."""

    _info: StreamInfo
    _exchange: Exchange | None
    _tag: str | None

    def _then(
        self,
        name: str,
        payload: Any,
        info: StreamInfo,
        *,
        detail: str = "",
        edges: Sequence[StreamEdge] | None = None,
        partitioned_by: tuple[str, ...] | None = _SAME,
        changelog: Callable[[bool], Any] | None = None,
        side_outputs: SideOutputs | None = None,
        traits: Traits | None = None,
    ) -> DataStream:
        """Return the stream behind a new operator. `changelog(emit_before)` makes the payload of one
        whose output depends on whether someone behind it needs old rows (-U). `side_outputs` are what
        `side_output` can read of it, `traits` what the plan's rules judge it by."""
        from rayflow.api.streams import DataStream

        lies_by = info.partitioned_by if partitioned_by is _SAME else partitioned_by
        info = replace(info, partitioned_by=lies_by)
        node = self._add_node(name, "operator", payload, info, detail=detail, edges=edges)
        node.traits = traits or node.traits
        if changelog is not None:
            self._env._changelog_makers[node.id] = changelog
        if side_outputs is not None:
            self._env._side_outputs[node.id] = side_outputs
        self._env._error_policies.added(node, self._info)
        return DataStream(self._env, node, info)

    def _add_node(
        self,
        name: str,
        kind: NodeKind,
        payload: Any,
        info: StreamInfo,
        *,
        detail: str = "",
        edges: Sequence[StreamEdge] | None = None,
        rate_limit: float | None = None,
    ) -> StreamNode:
        return self._env._add_node(
            name,
            kind,
            payload,
            info,
            inputs=[self._edge()] if edges is None else edges,
            detail=detail,
            rate_limit=rate_limit,
        )

    def _edge(self, exchange: Exchange | None = None) -> StreamEdge:
        """Return an edge that reads this stream."""
        key = self._info.upsert_key
        if exchange is None:
            exchange = self._exchange or (Exchange("hash", key) if key else Exchange("forward"))
        return StreamEdge(source=self._node.id, exchange=exchange, tag=self._tag)

    def _settable(self, call: str) -> StreamNode:
        if self._exchange is not None:
            raise plan_error(
                f".{call}() names an operator, but .{self._exchange.kind}() is only a way to the next one; "
                f"call .{call}() before it, or behind the next operator"
            )
        if self._tag is not None:
            raise plan_error(
                f".{call}() names an operator, but .side_output({self._tag!r}) is only what one puts aside; call "
                f".{call}() before it, or behind the next operator"
            )
        return super()._settable(call)
