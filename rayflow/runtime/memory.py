"""Memory of one subtask: what its operators' state and its buffers take, shedding, and words for when it is too much.

Theory of operation. Every `_MEASURE_MS` the task thread has the operators measure their state (metric `state_bytes`).
With the state in memory, more of it than `WARN_AT` of the managed share is warned of, once an attempt, with the
operator and what can be done. Nothing fails for that: what counts in the end is the size of the process, which its
host watches (`protocol.memory_pressure`). What the host finds comes here as commands, on any thread; the task thread
carries them out between two batches: nothing floats at the input gate until there is room again, operators emit what
they hold back for efficiency, output edges send what they gather, and the host's `collect` runs (the collector of
cyclic garbage: on this thread, since it may run users' finalizers).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rayflow.model.config import JobConfig
from rayflow.model.memory import mebibytes
from rayflow.protocol.memory_pressure import PressureCommand, RelaxMemory, ShedMemory
from rayflow.runtime.messages import Deploy
from rayflow.runtime.task import Task

WARN_AT = 0.8

HostCommand: TypeAlias = PressureCommand
"""What the host of an engine tells it about the size of the process."""

_MEASURE_MS = 2_000
_SHOWN_OPERATORS = 3


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """What is known of where a subtask's memory goes, in bytes. `state` is by operator, the largest first."""

    state: tuple[tuple[str, int], ...] = field(default_factory=tuple)
    inputs: int = 0
    outputs: int = 0

    @property
    def state_total(self) -> int:
        """State of all operators."""
        return sum(nbytes for _, nbytes in self.state)

    def explain(self, used_bytes: int) -> str:
        """Return where `used_bytes` of a process go, as part of a sentence."""
        known = self.state_total + self.inputs + self.outputs
        largest = ", ".join(f"{name!r} {mebibytes(n)}" for name, n in self.state[:_SHOWN_OPERATORS] if n)
        state = f"state about {mebibytes(self.state_total)} MiB" + (f" ({largest})" if largest else "")
        return (
            f"{state}, buffers between subtasks {mebibytes(self.inputs + self.outputs)} MiB, functions, rows at work "
            f"and libraries the other {mebibytes(max(0, used_bytes - known))} MiB"
        )


def use_of(task: Task | None) -> MemoryUse:
    """Return what the task's memory goes to. Any thread; as of the last measurement."""
    if task is None:
        return MemoryUse()
    state = sorted(task.state_bytes(), key=lambda item: -item[1])
    inputs, outputs = task.buffered_bytes()
    return MemoryUse(tuple(state), inputs, outputs)


def limit_of(deploy: Deploy | None, config: JobConfig) -> tuple[int, bool]:
    """Return what the process may take, in bytes: `memory.process`, or what the operator asked of Ray where that is
    more. And whether that is firm: somebody has set it."""
    if deploy is None:
        return config.memory_process_bytes, False
    asked = deploy.graph.vertex(deploy.subtask.vertex).resources.memory
    firm = asked is not None or "memory.process" in deploy.config
    return max(config.memory_process_bytes, asked or 0), firm


def why_it_ends(used_bytes: int, limit_bytes: int, use: MemoryUse) -> str:
    """Return why a process ends that takes more than it may, and what to do about it."""
    if use.state_total > used_bytes // 2:
        advice = "keep the state on disk (state.backend=disk), bound it (a ttl, smaller windows), spread it over more "
        advice += "subtasks, or raise memory.process"
    else:
        advice = "have the function hold less at a time, lower batch.rows, or raise memory.process"
    return (
        f"the process takes {mebibytes(used_bytes)} MiB, more than its memory.process of {mebibytes(limit_bytes)} MiB: "
        f"{use.explain(used_bytes)}. Next: {advice}"
    )


class MemoryKeeper:
    """Task thread only, but for `press`.

    `warn(type, message)` makes an event; `collect` frees what the interpreter can.
    """

    def __init__(
        self, *, warn: Callable[[str, str], None], wake: Callable[[], None], collect: Callable[[], Any]
    ) -> None:
        self._warn = warn
        self._wake = wake
        self._collect = collect
        self._commands: deque[HostCommand] = deque()
        self._measured_ms: int | None = None
        self._warned = False
        self._pressed = False

    def press(self, command: HostCommand) -> None:
        """Take what the host has found. Any thread."""
        self._commands.append(command)
        self._wake()

    def begin(self) -> None:
        """An attempt begins."""
        self._measured_ms, self._warned = None, False

    def has_work(self, now_ms: int) -> bool:
        """Whether `advance` has anything to do."""
        measured_ms = self._measured_ms
        due = measured_ms is None or now_ms - measured_ms >= _MEASURE_MS
        return due or self._pressed or bool(self._commands)

    def advance(
        self, task: Task, config: JobConfig, limit: Callable[[], tuple[int, bool]], now_ms: int
    ) -> bool:
        """Carry out what was commanded, measure if it is time; return whether anything was shed. `limit()`: what the
        process may take, and whether that is firm."""
        if self._measured_ms is None or now_ms - self._measured_ms >= _MEASURE_MS:
            self._measured_ms = now_ms
            task.measure_state()
            self._judge(task, config)
        shed = False
        while self._commands:
            shed |= self._obey(self._commands.popleft(), task, *limit())
        if self._pressed:
            task.restrain(True)  # also a task that began meanwhile
        return shed

    def _obey(self, command: HostCommand, task: Task, limit_bytes: int, firm: bool) -> bool:
        if isinstance(command, RelaxMemory):
            self._pressed = False
            task.restrain(False)
            self._warn(
                "memory_relaxed", f"the process takes {mebibytes(command.nbytes)} MiB: buffers as before"
            )
            return False
        if not isinstance(command, ShedMemory):
            return False
        self._pressed = True
        task.measure_state()
        use = use_of(task)
        task.release_memory()
        self._collect()
        if command.first:
            beyond = "Beyond the limit it ends, and the attempt with it"
            if not firm:
                beyond = "It goes on while its node has room, since memory.process was not set"
            self._warn(
                "memory_pressure",
                f"the process takes {mebibytes(command.nbytes)} MiB of its memory.process of {mebibytes(limit_bytes)} "
                f"MiB, and sheds buffers: {use.explain(command.nbytes)}. {beyond}: raise memory.process, or keep less "
                "state",
            )
        return True

    def _judge(self, task: Task, config: JobConfig) -> None:
        managed_bytes = config.managed_bytes
        use = use_of(task)
        if self._warned or config.state_backend != "memory" or use.state_total < WARN_AT * managed_bytes:
            return
        self._warned = True
        name, largest = use.state[0]
        self._warn(
            "state_nears_budget",
            f"state takes about {mebibytes(use.state_total)} MiB of the {mebibytes(managed_bytes)} MiB that are "
            f"managed memory (`rayflow memory`); operator {name!r} has {mebibytes(largest)} MiB. It stays in memory "
            "until memory.process is used up; better keep it on disk (state.backend=disk), let it expire (a ttl), or "
            "raise memory.process",
        )
