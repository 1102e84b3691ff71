"""What a task is made of, and what can be counted there. `runtime.assembly` makes the parts."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from rayflow.model.ids import ChannelId
from rayflow.observe.metrics import MetricGroup
from rayflow.protocol.rate import RateLimiter
from rayflow.runtime.barriers import BarrierMode
from rayflow.runtime.catching_up import CatchUp
from rayflow.runtime.chain import Chain
from rayflow.runtime.emitter import Emitter
from rayflow.runtime.gate import InputGate
from rayflow.runtime.outputs import OutputChannel, OutputEdge
from rayflow.runtime.replay import RestoredState
from rayflow.runtime.source_driver import SourceDriver

_COUNTED = ("rows_in", "rows_out", "batches_in", "bytes_in")


@dataclass(slots=True, kw_only=True)
class TaskParts:
    """The parts of one task. `source` or `gate` is None, never both."""

    chain: Chain
    catch_up: Callable[[RestoredState], CatchUp]
    gate: InputGate | None
    source: SourceDriver | None
    edges: list[OutputEdge]
    emitter: Emitter
    channels: dict[ChannelId, OutputChannel]
    metrics: MetricGroup
    throttle: RateLimiter | None
    throttle_rows: Callable[[], float]
    piece_rows: int
    mode: BarrierMode
    pinned: Collection[ChannelId]

    def buffered_bytes(self) -> tuple[int, int]:
        """Return the bytes that wait at the inputs and at the outputs. Any thread."""
        gate = 0 if self.gate is None else self.gate.buffered_bytes
        return gate, sum(channel.queued_bytes for channel in self.channels.values())

    def statistics(self, watermark: int | None, *, opened: bool) -> dict[str, object]:
        """Return numbers for `HeartbeatAnswered`. Any thread. `opened`: whether the operators are."""
        gate, channels, source = self.gate, self.channels, self.source
        values = self.metrics.snapshot()
        read = {} if source is None else {source.uid: {**source.statistics(), "watermark": watermark}}
        return {
            **{name: values.get(name, 0) for name in _COUNTED},
            "bytes_out": sum(c.bytes_sent for c in channels.values()),
            "queued_in": 0 if gate is None else gate.queued_frames,
            "queued_out": sum(c.queued_frames for c in channels.values()),
            "buffered_bytes": sum(self.buffered_bytes()),
            "blocked_channels": [] if gate is None else [str(c) for c in gate.blocked_channels],
            "watermark": watermark,
            "keyed_traffic": [t for edge in self.edges if (t := edge.keyed_traffic()) is not None],
            "hot_keys": self.chain.hot_keys() if opened else {},
            "operators": {**read, **self.chain.statistics()},
        }
