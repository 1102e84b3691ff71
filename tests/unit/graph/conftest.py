"""Small stream graphs for the planner's tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rayflow.graph.chaining import plan_job
from rayflow.graph.plan import Exchange, JobGraph, NodeKind, OperatorSpec, StreamEdge, StreamNode


class GraphBuilder:
    """Adds nodes as the API does: ids grow, payloads are opaque texts."""

    def __init__(self) -> None:
        self.nodes: list[StreamNode] = []

    def add(self, name: str, *inputs: int | StreamEdge, kind: NodeKind = "operator", **more: Any) -> int:
        """Add a node and return its id. An input given as an id is an edge of any distribution."""
        spec_fields = {
            key: more.pop(key) for key in ("uid", "time", "detail", "location", "rate_limit") if key in more
        }
        edges = [
            StreamEdge(source=edge, exchange=Exchange("forward")) if isinstance(edge, int) else edge
            for edge in inputs
        ]
        spec = OperatorSpec(**{"uid": "", **spec_fields}, name=name, kind=kind, payload=name)
        self.nodes.append(StreamNode(id=len(self.nodes), spec=spec, inputs=edges, **more))
        return len(self.nodes) - 1

    def source(self, name: str = "read", **more: Any) -> int:
        """Add a source."""
        return self.add(name, kind="source", **more)

    def sink(self, *inputs: int | StreamEdge, name: str = "write", **more: Any) -> int:
        """Add a sink."""
        return self.add(name, *inputs, kind="sink", **more)

    def plan(self, parallelism: int = 2, max_parallelism: int = 128) -> JobGraph:
        """Plan what was added."""
        return plan_job(self.nodes, name="test", parallelism=parallelism, max_parallelism=max_parallelism)


def edge(source: int, kind: Any, *keys: str, **more: Any) -> StreamEdge:
    """Return an edge from `source` with an exchange of its own."""
    return StreamEdge(source=source, exchange=Exchange(kind, keys), **more)


def shape(graph: JobGraph) -> Sequence[tuple[str, str, str]]:
    """Return the edges as (from, exchange, to)."""
    return [(e.source, e.exchange.kind, e.target) for e in graph.edges]


@pytest.fixture
def g() -> GraphBuilder:
    """An empty graph."""
    return GraphBuilder()


@pytest.fixture
def shape_of() -> Any:
    """The function that renders edges."""
    return shape


@pytest.fixture
def via() -> Any:
    """The function that makes an edge with an exchange."""
    return edge
