"""The consuming end of a channel: reads frames on the Flight server's thread for the stream, sends credits.

Credits are written by whoever grants them (the task thread): a credit is some thirty bytes, and as many as
can be outstanding fit into the stream's window, so that the write does not wait for the peer. The lock
around it exists because Flight's writer must not be touched once the handler has returned.
"""

from __future__ import annotations

import threading
from typing import Any

from rayflow.actors import frame_codec
from rayflow.actors.flight_output import reason_of
from rayflow.actors.frame_codec import BYE_MESSAGE
from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, ChannelId
from rayflow.runtime.messages import CreditFrame
from rayflow.runtime.ports import FrameReceiver


class InputStream:
    """An input channel of one attempt, expected from `listen` on; `serve` runs once its producer has called.

    Invariant: `_writer` is set exactly while `serve` runs and the stream is open.
    """

    def __init__(self, attempt: Attempt, channel: ChannelId, receiver: FrameReceiver) -> None:
        self.attempt = attempt
        self._channel = channel
        self._receiver = receiver
        self._lock = threading.Lock()
        self._writer: Any = None
        self._taken = False
        self._closed = False
        # Credit granted before the producer has called.
        self._early = CreditFrame(0, 0)

    def serve(self, reader: Any, writer: Any) -> None:
        """Hand on frames until the stream ends. ProtocolViolation when the channel has a producer already."""
        self._attach(writer)
        reason: str | None = None
        try:
            reason = self._read_all(reader)
        except Exception as e:
            reason = reason_of(e)
        with self._lock:
            self._writer = None
            broken = reason is not None and not self._closed
            self._closed = True
        if broken:
            self._receiver.on_channel_broken(self.attempt, self._channel, str(reason))

    def send_credit(self, credit: CreditFrame) -> None:
        """Grant credit to the producer; kept until it calls. Dropped when the stream is closed or broken."""
        with self._lock:
            if self._writer is not None:
                self._write(frame_codec.encode_credit(credit))
            elif not self._taken:
                early = self._early
                self._early = CreditFrame(early.batches + credit.batches, early.nbytes + credit.nbytes)

    def close(self) -> None:
        """Drop what still comes, and say goodbye to the producer, which ends the stream."""
        with self._lock:
            self._closed = True
            if self._writer is not None:
                self._write(BYE_MESSAGE)
                self._writer = None

    def _attach(self, writer: Any) -> None:
        with self._lock:
            if self._taken or self._closed:
                raise ProtocolViolation(f"channel {self._channel} has or had a producer in this attempt")
            self._taken = True
            self._writer = writer
            if self._early.batches or self._early.nbytes:
                self._write(frame_codec.encode_credit(self._early))

    def _write(self, message: bytes) -> None:
        try:
            self._writer.write_metadata(message)
        except Exception:
            # The producer is gone; `serve` is about to find out and to report it.
            self._writer = None

    def _read_all(self, reader: Any) -> str | None:
        """Why the stream broke; None when the producer said goodbye or this end is closed."""
        receiver, attempt, channel = self._receiver, self.attempt, self._channel
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return "the producer's process is gone"
            frame = frame_codec.decode(chunk.app_metadata.to_pybytes(), chunk.data)
            if frame is None or self._closed:
                return None
            if isinstance(frame, CreditFrame):
                return "a credit came from the producing end"
            receiver.on_frame(attempt, channel, frame)
