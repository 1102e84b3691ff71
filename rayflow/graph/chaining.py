"""From the stream graph to the job graph: parallelism, exchanges, chains.

Theory of operation. Unions are planned away (`unions`); then four passes over the nodes, inputs before consumers:

1. Each node's parallelism: its own, else the job's, never more than it can use.
2. Each edge's exchange, the cheapest that is correct: a `hash` becomes `forward` where the rows already lie
   by those very keys at the same parallelism; `forward` becomes `rebalance` where the parallelism differs.
   What the user asked for by name (`rebalance`, `rescale`, `broadcast`) stays. A keyed exchange is kept at
   parallelism 1 too: it decouples producer and consumer. Behind a source with `rebalance` whose splits are uneven,
   `forward` becomes `rebalance` too.
3. Chains: two nodes share a task, and records pass by function call, when the edge between them is `forward`
   and not a side output, it is the only one the upstream node has and the only one the downstream node has,
   both may be chained, and both ask for the same resources. So an operator whose side output is read beside its
   rows is the last of its chain, and a side output always leaves the tail.
4. The graph: a vertex per chain, named by the uid of its head; an edge per edge between chains.

Rows that lie by hash stay so through nodes that say which of their columns hold the keys
(`StreamNode.partitioned_by`), as long as no exchange other than `forward` comes between.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from rayflow.batch.changelog import is_changelog
from rayflow.graph.plan import (
    Exchange,
    JobEdge,
    JobGraph,
    JobVertex,
    OperatorSpec,
    Resources,
    StreamEdge,
    StreamNode,
)
from rayflow.graph.uids import assign_uids
from rayflow.graph.unions import without_virtual_nodes
from rayflow.graph.warnings import are_uneven, plan_warnings
from rayflow.model.errors import PlanError
from rayflow.model.ids import EdgeId, VertexId

MAX_PARALLELISM_LIMIT = 32_768
"""Most key groups a job can have (Flink's limit, 2^15)."""


@dataclass(frozen=True, slots=True)
class _Link:
    """An edge of the stream graph with its exchange decided."""

    edge: StreamEdge
    target: int
    exchange: Exchange


def plan_job(
    nodes: Sequence[StreamNode],
    *,
    name: str,
    parallelism: int,
    max_parallelism: int,
    warnings: Sequence[str] = (),
) -> JobGraph:
    """Return the job graph of `nodes` (in any order; ids grow from inputs to consumers).

    Raises PlanError for a parallelism out of range, duplicate uids, or a job without sources or sinks.
    """
    ordered = _beside_inputs(without_virtual_nodes(sorted(nodes, key=lambda node: node.id)))
    _check_job(ordered, parallelism, max_parallelism)
    by_id = {node.id: node for node in ordered}
    specs = assign_uids(ordered)
    subtasks = {node.id: _parallelism(node, parallelism, max_parallelism) for node in ordered}
    links = _decide_exchanges(ordered, by_id, subtasks)
    head_of = _chain_heads(ordered, by_id, subtasks, links)
    return JobGraph(
        name=name,
        max_parallelism=max_parallelism,
        vertices=_vertices(ordered, specs, subtasks, head_of),
        edges=_edges(by_id, specs, links, head_of),
        warnings=(
            *warnings,
            *(text for node in ordered for text in node.warnings),
            *plan_warnings(ordered, subtasks, {link.edge.source for link in links if link.exchange.why}),
        ),
    )


def _beside_inputs(nodes: Sequence[StreamNode]) -> list[StreamNode]:
    """Return the nodes; those that run beside their input have its settings."""
    by_id: dict[int, StreamNode] = {}
    for node in nodes:
        if node.beside_input and node.inputs[0].exchange.kind == "forward":
            above = by_id[node.inputs[0].source]
            node = replace(
                node,
                parallelism=above.parallelism,
                max_parallelism=above.max_parallelism,
                resources=above.resources,
            )
        by_id[node.id] = node
    return list(by_id.values())


def _check_job(nodes: Sequence[StreamNode], parallelism: int, max_parallelism: int) -> None:
    if not 1 <= max_parallelism <= MAX_PARALLELISM_LIMIT:
        raise PlanError(f"max_parallelism: expected 1 to {MAX_PARALLELISM_LIMIT}; got {max_parallelism}")
    if not 1 <= parallelism <= max_parallelism:
        raise PlanError(
            f"parallelism: expected 1 to max_parallelism ({max_parallelism}); got {parallelism}; "
            "give the environment a larger max_parallelism"
        )
    if not any(node.spec.kind == "sink" for node in nodes):
        raise PlanError(
            "the job writes nowhere: give a stream a sink, such as .write_parquet(path) or .print()"
        )
    for node in nodes:
        if not node.inputs and node.spec.kind != "source":
            raise PlanError(f"operator {node.spec.name!r} has no input", node.spec.location)


def _parallelism(node: StreamNode, default: int, max_parallelism: int) -> int:
    if node.parallelism is None:
        return min(default, node.max_parallelism or default)
    limit = min(max_parallelism, node.max_parallelism or max_parallelism)
    if not 1 <= node.parallelism <= limit:
        whose = "max_parallelism" if limit == max_parallelism else "the most it can use"
        raise PlanError(
            f"parallelism of {node.spec.name!r}: expected 1 to {limit} ({whose}); got {node.parallelism}",
            node.spec.location,
        )
    return node.parallelism


# ----------------------------------------------------------------------------------------- exchanges


def _decide_exchanges(
    nodes: Sequence[StreamNode], by_id: dict[int, StreamNode], subtasks: dict[int, int]
) -> list[_Link]:
    links: list[_Link] = []
    lie_by: dict[int, tuple[str, ...] | None] = {}
    for node in nodes:
        inputs = [
            _Link(edge, node.id, _exchange(edge, by_id[edge.source], lie_by[edge.source], subtasks, node.id))
            for edge in node.inputs
        ]
        for link in inputs:
            _check_order(by_id[link.edge.source], node, link.exchange)
        lie_by[node.id] = node.partitioned_by if _keeps_partitioning(inputs, lie_by) else None
        links += inputs
    return links


def _exchange(
    edge: StreamEdge,
    source: StreamNode,
    rows_lie_by: tuple[str, ...] | None,
    subtasks: dict[int, int],
    target: int,
) -> Exchange:
    wanted, producers, consumers = edge.exchange, subtasks[source.id], subtasks[target]
    lies_by = rows_lie_by if edge.tag is None else None
    if wanted.kind == "hash" and wanted.owner_keys == lies_by and producers == consumers:
        return Exchange("forward", wanted.keys)
    if wanted.kind == "forward":
        if source.rebalance and are_uneven(source.traits.splits, producers):
            return Exchange("rebalance", why=f"{source.traits.splits} splits for {producers} subtasks")
        return Exchange("forward", lies_by or ()) if producers == consumers else Exchange("rebalance")
    return wanted


def _check_order(source: StreamNode, target: StreamNode, exchange: Exchange) -> None:
    # Whoever takes rows back must get them after they came. (A sink that takes such a stream only shows it.)
    schema = source.spec.schema
    if (
        exchange.kind == "rebalance"
        and target.spec.kind != "sink"
        and schema is not None
        and is_changelog(schema)
    ):
        raise PlanError(
            f"{target.spec.name!r} has another parallelism than {source.spec.name!r}, and the key of this upsert "
            "stream was dropped, so its changes would get out of order; keep the key columns, or the parallelism",
            target.spec.location,
        )


def _keeps_partitioning(inputs: Sequence[_Link], lie_by: dict[int, tuple[str, ...] | None]) -> bool:
    return bool(inputs) and all(
        link.exchange.kind == "hash"
        or (
            link.exchange.kind == "forward" and link.edge.tag is None and lie_by[link.edge.source] is not None
        )
        for link in inputs
    )


# -------------------------------------------------------------------------------------------- chains


def _chain_heads(
    nodes: Sequence[StreamNode],
    by_id: dict[int, StreamNode],
    subtasks: dict[int, int],
    links: Sequence[_Link],
) -> dict[int, int]:
    """Return the id of the head of each node's chain."""
    consumers = Counter(link.edge.source for link in links)
    head_of = {node.id: node.id for node in nodes}
    for link in links:
        source, target = by_id[link.edge.source], by_id[link.target]
        if (
            link.exchange.kind == "forward"
            and link.edge.tag is None
            and consumers[source.id] == 1
            and len(target.inputs) == 1
            and source.chainable
            and target.chainable
            and source.resources == target.resources
            and subtasks[source.id] == subtasks[target.id]
        ):
            # Links come in the order of their targets, so the source's own head is already known.
            head_of[target.id] = head_of[source.id]
    return head_of


def _vertices(
    nodes: Sequence[StreamNode],
    specs: dict[int, OperatorSpec],
    subtasks: dict[int, int],
    head_of: dict[int, int],
) -> tuple[JobVertex, ...]:
    chains: dict[int, list[OperatorSpec]] = {}
    resources: dict[int, Resources] = {}
    for node in nodes:
        chains.setdefault(head_of[node.id], []).append(specs[node.id])
        resources[node.id] = node.resources
    return tuple(
        JobVertex(
            id=VertexId(specs[head].uid),
            operators=tuple(chain),
            parallelism=subtasks[head],
            resources=resources[head],
        )
        for head, chain in chains.items()
    )


def _edges(
    by_id: dict[int, StreamNode],
    specs: dict[int, OperatorSpec],
    links: Sequence[_Link],
    head_of: dict[int, int],
) -> tuple[JobEdge, ...]:
    between = [link for link in links if head_of[link.target] != head_of[link.edge.source]]
    return tuple(
        JobEdge(
            id=EdgeId(index),
            source=VertexId(specs[head_of[link.edge.source]].uid),
            target=VertexId(specs[head_of[link.target]].uid),
            exchange=link.exchange,
            port=link.edge.port,
            tag=link.edge.tag,
            schema=_schema(by_id[link.edge.source].spec, link.edge.tag),
        )
        for index, link in enumerate(between)
    )


def _schema(spec: OperatorSpec, tag: str | None) -> pa.Schema | None:
    return spec.schema if tag is None else spec.side_outputs.get(tag)
