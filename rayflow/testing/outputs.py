"""A job graph's file sinks: found, and pointed elsewhere, so that runs of one job can be compared."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from rayflow.connectors.file_sink import FileSink
from rayflow.graph.plan import JobGraph, OperatorSpec


def file_sinks(graph: JobGraph) -> Sequence[OperatorSpec]:
    """Return the operators of `graph` that write files, in the order of the plan."""
    return [op for vertex in graph.vertices for op in vertex.operators if isinstance(op.payload, FileSink)]


def redirected(graph: JobGraph, base: str) -> JobGraph:
    """Return the graph with its file sinks writing below `base`, each into a folder named by its uid."""
    vertices = [
        replace(vertex, operators=tuple(_redirected(op, base) for op in vertex.operators))
        for vertex in graph.vertices
    ]
    return replace(graph, vertices=tuple(vertices))


def _redirected(operator: OperatorSpec, base: str) -> OperatorSpec:
    if not isinstance(operator.payload, FileSink):
        return operator
    sink = copy.copy(operator.payload)
    sink.url = f"{base}/{operator.uid}"
    sink.if_exists = "overwrite"
    return replace(operator, payload=sink)
