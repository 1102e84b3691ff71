"""What every operator of a job has in common, whatever it does: a name, a uid, a parallelism, resources."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal, TypeVar

from rayflow.api.planning import at_user_line, plan_error, user_line
from rayflow.graph.plan import Resources, StreamNode
from rayflow.graph.uids import check_uid
from rayflow.model.durations import parse_size
from rayflow.model.error_policy import SideOutput

if TYPE_CHECKING:
    from rayflow.api.plan_builder import PlanBuilder

S = TypeVar("S", bound="Stage")


class Stage:
    """The last operator that was added to a stream, or a sink. Its settings may be changed until the job
    is executed; each call returns the same object, for chaining."""

    def __init__(self, env: PlanBuilder, node: StreamNode) -> None:
        self._env = env
        self._node = node

    def name(self: S, name: str) -> S:
        """Call the operator `name` where people look: plans, metrics, errors. Need not be unique."""
        node = self._settable("name")
        if not isinstance(name, str) or not name.strip():
            raise plan_error(f".name(): expected a text; got {name!r}")
        node.spec = replace(node.spec, name=name)
        return self

    def uid(self: S, uid: str) -> S:
        """Identify the operator in checkpoints: its state is found again under `uid` whatever else in the
        job changes. Letters, digits, `_`, `-`, `.`; unique in the job. Without it, name and position count."""
        node = self._settable("uid")
        check_uid(uid, user_line())
        # The line of the call, since that is where a duplicate is put right.
        node.spec = replace(node.spec, uid=uid, location=node.spec.location or user_line())
        return self

    def with_parallelism(self: S, parallelism: int) -> S:
        """Run the operator in so many subtasks, from 1 to the environment's max_parallelism."""
        node = self._settable("with_parallelism")
        limit = self._env.max_parallelism
        if not isinstance(parallelism, int) or not 1 <= parallelism <= limit:
            raise plan_error(
                f".with_parallelism(): expected 1 to {limit} (max_parallelism); got {parallelism!r}"
            )
        node.parallelism = parallelism
        return self

    def with_resources(
        self: S,
        *,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        memory: int | str | None = None,
    ) -> S:
        """Ask Ray for resources per subtask (`memory`: bytes, or a size such as `"2g"`); by default none.
        Operators with different resources run in different tasks."""
        node = self._settable("with_resources")
        with at_user_line():
            node.resources = Resources(
                num_cpus=_amount("num_cpus", num_cpus, node.resources.num_cpus),
                num_gpus=_amount("num_gpus", num_gpus, node.resources.num_gpus),
                memory=node.resources.memory if memory is None else parse_size(memory),
            )
        return self

    def on_error(self: S, policy: Literal["fail", "skip"] | SideOutput) -> S:
        """Say what becomes of a row on which the operator raises: the job `"fail"`s (the default, or what
        `errors.policy` says), the row is left out (`"skip"`) and counted in `rows_poisoned`, or it is counted and
        comes out of `side_output(tag)`, with the columns `error` and `operator` (`rf.SideOutput(tag)`).

        For `select`, `with_columns`, `filter`, `map`, `flat_map`, `map_batches` and `map_async` of append streams, and
        batched sinks of such (`rf.BatchedSink`); `read_csv`, `read_json` and `read_text` can skip. A batch on which
        `map_batches` raises, or that the system behind a sink refuses, is tried again in halves, down to single rows:
        such a function must not keep state. One that raises `rf.TransientError` has the job restart, whatever the
        policy.
        """
        node = self._settable("on_error")
        aside = self._env._error_policies.set(node, policy)
        if aside is not None:
            self._env._side_outputs[node.id] = aside
        return self

    def _settable(self, call: str) -> StreamNode:
        # An operator that someone names or places is wanted as a task.
        self._node.virtual = False
        return self._node


def _amount(what: str, value: float | None, default: float) -> float:
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise plan_error(f".with_resources({what}=): expected a number from 0; got {value!r}")
    return value
