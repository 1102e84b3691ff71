"""Checkpoints in one attempt of one subtask: barriers in and out, what is recorded, and when a snapshot is whole.

Theory of operation. `protocol.alignment` decides at the inputs, `protocol.departures` at the outputs; this shell tells
them what happens and carries out what they say: it blocks and records channels of the gate, has the task capture its
operators' state, and sends barriers, behind what is queued or ahead of it. A snapshot is handed over when it is whole:
nothing is to be recorded any more, neither of the inputs nor of the outputs.

Invariant: at most one snapshot is not whole; the next one drops it, as does the end of its checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import pyarrow as pa

from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.protocol.alignment import (
    AbandonCheckpoint,
    AlignmentCommand,
    BarrierAligner,
    BarrierAnnounced,
    BarrierArrived,
    BarrierKind,
    BlockChannel,
    CheckpointCancelled,
    FinishRecording,
    RecordChannel,
    StartSnapshot,
    StopRecording,
    TimePassed,
    UnblockChannels,
)
from rayflow.protocol.departures import (
    AllBarriersLeft,
    BarrierDepartures,
    BarrierLeft,
    BarriersQueued,
    DepartureCommand,
    Overtake,
)
from rayflow.protocol.watermark_merging import MergerState
from rayflow.runtime.gate import InputGate
from rayflow.runtime.messages import BarrierFrame, DataFrame, Frame
from rayflow.runtime.outputs import OutputChannel, OutputEdge
from rayflow.state.manifest import SplitState
from rayflow.state.parts import StatePart

Flying: TypeAlias = list[pa.RecordBatch | Frame]
"""Rows, and frames without rows, that were under way on a channel, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InFlight:
    """What was under way at an unaligned snapshot. `merger`: the event time of the inputs then, None for a source."""

    inputs: dict[ChannelId, Flying] = field(default_factory=dict)
    outputs: dict[ChannelId, Flying] = field(default_factory=dict)
    merger: MergerState | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """State at a barrier, not yet durable. `in_flight` is None where nothing was overtaken."""

    checkpoint_id: CheckpointId
    parts: list[tuple[str, StatePart]]
    splits: dict[str, tuple[SplitState, ...]]
    watermark: int | None
    merger: MergerState | None = None
    alignment_ms: float = 0
    started_ms: int = 0
    in_flight: InFlight | None = None


@dataclass(frozen=True, slots=True)
class BarrierMode:
    """The kind of the barriers that a job's sources send first, and after how long TIMED ones may overtake."""

    kind: BarrierKind = BarrierKind.ALIGNED
    timeout_ms: int = 0


@dataclass(slots=True)
class _Unfinished:
    """A snapshot, and what it waits for. `taken` was polled from the gate, and not processed before it."""

    snapshot: Snapshot
    recording: bool
    departing: bool
    taken: dict[ChannelId, Flying]
    outputs: dict[ChannelId, Flying]
    kind: BarrierKind


class Barriers:
    """Task thread only. `capture(checkpoint_id)` snapshots operators and source; `taken()` are the rows that were
    polled from the gate and wait to be processed, by channel; `on_snapshot` takes what is whole."""

    def __init__(
        self,
        *,
        mode: BarrierMode,
        gate: InputGate | None,
        pinned: Collection[ChannelId],
        edges: Sequence[OutputEdge],
        channels: dict[ChannelId, OutputChannel],
        capture: Callable[[CheckpointId], Snapshot],
        taken: Callable[[], dict[ChannelId, Flying]],
        on_snapshot: Callable[[Snapshot], None],
    ) -> None:
        self._mode = mode
        self._gate = gate
        self._edges = edges
        self._channels = channels
        self._capture = capture
        self._taken = taken
        self._on_snapshot = on_snapshot
        inputs = () if gate is None else gate.channels
        self._aligner = BarrierAligner(inputs, timeout_ms=mode.timeout_ms, pinned=pinned)
        self._departures = BarrierDepartures(mode.timeout_ms)
        self._unfinished: _Unfinished | None = None
        self._since_ms: dict[CheckpointId, int] = {}
        self._last_triggered = CheckpointId(0)
        self._now_ms = 0

    # ------------------------------------------------------------------------------- events

    def triggered(self, checkpoint_id: CheckpointId, *, aligned: bool, now_ms: int) -> None:
        """The master wants a checkpoint; only sources are told. Harmless when told twice, or late."""
        if checkpoint_id <= self._last_triggered:
            return
        self._last_triggered = checkpoint_id
        self._now_ms = now_ms
        self._since_ms.setdefault(checkpoint_id, now_ms)
        kind = BarrierKind.ALIGNED if aligned else self._mode.kind
        self._start(StartSnapshot(checkpoint_id, 0, kind))

    def announced(self, channel: ChannelId, barrier: BarrierFrame, now_ms: int) -> None:
        """The barrier was queued at the gate."""
        self._now_ms = now_ms
        self._since_ms.setdefault(barrier.checkpoint_id, now_ms)
        event = BarrierAnnounced(channel, barrier.checkpoint_id, barrier.kind, now_ms)
        self._obey(self._aligner.handle(event))

    def arrived(self, channel: ChannelId, barrier: BarrierFrame, now_ms: int) -> None:
        """The barrier was next in line at the gate."""
        self._now_ms = now_ms
        self._obey(self._aligner.handle(BarrierArrived(channel, barrier.checkpoint_id, now_ms)))

    def cancelled(self, checkpoint_id: CheckpointId) -> None:
        """The checkpoint was aborted: neither hold channels back nor record for it."""
        self._since_ms.pop(checkpoint_id, None)
        if self._gate is not None:
            self._obey(self._aligner.handle(CheckpointCancelled(checkpoint_id)))
        self._drop(checkpoint_id)

    def tick(self, now_ms: int) -> bool:
        """Time passed, and outputs may have sent something; return whether anything came of it."""
        self._now_ms = now_ms
        waiting = self._departures.checkpoint_id
        if waiting is not None:
            for channel in self._departures.waiting:
                if self._channels[channel].queued_barrier != waiting:
                    self._depart(self._departures.handle(BarrierLeft(channel, waiting)))
        deadline_ms = self.deadline_ms
        if deadline_ms is None or now_ms < deadline_ms:
            return False
        self._obey(self._aligner.handle(TimePassed(now_ms)))
        self._depart(self._departures.handle(TimePassed(now_ms)))
        return True

    @property
    def deadline_ms(self) -> int | None:
        """When `tick` may do something by itself."""
        if self._mode.kind is not BarrierKind.TIMED:
            return None
        times = (self._aligner.deadline_ms, self._departures.deadline_ms)
        return min((t for t in times if t is not None), default=None)

    def aligning(self) -> tuple[CheckpointId, int] | None:
        """The oldest checkpoint whose barriers have begun to arrive, and since when (ms)."""
        return min(self._since_ms.items(), default=None)

    # ------------------------------------------------------------------------------- commands

    def _obey(self, commands: Iterable[AlignmentCommand]) -> None:
        for command in commands:
            gate = self._gate
            assert gate is not None, "only tasks with inputs align"
            match command:
                case BlockChannel(channel):
                    gate.block(channel)
                case UnblockChannels(channels):
                    gate.unblock(channels)
                case StartSnapshot():
                    self._start(command)
                case RecordChannel(channel, checkpoint_id):
                    gate.record(channel, checkpoint_id)
                case StopRecording(channel):
                    gate.stop_recording(channel)
                case FinishRecording(checkpoint_id, alignment_ms):
                    self._recorded(checkpoint_id, alignment_ms)
                case AbandonCheckpoint(checkpoint_id):
                    self._since_ms.pop(checkpoint_id, None)
                    self._drop(checkpoint_id)

    def _depart(self, commands: Iterable[DepartureCommand]) -> None:
        for command in commands:
            unfinished = self._unfinished
            assert unfinished is not None, "barriers of a snapshot that nobody waits for"
            match command:
                case Overtake(channel, checkpoint_id):
                    overtaken = self._channels[channel].overtake(
                        BarrierFrame(checkpoint_id, BarrierKind.URGENT)
                    )
                    if overtaken:
                        unfinished.outputs[channel] = overtaken
                case AllBarriersLeft():
                    unfinished.departing = False
                    self._finish()

    # ------------------------------------------------------------------------------- snapshots

    def _start(self, command: StartSnapshot) -> None:
        checkpoint_id, kind = command.checkpoint_id, command.kind
        urgent = kind is BarrierKind.URGENT
        taken = self._taken() if command.recording else {}
        snapshot = replace(
            self._capture(checkpoint_id),
            alignment_ms=command.alignment_ms,
            started_ms=self._since_ms.get(checkpoint_id, self._now_ms),
        )
        self._since_ms = {c: since for c, since in self._since_ms.items() if c > checkpoint_id}
        if self._unfinished is not None:
            self._drop(self._unfinished.snapshot.checkpoint_id)
        unfinished = _Unfinished(snapshot, command.recording, False, taken, {}, kind)
        self._unfinished = unfinished
        barrier = BarrierFrame(checkpoint_id, kind)
        for edge in self._edges:
            if urgent and not edge.pinned:
                unfinished.outputs.update(edge.overtake(barrier))
            else:
                edge.broadcast(barrier)
            edge.pump(self._now_ms)
        if kind is BarrierKind.TIMED:
            unfinished.departing = True
            stuck = tuple(
                channel.id
                for edge in self._edges
                for channel in edge.channels
                if not edge.pinned and channel.queued_barrier == checkpoint_id
            )
            since_ms = snapshot.started_ms
            self._depart(self._departures.handle(BarriersQueued(checkpoint_id, stuck, since_ms)))
        else:
            self._finish()

    def _recorded(self, checkpoint_id: CheckpointId, alignment_ms: int) -> None:
        unfinished = self._unfinished
        assert unfinished is not None, f"checkpoint {checkpoint_id} was dropped"
        unfinished.recording = False
        unfinished.snapshot = replace(unfinished.snapshot, alignment_ms=alignment_ms)
        self._finish()

    def _finish(self) -> None:
        unfinished = self._unfinished
        if unfinished is None or unfinished.recording or unfinished.departing:
            return
        self._unfinished = None
        snapshot, in_flight = unfinished.snapshot, None
        if unfinished.kind is BarrierKind.URGENT or unfinished.outputs:
            urgent = unfinished.kind is BarrierKind.URGENT
            in_flight = InFlight(
                inputs=self._inputs(unfinished),
                outputs=unfinished.outputs,
                merger=snapshot.merger if urgent else None,
            )
        self._on_snapshot(replace(snapshot, in_flight=in_flight))

    def _inputs(self, unfinished: _Unfinished) -> dict[ChannelId, Flying]:
        inputs = unfinished.taken
        for channel, frames in (self._gate.take_recorded() if self._gate else {}).items():
            rows: Flying = [f.batch if isinstance(f, DataFrame) else f for f in frames]
            inputs[channel] = [*inputs.get(channel, ()), *rows]
        return inputs

    def _drop(self, checkpoint_id: CheckpointId) -> None:
        unfinished = self._unfinished
        if unfinished is None or unfinished.snapshot.checkpoint_id != checkpoint_id:
            return
        self._unfinished = None
        self._departures.handle(CheckpointCancelled(checkpoint_id))
        if self._gate is not None:
            self._gate.take_recorded()
