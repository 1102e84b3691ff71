"""What a process does about its own size: give back what it can near its limit, and end itself beyond.

Theory of operation. Whoever watches says now and then how many bytes the process has. From `SHED_AT` of the limit on
the process is *pressed*: it sheds what it can do without (floating credit, buffers, what allocators keep unused), again
every `SHED_EVERY_MS` while that lasts, until it is below `RELIEVED_BELOW` and has not shed for so long. The gap and the
wait keep it from going back and forth where memory does: rows at work come and go many times a second.

A limit that nobody has set is a budget, not a *firm* limit: a process over it sheds, and goes on while its node has
room (who watches the node sees to the rest).

Being over a firm limit for a moment is no harm: a window that fires takes room and gives it back. So the process ends
only when every sample of `PATIENCE_MS` was over the limit although it shed at the beginning of that time or shortly
before, or at once when it has twice the limit, where whatever grows would get to the node's end before the patience
does. Ending oneself beats being ended: the kernel, and Ray's monitor, do not know whose fault it is and say nothing.

Invariants:

1. Below the limit a process never ends, nor over one that is not firm.
2. `EndForMemory` comes at most once, and nothing after it.
3. From less than `PATIENCE_MS` before the first sample over the limit on there was a `ShedMemory`, and `PATIENCE_MS`
   lie between that sample and the end, unless the process has twice the limit.
4. Between two `ShedMemory` lie `SHED_EVERY_MS`; `PATIENCE_MS` where the second comes as a firm limit is passed.
5. `RelaxMemory` follows `ShedMemory`s only, one for all of them, `SHED_EVERY_MS` after the last.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation

SHED_AT = 0.85
RELIEVED_BELOW = 0.75
SHED_EVERY_MS = 10_000
PATIENCE_MS = 2_000
_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class MemorySampled:
    """The process has `nbytes` now. Times only grow."""

    nbytes: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class ShedMemory:
    """Give back what can be done without. `first`: the process was not pressed before."""

    nbytes: int
    first: bool


@dataclass(frozen=True, slots=True)
class RelaxMemory:
    """There is room again."""

    nbytes: int


@dataclass(frozen=True, slots=True)
class EndForMemory:
    """End the process, saying why."""

    nbytes: int


PressureCommand = ShedMemory | RelaxMemory | EndForMemory


class MemoryPressure:
    """Judges the samples of one process that may have `limit_bytes` (≥ 1)."""

    def __init__(self, limit_bytes: int, *, firm: bool = True) -> None:
        if limit_bytes < 1:
            raise ProtocolViolation(f"a memory limit of {limit_bytes} bytes: expected at least 1")
        self.limit_bytes = limit_bytes
        self.firm = firm
        self._shed_ms: int | None = None
        self._over_since_ms: int | None = None
        self._ended = False

    @property
    def pressed(self) -> bool:
        """Whether the process is near its limit, or over it."""
        return self._shed_ms is not None

    def handle(self, event: MemorySampled) -> tuple[PressureCommand, ...]:
        """Judge a sample."""
        if self._ended:
            return ()
        over = event.nbytes > self.limit_bytes
        just_over = over and self._over_since_ms is None
        if not over:
            self._over_since_ms = None
        elif self._over_since_ms is None:
            self._over_since_ms = event.now_ms
        elif self.firm and event.now_ms - self._over_since_ms >= PATIENCE_MS:
            return self._end(event)
        if self.firm and event.nbytes >= _AT_ONCE * self.limit_bytes:
            return self._end(event)
        if event.nbytes >= SHED_AT * self.limit_bytes:
            return self._press(event, PATIENCE_MS if just_over and self.firm else SHED_EVERY_MS)
        if event.nbytes < RELIEVED_BELOW * self.limit_bytes and self._shed_before(
            event.now_ms - SHED_EVERY_MS
        ):
            self._shed_ms = None
            return (RelaxMemory(event.nbytes),)
        return ()

    def _press(self, event: MemorySampled, wait_ms: int) -> tuple[PressureCommand, ...]:
        first = self._shed_ms is None
        if not first and not self._shed_before(event.now_ms - wait_ms):
            return ()
        self._shed_ms = event.now_ms
        return (ShedMemory(event.nbytes, first),)

    def _shed_before(self, ms: int) -> bool:
        """Whether the process is pressed, and shed last at `ms` or before."""
        return self._shed_ms is not None and self._shed_ms <= ms

    def _end(self, event: MemorySampled) -> tuple[PressureCommand, ...]:
        self._ended = True
        return (EndForMemory(event.nbytes),)
