"""The shell of `protocol.salting`: what senders tell of their keys goes in, who has to salt which keys goes out."""

from __future__ import annotations

from typing import Any

from rayflow.graph.execution import main_consumers
from rayflow.model.ids import SubtaskId, VertexId
from rayflow.protocol.salting import (
    HotKeysTold,
    KeyCount,
    SaltedKeys,
    SeenKeys,
    SendersBegan,
    SetRestored,
)
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.restore import RestorePoint
from rayflow.runtime.messages import SaltKeys


class Salting:
    """The salted keys of all operators of the job. On the master's thread."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._machines: dict[str, SaltedKeys] = {}

    def begin_attempt(self, restore: RestorePoint | None) -> None:
        """The senders begin anew, with `keys`. What this master knows itself is newer than what was restored."""
        for machine in self._machines.values():
            machine.handle(SendersBegan())
        if restore is None:
            return
        vertices = {op.uid: vertex.id for vertex in self._ctx.job.graph.vertices for op in vertex.operators}
        for uid, keys in restore.manifest.salted.items():
            if uid in vertices and uid not in self._machines:
                self._machine(uid, vertices[uid]).handle(SetRestored(keys))

    @property
    def keys(self) -> dict[str, tuple[int, ...]]:
        """By uid, what each operator is to salt, where there is anything."""
        return {uid: machine.keys for uid, machine in self._machines.items() if machine.keys}

    def heard(self, subtask: SubtaskId, statistics: dict[str, Any]) -> None:
        """A subtask told how it stands."""
        if statistics.get("attempt") != self._ctx.attempt:
            return
        for uid, told in statistics.get("hot_keys", {}).items():
            self._told(subtask, uid, told)

    def _told(self, subtask: SubtaskId, uid: str, told: dict[str, Any]) -> None:
        ctx, machine = self._ctx, self._machine(uid, subtask.vertex)
        before = machine.keys
        event = HotKeysTold(
            sender=subtask.index,
            now_ms=ctx.now_ms,
            seen=SeenKeys(tuple(told["consumers"]), tuple(KeyCount(*count) for count in told["keys"])),
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

    def _machine(self, uid: str, vertex: VertexId) -> SaltedKeys:
        if uid not in self._machines:
            self._machines[uid] = SaltedKeys(main_consumers(self._ctx.job.graph, vertex))
        return self._machines[uid]
