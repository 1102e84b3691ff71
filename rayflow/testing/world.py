"""A simulated cluster: one virtual clock, and every step, delivery and fault chosen by one seeded generator.

Theory of operation
-------------------
The world holds the job master, the workers, and ordered queues of what is under way between them (one per channel
and direction, per control link, per I/O request). Each turn picks one thing that can happen now: an engine that was
woken takes a step, the head of a queue whose delay has passed is delivered, or a fault strikes. When nothing
can happen the clock jumps to the next thing that will. Delays are random, so messages of different queues overtake
each other, and messages of one queue never do. The engines are the runtime's own; only the ports are simulated.

Everything that happens is a line of the trace; the trace of a seed is the same on every run.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayflow.model.errors import StorageError
from rayflow.runtime.stepping import StepResult

MAX_TURNS = 200_000


class Stuck(AssertionError):
    """The job did not end within the bound (I8)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may go wrong. Probabilities are per turn, per delivery or per I/O request."""

    crashes: int = 0
    crash_probability: float = 0.0
    io_errors: int = 0
    io_error_probability: float = 0.0
    max_delay_ms: int = 30


@dataclass(slots=True)
class _Pending:
    due_ms: int
    label: str
    deliver: Callable[[], None]


@dataclass(slots=True)
class Node:
    """Something with a `step`: the master, or a worker."""

    name: str
    step: Callable[[int], StepResult]
    woken: bool = True
    wake_at_ms: int | None = None
    alive: bool = True


@dataclass(slots=True)
class Trace:
    """The lines of a run: all hashed, the last ones kept."""

    keep: int = 400
    lines: deque[str] = field(default_factory=deque)
    count: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    def add(self, line: str) -> None:
        """Something happened."""
        self.count += 1
        self._hash.update(line.encode() + b"\n")
        self.lines.append(line)
        if len(self.lines) > self.keep:
            self.lines.popleft()

    @property
    def digest(self) -> str:
        """Hash of all lines."""
        return str(self._hash.hexdigest())


class World:
    """Clock, scheduler and network of one simulated run."""

    def __init__(self, seed: int, faults: Faults, *, keep_trace: int = 400) -> None:
        self.rng = random.Random(seed)
        self.faults = faults
        self.now = 1_700_000_000_000
        self.trace = Trace(keep=keep_trace)
        self.nodes: dict[str, Node] = {}
        self.after_turn: list[Callable[[], None]] = []
        self.crash: Callable[[], bool] = lambda: False
        self.faults_on: Callable[[], bool] = lambda: True
        self._queues: dict[tuple[Any, ...], deque[_Pending]] = {}
        self._crashes_left = faults.crashes
        self._io_errors_left = faults.io_errors
        self._io_count = 0

    # ------------------------------------------------------------------ ports

    def now_ms(self) -> int:
        """`Clock`."""
        return self.now

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """`IoPool`: the work happens, and is answered, at some later turn."""
        self._io_count += 1

        def run() -> None:
            error: BaseException | None = None
            result = None
            if (
                self._io_errors_left > 0
                and self.faults_on()
                and self.rng.random() < self.faults.io_error_probability
            ):
                self._io_errors_left -= 1
                self.trace.add("fault io error")
                error = StorageError("simulated: the request failed")
            else:
                try:
                    result = work()
                except Exception as raised:
                    error = raised
            done(result, error)

        self.post(("io", self._io_count), f"io {self._io_count}", run)

    def post(
        self, queue: tuple[Any, ...], label: str, deliver: Callable[[], None], delay_ms: int = 0
    ) -> None:
        """Deliver later, after whatever is in `queue` already."""
        waiting = self._queues.setdefault(queue, deque())
        due = self.now + delay_ms + self.rng.randrange(self.faults.max_delay_ms + 1)
        if waiting:
            due = max(due, waiting[-1].due_ms)
        waiting.append(_Pending(due, label, deliver))

    def drop(self, keep: Callable[[tuple[Any, ...]], bool]) -> None:
        """Forget every queue that `keep` does not want."""
        for key in [k for k in self._queues if not keep(k)]:
            del self._queues[key]

    def under_way(self, queue: tuple[Any, ...]) -> list[str]:
        """Labels of what waits in a queue."""
        return [p.label for p in self._queues.get(queue, ())]

    # ------------------------------------------------------------------ running

    def add(self, node: Node) -> None:
        """Have a node stepped from now on."""
        self.nodes[node.name] = node

    def wake(self, name: str) -> None:
        """The node has mail."""
        node = self.nodes.get(name)
        if node is not None:
            node.woken = True

    def run(self, until: Callable[[], bool]) -> None:
        """Take turns until `until()`; Stuck when that takes too many."""
        for _ in range(MAX_TURNS):
            if until():
                return
            self._turn()
            for check in self.after_turn:
                check()
        raise Stuck(f"not finished after {MAX_TURNS} turns; last: {list(self.trace.lines)[-20:]}")

    def _turn(self) -> None:
        if self._crashes_left > 0 and self.rng.random() < self.faults.crash_probability and self.crash():
            self._crashes_left -= 1
            return
        ready: list[tuple[Any, ...] | str] = [
            name
            for name, node in self.nodes.items()
            if node.woken or (node.wake_at_ms is not None and node.wake_at_ms <= self.now)
        ]
        ready += [key for key, waiting in self._queues.items() if waiting[0].due_ms <= self.now]
        if not ready:
            self._jump()
            return
        chosen = ready[self.rng.randrange(len(ready))]
        if isinstance(chosen, str):
            self._step(self.nodes[chosen])
        else:
            self._deliver(chosen)

    def _step(self, node: Node) -> None:
        node.woken = False
        self.trace.add(f"{self.now} step {node.name}")
        result = node.step(self.now)
        node.woken = node.woken or result.progressed
        node.wake_at_ms = result.wake_at_ms
        self.now += self.rng.randrange(2)

    def _deliver(self, key: tuple[Any, ...]) -> None:
        waiting = self._queues[key]
        pending = waiting.popleft()
        if not waiting:
            del self._queues[key]
        self.trace.add(f"{self.now} deliver {pending.label}")
        pending.deliver()

    def _jump(self) -> None:
        times = [w[0].due_ms for w in self._queues.values()]
        times += [n.wake_at_ms for n in self.nodes.values() if n.wake_at_ms is not None]
        if not times:
            raise Stuck(f"nothing will ever happen again; last: {list(self.trace.lines)[-20:]}")
        self.now = max(self.now + 1, min(times))
