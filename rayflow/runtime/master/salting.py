"""The shell of `protocol.salting`: what senders tell of their keys goes in, who has to salt which keys goes out."""

from __future__ import annotations

from typing import Any

from rayflow.graph.execution import main_consumers
from rayflow.model.ids import SubtaskId
from rayflow.protocol.salting import HotKeysTold, KeyCount, SaltedKeys, SeenKeys, SendersBegan
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
        ctx = self._ctx
        machine = self._machines.get(uid)
        if machine is None:
            machine = self._machines[uid] = SaltedKeys(main_consumers(ctx.job.graph, subtask.vertex))
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
