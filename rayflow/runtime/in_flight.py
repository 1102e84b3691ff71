"""What was in flight at an unaligned snapshot, to storage and back. Both functions block: they run on the I/O pool.

Whoever receives is who a file belongs to: its uid is that of the first operator of the receiving chain, its subtask
index that of the receiving subtask, its key groups those of that subtask where rows come to it by key. So files go to
subtasks as state does (`runtime.master.restore`). A task writes one file for each edge it reads, even without rows,
since what its producers have recorded for it is read together with the event time of its inputs; and one for each
channel it writes where something was overtaken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from rayflow.graph.execution import edge_input_channels
from rayflow.graph.plan import JobEdge, JobGraph
from rayflow.model.errors import CorruptCheckpointError
from rayflow.model.ids import ChannelId, SubtaskId
from rayflow.protocol.key_groups import key_group_range
from rayflow.protocol.watermark_merging import MergerState
from rayflow.runtime.barriers import Flying, InFlight
from rayflow.runtime.messages import Deploy, EndFrame, Frame, IdleFrame, WatermarkFrame
from rayflow.runtime.replay import RestoredInFlight
from rayflow.state.files import sha256_hex
from rayflow.state.in_flight import (
    Event,
    FlyingFrame,
    InFlightFile,
    Side,
    by_schema,
    decode_in_flight,
    encode_in_flight,
)
from rayflow.state.manifest import CheckpointFiles, StateFile
from rayflow.state.storage import MissingObject, ObjectStore


def upload_in_flight(
    store: ObjectStore, directory: str, in_flight: InFlight | None, deploy: Deploy
) -> tuple[StateFile, ...]:
    """Write what was in flight under `directory`; return what was written. Raises StorageError."""
    if in_flight is None:
        return ()
    graph, written = deploy.graph, []
    for part, receiver, edge, file in _files(in_flight, graph, deploy.subtask):
        keyed = bool(edge.exchange.owner_keys)
        consumers = graph.vertex(edge.target).parallelism
        groups = key_group_range(graph.max_parallelism, consumers, receiver)
        data = encode_in_flight(file)
        name = hashlib.sha256(file.uid.encode()).hexdigest()[:8]
        path = f"in-flight-{name}-{receiver}-{part}-a{deploy.attempt}.arrow"
        store.write(f"{directory}/{path}", data)
        written.append(
            StateFile(
                path=path,
                uid=file.uid,
                part=f"in-flight-{part}",
                kind="in-flight",
                subtask_index=receiver,
                nbytes=len(data),
                sha256=sha256_hex(data),
                rows=sum(f.content.num_rows for f in file.frames if isinstance(f.content, pa.RecordBatch)),
                key_groups=(groups.start, groups.stop) if keyed else None,
            )
        )
    return tuple(written)


def read_in_flight(checkpoint: CheckpointFiles, file: StateFile) -> RestoredInFlight:
    """Read a file back. Raises StorageError, or CorruptCheckpointError where it does not match its checksum."""
    store, path = checkpoint.locate(file)
    origin = f"{store.url}/{path}"
    try:
        data = store.read(path)
    except MissingObject:
        raise CorruptCheckpointError(f"{origin} is missing, although the manifest names it") from None
    return RestoredInFlight(receiver=file.subtask_index, file=decode_in_flight(data, file.sha256, origin))


def _files(
    in_flight: InFlight, graph: JobGraph, own: SubtaskId
) -> Iterator[tuple[str, int, JobEdge, InFlightFile]]:
    """Yield (part, receiver's index, edge, file)."""
    if in_flight.merger is not None:
        for edge in graph.inputs(own.vertex):
            if edge.exchange.kind == "broadcast":
                continue
            frames = [
                frame
                for channel in edge_input_channels(graph, edge, own)
                for frame in _frames(channel, in_flight.inputs.get(channel, []))
            ]
            for number, part in enumerate(by_schema(frames)):
                name = f"input-e{edge.id}-{number}"
                yield name, own.index, edge, _file(graph, edge, "input", part, in_flight.merger)
    for channel, flying in in_flight.outputs.items():
        edge = graph.edges[channel.edge]
        for number, part in enumerate(by_schema(_frames(channel, flying))):
            name = f"output-e{edge.id}-p{own.index}-{number}"
            yield name, channel.consumer.index, edge, _file(graph, edge, "output", part, None)


def _file(
    graph: JobGraph, edge: JobEdge, side: Side, frames: tuple[FlyingFrame, ...], merger: MergerState | None
) -> InFlightFile:
    return InFlightFile(
        uid=graph.vertex(edge.target).operators[0].uid,
        port=edge.port,
        side=side,
        keys=edge.exchange.owner_keys,
        frames=frames,
        merger=merger,
    )


def _frames(channel: ChannelId, flying: Flying) -> list[FlyingFrame]:
    return [FlyingFrame(channel, position, _content(item)) for position, item in enumerate(flying)]


def _content(item: pa.RecordBatch | Frame) -> pa.RecordBatch | Event:
    match item:
        case WatermarkFrame(watermark):
            return Event("watermark", watermark)
        case IdleFrame():
            return Event("idle")
        case EndFrame():
            return Event("end")
        case _:
            return item
