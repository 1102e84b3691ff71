"""Bugs of channels, event time, sources, sinks, and of what a restore takes up."""

from __future__ import annotations

from typing import Any

from rayflow.operators.map_async import MapAsyncOperator
from rayflow.operators.sink import SinkOperator
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.protocol.sequencing import Accept, ChannelSequence
from rayflow.runtime import assembly, subtask
from rayflow.runtime.gate import InputGate
from rayflow.runtime.master import beginning
from rayflow.runtime.master.sources import SourceSplits
from rayflow.runtime.messages import AssignSplits, CheckpointAcked, EndFrame, WatermarkFrame
from rayflow.runtime.outputs import OutputChannel, OutputEdge
from rayflow.runtime.source_driver import SourceDriver
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task import Task
from rayflow.state import files as state_files
from rayflow.state.timers import TimerQueue
from tests.simulation.external import SimReader
from tests.simulation.planted.registry import Patch, around, bug

# ------------------------------------------------------------------------------------------ credit, channels


@bug
def leaked_credit(patch: Patch) -> None:
    send = InputGate._send_grants
    patch.setattr(InputGate, "_send_grants", lambda self, grants: send(self, grants[1:] or grants[:0]))


@bug
def lost_credit_return(patch: Patch) -> None:
    def on_credit(original: Any, self: Any, credit: Any) -> None:
        self.told = getattr(self, "told", 0) + 1
        if self.told % 7:
            original(self, credit)

    class Channel(OutputChannel):
        pass

    patch.setattr(assembly, "OutputChannel", Channel)
    around(patch, Channel, "on_credit", on_credit)


@bug
def sent_without_credit(patch: Patch) -> None:
    from rayflow.protocol.credit import CreditSender

    patch.setattr(CreditSender, "can_send", lambda self, *args: True)


@bug
def rows_twice_on_a_channel(patch: Patch) -> None:
    def send_rows(original: Any, self: Any, batch: Any, size: int) -> None:
        original(self, batch, size)
        if self._next_seq == 3:
            self._next_seq = 2
            original(self, batch, size)

    def handle(original: Any, self: Any, event: Any) -> Any:
        self._expected = event.seq + 1
        return (Accept(),)

    around(patch, OutputChannel, "_send_rows", send_rows)
    around(patch, ChannelSequence, "handle", handle)


@bug
def end_before_the_last_rows(patch: Patch) -> None:
    def broadcast(original: Any, self: Any, frame: Any) -> None:
        if isinstance(frame, EndFrame):
            for channel in self.channels:
                channel.push(frame)
        original(self, frame) if not isinstance(frame, EndFrame) else self.flush()

    around(patch, OutputEdge, "broadcast", broadcast)


# ------------------------------------------------------------------------------------------ time


@bug
def watermark_overtakes_gathered_rows(patch: Patch) -> None:
    def emit_watermark(self: Any, watermark: int, now_ms: int) -> None:
        for channel in self.channels:
            channel.push(WatermarkFrame(watermark))

    patch.setattr(OutputEdge, "emit_watermark", emit_watermark)


@bug
def watermark_goes_back(patch: Patch) -> None:
    def emit_watermark(original: Any, self: Any, watermark: int, now_ms: int) -> None:
        self.told = getattr(self, "told", 0) + 1
        original(self, watermark if self.told % 3 or abs(watermark) > 1 << 61 else watermark - 10**12, now_ms)

    class Edge(OutputEdge):
        pass

    patch.setattr(assembly, "OutputEdge", Edge)
    around(patch, Edge, "emit_watermark", emit_watermark)


@bug
def watermark_not_restored(patch: Patch) -> None:
    def init(original: Any, self: Any, spec: Any, **kwargs: Any) -> None:
        original(self, spec, **{**kwargs, "watermark": None})

    around(patch, SourceDriver, "__init__", init)


@bug
def timers_skipped_on_restore(patch: Patch) -> None:
    patch.setattr(TimerQueue, "restore", lambda self, timers: None)


@bug
def timers_fire_twice(patch: Patch) -> None:
    """A timer that has fired stays in the snapshots."""

    def take(original: Any, self: Any, timer: Any) -> bool:
        self._fired.add(timer)
        return bool(original(self, timer))

    def freeze(original: Any, self: Any) -> Any:
        return [*original(self), *self._fired]

    patch.setattr(TimerQueue, "_fired", set(), raising=False)
    around(patch, TimerQueue, "take", take)
    around(patch, TimerQueue, "freeze", freeze)


# ------------------------------------------------------------------------------------------ sources


@bug
def offset_one_too_low(patch: Patch) -> None:
    patch.setattr(SimReader, "position", lambda self: max(0, self.at - 1))


@bug
def offset_one_too_high(patch: Patch) -> None:
    patch.setattr(SimReader, "position", lambda self: self.at + 1)


@bug
def restart_drops_unread_splits(patch: Patch) -> None:
    """What was assigned, but in no checkpoint, is not assigned again."""

    def begin(original: Any, self: Any, attempt: Any, restored: Any) -> Any:
        restored = tuple(restored)
        known = {subtask_split(s) for s in restored}
        given = getattr(self, "_once_given", set())
        if attempt > 1:
            self._found = {k: v for k, v in self._found.items() if k in known or k not in given}
        return original(self, attempt, restored)

    def state(original: Any, self: Any, key: str) -> Any:
        self._once_given = {*getattr(self, "_once_given", ()), key}
        return original(self, key)

    class Splits(SourceSplits):
        pass

    from rayflow.runtime.master import running
    from rayflow.runtime.master.sources import split_id as subtask_split

    patch.setattr(running, "SourceSplits", Splits)
    around(patch, Splits, "begin", begin)
    around(patch, Splits, "_state", state)


@bug
def split_assigned_twice(patch: Patch) -> None:
    """An assignment that arrives again after the split was read is let through, and taken for a new one."""

    def assign(original: Any, self: Any, message: Any) -> None:
        finished, self._finished = self._finished, []
        original(self, message)
        self._finished += finished

    def accepts(original: Any, self: Any, message: Any) -> bool:
        return bool(original(self, message)) or isinstance(message, AssignSplits)

    around(patch, SourceDriver, "assign", assign)
    around(patch, SubtaskEngine, "accepts", accepts)


# ------------------------------------------------------------------------------------------ sinks


@bug
def committed_at_the_barrier(patch: Patch) -> None:
    def snapshot(original: Any, self: Any, checkpoint_id: Any) -> Any:
        parts = original(self, checkpoint_id)
        for item in list(self._ledger.open):
            self._sink.commit(CommitPermit(self.ctx.job_id, self.ctx.attempt, checkpoint_id, item[1]))
        return parts

    around(patch, SinkOperator, "snapshot", snapshot)


@bug
def committed_on_the_ack(patch: Patch) -> None:
    def on_state_read(original: Any, self: Any, message: Any) -> None:
        original(self, message)
        report = self._uploads._report

        def report_and_commit(outcome: Any) -> None:
            report(outcome)
            if isinstance(outcome, CheckpointAcked):
                self._on_completed(outcome.checkpoint_id)

        self._uploads._report = report_and_commit

    around(patch, SubtaskEngine, "_on_state_read", on_state_read)


@bug
def transactions_not_committed_on_restore(patch: Patch) -> None:
    def open_(original: Any, self: Any, ctx: Any, out: Any, restored: Any) -> None:
        original(self, ctx, out, ())

    around(patch, SinkOperator, "open", open_)


# ------------------------------------------------------------------------------------------ restore


@bug
def key_groups_off_by_one(patch: Patch) -> None:
    def own(deploy: Any) -> KeyGroupRange:
        found = assembly.own_key_groups(deploy)
        return KeyGroupRange(min(found.start + (deploy.subtask.index > 0), found.stop - 1), found.stop)

    patch.setattr(subtask, "own_key_groups", own)


@bug
def calls_under_way_not_restored(patch: Patch) -> None:
    def open_(original: Any, self: Any, ctx: Any, out: Any, restored: Any) -> None:
        original(self, ctx, out, ())

    around(patch, MapAsyncOperator, "open", open_)


@bug
def checksum_not_verified(patch: Patch) -> None:
    patch.setattr(state_files, "_verify", lambda data, *args: data)


@bug
def falls_back_past_a_commit(patch: Patch) -> None:
    patch.setattr(beginning, "_committed", lambda *args: 0)


@bug
def restore_of_an_old_checkpoint(patch: Patch) -> None:
    """Not the newest complete checkpoint, but the oldest that is kept."""
    original = beginning._own_restore_point

    def oldest(job: Any, storage: Any, complete: Any, *args: Any) -> Any:
        return original(job, storage, complete[:1], *args)

    patch.setattr(beginning, "_own_restore_point", oldest)


@bug
def survivor_keeps_its_task(patch: Patch) -> None:
    """The task of the attempt before is not dropped whole: what its gate has queued goes on into the next."""

    def take_in(self: Any, attempt: Any, channel: Any, item: Any) -> None:
        if self._task is not None:
            if isinstance(item, subtask.CreditFrame):
                self._task.on_credit(channel, item)
            else:
                self._task.on_frame(channel, item)

    patch.setattr(SubtaskEngine, "_take_in", take_in)
    patch.setattr("rayflow.testing.network.SimNetwork.close", lambda self, worker, up_to: None)
    patch.setattr(Task, "close", lambda self: [])
