"""The simulated data plane: channels are ordered streams that deliver all or break.

A frame or credit that was sent arrives, after whatever was sent before it on its channel and direction, unless the
stream breaks; then both ends are told, each when it finds out, and what was under way is gone. Where the seed asks for
it data frames arrive once more, at any time after the first. Streams break when the
process at the other end dies, when the injector says so, and when machines have been cut off for long enough that
the channel's heartbeats find out. Until then a cut only holds frames up.

What it checks, of every frame that arrives (by number):

  I4  data frames of a channel and attempt are numbered from 0 without gaps.
  I6  a consumer's attempts only grow.
  I9  watermarks of a channel never go back.

And when an attempt begins on a worker, I10: no channel of an earlier one is open there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from rayflow.model.ids import Attempt, ChannelId
from rayflow.runtime.messages import CreditFrame, DataFrame, EndFrame, Frame, WatermarkFrame
from rayflow.runtime.ports import FrameReceiver
from rayflow.testing.world import Process, World

if TYPE_CHECKING:
    from rayflow.testing.workers import SimWorker

_DETECTION_MS = 4_000
_DUPLICATE_MS = 3_000


@dataclass(slots=True)
class UnderWay:
    """What has been sent and has not arrived, in data frames and their bytes."""

    frames: int = 0
    nbytes: int = 0


@dataclass(slots=True, eq=False)
class Channel:
    """One open stream, and what was seen on it."""

    attempt: Attempt
    id: ChannelId
    number: int
    """Of the connection: two masters may both believe in an attempt."""
    producer: SimWorker
    consumer: SimWorker
    next_seq: int = 0
    told: int | None = None
    """The newest watermark that was sent."""
    watermark: int | None = None
    """The newest that has arrived."""
    ended: bool = False
    data: UnderWay = field(default_factory=UnderWay)
    """Data frames to the consumer."""
    credit: UnderWay = field(default_factory=UnderWay)
    """Credit to the producer."""
    largest_bytes: int = 0
    """Of the data frames that were sent."""
    frames: tuple[str, int] = field(init=False)
    """Queue of what is under way to the consumer."""
    credits: tuple[str, int] = field(init=False)
    """Queue of what is under way to the producer."""

    def __post_init__(self) -> None:
        self.frames, self.credits = ("frame", self.number), ("credit", self.number)


class SimNetwork:
    """All open channels."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listening: dict[str, tuple[Attempt, frozenset[ChannelId], SimWorker]] = {}
        self.outgoing: dict[tuple[str, Attempt, ChannelId], Channel] = {}
        self.incoming: dict[tuple[str, Attempt, ChannelId], Channel] = {}
        self.check_watermark: Callable[[Channel, WatermarkFrame], None] = lambda channel, frame: None
        self.comes_again: Callable[[], bool] = lambda: False
        """Whether a data frame that has just arrived will arrive once more."""
        self._opened = 0

    @property
    def channels(self) -> list[Channel]:
        """Every open channel."""
        return list(self.outgoing.values())

    def open(self, attempt: Attempt, channel: ChannelId, producer: SimWorker, consumer: SimWorker) -> None:
        """A producer connects."""
        self._opened += 1
        opened = Channel(attempt, channel, self._opened, producer, consumer)
        before = self.incoming.get((consumer.name, attempt, channel))
        if before is not None:
            self.break_off(before, "connected again")
        self.outgoing[producer.name, attempt, channel] = opened
        self.incoming[consumer.name, attempt, channel] = opened

    def check_closed(self, worker: SimWorker, attempt: Attempt) -> None:
        """I10: `attempt` begins on the worker."""
        left = [f"{c.id} of attempt {c.attempt}" for c in self._of(worker) if c.attempt < attempt]
        if left:
            self.world.violated(f"I10: {worker.name} begins attempt {attempt}, and {left[0]} is still open")

    def close(self, worker: SimWorker, up_to: Attempt) -> None:
        """Close the worker's channels of `up_to` and earlier attempts, and let nobody open more of them; the other ends
        see their streams break."""
        if worker.name in self.listening and self.listening[worker.name][0] <= up_to:
            del self.listening[worker.name]
        for channel in self._of(worker):
            if channel.attempt <= up_to:
                self.break_off(channel, "closed by the other end", told=worker)

    def crashed(self, worker: SimWorker) -> None:
        """The worker's process is gone: the other ends see their streams break."""
        self.listening.pop(worker.name, None)
        for channel in self._of(worker):
            self.break_off(channel, "peer died", told=worker)

    def cut(self) -> None:
        """Machines were cut off: channels across the cut break when their heartbeats find out."""
        for channel in self.channels:
            if self._crosses(channel):
                self.world.after(
                    self.world.draw(_DETECTION_MS), f"heartbeat of {channel.id}", partial(self._beat, channel)
                )

    def break_off(self, channel: Channel, reason: str, told: SimWorker | None = None) -> None:
        """The stream breaks. `told` knows already."""
        if self.outgoing.get((channel.producer.name, channel.attempt, channel.id)) is channel:
            del self.outgoing[channel.producer.name, channel.attempt, channel.id]
        if self.incoming.get((channel.consumer.name, channel.attempt, channel.id)) is channel:
            del self.incoming[channel.consumer.name, channel.attempt, channel.id]
        self.world.drop(channel.frames)
        self.world.drop(channel.credits)
        for end in (channel.producer, channel.consumer):
            if end is not told and end.process.alive:
                self.world.post(
                    ("broken", channel.number, end.name),
                    f"broken {channel.id} a{channel.attempt} to {end.name}",
                    partial(end.engine.on_channel_broken, channel.attempt, channel.id, reason),
                    target=end.process,
                )

    def arrived(self, channel: Channel, frame: Frame) -> None:
        """Check a frame, and hand it to the consumer."""
        if isinstance(frame, DataFrame):
            channel.data.frames -= 1
            channel.data.nbytes -= frame.nbytes
            if frame.seq != channel.next_seq:
                self.world.violated(f"I4: {channel.id}: frame {frame.seq} where {channel.next_seq} was next")
            channel.next_seq = frame.seq + 1
        elif isinstance(frame, WatermarkFrame):
            if channel.watermark is not None and frame.watermark < channel.watermark:
                self.world.violated(
                    f"I9: {channel.id}: watermark {frame.watermark} after {channel.watermark}"
                )
            channel.watermark = frame.watermark
            self.check_watermark(channel, frame)
        if channel.ended and isinstance(frame, DataFrame | WatermarkFrame | EndFrame):
            self.world.violated(f"I4: {channel.id}: {type(frame).__name__} after the end")
        channel.ended |= isinstance(frame, EndFrame)
        channel.consumer.engine.on_frame(channel.attempt, channel.id, frame)
        if isinstance(frame, DataFrame) and self.comes_again():
            self.world.post(
                ("again", channel.number, frame.seq),
                f"DataFrame{frame.seq} {channel.id} a{channel.attempt} again",
                partial(self._again, channel, frame),
                self.world.draw(_DUPLICATE_MS),
                target=channel.consumer.process,
            )

    def credited(self, channel: Channel, credit: CreditFrame) -> None:
        """Hand credit to the producer."""
        channel.credit.frames -= credit.batches
        channel.credit.nbytes -= credit.nbytes
        channel.producer.engine.on_credit(channel.attempt, channel.id, credit)

    def _again(self, channel: Channel, frame: DataFrame) -> None:
        if channel.consumer.process.alive:
            channel.consumer.engine.on_frame(channel.attempt, channel.id, frame)

    def _beat(self, channel: Channel) -> None:
        key = (channel.producer.name, channel.attempt, channel.id)
        if self.outgoing.get(key) is channel and self._crosses(channel):
            self.break_off(channel, "no heartbeat on the channel")

    def _crosses(self, channel: Channel) -> bool:
        ends = channel.producer.process, channel.consumer.process
        return self.world.cut_off(*ends) or self.world.cut_off(*reversed(ends))

    def _of(self, worker: SimWorker) -> list[Channel]:
        return [c for c in self.outgoing.values() if worker in (c.producer, c.consumer)]


class SimTransport:
    """`Transport` of one simulated worker."""

    def __init__(self, network: SimNetwork, worker: SimWorker) -> None:
        self._network = network
        self._worker = worker

    def listen(self, receiver: FrameReceiver, attempt: Attempt, inputs: list[ChannelId]) -> None:
        """See `Transport`."""
        self._network.listening[self._worker.name] = (attempt, frozenset(inputs), self._worker)

    def connect(self, attempt: Attempt, outputs: dict[ChannelId, str], receiver: FrameReceiver) -> None:
        """See `Transport`."""
        network = self._network
        for channel, address in outputs.items():
            found = network.listening.get(address)
            there = found is not None and found[0] == attempt and channel in found[1]
            if found is None or not there or self._cut_off(found[2].process):
                network.world.post(
                    ("refused", self._worker.name, str(channel)),
                    f"refused {channel} to {self._worker.name}",
                    partial(receiver.on_channel_broken, attempt, channel, "nobody listens"),
                    target=self._worker.process,
                )
            else:
                network.open(attempt, channel, self._worker, found[2])

    def send(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        """See `Transport`."""
        opened = self._network.outgoing.get((self._worker.name, attempt, channel))
        if opened is not None:
            name = type(frame).__name__
            if isinstance(frame, DataFrame):
                name = f"{name}{frame.seq}"
                opened.data.frames += 1
                opened.data.nbytes += frame.nbytes
                opened.largest_bytes = max(opened.largest_bytes, frame.nbytes)
            elif isinstance(frame, WatermarkFrame):
                opened.told = frame.watermark
            self._network.world.post(
                opened.frames,
                f"{name} {channel} a{attempt}",
                partial(self._network.arrived, opened, frame),
                source=self._worker.process,
                target=opened.consumer.process,
            )

    def send_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        """See `Transport`."""
        opened = self._network.incoming.get((self._worker.name, attempt, channel))
        if opened is not None:
            opened.credit.frames += credit.batches
            opened.credit.nbytes += credit.nbytes
            self._network.world.post(
                opened.credits,
                f"credit {credit.batches}/{credit.nbytes} {channel} a{attempt}",
                partial(self._network.credited, opened, credit),
                source=self._worker.process,
                target=opened.producer.process,
            )

    def close_channels(self, attempt: Attempt) -> None:
        """See `Transport`."""
        self._network.close(self._worker, attempt)

    def _cut_off(self, other: Process) -> bool:
        world, own = self._network.world, self._worker.process
        return world.cut_off(own, other) or world.cut_off(other, own)
