"""One attempt of one subtask: its gate, chain, source and output edges, and what happens at barriers.

Theory of operation
-------------------
A `Task` lives from Deploy to the end of the attempt and is dropped whole on a reset; nothing of it survives into
the next attempt. `advance(now_ms)` does one thing: it sends what has credit, then, unless an output is full,
takes the next rows (or frame) from the source or the gate through the chain.

At a barrier (aligned over all input channels, or not: see `runtime.barriers`; for a source, on the master's trigger)
the task snapshots its operators, puts the barrier behind all rows on all outputs, or ahead of those that are recorded,
and hands the state to the uploader. What was in flight in the checkpoint that is restored is processed first of all;
the master triggers nothing before that is done everywhere.
When all inputs have ended the watermark becomes WATERMARK_MAX, operators emit what they hold, and, once they are
drained, an EndFrame goes out; barriers go on being served.

While an operator is blocked (its asynchronous calls are at their limit) no rows are taken, but watermarks and
barriers that nothing precedes are, so that a checkpoint does not wait for the calls. What leaves, and when the task may
call itself idle: `runtime.emitter`.

Invariants
  T1  rows taken before a barrier are in the snapshot, or before the barrier on every output, or recorded with it; rows
      after are not.
  T2  an operator's `process` is not called while one of the task's outputs is full (B3).
  T3  barriers leave in the order in which their snapshots were taken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from rayflow.batch.tables import nbytes
from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId, CheckpointId
from rayflow.model.times import WATERMARK_MAX
from rayflow.protocol.alignment import BarrierKind
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.watermarks import GoIdle
from rayflow.runtime.barriers import Barriers, Snapshot
from rayflow.runtime.catching_up import Recovery
from rayflow.runtime.gate import InputGate
from rayflow.runtime.input_clock import InputClock
from rayflow.runtime.intake import Intake
from rayflow.runtime.messages import (
    AssignSplits,
    BarrierFrame,
    CreditFrame,
    DataFrame,
    EndFrame,
    Frame,
    IdleFrame,
    OpenFrame,
    WatermarkFrame,
)
from rayflow.runtime.parts import TaskParts
from rayflow.runtime.replay import RestoredState
from rayflow.runtime.source_driver import SourceDriver, SplitProgress


class Task:
    """Runs one attempt. Task thread only.

    `on_snapshot` takes what a barrier captured; `on_caught_up` is called once if rows were in flight in what was
    restored, when they are processed; `on_ended` is called once, when only barriers are left.
    """

    def __init__(
        self,
        parts: TaskParts,
        *,
        on_snapshot: Callable[[Snapshot], None],
        on_caught_up: Callable[[], None],
        on_ended: Callable[[], None],
    ) -> None:
        self._parts = parts
        self._chain = parts.chain
        self._gate = parts.gate
        self._source = parts.source
        self._emitter = parts.emitter
        self._on_caught_up = on_caught_up
        self._on_ended = on_ended
        self._inputs = InputClock(
            {} if parts.gate is None else {c: parts.gate.port(c) for c in parts.gate.channels},
            advance=self._advance_watermark,
            go_idle=parts.emitter.emit_idle,
            end_input=parts.chain.end_input,
        )
        # Whoever may switch to unaligned should not find the task in a long call.
        self._intake = Intake(
            parts.throttle,
            parts.throttle_rows,
            parts.piece_rows,
            paced=parts.mode.kind is not BarrierKind.ALIGNED,
        )
        self._barriers = Barriers(
            mode=parts.mode,
            gate=parts.gate,
            pinned=parts.pinned,
            edges=parts.edges,
            channels=parts.channels,
            capture=self._capture,
            taken=self._intake.waiting,
            on_snapshot=on_snapshot,
        )
        self._recovery: Recovery | None = None
        self._now_ms = 0
        self._running = False
        self._input_ended = False
        self._committing: CheckpointId | None = None
        self._rows_in = parts.metrics.counter("rows_in")
        self._bytes_in = parts.metrics.counter("bytes_in")
        self._batches_in = parts.metrics.counter("batches_in")
        self.ended = False
        self.watermark: int | None = None

    # ------------------------------------------------------------------------------- life

    def open(self, restored: RestoredState, now_ms: int) -> None:
        """Open the operators with their restored state."""
        self._now_ms = now_ms
        if not restored.in_flight:
            self._chain.open(restored.parts)
            return
        catch_up = self._parts.catch_up(restored) if restored.rescaled else None
        self._recovery = Recovery(self._chain, restored, catch_up)

    def start(self) -> None:
        """Begin to run; the output channels are connected."""
        self._running = True
        for channel in self._parts.channels.values():
            channel.push(OpenFrame())

    def close(self) -> list[Exception]:
        """Release everything; return what the operators and readers raised."""
        errors = [] if self._recovery is None else self._recovery.close()
        if self._opened:
            errors += self._chain.close()
        if self._source is not None:
            errors += self._source.close()
        return errors

    # ------------------------------------------------------------------------------- events

    def on_frame(self, channel: ChannelId, frame: Frame) -> None:
        """A frame arrived."""
        if self._gate is not None:
            self._gate.accept(channel, frame)
            if isinstance(frame, BarrierFrame):
                self._expect_caught_up(frame.checkpoint_id)
                self._barriers.announced(channel, frame, self._now_ms)

    def on_credit(self, channel: ChannelId, credit: CreditFrame) -> None:
        """A consumer granted credit."""
        self._parts.channels[channel].on_credit(credit)

    def assign(self, message: AssignSplits) -> None:
        """The master assigned splits."""
        if self._source is not None:
            self._source.assign(message)

    def wants_splits(self) -> bool:
        """Whether the master should be asked for splits (True once until it answers)."""
        return self._running and self._source is not None and self._source.wants_splits()

    def split_progress(self, now_ms: int) -> SplitProgress | None:
        """What the master should tell the source's other subtasks now, None for nothing."""
        return None if not self._running or self._source is None else self._source.progress(now_ms)

    def trigger(self, checkpoint_id: CheckpointId, aligned: bool, now_ms: int) -> None:
        """The master triggered a checkpoint; only sources get this."""
        self._now_ms = now_ms
        if self._source is not None:
            self._expect_caught_up(checkpoint_id)
            self._barriers.triggered(checkpoint_id, aligned=aligned, now_ms=now_ms)

    def salt(self, uid: str, keys: Sequence[int]) -> None:
        """The master said which keys an operator is to salt."""
        if self._opened:
            self._chain.salt(uid, keys)

    def cancel_checkpoint(self, checkpoint_id: CheckpointId) -> None:
        """The checkpoint was aborted: stop holding channels back for it."""
        self._barriers.cancelled(checkpoint_id)

    def notify_complete(self, permit: CommitPermit) -> None:
        """The checkpoint is complete: let the operators commit."""
        self._chain.notify_complete(permit)
        self._committing = permit.checkpoint_id

    def committed(self) -> CheckpointId | None:
        """Return, once, the newest checkpoint up to which everything is now committed."""
        if self._committing is None or self._chain.committing():
            return None
        done, self._committing = self._committing, None
        return done

    # ------------------------------------------------------------------------------- work

    def advance(self, now_ms: int) -> bool:
        """Do one thing; return whether anything was done."""
        self._intake.begin(now_ms)
        self._now_ms = now_ms
        if not self._running:
            return False
        sent = self._emitter.pump() | self._barriers.tick(now_ms)
        if self.backpressured or self._intake.wait_ms(now_ms) > 0:
            return sent
        if not self._opened:
            return self._recover()
        worked = self._chain.fire_timers(now_ms)
        self._emitter.catch_up_on_idle()
        if self._input_ended and not self.ended:
            self._end()
        blocked = self._chain.blocked()
        if self._intake:
            if not blocked:
                self._process()
            return worked or sent or not blocked
        if self._recovery is not None:
            return worked or sent or (not blocked and self._recover())
        if self._gate is not None:
            worked |= self._take(self._gate, rows=not blocked)
        elif self._source is not None and not blocked:
            worked |= self._read(self._source)
        return worked or sent

    @property
    def backpressured(self) -> bool:
        """Whether some output is full."""
        return self._emitter.full

    @property
    def blocked(self) -> bool:
        """Whether some operator wants no rows now."""
        return self._opened and self._chain.blocked()

    @property
    def catching_up(self) -> bool:
        """Whether there are rows to process that were in flight in the checkpoint that was restored."""
        return self._recovery is not None

    @property
    def _opened(self) -> bool:
        return self._recovery is None or self._recovery.opened

    def wake_at_ms(self, now_ms: int) -> int | None:
        """When there may be something to do without any message."""
        if not self._running:
            return None  # nothing is done before Start, however much is due: restored calls, for one
        times = [self._barriers.deadline_ms, self._emitter.deadline_ms]
        if not self.backpressured and self._opened:
            wait = self._intake.wait_ms(now_ms)
            if wait > 0:
                times.append(now_ms + wait)
            else:
                times.append(self._chain.next_timer_ms())
                if self._source is not None and not self._input_ended and not self.blocked:
                    times.append(self._source.wake_at_ms(now_ms))
        return min((t for t in times if t is not None), default=None)

    def _recover(self) -> bool:
        """Process some of what was in flight in the checkpoint that was restored."""
        recovery = self._recovery
        if recovery is not None and not recovery.step(self._recovered, self._advance_watermark):
            self._recovery = None
            self._on_caught_up()
        return True

    def _recovered(self, batch: pa.RecordBatch, port: int, start: int) -> None:
        self._count(batch, nbytes(batch))
        if start == 0:
            self._admit(batch, port, None)
        else:
            self._chain.process(batch, port, start)

    def _read(self, source: SourceDriver) -> bool:
        if self._input_ended:
            return False
        batch = source.poll(self._now_ms, self._intake.rows)
        if batch is not None:
            self._count(batch, nbytes(batch))
            self._admit(batch, 0, None)
        for news in source.watermark(self._now_ms):
            if isinstance(news, GoIdle):
                self._emitter.emit_idle()
            else:
                self._advance_watermark(news)
        if source.ended and not self._intake:
            self._advance_watermark(WATERMARK_MAX)
            self._end()
            return True
        return batch is not None

    def _take(self, gate: InputGate, *, rows: bool) -> bool:
        arrival = gate.poll(rows=rows)
        if arrival is None:
            return False
        if arrival.batch is not None:
            self._inputs.rows_came(arrival.channel)
            self._count(arrival.batch, arrival.nbytes)
            self._admit(arrival.batch, arrival.port, arrival.channel)
            return True
        match arrival.frame:
            case WatermarkFrame(watermark):
                self._inputs.watermark_came(arrival.channel, watermark)
            case IdleFrame():
                self._inputs.idled(arrival.channel)
            case EndFrame():
                self._inputs.channel_ended(arrival.channel)
                if self._inputs.ended:
                    self._end()
            case BarrierFrame():
                self._barriers.arrived(arrival.channel, arrival.frame, self._now_ms)
            case DataFrame() | OpenFrame() | None:
                raise ProtocolViolation(f"the gate of {arrival.channel} gave {arrival.frame!r}")
        return True

    def _count(self, batch: pa.RecordBatch, size: int) -> None:
        self._emitter.resume()
        self._rows_in.inc(batch.num_rows)
        self._batches_in.inc()
        self._bytes_in.inc(size)

    def _admit(self, batch: pa.RecordBatch, port: int, channel: ChannelId | None) -> None:
        self._intake.add(batch, port, channel)
        self._process()

    def _process(self) -> None:
        self._chain.process(*self._intake.next())
        self._intake.processed(self._now_ms)
        self._emitter.pump()

    def _advance_watermark(self, watermark: int) -> None:
        self._emitter.resume()
        # What was restored in flight may have brought it further than the channels have come yet. It is said again
        # all the same: who was told that this task is idle has to hear that it is not.
        if self.watermark is None or watermark > self.watermark:
            self.watermark = watermark
        self._chain.advance(self.watermark)

    def _end(self) -> None:
        self._input_ended = True
        self._emitter.end_input()
        if not self._chain.end():
            return
        self.ended = True
        self._emitter.broadcast(EndFrame())
        self._emitter.pump()
        self._on_ended()

    # ------------------------------------------------------------------------------- barriers

    def _expect_caught_up(self, checkpoint_id: CheckpointId) -> None:
        """Rows that were in flight in what was restored are in no channel: no snapshot would hold them."""
        if self.catching_up:
            raise ProtocolViolation(f"checkpoint {checkpoint_id} was triggered before all had caught up")

    def _capture(self, checkpoint_id: CheckpointId) -> Snapshot:
        splits, watermark = {}, self.watermark
        if self._source is not None:
            while self._intake:  # they count as read, so they belong before the barrier
                self._process()
            splits[self._source.uid] = self._source.snapshot()
            watermark = self._source.current_watermark
        return Snapshot(
            checkpoint_id=checkpoint_id,
            parts=self._chain.snapshot(checkpoint_id),
            splits=splits,
            watermark=watermark,
            merger=None if self._gate is None else self._inputs.state(),
        )

    # ------------------------------------------------------------------------------- memory

    def measure_state(self) -> None:
        """Have the operators measure their state."""
        if self._opened:
            self._chain.measure_state()

    def state_bytes(self) -> list[tuple[str, int]]:
        """Return what the state of each stateful operator takes, by name. Any thread."""
        return self._chain.state_bytes()

    def buffered_bytes(self) -> tuple[int, int]:
        """Return the bytes that wait at the inputs and at the outputs. Any thread."""
        return self._parts.buffered_bytes()

    def restrain(self, restrained: bool) -> None:
        """Have the input gate give no credit beyond each channel's own share, or let it again."""
        if self._gate is not None:
            self._gate.restrain(restrained)

    def release_memory(self) -> None:
        """Give back what is held for efficiency only. Nothing may be emitted while an output is full (T2)."""
        self.restrain(True)
        if self._running and self._opened and not self._input_ended and not self.backpressured:
            self._chain.release_memory()
            self._emitter.flush()

    # ------------------------------------------------------------------------------- statistics

    def aligning(self) -> tuple[CheckpointId, int] | None:
        """The oldest checkpoint whose barriers have begun to arrive, and since when (ms)."""
        return self._barriers.aligning()

    def statistics(self) -> dict[str, object]:
        """Numbers for `HeartbeatAnswered`; may be called on any thread."""
        return self._parts.statistics(self.watermark, opened=self._opened)
