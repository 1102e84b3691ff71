"""How far event time has come at a task's input channels, and which of its inputs have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from rayflow.model.ids import ChannelId
from rayflow.protocol.watermark_merging import (
    ChannelEnded,
    ChannelIdled,
    ChannelResumed,
    MergerState,
    WatermarkArrived,
    WatermarkMerger,
)
from rayflow.protocol.watermarks import AdvanceWatermark, GoIdle


class InputClock:
    """Tells what follows from what channels say: `advance(watermark)`, `go_idle()`, and `end_input(port)` when no more
    rows come on an input, before the watermark moves for that. `ports`: the input that each channel feeds."""

    def __init__(
        self,
        ports: Mapping[ChannelId, int],
        *,
        advance: Callable[[int], None],
        go_idle: Callable[[], None],
        end_input: Callable[[int], None],
    ) -> None:
        self._ports = ports
        self._channels_left = Counter(ports.values())
        self._merger = WatermarkMerger(tuple(ports))
        self._advance = advance
        self._go_idle = go_idle
        self._end_input = end_input

    @property
    def ended(self) -> bool:
        """Whether all channels have ended."""
        return not any(self._channels_left.values())

    def rows_came(self, channel: ChannelId) -> None:
        """Rows came on a channel: it is not idle."""
        if self._merger.is_idle(channel):
            self._obey(self._merger.handle(ChannelResumed(channel)))

    def watermark_came(self, channel: ChannelId, watermark: int) -> None:
        """A channel told how far event time has come."""
        self._obey(self._merger.handle(WatermarkArrived(channel, watermark)))

    def idled(self, channel: ChannelId) -> None:
        """A channel has nothing to say about event time."""
        self._obey(self._merger.handle(ChannelIdled(channel)))

    def channel_ended(self, channel: ChannelId) -> None:
        """A channel has ended."""
        port = self._ports[channel]
        self._channels_left[port] -= 1
        if self._channels_left[port] == 0:
            self._end_input(port)
        self._obey(self._merger.handle(ChannelEnded(channel)))

    def state(self) -> MergerState:
        """Return what a snapshot keeps of it."""
        return self._merger.state()

    def _obey(self, commands: Sequence[AdvanceWatermark | GoIdle]) -> None:
        for command in commands:
            match command:
                case AdvanceWatermark(watermark):
                    self._advance(watermark)
                case GoIdle():
                    self._go_idle()
