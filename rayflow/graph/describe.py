"""The job graph for people and programs: `rayflow plan`, as a tree and as JSON.

The JSON has one entry in `operators` per chain: `uid` and `name` of the chain, and in `chained` the uids of
the operators that run in the same task after its head.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from rayflow.batch.changelog import is_changelog, visible_schema
from rayflow.graph.execution import channels
from rayflow.graph.plan import JobEdge, JobGraph, JobVertex, OperatorSpec
from rayflow.model.durations import format_duration_ns
from rayflow.protocol.key_groups import key_group_range


def plan_json(graph: JobGraph) -> dict[str, Any]:
    """Return the plan as JSON data: name, parallelism limits, operators, edges and warnings."""
    return {
        "name": graph.name,
        "max_parallelism": graph.max_parallelism,
        "operators": [operator_json(graph, vertex) for vertex in graph.vertices],
        "edges": [_edge_json(graph, edge) for edge in graph.edges],
        "channels": len(channels(graph)),
        "warnings": list(graph.warnings),
    }


def operator_json(graph: JobGraph, vertex: JobVertex) -> dict[str, Any]:
    """Return one chain as JSON data. `key_groups` are half-open ranges per subtask, null where not keyed."""
    keyed = is_keyed(graph, vertex)
    return {
        "uid": vertex.id,
        "name": vertex.name,
        "parallelism": vertex.parallelism,
        "chained": [spec.uid for spec in vertex.operators[1:]],
        "steps": [_step_json(spec) for spec in vertex.operators],
        "resources": {
            "num_cpus": vertex.resources.num_cpus,
            "num_gpus": vertex.resources.num_gpus,
            "memory": vertex.resources.memory,
        },
        "key_groups": _key_groups(graph, vertex) if keyed else None,
    }


def is_keyed(graph: JobGraph, vertex: JobVertex) -> bool:
    """Return whether the rows of `vertex` lie by key group: some input of it is a hash exchange."""
    return any(edge.exchange.kind == "hash" and not edge.exchange.salts for edge in graph.inputs(vertex.id))


def plan_tree(graph: JobGraph) -> str:
    """Return the plan as plain text: chains from sources to sinks, their operators, inputs and warnings."""
    lines = [
        f"job {graph.name}: {_count(len(graph.vertices), 'chain')}, "
        f"{_count(sum(v.parallelism for v in graph.vertices), 'subtask')}, "
        f"{_count(len(channels(graph)), 'channel')}, {_count(graph.max_parallelism, 'key group')}"
    ]
    for vertex in graph.vertices:
        lines += _vertex_lines(graph, vertex)
    if graph.warnings:
        lines.append("warnings")
        lines += [f"  ! {warning}" for warning in graph.warnings]
    return "\n".join(lines)


def _vertex_lines(graph: JobGraph, vertex: JobVertex) -> list[str]:
    steps = [f"  {line}" for spec in vertex.operators for line in _step_lines(spec)]
    inputs = [f"  ⇐ {_edge_text(graph, edge)}" for edge in graph.inputs(vertex.id)]
    resources = vertex.resources
    extras = [f"{resources.num_cpus:g} CPU"] if resources.num_cpus else []
    extras += [f"{resources.num_gpus:g} GPU"] if resources.num_gpus else []
    extras += [f"{resources.memory >> 20} MiB"] if resources.memory else []
    head = f"{vertex.id}  × {vertex.parallelism}" + (f"  ({', '.join(extras)} each)" if extras else "")
    if is_keyed(graph, vertex):
        ranges = " ".join(f"{start}–{stop - 1}" for start, stop in _key_groups(graph, vertex)[:8])
        inputs.append(f"    key groups {ranges}{' …' if vertex.parallelism > 8 else ''}")
    return [head, *inputs, *steps]


def _step_lines(spec: OperatorSpec) -> list[str]:
    marks = {"source": "▷", "operator": "•", "sink": "▶"}
    title = spec.name if spec.uid == spec.name else f"{spec.name} [{spec.uid}]"
    lines = [f"{marks[spec.kind]} {title}{': ' + spec.detail if spec.detail else ''}"]
    if spec.kind == "operator" and spec.schema is not None and is_changelog(spec.schema):
        lines.append("    upserts: rows replace earlier ones of their key")
    if spec.time is not None:
        lines.append(f"    event time {spec.time.column}, delay {format_duration_ns(spec.time.delay)}")
    if spec.rate_limit is not None:
        lines.append(f"    at most {spec.rate_limit:g} rows/s")
    return lines


def _edge_text(graph: JobGraph, edge: JobEdge) -> str:
    spread = min(edge.exchange.salts, graph.vertex(edge.target).parallelism)
    salt = [f"salt of {spread}"] if spread else []
    keys = f"({', '.join([*edge.exchange.keys, *salt])})" if edge.exchange.kind == "hash" else ""
    tag = f" side output {edge.tag!r}" if edge.tag else ""
    why = f" ({edge.exchange.why})" if edge.exchange.why else ""
    given_up = gives_up(graph, edge)
    return (
        f"{edge.exchange.kind}{keys} from {edge.source}{tag}, "
        f"{graph.vertex(edge.source).parallelism} → {graph.vertex(edge.target).parallelism}{why}"
        f"{f'; gives up {given_up}' if given_up else ''}"
    )


def gives_up(graph: JobGraph, edge: JobEdge) -> str | None:
    """Return what rows lose by an exchange that deals them out whatever their key (S2); None where nothing."""
    if edge.exchange.kind not in ("rebalance", "rescale") or graph.vertex(edge.target).parallelism == 1:
        return None
    return "the order of a key's rows"


def _step_json(spec: OperatorSpec) -> dict[str, Any]:
    return {
        "uid": spec.uid,
        "name": spec.name,
        "kind": spec.kind,
        "detail": spec.detail,
        "location": spec.location,
        "rate_limit": spec.rate_limit,
        "time_column": spec.time.column if spec.time else None,
        "schema": _schema_json(spec.schema),
        "upserts": spec.schema is not None and is_changelog(spec.schema),
    }


def _schema_json(schema: pa.Schema | None) -> dict[str, str] | None:
    return None if schema is None else {field.name: str(field.type) for field in visible_schema(schema)}


def _edge_json(graph: JobGraph, edge: JobEdge) -> dict[str, Any]:
    return {
        "from": edge.source,
        "to": edge.target,
        "exchange": edge.exchange.kind,
        "keys": list(edge.exchange.keys) if edge.exchange.kind == "hash" else [],
        "salts": edge.exchange.salts,
        "port": edge.port,
        "tag": edge.tag,
        "why": edge.exchange.why or None,
        "gives_up": gives_up(graph, edge),
    }


def _key_groups(graph: JobGraph, vertex: JobVertex) -> list[tuple[int, int]]:
    ranges = (
        key_group_range(graph.max_parallelism, vertex.parallelism, index)
        for index in range(vertex.parallelism)
    )
    return [(r.start, r.stop) for r in ranges]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
