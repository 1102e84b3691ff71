"""The consuming end of a channel: reads frames on a thread of the Flight server, sends credits.

Credits are written by whoever grants them (the task thread): a credit is some thirty bytes, and as many as
can be outstanding fit into the stream's window, so that the write does not wait for the peer. The lock
around it exists because Flight's writer must not be touched once its handler has returned.
"""

from __future__ import annotations

import threading
from typing import Any

from rayflow.actors import frame_codec
from rayflow.actors.flight_output import reason_of
from rayflow.actors.frame_codec import ALIVE_MESSAGE, BYE_MESSAGE
from rayflow.actors.lease import Lease
from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, ChannelId
from rayflow.runtime.messages import CreditFrame
from rayflow.runtime.ports import FrameReceiver

_CANCELLED_POLL_S = 1.0


class InputStream:
    """An input channel of one attempt, expected from `listen` on.

    Invariant: `_writer` is set only while `serve_credits` runs and the channel is open.
    """

    def __init__(
        self, attempt: Attempt, channel: ChannelId, receiver: FrameReceiver, silence_s: float
    ) -> None:
        self.attempt = attempt
        # Counts from the producer's call on: until then it need not even be deployed.
        self.lease = Lease(silence_s)
        self._channel = channel
        self._receiver = receiver
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._writer: Any = None
        self._has_producer = False
        self._has_credits = False
        # Credit granted before the producer has called.
        self._early = CreditFrame(0, 0)

    def serve_frames(self, reader: Any) -> None:
        """Hand on frames until the channel ends. ProtocolViolation when it has a producer already."""
        with self._lock:
            self._refuse(self._has_producer)
            self._has_producer = True
        self.lease.renew()
        try:
            reason = self._read_all(reader)
        except Exception as e:
            reason = reason_of(e)
        with self._lock:
            broken = reason is not None and not self._ended.is_set()
            self._ended.set()
        if broken:
            self._receiver.on_channel_broken(self.attempt, self._channel, str(reason))

    def serve_credits(self, writer: Any, is_cancelled: Any) -> None:
        """Keep the stream that credits are written to open until the channel ends, or `is_cancelled()`."""
        with self._lock:
            self._refuse(self._has_credits)
            self._has_credits = True
            self._writer = writer
            if self._early.batches or self._early.nbytes:
                self._write(frame_codec.encode_credit(self._early))
        while not self._ended.wait(_CANCELLED_POLL_S) and not is_cancelled():
            pass
        with self._lock:
            self._writer = None

    def send_credit(self, credit: CreditFrame) -> None:
        """Grant credit to the producer; kept until it calls. Dropped when the channel has ended."""
        with self._lock:
            if self._writer is not None:
                self._write(frame_codec.encode_credit(credit))
            elif not self._has_credits:
                early = self._early
                self._early = CreditFrame(early.batches + credit.batches, early.nbytes + credit.nbytes)

    def send_alive(self) -> None:
        """Show the producer that this end is there."""
        with self._lock:
            if self._writer is not None:
                self._write(ALIVE_MESSAGE)

    def give_up(self, reason: str) -> None:
        """The producer was not heard of: report the channel broken, unless it has ended."""
        with self._lock:
            ended = self._ended.is_set()
            self._ended.set()
        if not ended:
            self._receiver.on_channel_broken(self.attempt, self._channel, reason)

    def close(self) -> None:
        """Drop what still comes, and say goodbye to the producer, which ends the streams."""
        with self._lock:
            if self._writer is not None:
                self._write(BYE_MESSAGE)
                self._writer = None
            self._ended.set()

    def _refuse(self, taken: bool) -> None:
        if taken or self._ended.is_set():
            raise ProtocolViolation(f"channel {self._channel} has or had a producer in this attempt")

    def _write(self, message: bytes) -> None:
        try:
            self._writer.write_metadata(message)
        except Exception:
            # The producer is gone; `serve_frames` is about to find out and to report it.
            self._writer = None

    def _read_all(self, reader: Any) -> str | None:
        """Why the channel broke; None when the producer said goodbye or this end is closed."""
        receiver, attempt, channel, ended = self._receiver, self.attempt, self._channel, self._ended
        heard = self.lease.renew
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return "the producer's process is gone"
            heard()
            metadata = chunk.app_metadata.to_pybytes()
            if ended.is_set():
                return None
            if metadata == ALIVE_MESSAGE:
                continue
            frame = frame_codec.decode(metadata, chunk.data)
            if frame is None:
                return None
            if isinstance(frame, CreditFrame):
                return "a credit came from the producing end"
            receiver.on_frame(attempt, channel, frame)
