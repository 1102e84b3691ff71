"""At a source: the watermarks that one of its subtasks makes.

Theory of operation. `SplitWatermarks`, one per source subtask. An open split has seen rows up to `max_time`; with
out-of-orderness `delay`, and `unit` because another row may bear that very time, its watermark is max_time −
delay − unit. The subtask's is the smallest over its open splits that are not idle, and never above the
*cap*, the assigner's promise that splits nobody has begun hold only later rows. When no open split is left
to hold it back, it rises no further than the largest split watermark seen. With `max_drift`, a split whose watermark is
further ahead of the slowest one's than that is not to be read for now (`may_read`), wherever the slowest one is read.

Invariants, beside those of `watermarks`:

S1. A source's watermark is at most the cap in force, and at most that of every open split, whenever it is
    advanced; idle splits excepted.
S2. Rows are read from open splits only; a split is opened once.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation
from rayflow.model.times import WATERMARK_MIN
from rayflow.protocol.unhandled import unhandled
from rayflow.protocol.watermarks import AdvanceWatermark, GoIdle, WatermarkCommand

_NANOS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class SplitOpened:
    """The subtask begins to read a split, of which event times up to `max_time` were read before (None: none)."""

    split_id: str
    max_time: int | None = None


@dataclass(frozen=True, slots=True)
class RowsRead:
    """Rows of a split were emitted; `max_time` is the largest event time among them that can be believed, by `limit`
    and `step` (None: there is none)."""

    split_id: str
    max_time: int | None
    now_ms: int


@dataclass(frozen=True, slots=True)
class SplitFinished:
    """The split's last row was emitted."""

    split_id: str


@dataclass(frozen=True, slots=True)
class CapMoved:
    """Splits nobody has begun hold only rows with an event time above `cap` (WATERMARK_MIN: unknown). A cap
    that no longer covers a split is told after that split was opened."""

    cap: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed, and the source could have read. Not to be told while it is held back (back-pressure, rate)."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class ReadingResumed:
    """The source can read again after it was held back: the time of idleness begins anew, for a split that could
    not be read is not idle."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class OthersMoved:
    """The slowest split that other subtasks of the source read has come to `watermark` (None: they have none)."""

    watermark: int | None


SourceEvent = SplitOpened | RowsRead | SplitFinished | CapMoved | Ticked | ReadingResumed | OthersMoved


class _Split:
    __slots__ = ("active_ms", "idle", "watermark")

    def __init__(self, watermark: int) -> None:
        self.watermark = watermark
        # None: no tick or row yet, so that the time of idleness has not begun to run.
        self.active_ms: int | None = None
        self.idle = False


class SplitWatermarks:
    """Makes the watermarks of one source subtask.

    `delay`, `unit` (the time unit of the event-time column), `idle_after`, `max_ahead` and `max_drift` in
    nanoseconds; None turns idleness, the bound on far-future rows, or that on the distance of splits off.
    `watermark` is where a restored source had come.
    """

    def __init__(
        self,
        delay: int,
        unit: int,
        idle_after: int | None = None,
        max_ahead: int | None = None,
        watermark: int = WATERMARK_MIN,
        max_drift: int | None = None,
    ) -> None:
        self._lag = delay + unit
        self._idle_after_ms = None if idle_after is None else max(1, idle_after // _NANOS_PER_MS)
        self._max_ahead = max_ahead
        self._max_drift = max_drift
        self._others: int | None = None
        self._watermark = watermark
        self._highest = watermark
        self._cap = WATERMARK_MIN
        self._splits: dict[str, _Split] = {}
        self._idle = False
        # First tick without an open split since there last was one.
        self._splitless_since_ms: int | None = None

    @property
    def watermark(self) -> int:
        """The source's watermark; WATERMARK_MIN while nothing is known."""
        return self._watermark

    def limit(self, split_id: str) -> int | None:
        """Return the event time up to which the split's next rows can be believed; None: not known."""
        watermark = self._open(split_id).watermark
        if self._max_ahead is None or watermark == WATERMARK_MIN:
            return None
        return watermark + self._max_ahead

    @property
    def slowest(self) -> int | None:
        """The watermark of the slowest split that is read here; None while there is none, or nothing is known."""
        known = [s.watermark for s in self._splits.values() if not s.idle and s.watermark != WATERMARK_MIN]
        return min(known, default=None)

    def may_read(self, split_id: str) -> bool:
        """Whether the split is not too far ahead of the slowest one."""
        if self._max_drift is None:
            return True
        known = [w for w in (self.slowest, self._others) if w is not None]
        return not known or self._open(split_id).watermark <= min(known) + self._max_drift

    @property
    def step(self) -> int | None:
        """How much later than a believed time the next one may be (ns); None: as much as it likes."""
        return None if self._max_ahead is None else max(0, self._max_ahead - self._lag)

    def next_deadline_ms(self) -> int | None:
        """Return when a `Ticked` would next make something idle; None: not by time alone."""
        if self._idle_after_ms is None or self._idle:
            return None
        since = [s.active_ms for s in self._splits.values() if not s.idle and s.active_ms is not None]
        if not self._splits and self._splitless_since_ms is not None:
            since.append(self._splitless_since_ms)
        return min(since) + self._idle_after_ms if since else None

    def handle(self, event: SourceEvent) -> tuple[WatermarkCommand, ...]:
        """Take note of `event`; return the watermark or idleness to announce."""
        match event:
            case RowsRead():
                self._on_rows(event)
            case SplitOpened():
                self._on_opened(event)
            case SplitFinished():
                self._open(event.split_id)
                del self._splits[event.split_id]
            case CapMoved():
                self._cap = event.cap
            case Ticked():
                return self._on_tick(event.now_ms)
            case ReadingResumed():
                self._on_resumed(event.now_ms)
            case OthersMoved():
                self._others = event.watermark
            case _:
                unhandled(event)
        return self._advance()

    def _on_rows(self, event: RowsRead) -> None:
        split = self._open(event.split_id)
        split.active_ms = event.now_ms
        split.idle = False
        self._idle = False
        if event.max_time is not None:
            split.watermark = max(split.watermark, event.max_time - self._lag)
            self._highest = max(self._highest, split.watermark)

    def _on_opened(self, event: SplitOpened) -> None:
        if event.split_id in self._splits:
            raise ProtocolViolation(f"split {event.split_id!r} opened twice (invariant S2)")
        split = _Split(WATERMARK_MIN if event.max_time is None else event.max_time - self._lag)
        self._splits[event.split_id] = split
        self._highest = max(self._highest, split.watermark)
        self._splitless_since_ms = None
        self._idle = False

    def _on_tick(self, now_ms: int) -> tuple[WatermarkCommand, ...]:
        if self._idle_after_ms is None:
            return ()
        for split_id, split in self._splits.items():
            if split.active_ms is None or not self.may_read(split_id):
                split.active_ms = now_ms
            split.idle = split.idle or now_ms - split.active_ms >= self._idle_after_ms
        all_idle = all(split.idle for split in self._splits.values())
        if not self._splits:
            if self._splitless_since_ms is None:
                self._splitless_since_ms = now_ms
            all_idle = now_ms - self._splitless_since_ms >= self._idle_after_ms
        commands = self._advance()
        if all_idle and not self._idle:
            self._idle = True
            commands = (*commands, GoIdle())
        return commands

    def _on_resumed(self, now_ms: int) -> None:
        for split in self._splits.values():
            if not split.idle:
                split.active_ms = now_ms
        if self._splitless_since_ms is not None:
            self._splitless_since_ms = now_ms

    def _open(self, split_id: str) -> _Split:
        split = self._splits.get(split_id)
        if split is None:
            raise ProtocolViolation(f"rows or end of split {split_id!r}, which is not open (invariant S2)")
        return split

    def _advance(self) -> tuple[WatermarkCommand, ...]:
        active = [split.watermark for split in self._splits.values() if not split.idle]
        bound = min(min(active, default=self._highest), self._cap)
        if bound <= self._watermark:
            return ()
        self._watermark = bound
        return (AdvanceWatermark(bound),)
