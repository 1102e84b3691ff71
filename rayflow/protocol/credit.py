"""Credit-based flow control: how much each producer may send before the consumer has room again.

Theory of operation (after Flink's network stack, with bytes beside batches). An input gate has a budget of
bytes for all its channels. `CreditReceiver` spends it as credits, `CreditSender` at the other end of a
channel keeps the balance and stops that channel alone when it is used up. Half of the budget is *exclusive*:
an equal share per channel, always coming back to it, so that no channel can starve; less where the producer, in whose
memory lies what is under way, can give the channel less (`protocol.network_budget`). The rest *floats*:
it extends the queue of channels whose producers report a backlog. Batches are counted beside bytes, in the
same way, so that many small frames are bounded too.

What a channel *uses* is its unspent credit plus what is queued for it. Receiving a frame moves bytes from one
to the other; only granting raises the use, only consuming lowers it. What it uses above its share floats.
Unspent credit alone may never exceed the share: so what floats is always backed by queued frames and comes
back when they are consumed, whatever the producer does, without any message to revoke it.

Nobody knows how large the next frame will be, so a sender with any bytes left may send one whole frame, and
its balance goes below zero by less than that frame. That keeps a channel alive whose frames are larger than
its share, or than the whole budget. A debt is made good by consuming that frame.

Grants are held back until they are worth a message, except when the sender may be at zero. A sender may be at
zero only when its unspent credit (credits and frames under way included) is: so either it can send, or the
receiver holds frames of it whose consumption leads to a grant.

When memory is short nothing floats (`FloatingStopped`) until there is room again: what was granted stays granted, and
comes back as it is consumed.

Invariants (bytes and batches alike, where not said otherwise):

1. Frames arrive only on credit: unspent batches ≥ 1 and bytes > 0 before each. Batches never go below zero.
2. Unspent credit of a channel ≤ its exclusive share.
3. The sum over channels of what they use above their shares ≤ the floating part. Hence what all use together
   ≤ budget, and memory ≤ budget + one frame a channel (I7).
4. A channel without queued frames uses nothing that floats.
5. A channel without queued frames has unspent batches ≥ 1 and bytes > 0: its sender can go on (I8).
6. Only what is queued is consumed, to the byte: an empty queue holds zero bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True)
class GateOpened:
    """The gate's channels exist; comes once, first."""


@dataclass(frozen=True, slots=True)
class FrameReceived:
    """A data frame that cost its sender `nbytes` was queued; `backlog` more wait at the producer."""

    channel: ChannelId
    nbytes: int
    backlog: int


@dataclass(frozen=True, slots=True)
class FrameConsumed:
    """A queued data frame of `nbytes` left the queue, and its memory is free or the consumer's own."""

    channel: ChannelId
    nbytes: int


@dataclass(frozen=True, slots=True)
class FloatingStopped:
    """Memory is short: nothing is to float from now on. May come again."""


@dataclass(frozen=True, slots=True)
class FloatingResumed:
    """There is room again. May come again."""


@dataclass(frozen=True, slots=True)
class GrantCredit:
    """Send the producer of `channel` credit for so many more batches and bytes (one of them may be 0)."""

    channel: ChannelId
    batches: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class CreditGranted:
    """Credit arrived at the sender."""

    batches: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class FrameSent:
    """A data frame that costs `nbytes` was handed to the transport."""

    nbytes: int


ReceiverEvent = FrameReceived | FrameConsumed | GateOpened | FloatingStopped | FloatingResumed
SenderEvent = CreditGranted | FrameSent


class Credit(NamedTuple):
    """An amount of credit. `nbytes` of a balance may be negative: a debt."""

    batches: int
    nbytes: int


class _Channel:
    """Books of one channel. What it uses is `batches` + `queued_batches`, and the same in bytes."""

    __slots__ = (
        "backlog",
        "batches",
        "nbytes",
        "queued_batches",
        "queued_bytes",
        "share_bytes",
        "worth_bytes",
    )

    def __init__(self, share_bytes: int) -> None:
        self.share_bytes = share_bytes
        self.worth_bytes = max(1, share_bytes // 4)
        self.batches = 0
        self.nbytes = 0
        self.queued_batches = 0
        self.queued_bytes = 0
        self.backlog = 0


class CreditReceiver:
    """Grants credit to the channels of one input gate.

    `budget_bytes` must be at least one byte per channel. `exclusive_batches` (≥ 1) is each channel's share
    in batches, `floating_batches` what floats between all of them. `most_bytes` bounds the shares of channels whose
    producers cannot have more under way.
    """

    def __init__(
        self,
        channels: Sequence[ChannelId],
        budget_bytes: int,
        exclusive_batches: int = 4,
        floating_batches: int = 16,
        most_bytes: Mapping[ChannelId, int] | None = None,
    ) -> None:
        if budget_bytes < len(channels) or exclusive_batches < 1 or floating_batches < 0:
            raise ProtocolViolation(
                f"credit for {len(channels)} channels of {budget_bytes} bytes, {exclusive_batches} exclusive "
                f"and {floating_batches} floating batches: expected at least a byte and a batch per channel"
            )
        equal, most = budget_bytes // (2 * max(len(channels), 1)), most_bytes or {}
        self._channels = {c: _Channel(max(1, min(equal, most.get(c, equal)))) for c in channels}
        self._share_batches = exclusive_batches
        # What nobody holds of the floating part.
        self._free_batches = floating_batches
        self._free_bytes = budget_bytes - sum(books.share_bytes for books in self._channels.values())
        self._worth_batches = max(1, exclusive_batches // 2)
        self._opened = False
        self._floats = True
        self.queued_bytes = 0
        """Bytes received and not yet consumed, of all channels."""

    def handle(self, event: ReceiverEvent) -> tuple[GrantCredit, ...]:
        """Book `event`; return the credit to send now."""
        match event:
            case FrameReceived():
                return self._on_received(event)
            case FrameConsumed():
                return self._on_consumed(event)
            case GateOpened():
                return self._on_opened()
            case FloatingStopped() | FloatingResumed():
                self._floats = isinstance(event, FloatingResumed)
                return ()
            case _:
                unhandled(event)

    def granted(self, channel: ChannelId) -> Credit:
        """Return the unspent credit of a channel: at its sender, or under way to it or back as frames."""
        books = self._channels[channel]
        return Credit(books.batches, books.nbytes)

    def queued(self, channel: ChannelId) -> Credit:
        """Return the batches and bytes received from a channel and not yet consumed."""
        books = self._channels[channel]
        return Credit(books.queued_batches, books.queued_bytes)

    def share_bytes(self, channel: ChannelId) -> int:
        """Return a channel's exclusive share."""
        return self._channels[channel].share_bytes

    @property
    def floating(self) -> Credit:
        """The floating batches and bytes that no channel uses."""
        return Credit(self._free_batches, self._free_bytes)

    def _on_opened(self) -> tuple[GrantCredit, ...]:
        if self._opened:
            raise ProtocolViolation("gate opened twice: its channels would get their shares twice")
        self._opened = True
        grants = (self._grant(channel, books) for channel, books in self._channels.items())
        return tuple(command for commands in grants for command in commands)

    def _on_received(self, event: FrameReceived) -> tuple[GrantCredit, ...]:
        books = self._books(event.channel)
        if books.batches < 1 or books.nbytes <= 0:
            raise ProtocolViolation(
                f"frame of {event.nbytes} bytes on {event.channel} without credit: "
                f"it has {books.batches} batches and {books.nbytes} bytes (invariant 1)"
            )
        if event.nbytes < 0 or event.backlog < 0:
            raise ProtocolViolation(f"{event}: expected sizes of at least 0")
        books.batches -= 1
        books.nbytes -= event.nbytes
        books.queued_batches += 1
        books.queued_bytes += event.nbytes
        self.queued_bytes += event.nbytes
        books.backlog = event.backlog
        return self._grant(event.channel, books)

    def _on_consumed(self, event: FrameConsumed) -> tuple[GrantCredit, ...]:
        books = self._books(event.channel)
        left_batches, left_bytes = books.queued_batches - 1, books.queued_bytes - event.nbytes
        if event.nbytes < 0 or left_batches < 0 or left_bytes < 0 or (left_batches == 0 and left_bytes > 0):
            raise ProtocolViolation(
                f"frame of {event.nbytes} bytes consumed on {event.channel}, where "
                f"{books.queued_batches} frames of {books.queued_bytes} bytes in all are queued (invariant 6)"
            )
        over_batches = books.batches + books.queued_batches - self._share_batches
        if over_batches > 0:
            self._free_batches += 1
        over_bytes = books.nbytes + books.queued_bytes - books.share_bytes
        if over_bytes > 0:
            self._free_bytes += min(over_bytes, event.nbytes)
        books.queued_batches, books.queued_bytes = left_batches, left_bytes
        self.queued_bytes -= event.nbytes
        return self._grant(event.channel, books)

    def _books(self, channel: ChannelId) -> _Channel:
        books = self._channels.get(channel)
        if books is None or not self._opened:
            raise ProtocolViolation(f"frame on {channel}: no such channel, or the gate is not open yet")
        return books

    def _grant(self, channel: ChannelId, books: _Channel) -> tuple[GrantCredit, ...]:
        """Grant what may be granted, if the sender might need it now or it is worth a message."""
        own_batches = max(0, self._share_batches - books.batches - books.queued_batches)
        own_bytes = max(0, books.share_bytes - books.nbytes - books.queued_bytes)
        batches, nbytes = own_batches, own_bytes
        if books.backlog > 0 and self._floats:
            wanted = min(books.backlog, self._share_batches) - books.batches
            batches = max(own_batches, min(wanted, own_batches + self._free_batches))
            nbytes = min(books.share_bytes - books.nbytes, own_bytes + self._free_bytes)
        if books.batches < 1 or books.nbytes <= 0:
            if books.batches + batches < 1 or books.nbytes + nbytes <= 0:
                # It still could not send. Consuming its queue will give enough (invariant 5); until then
                # what floats is of more use to others.
                return ()
        elif batches < self._worth_batches and nbytes < books.worth_bytes:
            return ()
        books.batches += batches
        books.nbytes += nbytes
        self._free_batches -= batches - own_batches if batches > own_batches else 0
        self._free_bytes -= nbytes - own_bytes if nbytes > own_bytes else 0
        return (GrantCredit(channel, batches, nbytes),)


class CreditSender:
    """Balance of one output channel. Starts without credit."""

    __slots__ = ("_batches", "_nbytes")

    def __init__(self) -> None:
        self._batches = 0
        self._nbytes = 0

    def handle(self, event: SenderEvent) -> tuple[()]:
        """Book `event`; there is nothing to do but to ask `can_send` again."""
        match event:
            case FrameSent():
                self._on_sent(event.nbytes)
            case CreditGranted():
                self._on_granted(event)
            case _:
                unhandled(event)
        return ()

    def can_send(self) -> bool:
        """Whether one more data frame, of any size, may be sent now."""
        return self._batches >= 1 and self._nbytes > 0

    @property
    def outstanding(self) -> Credit:
        """Credit that was granted and is not spent; bytes below zero after an overdraft."""
        return Credit(self._batches, self._nbytes)

    def _on_sent(self, nbytes: int) -> None:
        if nbytes < 0 or self._batches < 1 or self._nbytes <= 0:
            raise ProtocolViolation(
                f"frame of {nbytes} bytes sent with credit for {self._batches} batches and "
                f"{self._nbytes} bytes: can_send() must be asked first (invariant 1)"
            )
        self._batches -= 1
        self._nbytes -= nbytes

    def _on_granted(self, event: CreditGranted) -> None:
        if event.batches < 0 or event.nbytes < 0:
            raise ProtocolViolation(
                f"{event}: expected at least 0 batches and bytes; credit is never revoked"
            )
        self._batches += event.batches
        self._nbytes += event.nbytes
