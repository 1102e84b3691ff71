"""Columns that nobody reads are not read from files, nor carried along.

Theory of operation ------------------- Backwards over the stream graph, from consumers to inputs, each node learns
which of its output's columns are needed: those that its consumers read and those that hash exchanges go by. A
projection reads the columns of the expressions that are needed of it; a filter by an expression, new watermarks, and
deduplication, read theirs and pass the rest on; anything else, sinks included, reads everything. Then sources that
can, projections and the passed-on schemas are made narrower. A source keeps its event-time column.

Upsert streams are left as they are: their hidden column and their keys have readers that are not in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from rayflow.batch.changelog import OP_COLUMN
from rayflow.batch.expressions import Expr
from rayflow.connectors.file_source import ParquetSource
from rayflow.graph.plan import StreamNode
from rayflow.operators.dedup.operator import DeduplicateOperator
from rayflow.operators.stateless import AssignWatermarksOperator, FilterOperator, ProjectOperator

Needed = frozenset[str] | None
"""Names of columns; None: all of them, those that only running tells too."""

_PASSING_ON = (FilterOperator, AssignWatermarksOperator, DeduplicateOperator)
"""Operators whose output has the columns of their input."""


def without_unread_columns(nodes: Sequence[StreamNode]) -> list[StreamNode]:
    """Return the nodes, inputs before consumers as they came, made narrower where columns have no reader."""
    needed = _needed_of_outputs(nodes)
    narrowed: dict[int, StreamNode] = {}
    for node in nodes:
        narrowed[node.id] = _narrowed(node, needed[node.id], narrowed)
    return list(narrowed.values())


def _needed_of_outputs(nodes: Sequence[StreamNode]) -> dict[int, Needed]:
    read: dict[int, list[Needed]] = {node.id: [] for node in nodes}
    needed: dict[int, Needed] = {}
    for node in reversed(nodes):
        needed[node.id] = _needed_of(node.spec.schema, read[node.id])
        for edge in node.inputs:
            # Rows put aside have all the columns that came in.
            whole = edge.tag is not None or bool(node.spec.side_outputs)
            columns = None if whole else _read_by(node.spec.payload, needed[node.id])
            read[edge.source].append(_both(columns, edge.exchange.keys))
    return needed


def _needed_of(schema: pa.Schema | None, read: Sequence[Needed]) -> Needed:
    """Return what is needed of an output of which consumers read this."""
    if not read or schema is None or OP_COLUMN in schema.names:
        return None
    needed: Needed = frozenset()
    for columns in read:
        needed = None if columns is None else _both(needed, columns)
        if needed is None:
            return None
    return needed or frozenset(schema.names[:1])  # rows are counted by a column


def _both(left: Needed, right: Iterable[str]) -> Needed:
    return None if left is None else left | frozenset(right)


def _read_by(payload: Any, needed: Needed) -> Needed:
    """Return what an operator reads of its input, where `needed` is what is needed of its output."""
    if not isinstance(payload, partial):
        return None
    if payload.func is ProjectOperator:
        (columns,) = payload.args
        return frozenset().union(
            *(expr.columns() for name, expr in columns if needed is None or name in needed)
        )
    if payload.func is FilterOperator and isinstance(payload.args[0], Expr):
        return _both(needed, payload.args[0].columns())
    if payload.func is DeduplicateOperator:
        return _both(needed, payload.args[0].columns_read)
    if payload.func is AssignWatermarksOperator:
        return _both(needed, [payload.args[0]])
    return None


def _narrowed(node: StreamNode, needed: Needed, inputs: Mapping[int, StreamNode]) -> StreamNode:
    spec, schema = node.spec, node.spec.schema
    if needed is None or schema is None:
        return node
    payload = spec.payload
    if isinstance(payload, ParquetSource):
        needed = needed if spec.time is None else needed | {spec.time.column}
        kept = [field for field in schema if field.name in needed]
        payload = payload.reading([field.name for field in kept])
    elif not isinstance(payload, partial):
        return node
    elif payload.func is ProjectOperator:
        kept = [field for field in schema if field.name in needed]
        payload = partial(ProjectOperator, [(name, expr) for name, expr in payload.args[0] if name in needed])
    elif payload.func in _PASSING_ON and node.inputs[0].tag is None:
        above = inputs[node.inputs[0].source].spec.schema
        kept = [field for field in schema if above is None or field.name in above.names]
    else:
        return node
    return replace(node, spec=replace(spec, payload=payload, schema=pa.schema(kept)))
