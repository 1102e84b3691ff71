"""The stream graph as it grows, and its planning.

Streams may be executed more than once: `plan` takes the sinks added since the last execution and what they
need, so a notebook can go on from streams it already has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from rayflow.api.error_policies import ErrorPolicies
from rayflow.api.planning import StreamInfo, plan_error, user_line
from rayflow.api.pruning import without_unread_columns
from rayflow.api.side_outputs import SideOutputs
from rayflow.api.state_places import state_warnings
from rayflow.graph.chaining import MAX_PARALLELISM_LIMIT, plan_job
from rayflow.graph.plan import JobGraph, NodeKind, OperatorSpec, StreamEdge, StreamNode
from rayflow.graph.warnings import ENOUGH_SPLITS, config_warnings, poison_warnings
from rayflow.model.config import JobConfig, flatten, with_environment

DEFAULT_MAX_PARALLELISM = 128


class PlanBuilder:
    """Collects nodes and turns them into a job graph.

    Invariant: node ids are positions in `_nodes`, so inputs come before their consumers. `_sinks` are those
    to execute next, `_wants_old_rows` nodes that need an update's old row too, `_planned` what was executed.
    """

    def __init__(
        self,
        name: str = "job",
        parallelism: int = 1,
        max_parallelism: int = DEFAULT_MAX_PARALLELISM,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(name, str) or not name.strip():
            raise plan_error(f"StreamEnvironment(name=): expected a text; got {name!r}")
        _check_range("max_parallelism", max_parallelism, MAX_PARALLELISM_LIMIT)
        _check_range("parallelism", parallelism, max_parallelism)
        self.name = name
        self.parallelism = parallelism
        self.max_parallelism = max_parallelism
        self.config: dict[str, Any] = flatten(config or {})
        JobConfig.from_flat(self.config)
        self._nodes: list[StreamNode] = []
        self._sinks: list[int] = []
        self._wants_old_rows: set[int] = set()
        self._planned: set[int] = set()
        self._changelog_makers: dict[int, Callable[[bool], Any]] = {}
        self._side_outputs: dict[int, SideOutputs] = {}
        self._error_policies = ErrorPolicies()

    def plan(self) -> JobGraph:
        """Return the job graph of all sinks that were added since the last execution. Raises PlanError."""
        return self._plan(self._sinks)

    def _plan(self, sinks: Sequence[int]) -> JobGraph:
        needed = self._upstream(sinks)
        wanting = [self._nodes[i] for i in sorted(needed & self._wants_old_rows)]
        retracted = self._upstream(edge.source for node in wanting for edge in node.inputs)
        read = {(e.source, e.tag) for i in needed for e in self._nodes[i].inputs if e.tag is not None}
        nodes = [
            self._final(self._nodes[i], i in retracted, [tag for node, tag in sorted(read) if node == i])
            for i in sorted(needed)
        ]
        return plan_job(
            without_unread_columns(nodes),
            name=self.name,
            parallelism=self.parallelism,
            max_parallelism=self.max_parallelism,
            warnings=[
                *config_warnings(self.config),
                *state_warnings((node.spec for node in nodes), self.config),
                *self._unread_warnings(needed),
                *poison_warnings(nodes, read),
            ],
        )

    def _final(self, node: StreamNode, needs_old_rows: bool, tags: Sequence[str]) -> StreamNode:
        """Return the node as it is deployed: what depends on its consumers, or on settings, is filled in."""
        spec, make = node.spec, self._changelog_makers.get(node.id)
        if make is not None:
            spec = replace(spec, payload=make(needs_old_rows))
        if tags:
            schemas = self._side_outputs[node.id].schemas()
            spec = replace(spec, side_outputs={tag: schemas[tag] for tag in tags})
        if spec.kind == "source":
            node = self._counted(node)
            if spec.rate_limit is None:
                spec = replace(spec, rate_limit=JobConfig.from_flat(self.config).source_rate_limit)
        return replace(node, spec=self._error_policies.final(spec, node.id, self.config))

    def _counted(self, node: StreamNode) -> StreamNode:
        """Return a source with the number of its splits, where several subtasks will read it."""
        config = JobConfig.from_flat(self.config)
        node = replace(node, rebalance=node.rebalance or config.source_rebalance == "auto")
        subtasks = node.parallelism or min(self.parallelism, node.max_parallelism or self.parallelism)
        if subtasks == 1:
            return node
        try:
            splits = node.spec.payload.split_count(ENOUGH_SPLITS * subtasks)
        except Exception as error:
            # What cannot be listed here may well be where the job runs.
            told = (
                f"{node.spec.name} ({node.spec.location or 'unknown line'}): its splits cannot be listed here "
                f"({type(error).__name__}: {error}), so they are not set beside the parallelism"
            )
            return replace(node, warnings=(*node.warnings, told))
        return replace(node, traits=replace(node.traits, splits=splits))

    def _upstream(self, ids: Iterable[int]) -> set[int]:
        """Return the nodes that these nodes need, and themselves."""
        found: set[int] = set()
        open_ids = list(ids)
        while open_ids:
            current = open_ids.pop()
            if current not in found:
                found.add(current)
                open_ids += [edge.source for edge in self._nodes[current].inputs]
        return found

    def _unread_warnings(self, needed: set[int]) -> list[str]:
        read = {edge.source for node in self._nodes for edge in node.inputs}
        return [
            f"nothing reads {node.spec.name!r} ({node.spec.location or 'unknown line'}), so it does not run"
            for node in self._nodes
            if node.id not in needed | read | self._planned and node.spec.kind != "sink"
        ]

    def _taken(self, sinks: Sequence[int]) -> None:
        """These sinks are executed: do not execute them again, nor warn about their streams."""
        # A sink whose rows that were put aside went into one of these has run with it.
        ran = self._upstream(sinks)
        self._planned |= ran
        self._sinks = [sink for sink in self._sinks if sink not in ran]

    def _add_node(
        self,
        name: str,
        kind: NodeKind,
        payload: Any,
        info: StreamInfo,
        *,
        inputs: Sequence[StreamEdge],
        detail: str = "",
        rate_limit: float | None = None,
    ) -> StreamNode:
        spec = OperatorSpec(
            uid="",
            name=name,
            kind=kind,
            payload=payload,
            location=user_line(),
            schema=info.physical_schema,
            rate_limit=rate_limit,
            detail=detail,
        )
        node = StreamNode(
            id=len(self._nodes), spec=spec, inputs=list(inputs), partitioned_by=info.partitioned_by
        )
        self._nodes.append(node)
        return node

    def _storage_options(self) -> dict[str, str]:
        """Return the storage options of files, from the configuration, else from this process's AWS_*."""
        return JobConfig.from_flat(with_environment(self.config, os.environ)).storage_options


def _check_range(what: str, value: Any, limit: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= limit:
        raise plan_error(f"StreamEnvironment({what}=): expected 1 to {limit}; got {value!r}")
