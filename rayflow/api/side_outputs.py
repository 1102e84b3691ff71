"""Side outputs while a job is written down: which tags an operator has, and what their rows look like.

An operator either names its tags, with the columns known (late rows of a window), or lets a user's function
choose them while it runs; then the columns are what the reader declares with `returns=`. Whether a tag is
read at all is known when the job is planned, and goes with the operator to its subtasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayflow.api.planning import StreamInfo, plan_error

if TYPE_CHECKING:
    from rayflow.api.stage import Stage
    from rayflow.api.streams import DataStream


class SideOutputs:
    """The side outputs of one operator. `known` are those with a fixed tag; `made` says what is known of the
    rows of any other tag, given their declared schema (None: there are no other tags)."""

    def __init__(self, known: Mapping[str, StreamInfo] | None = None, made: Any = None) -> None:
        self._infos = dict(known or {})
        self._fixed = frozenset(self._infos)
        self._made = made

    def schemas(self) -> dict[str, pa.Schema | None]:
        """Return the schema of every tag met so far."""
        return {tag: info.physical_schema for tag, info in self._infos.items()}

    def read(self, tag: str, returns: Any) -> StreamInfo:
        """Return what is known of the rows of `tag`. Raises PlanError, at the user's line."""
        if self._made is None or tag in self._fixed:
            return self._read_known(tag, returns)
        return self._read_declared(tag, returns)

    def _read_known(self, tag: str, returns: Any) -> StreamInfo:
        if tag not in self._infos:
            known = ", ".join(map(repr, self._infos)) or "none"
            raise plan_error(f"side_output: the operator has no side output {tag!r}; it has {known}")
        if returns is not None:
            raise plan_error(f"side_output({tag!r}): its columns are known; leave returns= out")
        return self._infos[tag]

    def _read_declared(self, tag: str, returns: Any) -> StreamInfo:
        from rayflow.api.returns import returned_schema

        schema = None if returns is None else returned_schema(returns, None, "side_output")
        before = self._infos.get(tag)
        if before is not None and before.schema is not None:
            if schema is not None and not schema.equals(before.schema):
                raise plan_error(f"side_output({tag!r}): it was read before with other columns in returns=")
            return before
        info: StreamInfo = self._made(schema)
        self._infos[tag] = info
        return info


def read_side_output(stream: Stage, tag: str, returns: Any = None) -> DataStream:
    """Return the stream of what the last operator of `stream`, or a sink, puts aside under `tag`."""
    from rayflow.api.streams import DataStream

    if not isinstance(tag, str) or not tag:
        raise plan_error(f"side_output: expected a tag, which is a text; got {tag!r}")
    stream._settable("side_output")
    outputs = stream._env._side_outputs.get(stream._node.id)
    if outputs is None:
        raise plan_error(
            f"side_output({tag!r}): {stream._node.spec.name!r} puts nothing aside; call it directly behind "
            ".process(fn), behind a window with .allowed_lateness(d, late_to=tag), or behind an operator with "
            "on_error=rf.SideOutput(tag)"
        )
    return DataStream(stream._env, stream._node, outputs.read(tag, returns), tag=tag)
