"""Unions cost nothing: who reads one reads its inputs.

A *virtual* node only brings streams together. The planner takes it out and gives each of its consumers an edge from
every input of the node instead, so that no rows pass through a task of the union's own, and a producer waits
only for consumers that it sends to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rayflow.graph.plan import StreamEdge, StreamNode


def without_virtual_nodes(nodes: Sequence[StreamNode]) -> list[StreamNode]:
    """Return `nodes` (inputs before consumers) without the virtual ones, their edges joined. Changes no node."""
    inputs_of: dict[int, list[StreamEdge]] = {}
    kept = []
    for node in nodes:
        edges = [joined for edge in node.inputs for joined in _joined(edge, inputs_of)]
        if node.virtual:
            inputs_of[node.id] = edges
        else:
            kept.append(replace(node, inputs=edges))
    return kept


def _joined(edge: StreamEdge, inputs_of: dict[int, list[StreamEdge]]) -> list[StreamEdge]:
    """Return the edges that stand for `edge`: itself, or one from each input of the virtual node it reads."""
    if edge.source not in inputs_of:
        return [edge]
    # What the consumer asks for decides; where any distribution will do, what was asked for before.
    keeps = edge.exchange.kind == "forward"
    return [
        replace(before, exchange=before.exchange if keeps else edge.exchange, port=edge.port)
        for before in inputs_of[edge.source]
    ]
