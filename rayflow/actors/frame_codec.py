"""Frames of a channel as the metadata of an Arrow Flight stream: fixed little-endian structs, never pickle.

A frame is one Flight message: its first metadata byte is the kind. Rows of a `DataFrame` travel as the
message's own record batch. A Flight stream has one schema, fixed by its first batch; a batch of another
schema travels as an IPC stream inside the metadata (`FOREIGN`): one copy more, but any stream can be moved.

The body of a Flight message lies behind the metadata, so its address in the receiver's memory depends on
their length. `DataHeader` pads the metadata until the body of a large batch (one that fills slices of its
own in gRPC, some 16 KiB up) begins at a multiple of eight. Protocol buffers before the body: tag and
length of the IPC header (`1 + v(H) + H`, H a multiple of 8), of the metadata (`2 + M`), of the body
(`2 + v(B)`), v being the bytes of a varint. A batch that arrives unaligned all the same is copied by
`aligned`, since compiled kernels are specialised for aligned arrays.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, ChannelId, CheckpointId, EdgeId, JobId, SubtaskId, VertexId
from rayflow.protocol.alignment import BarrierKind
from rayflow.runtime.messages import (
    BarrierFrame,
    CreditFrame,
    DataFrame,
    EndFrame,
    Frame,
    IdleFrame,
    OpenFrame,
    WatermarkFrame,
)

DATA, WATERMARK, IDLE, BARRIER, END, CREDIT, BYE, FOREIGN, OPEN, HELLO, ALIVE = range(11)

_DATA = struct.Struct("<BQQI")
_BARRIER = struct.Struct("<BqB")
_CREDIT = struct.Struct("<BQQ")
_WORD_BYTES = 8
_WATERMARK_BYTES = 16

HELLO_MESSAGE = bytes([HELLO])
"""The only message of a producer on a stream for credits."""

BYE_MESSAGE = bytes([BYE])
"""Ends a channel on purpose, in either direction: what follows is no failure."""

ALIVE_MESSAGE = bytes([ALIVE])
"""Says, in either direction, nothing but that this end is there. It is for `decode` no frame."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What the first message of a stream says: who asks for which channel. `token` proves the right to.

    A channel has two streams: of frames, and of `credits`.
    """

    job_id: JobId
    attempt: Attempt
    channel: ChannelId
    token: str

    def encode(self, *, credits: bool) -> bytes:
        """As the command of a Flight descriptor."""
        c = self.channel
        ends = [c.edge, c.producer.vertex, c.producer.index, c.consumer.vertex, c.consumer.index]
        return json.dumps([self.job_id, self.attempt, self.token, ends, credits]).encode()

    @classmethod
    def decode(cls, command: bytes) -> tuple[Opening, bool]:
        """Inverse of `encode`: the opening, and whether it is for credits. ProtocolViolation for anything else."""
        try:
            job_id, attempt, token, ends, credits = json.loads(command)
            edge, producer, p_index, consumer, c_index = ends
            channel = ChannelId(
                EdgeId(int(edge)),
                SubtaskId(VertexId(str(producer)), int(p_index)),
                SubtaskId(VertexId(str(consumer)), int(c_index)),
            )
            return cls(JobId(str(job_id)), Attempt(int(attempt)), channel, str(token)), bool(credits)
        except (ValueError, TypeError) as e:
            raise ProtocolViolation("a stream was opened with a descriptor that is not rayflow's") from e


class DataHeader:
    """Metadata of the data frames of one stream with the given schema."""

    def __init__(self, schema: pa.Schema) -> None:
        empty = pa.RecordBatch.from_arrays([pa.array([], f.type) for f in schema], schema=schema)
        ipc_header_bytes = pa.ipc.get_record_batch_size(empty) - _WORD_BYTES
        self._before_body = 1 + _varint_bytes(ipc_header_bytes) + 2 + _DATA.size + 2

    def encode(self, frame: DataFrame) -> bytes:
        """The frame's numbers, padded so that its rows arrive aligned."""
        padding = -(self._before_body + _varint_bytes(frame.nbytes)) % _WORD_BYTES
        return _DATA.pack(DATA, frame.seq, frame.nbytes, frame.backlog) + bytes(padding)


def encode_foreign(frame: DataFrame) -> bytes:
    """A data frame whose schema is not the stream's, rows included."""
    header = _DATA.pack(FOREIGN, frame.seq, frame.nbytes, frame.backlog)
    return header + _written_stream(frame.batch).to_pybytes()  # type: ignore[no-any-return]


def encode_control(frame: Frame) -> bytes:
    """A frame without rows."""
    if isinstance(frame, WatermarkFrame):
        # Nanoseconds of a far-future timestamp[ms], and WATERMARK_MAX, exceed 64 bits.
        return bytes([WATERMARK]) + frame.watermark.to_bytes(_WATERMARK_BYTES, "little", signed=True)
    if isinstance(frame, BarrierFrame):
        return _BARRIER.pack(BARRIER, frame.checkpoint_id, frame.kind)
    if isinstance(frame, IdleFrame):
        return bytes([IDLE])
    if isinstance(frame, OpenFrame):
        return bytes([OPEN])
    if isinstance(frame, EndFrame):
        return bytes([END])
    raise ProtocolViolation(f"a {type(frame).__name__} is no control frame")


def encode_credit(credit: CreditFrame) -> bytes:
    """A credit, on its way back."""
    return _CREDIT.pack(CREDIT, credit.batches, credit.nbytes)


def decode(metadata: bytes, batch: pa.RecordBatch | None) -> Frame | CreditFrame | None:
    """Inverse of the encoders; None for `BYE`. ProtocolViolation for anything else."""
    kind = metadata[0]
    if kind == DATA:
        _, seq, nbytes, backlog = _DATA.unpack_from(metadata)
        return DataFrame(seq, aligned(batch), nbytes, backlog)
    if kind == CREDIT:
        return CreditFrame(*_CREDIT.unpack(metadata)[1:])
    if kind == WATERMARK:
        return WatermarkFrame(int.from_bytes(metadata[1:], "little", signed=True))
    if kind == BARRIER:
        _, checkpoint_id, barrier_kind = _BARRIER.unpack(metadata)
        return BarrierFrame(CheckpointId(checkpoint_id), BarrierKind(barrier_kind))
    if kind == IDLE:
        return IdleFrame()
    if kind == OPEN:
        return OpenFrame()
    if kind == END:
        return EndFrame()
    if kind == FOREIGN:
        return _decode_foreign(metadata)
    if kind == BYE:
        return None
    raise ProtocolViolation(
        f"a frame of unknown kind {kind} arrived: do all nodes run one version of rayflow?"
    )


def aligned(batch: Any) -> Any:
    """`batch`, or a copy of it where its buffers do not begin at multiples of eight."""
    for column in reversed(batch.columns):
        for buffer in reversed(column.buffers()):
            if buffer is not None and buffer.size:
                # All buffers of a message share one body and are padded within it: one tells for all.
                if buffer.address % _WORD_BYTES == 0:
                    return batch
                return _copied(batch)
    return batch


def _copied(batch: Any) -> Any:
    try:
        return pa.ipc.read_record_batch(batch.serialize(), batch.schema)
    except pa.ArrowKeyError:
        # A bare message has no dictionaries; a stream has, and costs three times as much.
        return _read_stream(_written_stream(batch))


def _decode_foreign(metadata: bytes) -> DataFrame:
    _, seq, nbytes, backlog = _DATA.unpack_from(metadata)
    # The slice of bytes is a copy, and so begins aligned.
    return DataFrame(seq, _read_stream(pa.py_buffer(metadata[_DATA.size :])), nbytes, backlog)


def _written_stream(batch: Any) -> Any:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue()


def _read_stream(buffer: Any) -> Any:
    with pa.ipc.open_stream(buffer) as reader:
        return reader.read_next_batch()


def _varint_bytes(n: int) -> int:
    return max(1, (n.bit_length() + 6) // 7)
