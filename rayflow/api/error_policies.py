"""`on_error`: which operators can leave rows out on which they raise, and what they put aside.

Said at the operator (`map(fn, on_error=…)`, or `.on_error(…)` behind any operator that can), else by the job's
`errors.policy`. Of upsert streams no change may be left out, since the row before it would stay; process functions
have state, which a row that raises may have changed in part; there, everything must succeed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from rayflow.api.planning import StreamInfo, at_user_line, plan_error
from rayflow.api.side_outputs import SideOutputs
from rayflow.connectors.file_source import FileSource
from rayflow.graph.plan import OperatorSpec, StreamNode
from rayflow.model.config import JobConfig
from rayflow.model.error_policy import ERROR_COLUMN, OPERATOR_COLUMN, SideOutput, checked_policy
from rayflow.operators.batched_sink import BatchedSink
from rayflow.operators.map_async import MapAsyncOperator
from rayflow.operators.poison import poison_schema
from rayflow.operators.stateless import (
    FilterOperator,
    FlatMapOperator,
    MapBatchesOperator,
    MapOperator,
    ProjectOperator,
)

_ROW_BY_ROW = (
    FilterOperator,
    FlatMapOperator,
    MapAsyncOperator,
    MapBatchesOperator,
    MapOperator,
    ProjectOperator,
)


class ErrorPolicies:
    """The policies of a job's operators while it is written down. `_inputs` has, by node, what is known of the
    rows of each operator that can leave some out."""

    def __init__(self) -> None:
        self._inputs: dict[int, StreamInfo] = {}

    def added(self, node: StreamNode, given: StreamInfo) -> None:
        """Take note of a new operator behind a stream of which this is known."""
        payload = node.spec.payload
        row_by_row = isinstance(payload, partial) and payload.func in _ROW_BY_ROW
        if (row_by_row or isinstance(payload, BatchedSink)) and not given.is_upsert:
            self._inputs[node.id] = given

    def set(self, node: StreamNode, policy: Any) -> SideOutputs | None:
        """Give the operator a policy; return the side outputs that it has with that. Raises PlanError."""
        what = f"{node.spec.name}: on_error"
        with at_user_line():
            checked = checked_policy(node.spec.name, policy)
        if node.spec.kind == "source":
            self._check_source(node, checked, what)
        elif node.id not in self._inputs and checked != "fail":
            raise plan_error(
                f"{what}: this operator cannot leave rows out: only select, with_columns, filter, map, "
                "flat_map, map_batches, map_async and batched sinks of append streams can, and read_csv, read_json and "
                "read_text; in a process function, catch the error and give the row to ctx.output(tag, row)"
            )
        node.spec = replace(node.spec, errors=checked)
        return self._side_outputs(node, checked, what) if isinstance(checked, SideOutput) else None

    def final(self, spec: OperatorSpec, node: int, config: Mapping[str, Any]) -> OperatorSpec:
        """Return the operator as it is deployed, with the job's policy where it has none of its own."""
        errors = spec.errors
        source = spec.payload if isinstance(spec.payload, FileSource) and spec.payload.can_skip else None
        if errors is None and (source is not None or node in self._inputs):
            errors = "skip" if JobConfig.from_flat(config).errors_policy == "skip" else "fail"
        if source is not None and errors == "skip":
            return replace(spec, payload=source.skipping(), errors=errors)
        return replace(spec, errors=errors or "fail")

    def _check_source(self, node: StreamNode, policy: Any, what: str) -> None:
        can_skip = isinstance(node.spec.payload, FileSource) and node.spec.payload.can_skip
        if isinstance(policy, SideOutput):
            raise plan_error(
                f"{what}: a source has no side output for records that it cannot read; read the lines with "
                "read_text and parse them with .map(json.loads, returns=…, on_error=rf.SideOutput(tag))"
            )
        if policy != "fail" and not can_skip:
            raise plan_error(f"{what}: only read_csv, read_json and read_text can skip broken records")

    def _side_outputs(self, node: StreamNode, policy: SideOutput, what: str) -> SideOutputs:
        given = self._inputs[node.id]
        names = () if given.schema is None else given.schema.names
        for taken in (ERROR_COLUMN, OPERATOR_COLUMN):
            if taken in names:
                raise plan_error(
                    f"{what}: the side output {policy.tag!r} adds a column {taken!r} to the rows, which they have "
                    "already; rename it before"
                )
        schema = None if given.schema is None else poison_schema(given.schema)
        info = StreamInfo(schema=schema, time_column=given.time_column)
        return SideOutputs({policy.tag: info})
