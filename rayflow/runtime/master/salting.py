"""The shell of `protocol.salting`: what senders tell of their keys goes in, who has to salt which keys goes out."""

from __future__ import annotations

from typing import Any

from rayflow.graph.plan import JobGraph, JobVertex
from rayflow.model.ids import SubtaskId
from rayflow.protocol.salting import HotKeysTold, SaltedKeys, SendersBegan
from rayflow.runtime.master.context import Context
from rayflow.runtime.messages import SaltKeys


class Salting:
    """The salted keys of all operators of the job. On the master's thread."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._machines: dict[str, SaltedKeys] = {}

    def begin_attempt(self) -> None:
        """The senders have begun anew."""
        for machine in self._machines.values():
            machine.handle(SendersBegan())

    def heard(self, subtask: SubtaskId, statistics: dict[str, Any]) -> None:
        """A subtask told how it stands."""
        if statistics.get("attempt") != self._ctx.attempt:
            return
        for uid, told in statistics.get("hot_keys", {}).items():
            self._told(subtask, uid, told)

    def _told(self, subtask: SubtaskId, uid: str, told: dict[str, Any]) -> None:
        ctx, graph = self._ctx, self._ctx.job.graph
        machine = self._machines.get(uid)
        if machine is None:
            machine = SaltedKeys(_consumers(graph, graph.vertex(subtask.vertex)))
            self._machines[uid] = machine
        before = machine.keys
        event = HotKeysTold(
            sender=subtask.index,
            now_ms=ctx.now_ms,
            rows=told["rows"],
            counts=tuple((key, rows) for key, rows in told["counts"]),
            salted=frozenset(told["salted"]),
        )
        for command in machine.handle(event):
            to = SubtaskId(subtask.vertex, command.sender)
            ctx.fleet.send(to, SaltKeys(ctx.attempt, uid, command.keys))
        if machine.keys != before:
            ctx.note(
                "salted_keys_changed",
                f"{uid} salts {len(machine.keys)} hot keys now, {len(before)} before",
                operator=uid,
                keys=[f"{key:016x}" for key in machine.keys],
            )


def _consumers(graph: JobGraph, vertex: JobVertex) -> int:
    """Return how many subtasks the rows of keys that are not salted go to."""
    main = [edge for edge in graph.outputs(vertex.id) if edge.tag is None]
    return max((graph.vertex(edge.target).parallelism for edge in main), default=1)
