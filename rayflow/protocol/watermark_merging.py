"""Where channels meet: how far event time has come in a task.

Theory of operation. `WatermarkMerger`, one per task, takes the smallest watermark over its active channels. Idle
channels have nothing to say and ended ones never will, so neither holds it back. When no active channel is left
the watermark rises to the largest that an idle or ended one had come to, as if that channel had been the last to
be active: the order in which channels fall idle or end does not matter. An end, which is announced by
WATERMARK_MAX, is none for those that are idle: they may go on, and what they bring then must not be late.

Invariants, beside those of `watermarks`:

M1. A channel's watermarks never go back, and end with it: an ended channel says nothing more.
M2. A merged watermark is at most that of every active channel that has never been idle.
M3. `WATERMARK_MAX` is merged exactly when every channel has ended, or has announced it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.protocol.unhandled import unhandled
from rayflow.protocol.watermarks import AdvanceWatermark, GoIdle, WatermarkCommand


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


@dataclass(frozen=True, slots=True)
class MergerState:
    """What a merger remembers: watermarks of `active`, `idle` and announced-to-be-`over` channels (all others have
    ended), the largest that one was at when it ended, and the merged one."""

    active: dict[ChannelId, int]
    idle: dict[ChannelId, int]
    over: dict[ChannelId, int]
    reached: int
    watermark: int


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

    def state(self) -> MergerState:
        """Return what `resumed` needs."""
        return MergerState(
            dict(self._active), dict(self._idle), dict(self._over), self._reached, self._watermark
        )

    @classmethod
    def resumed(cls, state: MergerState) -> WatermarkMerger:
        """Return a merger that goes on from `state`."""
        merger = cls(())
        merger._active, merger._idle, merger._over = dict(state.active), dict(state.idle), dict(state.over)
        merger._reached, merger._watermark = state.reached, state.watermark
        return merger

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
                "(invariant M1)"
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
                f"event time of {channel}: no such channel, or it has ended (invariant M1)"
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
