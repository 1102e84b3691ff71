"""From the job graph to the execution graph: its subtasks and channels. Derived on demand, never stored.

A `forward` edge has one channel per subtask, i → i. A `rescale` edge connects contiguous groups, so that each
subtask of the larger side has exactly one channel. Every other edge connects all with all.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayflow.graph.plan import ExchangeKind, JobEdge, JobGraph
from rayflow.model.ids import ChannelId, SubtaskId, VertexId


def subtasks(graph: JobGraph) -> list[SubtaskId]:
    """Return all subtasks, vertex by vertex in topological order, each by index."""
    return [s for vertex in graph.vertices for s in subtasks_of(graph, vertex.id)]


def subtasks_of(graph: JobGraph, vertex: VertexId) -> list[SubtaskId]:
    """Return the subtasks of one vertex, by index."""
    return [SubtaskId(vertex, index) for index in range(graph.vertex(vertex).parallelism)]


def channels(graph: JobGraph) -> list[ChannelId]:
    """Return all channels, by edge, then producer, then consumer."""
    return [
        channel
        for edge in graph.edges
        for producer in subtasks_of(graph, edge.source)
        for channel in edge_output_channels(graph, edge, producer)
    ]


def output_channels(graph: JobGraph, subtask: SubtaskId) -> list[ChannelId]:
    """Return the channels that `subtask` writes, by edge, then by the consumer's index."""
    return [c for edge in graph.outputs(subtask.vertex) for c in edge_output_channels(graph, edge, subtask)]


def behind_broadcasts(graph: JobGraph) -> frozenset[VertexId]:
    """Return the vertices that broadcasts go to, and all that come after these."""
    found: set[VertexId] = set()
    for vertex in graph.vertices:
        if any(e.exchange.kind == "broadcast" or e.source in found for e in graph.inputs(vertex.id)):
            found.add(vertex.id)
    return frozenset(found)


def main_consumers(graph: JobGraph, vertex: VertexId) -> int:
    """Return how many subtasks the rows go to that leave `vertex`, but for side outputs; 1 where none do."""
    main = [edge for edge in graph.outputs(vertex) if edge.tag is None]
    return max((graph.vertex(edge.target).parallelism for edge in main), default=1)


def input_channels(graph: JobGraph, subtask: SubtaskId) -> list[ChannelId]:
    """Return the channels that `subtask` reads, by edge, then by the producer's index."""
    return [c for edge in graph.inputs(subtask.vertex) for c in edge_input_channels(graph, edge, subtask)]


def edge_input_channels(graph: JobGraph, edge: JobEdge, consumer: SubtaskId) -> list[ChannelId]:
    """Return the channels of one edge that `consumer` reads, by the producer's index."""
    indices = producer_indices(
        edge.exchange.kind,
        graph.vertex(edge.source).parallelism,
        graph.vertex(edge.target).parallelism,
        consumer.index,
    )
    return [ChannelId(edge.id, SubtaskId(edge.source, index), consumer) for index in indices]


def edge_output_channels(graph: JobGraph, edge: JobEdge, producer: SubtaskId) -> list[ChannelId]:
    """Return the channels of one edge that `producer` writes, by the consumer's index."""
    indices = consumer_indices(
        edge.exchange.kind,
        graph.vertex(edge.source).parallelism,
        graph.vertex(edge.target).parallelism,
        producer.index,
    )
    return [ChannelId(edge.id, producer, SubtaskId(edge.target, index)) for index in indices]


def consumer_indices(kind: ExchangeKind, producers: int, consumers: int, producer: int) -> Sequence[int]:
    """Return the indices of the consumers that producer number `producer` has a channel to."""
    if kind == "forward":
        return (producer,)
    if kind == "rescale":
        return _group(producers, consumers, producer)
    return range(consumers)


def producer_indices(kind: ExchangeKind, producers: int, consumers: int, consumer: int) -> Sequence[int]:
    """Return the indices of the producers that consumer number `consumer` has a channel from."""
    if kind == "forward":
        return (consumer,)
    if kind == "rescale":
        return _group(consumers, producers, consumer)
    return range(producers)


def _group(own: int, others: int, index: int) -> Sequence[int]:
    """Return which of `others` subtasks belong to number `index` of `own`, by contiguous groups."""
    if own >= others:
        return (index * others // own,)
    # other j belongs to j * own // others == index
    return range(-(-index * others // own), -(-(index + 1) * others // own))
