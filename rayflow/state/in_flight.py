"""What was under way to an operator when an unaligned checkpoint was taken, as files of the checkpoint.

A file holds rows of one schema, and frames between them that are not rows (watermarks, idleness, ends), for one input
of one subtask of the operator: either what its own input gate had recorded (side "input", over all channels of an
edge), or what one producer's output had (side "output", one channel), which comes after the former. It is an Arrow IPC
file with a record batch for each frame of rows; the rest is JSON in the metadata of its schema, never pickle.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from rayflow.model.errors import CorruptCheckpointError
from rayflow.model.ids import ChannelId, EdgeId, SubtaskId, VertexId
from rayflow.protocol.watermark_merging import MergerState
from rayflow.state.files import sha256_hex

_KEY = b"rayflow.in_flight"
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4")

Side = Literal["input", "output"]
EventKind = Literal["watermark", "idle", "end"]


@dataclass(frozen=True, slots=True)
class Event:
    """A frame that is not rows. `watermark` (ns) belongs to that kind only."""

    kind: EventKind
    watermark: int = 0


@dataclass(frozen=True, slots=True)
class FlyingFrame:
    """One frame that was under way on `channel`; on each channel they are counted by `position`."""

    channel: ChannelId
    position: int
    content: pa.RecordBatch | Event


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlightFile:
    """The contents of one file: frames under way to input `port` of operator `uid`, by an exchange on the columns
    `keys` (none: not by key). `merger` is the event time of the receiving subtask's inputs then; output files have
    none."""

    uid: str
    port: int
    side: Side
    keys: tuple[str, ...]
    frames: tuple[FlyingFrame, ...]
    merger: MergerState | None = None


def encode_in_flight(file: InFlightFile) -> bytes:
    """Return the Arrow IPC file of `file`, whose rows have one schema."""
    batches = [f.content for f in file.frames if not isinstance(f.content, Event)]
    schema = batches[0].schema if batches else pa.schema([])
    header = {
        "uid": file.uid,
        "port": file.port,
        "side": file.side,
        "keys": list(file.keys),
        "frames": [[_channel_json(f.channel), f.position, *_event_json(f.content)] for f in file.frames],
        "merger": None if file.merger is None else _merger_json(file.merger),
    }
    schema = schema.with_metadata({**(schema.metadata or {}), _KEY: json.dumps(header).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, schema, options=_OPTIONS) as writer:
        for batch in batches:
            writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    return bytes(sink.getvalue())


def decode_in_flight(data: bytes, expected_sha256: str, origin: str = "a state file") -> InFlightFile:
    """Return what `encode_in_flight` wrote. CorruptCheckpointError, naming `origin`, where it is anything else."""
    actual = sha256_hex(data)
    if actual != expected_sha256:
        raise CorruptCheckpointError(
            f"{origin} is corrupt: its {len(data)} bytes have SHA-256 {actual}, "
            f"the manifest says {expected_sha256}"
        )
    try:
        reader = pa.ipc.open_file(pa.py_buffer(data))
        metadata = dict(reader.schema.metadata or {})
        header = json.loads(metadata.pop(_KEY))
        batches = [reader.get_batch(i) for i in range(reader.num_record_batches)]
        rows = iter([batch.replace_schema_metadata(metadata or None) for batch in batches])
        return InFlightFile(
            uid=str(header["uid"]),
            port=int(header["port"]),
            side=header["side"],
            keys=tuple(header["keys"]),
            frames=tuple(_frame(item, rows) for item in header["frames"]),
            merger=None if header["merger"] is None else _merger(header["merger"]),
        )
    except (pa.ArrowInvalid, KeyError, ValueError, TypeError, StopIteration) as error:
        raise CorruptCheckpointError(f"{origin} does not hold rows in flight: {error!r}") from None


def by_schema(frames: Sequence[FlyingFrame]) -> list[tuple[FlyingFrame, ...]]:
    """Deal the frames out so that the rows of each part have one schema; frames that are not rows go to the first."""
    parts: list[tuple[pa.Schema | None, list[FlyingFrame]]] = [(None, [])]
    for frame in frames:
        if isinstance(frame.content, Event):
            parts[0][1].append(frame)
            continue
        schema = frame.content.schema
        if parts[0][0] is None:
            parts[0] = (schema, parts[0][1])
        found = next((part for known, part in parts if known == schema), None)
        if found is None:
            parts.append((schema, found := []))
        found.append(frame)
    return [tuple(part) for _, part in parts]


# ------------------------------------------------------------------------------------------------ JSON


def _event_json(content: pa.RecordBatch | Event) -> list[Any]:
    return [content.kind, content.watermark] if isinstance(content, Event) else ["rows", 0]


def _frame(item: list[Any], rows: Any) -> FlyingFrame:
    channel, position, kind, watermark = item
    content = next(rows) if kind == "rows" else Event(kind, int(watermark))
    return FlyingFrame(_channel(channel), int(position), content)


def _channel_json(channel: ChannelId) -> list[Any]:
    c = channel
    return [c.edge, c.producer.vertex, c.producer.index, c.consumer.vertex, c.consumer.index]


def _channel(item: list[Any]) -> ChannelId:
    edge, producer, p_index, consumer, c_index = item
    return ChannelId(
        EdgeId(int(edge)),
        SubtaskId(VertexId(str(producer)), int(p_index)),
        SubtaskId(VertexId(str(consumer)), int(c_index)),
    )


def _merger_json(state: MergerState) -> dict[str, Any]:
    return {
        **{
            name: [[_channel_json(channel), watermark] for channel, watermark in known.items()]
            for name, known in (("active", state.active), ("idle", state.idle), ("over", state.over))
        },
        "reached": state.reached,
        "watermark": state.watermark,
    }


def _merger(document: dict[str, Any]) -> MergerState:
    active, idle, over = (
        {_channel(channel): int(watermark) for channel, watermark in document[name]}
        for name in ("active", "idle", "over")
    )
    return MergerState(active, idle, over, int(document["reached"]), int(document["watermark"]))
