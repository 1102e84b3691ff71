"""Channels between subtasks of one process: a frame is handed straight to the consumer's engine.

Theory of operation. A `LocalNetwork` knows the endpoints by address, and every open channel with its two ends.
A `LocalTransport` is one subtask's endpoint. `send` calls the consumer's `on_frame` on the producer's thread,
`send_credit` the producer's `on_credit` on the consumer's: both only put the frame into a mailbox, so order per
channel is the order of the calls, and nothing is copied.

An endpoint that dies (`fail`) breaks its channels: the other ends get `on_channel_broken`. Endpoints are called
outside the lock; a frame that was under way while its channel closed may still arrive, with its old attempt.
"""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass

from rayflow.model.ids import Attempt, ChannelId
from rayflow.runtime.messages import CreditFrame, Frame
from rayflow.runtime.ports import FrameReceiver

_Key = tuple[Attempt, ChannelId]


@dataclass(frozen=True, slots=True)
class _Open:
    """An open channel: the receivers of both ends, and their transports."""

    producer: LocalTransport
    consumer: LocalTransport
    producer_receiver: FrameReceiver
    consumer_receiver: FrameReceiver


class LocalNetwork:
    """The endpoints of one process, and the channels between them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serial = itertools.count(1)
        self._endpoints: dict[str, LocalTransport] = {}
        self._channels: dict[_Key, _Open] = {}

    def endpoint(self) -> LocalTransport:
        """Return a new endpoint with an address of its own."""
        with self._lock:
            address = f"local:{next(self._serial)}"
            endpoint = self._endpoints[address] = LocalTransport(self, address)
        return endpoint

    def open(self, key: _Key, producer: LocalTransport, receiver: FrameReceiver, address: str) -> str | None:
        """Open a channel; return why it cannot be opened, or None."""
        attempt, channel = key
        with self._lock:
            consumer = self._endpoints.get(address)
            if consumer is None:
                return f"nothing listens on {address}"
            listener = consumer.listener(attempt, channel)
            if listener is None:
                return f"{address} does not expect {channel} in attempt {attempt}"
            self._channels[key] = _Open(producer, consumer, receiver, listener)
        return None

    def find(self, key: _Key) -> _Open | None:
        """Return the open channel, or None. Lock-free: reading a dict is atomic."""
        return self._channels.get(key)

    def close(self, endpoint: LocalTransport, up_to: Attempt) -> None:
        """Close the endpoint's channels of attempts up to `up_to`; neither end is told."""
        self._take(endpoint, up_to)

    def remove(self, endpoint: LocalTransport, reason: str) -> None:
        """Take the endpoint out and break its channels: the other ends are told."""
        with self._lock:
            self._endpoints.pop(endpoint.address, None)
        for (attempt, channel_id), channel in self._take(endpoint, None):
            if channel.producer is not endpoint:
                channel.producer_receiver.on_channel_broken(attempt, channel_id, reason)
            elif channel.consumer is not endpoint:
                channel.consumer_receiver.on_channel_broken(attempt, channel_id, reason)

    def _take(self, endpoint: LocalTransport, up_to: Attempt | None) -> list[tuple[_Key, _Open]]:
        with self._lock:
            keys = [
                key
                for key, channel in self._channels.items()
                if endpoint in (channel.producer, channel.consumer) and (up_to is None or key[0] <= up_to)
            ]
            return [(key, self._channels.pop(key)) for key in keys]


class LocalTransport:
    """`Transport` of one subtask. Made by `LocalNetwork.endpoint`."""

    def __init__(self, network: LocalNetwork, address: str) -> None:
        self.address = address
        self._network = network
        self._listening: tuple[Attempt, frozenset[ChannelId], FrameReceiver] | None = None

    def listen(self, receiver: FrameReceiver, attempt: Attempt, inputs: list[ChannelId]) -> None:
        """Expect these channels; those of earlier attempts are closed."""
        self._network.close(self, Attempt(attempt - 1))
        self._listening = (attempt, frozenset(inputs), receiver)

    def connect(self, attempt: Attempt, outputs: dict[ChannelId, str], receiver: FrameReceiver) -> None:
        """Open the channels; one that cannot be opened is reported to `receiver` as broken."""
        for channel, address in outputs.items():
            problem = self._network.open((attempt, channel), self, receiver, address)
            if problem is not None:
                receiver.on_channel_broken(attempt, channel, problem)

    def send(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        """Hand `frame` to the consumer's engine."""
        opened = self._network.find((attempt, channel))
        if opened is not None:
            opened.consumer_receiver.on_frame(attempt, channel, frame)

    def send_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        """Hand `credit` to the producer's engine."""
        opened = self._network.find((attempt, channel))
        if opened is not None:
            opened.producer_receiver.on_credit(attempt, channel, credit)

    def close_channels(self, attempt: Attempt) -> None:
        """Close all channels of `attempt` and earlier ones; neither end is told."""
        self._network.close(self, attempt)
        if self._listening is not None and self._listening[0] <= attempt:
            self._listening = None

    def fail(self, reason: str) -> None:
        """Be gone, as if the process had died: the other ends see their channels break."""
        self._listening = None
        self._network.remove(self, reason)

    def listener(self, attempt: Attempt, channel: ChannelId) -> FrameReceiver | None:
        """Return who expects `channel` here, or None."""
        if self._listening is None:
            return None
        listening_attempt, inputs, receiver = self._listening
        return receiver if listening_attempt == attempt and channel in inputs else None
