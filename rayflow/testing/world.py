"""A simulated cluster's clock, scheduler and trace: every step and delivery is chosen by one seeded generator.

Theory of operation
-------------------
The world holds *processes* (job managers, workers) and ordered *queues* of what is under way between them: one per
channel and direction, per control link, per I/O request. Each turn picks one thing that can happen now: a process
that was woken takes a step, or the head of a queue whose delay has passed is delivered. When nothing can happen the
clock jumps to the next thing that will. Delays are random, so messages of different queues overtake each other, and
messages of one queue never do. The engines are the runtime's own; only their ports are simulated.

A process can be *frozen* (SIGSTOP): it takes no step, and nothing reaches it until it is thawed; or *stalled* (a call
that blocks its task thread): it takes no step until then, but messages reach its mailbox. Machines can be cut off from
one another in one direction: what is under way across a cut waits for its end.

Everything that happens is a line of the trace, and a line can be listened for; the trace of a seed is the same on
every run, under any PYTHONHASHSEED.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from rayflow.runtime.stepping import StepResult

EPOCH_MS = 1_700_000_000_000
_LAST_LINES = 20
_HASHED_AT_ONCE = 500
_MAX_IDLE_STEPS = 30

QueueKey = tuple[Any, ...]


class Stuck(AssertionError):
    """The run did not end within its bound (I8)."""


@dataclass(slots=True, eq=False)
class Process:
    """Something with a `step`, on a machine."""

    name: str
    machine: str
    step: Callable[[int], StepResult] | None = None
    alive: bool = True
    frozen: bool = False
    woken: bool = True
    wake_at_ms: int | None = None
    stalled_until_ms: int = 0
    slowness_ms: int = 0
    idle_steps: int = 0
    """Steps in a row that it asked for itself, and in which it did nothing."""

    def next_ms(self) -> int | None:
        """When it can take a step by itself."""
        if self.frozen or self.step is None:
            return None
        if self.woken:
            return self.stalled_until_ms
        return None if self.wake_at_ms is None else max(self.wake_at_ms, self.stalled_until_ms)


@dataclass(slots=True)
class Pending:
    """One thing under way."""

    due_ms: int
    label: str
    deliver: Callable[[], None]


@dataclass(slots=True)
class _Queue:
    """`due_ms` is the head's."""

    source: Process | None
    target: Process | None
    due_ms: int
    waiting: deque[Pending] = field(default_factory=deque)


@dataclass(slots=True)
class Trace:
    """The lines of a run: all hashed, the last ones kept. `listeners` are called with each line."""

    keep: int = 400
    lines: deque[str] = field(init=False)
    count: int = 0
    listeners: list[Callable[[str], None]] = field(default_factory=list)
    _hash: Any = field(default_factory=hashlib.sha256)
    _unhashed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lines = deque(maxlen=self.keep)

    def add(self, line: str) -> None:
        """Something happened."""
        self.count += 1
        self._unhashed.append(line)
        if len(self._unhashed) == _HASHED_AT_ONCE:
            self._hash_lines()
        self.lines.append(line)
        for listener in self.listeners:
            listener(line)

    @property
    def digest(self) -> str:
        """Hash of all lines."""
        self._hash_lines()
        return str(self._hash.hexdigest())

    def _hash_lines(self) -> None:
        self._hash.update("".join(f"{line}\n" for line in self._unhashed).encode())
        self._unhashed.clear()


class World:
    """Clock, scheduler and trace of one simulated run. `max_delay_ms` bounds the ordinary delay of a delivery."""

    def __init__(self, seed: int, *, max_delay_ms: int = 30, keep_trace: int = 400) -> None:
        self.rng = random.Random(seed)
        self.max_delay_ms = max_delay_ms
        self.now = EPOCH_MS
        self.trace = Trace(keep=keep_trace)
        self.processes: dict[str, Process] = {}
        self.cuts: set[tuple[str, str]] = set()
        self.healed: set[str] = set()
        """Machines that have been cut off once."""
        self.thawed: set[str] = set()
        """Processes that stood still once."""
        self.before_turn: list[Callable[[], None]] = []
        self.after_turn: list[Callable[[], None]] = []
        self.violations: list[str] = []
        self.stepping: Process | None = None
        """The process that takes a step just now."""
        self._queues: dict[QueueKey, _Queue] = {}
        self._chance = self.rng.random
        self._serial = 0

    # ------------------------------------------------------------------ clock and chance

    def now_ms(self) -> int:
        """`Clock`."""
        return self.now

    def draw(self, bound: int) -> int:
        """Return a random number from 0 to `bound` - 1."""
        return int(self._chance() * bound)

    def happens(self, probability: float) -> bool:
        """Return True with this probability."""
        return probability > 0 and self._chance() < probability

    def violated(self, what: str) -> None:
        """An invariant is broken. Said inside code whose exceptions the engines handle; the run ends after the turn."""
        self.violations.append(what)

    def note(self, text: str) -> None:
        """Put a line into the trace."""
        self.trace.add(f"{self.now - EPOCH_MS} {text}")

    # ------------------------------------------------------------------ what is under way

    def post(
        self,
        queue: QueueKey,
        label: str,
        deliver: Callable[[], None],
        delay_ms: int = 0,
        *,
        source: Process | None = None,
        target: Process | None = None,
    ) -> None:
        """Deliver later, after whatever is in `queue` already. Nothing is delivered to a frozen `target`, nor
        across a cut."""
        due = self.now + delay_ms + int(self._chance() * (self.max_delay_ms + 1))
        if target is not None and target.slowness_ms:
            due += self.draw(target.slowness_ms)
        there = self._queues.get(queue)
        if there is None:
            there = self._queues[queue] = _Queue(source, target, due)
        else:
            due = max(due, there.waiting[-1].due_ms)
        there.waiting.append(Pending(due, label, deliver))

    def after(self, delay_ms: int, label: str, act: Callable[[], None]) -> None:
        """Do something at a time, whoever is alive then."""
        self._serial += 1
        self.post(("at", self._serial), label, act, delay_ms)

    def drop(self, key: QueueKey) -> int:
        """Forget a queue; return how many things were under way in it."""
        there = self._queues.pop(key, None)
        return 0 if there is None else len(there.waiting)

    def queues(self) -> list[QueueKey]:
        """Everything under way, by queue."""
        return list(self._queues)

    # ------------------------------------------------------------------ processes and machines

    def spawn(self, name: str, machine: str) -> Process:
        """A process comes up; it is stepped once it has a `step`."""
        process = self.processes[name] = Process(name, machine, slowness_ms=0)
        return process

    def end(self, process: Process) -> None:
        """The process is gone."""
        process.alive = False
        process.frozen = False  # its requests under way may still end
        process.step = None
        self.processes.pop(process.name, None)

    def wake(self, process: Process) -> None:
        """The process has mail."""
        process.woken = True

    def cut_off(self, source: Process | None, target: Process | None) -> bool:
        """Whether nothing gets from one process to the other now."""
        if source is None or target is None or not self.cuts:
            return False
        return (source.machine, target.machine) in self.cuts

    def is_cut(self, machine: str) -> bool:
        """Whether something does not get from a machine to another now."""
        return any(source == machine for source, _ in self.cuts)

    # ------------------------------------------------------------------ running

    def run(self, until: Callable[[], bool], *, max_turns: int) -> None:
        """Take turns until `until()`; Stuck when that takes too many."""
        before, after, violations = self.before_turn, self.after_turn, self.violations
        for _ in range(max_turns):
            if until():
                return
            for hook in before:
                hook()
            self.turn()
            for check in after:
                check()
            if violations:
                raise AssertionError("; ".join(violations))
        raise Stuck(
            f"I8: not finished after {max_turns} turns; last: {list(self.trace.lines)[-_LAST_LINES:]}"
        )

    def turn(self) -> None:
        """Let one thing happen."""
        # A third of a run's time is spent here: hence no calls for what is seldom so.
        now, cuts = self.now, self.cuts
        ready: list[Process | QueueKey] = [
            process
            for process in self.processes.values()
            if (process.woken or ((at := process.wake_at_ms) is not None and at <= now))
            and process.step is not None
            and not process.frozen
            and process.stalled_until_ms <= now
        ]
        ready += [
            key
            for key, queue in self._queues.items()
            if queue.due_ms <= now
            and (
                (target := queue.target) is None
                or not (target.frozen or (cuts and self.cut_off(queue.source, target)))
            )
        ]
        if not ready:
            self._jump()
            return
        chosen = ready[int(self._chance() * len(ready))]
        if isinstance(chosen, Process):
            self._step(chosen)
        else:
            self._deliver(chosen)

    def _step(self, process: Process) -> None:
        assert process.step is not None
        woken, process.woken = process.woken, False
        self.note(f"step {process.name}")
        self.stepping = process
        result = process.step(self.now)
        self.stepping = None
        process.woken = process.woken or result.progressed
        process.wake_at_ms = result.wake_at_ms
        process.idle_steps = 0 if woken or result.progressed else process.idle_steps + 1
        if (
            process.idle_steps > _MAX_IDLE_STEPS
            and process.wake_at_ms is not None
            and process.wake_at_ms <= self.now
        ):
            self.violated(
                f"I8: {process.name} spins: it asks to be stepped at once, again and again, and does nothing"
            )
        if process.slowness_ms:
            process.stalled_until_ms = max(
                process.stalled_until_ms, self.now + self.draw(process.slowness_ms)
            )
        self.now += self.draw(2)

    def _deliver(self, key: QueueKey) -> None:
        queue = self._queues[key]
        pending = queue.waiting.popleft()
        if queue.waiting:
            queue.due_ms = queue.waiting[0].due_ms
        else:
            del self._queues[key]
        self.note(f"deliver {pending.label}")
        pending.deliver()

    def _jump(self) -> None:
        cuts = self.cuts
        times = [
            queue.due_ms
            for queue in self._queues.values()
            if (target := queue.target) is None
            or not (target.frozen or (cuts and self.cut_off(queue.source, target)))
        ]
        times += [at for p in self.processes.values() if (at := p.next_ms()) is not None]
        if not times:
            last = list(self.trace.lines)[-_LAST_LINES:]
            raise Stuck(f"I8: nothing will ever happen again; last: {last}")
        self.now = max(self.now + 1, min(times))
