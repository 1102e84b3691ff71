"""The producing end of a channel: one Flight stream for frames, one for credits, a thread for each.

`send` only puts the frame into a queue that the writing thread sleeps on, so that nothing that happens on
this channel (a peer that is slow, stopped or gone) can hold up the caller or another channel. The queue is
bounded by the caller: data frames are sent against credit, and between two of them there are only as many
control frames as there are barriers and watermarks. The credits' thread sees a dead peer within
milliseconds, since the kernel closes the dead process's socket.

Why two streams, when Flight's go both ways: where a stream ends, Arrow's client closes its writing half from
the thread that reads; if another thread is just writing, gRPC aborts the process (`TOO_MANY_OPERATIONS`). So
on this end each stream is used by one thread only; on both, after `done_writing`, reading is safe.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

import pyarrow.flight as fl

from rayflow.actors import frame_codec
from rayflow.actors.frame_codec import ALIVE_MESSAGE, BYE_MESSAGE, HELLO_MESSAGE, DataHeader, Opening
from rayflow.actors.lease import Lease
from rayflow.runtime.messages import CreditFrame, DataFrame, Frame
from rayflow.runtime.ports import FrameReceiver

_OWN_CONNECTION = [("grpc.use_local_subchannel_pool", 1)]


class OutputStream:
    """An output channel of one attempt. Connects in the background; frames may be sent at once."""

    def __init__(self, opening: Opening, location: str, receiver: FrameReceiver, silence_s: float) -> None:
        self.attempt = opening.attempt
        # Counts at once: the consumer listens already, and one that cannot be reached must be noticed too.
        self.lease = Lease(silence_s)
        self.lease.renew()
        self._opening = opening
        self._location = location
        self._receiver = receiver
        self._queue: SimpleQueue[Frame | bytes | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._schema: Any = None
        self._header: DataHeader | None = None
        self._client: Any = None
        self._asking: Any = None
        self._writer: Any = None
        self._end: Any = None
        self._credits: Any = None
        name = f"out {opening.channel}"
        self._writing = threading.Thread(target=self._write_all, name=f"{name} write", daemon=True)
        self._reading = threading.Thread(target=self._read_all, name=f"{name} read", daemon=True)
        self._writing.start()

    def send(self, frame: Frame) -> None:
        """Queue a frame; dropped when the channel is closed or broken. Never blocks."""
        if not self._closed:
            self._queue.put(frame)

    def send_alive(self) -> None:
        """Show the consumer that this end is there, unless frames are about to."""
        if not self._closed and self._queue.empty():
            self._queue.put(ALIVE_MESSAGE)

    def give_up(self, reason: str) -> None:
        """The consumer was not heard of: report the channel broken, unless it has ended."""
        self._fail(reason)

    def close(self) -> None:
        """End the channel: drop what is queued and say goodbye. Returns at once; see `join`."""
        self._take_closing()
        self._queue.put(None)

    def join(self, timeout_s: float) -> None:
        """After `close`: wait until the peer has the goodbye, else cancel the streams after `timeout_s`.

        A write to a stopped peer may outlive that (gRPC does not always wake it) until the peer's end.
        """
        self._writing.join(timeout_s)
        for stream in (self._end, self._credits):
            if stream is not None:
                stream.cancel()

    def _take_closing(self) -> bool:
        """Whether this call is the one that closes the channel."""
        with self._lock:
            first, self._closed = not self._closed, True
            return first

    def _fail(self, error: BaseException | str) -> None:
        if self._take_closing():
            self._queue.put(None)
            self._receiver.on_channel_broken(self.attempt, self._opening.channel, reason_of(error))

    # ------------------------------------------------------------------------------- frames

    def _write_all(self) -> None:
        try:
            self._open()
            while (frame := self._queue.get()) is not None and not self._closed:
                self._write(frame)
            self._writer.write_metadata(BYE_MESSAGE)
            self._writer.done_writing()
            # Waits for the consumer, whose end is the answer: to drop the stream now would cancel what is under way.
            with suppress(StopIteration):
                self._end.read_chunk()
        except Exception as e:
            self._fail(e)
        finally:
            _close(self._writer)

    def _open(self) -> None:
        self._client = fl.connect(self._location, generic_options=_OWN_CONNECTION)
        self._asking, self._credits = self._client.do_exchange(self._descriptor(credits=True))
        # The descriptor travels with the first message.
        self._asking.write_metadata(HELLO_MESSAGE)
        self._asking.done_writing()
        self._reading.start()
        self._writer, self._end = self._client.do_exchange(self._descriptor(credits=False))

    def _descriptor(self, *, credits: bool) -> Any:
        return fl.FlightDescriptor.for_command(self._opening.encode(credits=credits))

    def _write(self, frame: Frame | bytes) -> None:
        if isinstance(frame, bytes):
            self._writer.write_metadata(frame)
            return
        if not isinstance(frame, DataFrame):
            self._writer.write_metadata(frame_codec.encode_control(frame))
            return
        schema = frame.batch.schema
        if self._header is None:
            self._writer.begin(schema)
            self._schema, self._header = schema, DataHeader(schema)
        if schema is self._schema or schema.equals(self._schema):
            self._writer.write_with_metadata(frame.batch, self._header.encode(frame))
        else:
            self._writer.write_metadata(frame_codec.encode_foreign(frame))

    # ------------------------------------------------------------------------------- credits

    def _read_all(self) -> None:
        try:
            while True:
                metadata = self._credits.read_chunk().app_metadata.to_pybytes()
                self.lease.renew()
                if metadata == ALIVE_MESSAGE:
                    continue
                frame = frame_codec.decode(metadata, None)
                if not isinstance(frame, CreditFrame):
                    # The consumer said goodbye: it was told to drop this attempt before we were.
                    self.close()
                    return
                if not self._closed:
                    self._receiver.on_credit(self.attempt, self._opening.channel, frame)
        except StopIteration:
            self._fail("the consumer ended the channel")
        except Exception as e:
            self._fail(e)
        finally:
            _close(self._asking)


def _close(writer: Any) -> None:
    """Close a stream whose end is known; left to itself Arrow would complain about it on stderr."""
    if writer is not None:
        with suppress(Exception):
            writer.close()


def reason_of(error: BaseException | str) -> str:
    """The first line of an error, without gRPC's debugging context."""
    text = str(error) or type(error).__name__
    return text.split(" gRPC client debug context", 1)[0].splitlines()[0]
