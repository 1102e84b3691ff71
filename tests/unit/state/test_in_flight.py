from __future__ import annotations

import pyarrow as pa
import pytest

from rayflow.model.errors import CorruptCheckpointError
from rayflow.model.ids import ChannelId, EdgeId, SubtaskId, VertexId
from rayflow.model.times import WATERMARK_MAX
from rayflow.protocol.watermark_merging import MergerState
from rayflow.state.files import sha256_hex
from rayflow.state.in_flight import (
    Event,
    FlyingFrame,
    InFlightFile,
    by_schema,
    decode_in_flight,
    encode_in_flight,
)

A, B = (
    ChannelId(EdgeId(0), SubtaskId(VertexId("p"), index), SubtaskId(VertexId("c"), 0)) for index in range(2)
)


def rows(*values: int) -> pa.RecordBatch:
    schema = pa.schema([pa.field("v", pa.int64(), metadata={b"unit": b"m"})], metadata={b"mine": b"kept"})
    return pa.record_batch([pa.array(values, pa.int64())], schema=schema)


FILE = InFlightFile(
    uid="count",
    port=1,
    side="input",
    keys=("v",),
    frames=(
        FlyingFrame(A, 0, rows(1, 2)),
        FlyingFrame(A, 1, Event("watermark", WATERMARK_MAX)),
        FlyingFrame(B, 0, Event("idle")),
        FlyingFrame(B, 1, rows(3)),
        FlyingFrame(A, 2, Event("end")),
    ),
    merger=MergerState({A: -(2**70)}, {B: 7}, {}, -5, WATERMARK_MAX),
)


def test_frames_of_all_kinds_come_back_as_they_were() -> None:
    data = encode_in_flight(FILE)
    got = decode_in_flight(data, sha256_hex(data))
    assert got == FILE
    assert [f.content.schema.metadata for f in got.frames if not isinstance(f.content, Event)] == [
        {b"mine": b"kept"}
    ] * 2


def test_a_file_without_rows_keeps_the_other_frames() -> None:
    file = InFlightFile(uid="x", port=0, side="output", keys=(), frames=(FlyingFrame(A, 0, Event("idle")),))
    data = encode_in_flight(file)
    assert decode_in_flight(data, sha256_hex(data)) == file


def test_a_flipped_bit_and_a_foreign_file_are_corrupt() -> None:
    data = encode_in_flight(FILE)
    with pytest.raises(CorruptCheckpointError, match="SHA-256"):
        decode_in_flight(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:], sha256_hex(data))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, pa.schema([])):
        pass
    foreign = bytes(sink.getvalue())
    with pytest.raises(CorruptCheckpointError, match="does not hold rows in flight"):
        decode_in_flight(foreign, sha256_hex(foreign))


def test_frames_are_dealt_out_so_that_each_file_has_one_schema() -> None:
    other = pa.record_batch({"w": ["x"]})
    frames = [
        FlyingFrame(A, 0, Event("watermark", 1)),
        FlyingFrame(A, 1, rows(1)),
        FlyingFrame(A, 2, other),
        FlyingFrame(A, 3, rows(2)),
    ]
    assert [[f.position for f in part] for part in by_schema(frames)] == [[0, 1, 3], [2]]
    assert by_schema([]) == [()]
