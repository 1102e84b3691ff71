"""Watermarks: how far event time has come, at a source and where channels meet.

Theory of operation (Akidau et al., "The Dataflow Model", 2015; Begoli et al., "Watermarks in Stream
Processing Systems", 2021). A watermark w says: no row with an event time ≤ w follows, save late ones. Times
are whole nanoseconds (`rayflow.model.times`).

`SplitWatermarks`, one per source subtask, makes them. An open split has seen rows up to `max_time`; with
out-of-orderness `delay`, and `unit` because another row may bear that very time, its watermark is max_time −
delay − unit. The subtask's is the smallest over its open splits that are not idle, and never above the
*cap*, the assigner's promise that splits nobody has begun hold only later rows. When no open split is left
to hold it back, it rises no further than the largest split watermark seen. With `max_drift`, a split whose watermark is
further ahead of the slowest one's than that is not to be read for now (`may_read`), wherever the slowest one is read.

`WatermarkMerger`, one per task, takes the smallest over its active channels. Idle channels have nothing to
say and ended ones never will, so neither holds it back. When no active channel is left the watermark rises to
the largest that an idle or ended one had come to, as if that channel had been the last to be active: the order in
which channels fall idle or end does not matter. An end, which is announced by WATERMARK_MAX, is none for
those that are idle: they may go on, and what they bring then must not be late.

Invariants:

1. Watermarks that come out strictly grow (I9), also over a restore.
2. A channel's watermarks never go back, and end with it: an ended channel says nothing more.
3. A merged watermark is at most that of every active channel that has never been idle.
4. `WATERMARK_MAX` is merged exactly when every channel has ended, or has announced it.
5. `GoIdle` comes once per time of idleness, and only while nothing is active and not all has ended.
6. A source's watermark is at most the cap in force, and at most that of every open split, whenever it is
   advanced; idle splits excepted.
7. Rows are read from open splits only; a split is opened once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.protocol.unhandled import unhandled

_NANOS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class AdvanceWatermark:
    """Event time has come to `watermark`."""

    watermark: int


@dataclass(frozen=True, slots=True)
class GoIdle:
    """There is nothing to say about event time for now; ends with the next row or watermark."""


WatermarkCommand = AdvanceWatermark | GoIdle


# ---------------------------------------------------------------------------------- where channels meet


@dataclass(frozen=True, slots=True)
class WatermarkArrived:
    """A channel's event time came to `watermark`; if it was idle, it is active again."""

    channel: ChannelId
    watermark: int


@dataclass(frozen=True, slots=True)
class ChannelIdled:
    """The channel has nothing to say about event time until rows or a watermark come."""

    channel: ChannelId


@dataclass(frozen=True, slots=True)
class ChannelResumed:
    """Rows came on the channel. Need only be told when `is_idle(channel)`."""

    channel: ChannelId


@dataclass(frozen=True, slots=True)
class ChannelEnded:
    """No rows and no watermarks follow on the channel."""

    channel: ChannelId


MergerEvent = WatermarkArrived | ChannelIdled | ChannelResumed | ChannelEnded


class WatermarkMerger:
    """Merges the watermarks of one task's input channels (at least one)."""

    def __init__(self, channels: Sequence[ChannelId]) -> None:
        # Every channel is in exactly one of these, with its last watermark (`_over`: WATERMARK_MAX), or has ended.
        self._active = dict.fromkeys(channels, WATERMARK_MIN)
        self._idle: dict[ChannelId, int] = {}
        self._over: dict[ChannelId, int] = {}
        # The largest watermark of those that are over or have ended, from before they were.
        self._reached = WATERMARK_MIN
        self._all_idle = False
        self._watermark = WATERMARK_MIN

    @property
    def watermark(self) -> int:
        """The merged watermark; WATERMARK_MIN while nothing is known."""
        return self._watermark

    def is_idle(self, channel: ChannelId) -> bool:
        """Whether the channel is idle."""
        return channel in self._idle

    def handle(self, event: MergerEvent) -> tuple[WatermarkCommand, ...]:
        """Take note of `event`; return the watermark or idleness to pass on."""
        match event:
            case WatermarkArrived():
                return self._on_watermark(event.channel, event.watermark)
            case ChannelIdled():
                self._last_of(event.channel)
                if event.channel in self._active:
                    self._idle[event.channel] = self._active.pop(event.channel)
                return self._settle()
            case ChannelResumed():
                self._last_of(event.channel)
                if event.channel in self._idle:
                    self._active[event.channel] = self._idle.pop(event.channel)
                self._all_idle = False
                return ()
            case ChannelEnded():
                self._last_of(event.channel)
                self._finish(event.channel)
                self._over.pop(event.channel, None)
                return self._settle()
            case _:
                unhandled(event)

    def _finish(self, channel: ChannelId) -> None:
        last = self._active.pop(channel, None)
        if last is None:
            last = self._idle.pop(channel, WATERMARK_MIN)
        self._reached = max(self._reached, last)

    def _on_watermark(self, channel: ChannelId, watermark: int) -> tuple[WatermarkCommand, ...]:
        last = self._last_of(channel)
        if not last <= watermark <= WATERMARK_MAX:
            raise ProtocolViolation(
                f"watermark {watermark} on {channel} after {last}: expected one from {last} to {WATERMARK_MAX} "
                "(invariant 2)"
            )
        if watermark == WATERMARK_MAX:
            self._finish(channel)
            self._over[channel] = watermark
            return self._settle()
        self._idle.pop(channel, None)
        self._active[channel] = watermark
        self._all_idle = False
        # Most watermarks come from a channel that is ahead of the slowest: nothing to find out then.
        return () if last > self._watermark else self._settle()

    def _last_of(self, channel: ChannelId) -> int:
        last = self._active.get(channel)
        if last is None:
            last = self._idle.get(channel)
        if last is None:
            last = self._over.get(channel)
        if last is None:
            raise ProtocolViolation(
                f"event time of {channel}: no such channel, or it has ended (invariant 2)"
            )
        return last

    def _settle(self) -> tuple[WatermarkCommand, ...]:
        if self._active:
            return self._advance(min(self._active.values()))
        if not self._idle:
            return self._advance(WATERMARK_MAX)
        commands = self._advance(max(self._reached, *self._idle.values()))
        if not self._all_idle:
            self._all_idle = True
            commands = (*commands, GoIdle())
        return commands

    def _advance(self, watermark: int) -> tuple[WatermarkCommand, ...]:
        if watermark <= self._watermark:
            return ()
        self._watermark = watermark
        return (AdvanceWatermark(watermark),)


# --------------------------------------------------------------------------------------------- at a source


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
            raise ProtocolViolation(f"split {event.split_id!r} opened twice (invariant 7)")
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
            raise ProtocolViolation(f"rows or end of split {split_id!r}, which is not open (invariant 7)")
        return split

    def _advance(self) -> tuple[WatermarkCommand, ...]:
        active = [split.watermark for split in self._splits.values() if not split.idle]
        bound = min(min(active, default=self._highest), self._cap)
        if bound <= self._watermark:
            return ()
        self._watermark = bound
        return (AdvanceWatermark(bound),)
