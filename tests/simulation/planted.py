"""Bugs to plant into the runtime, to see that the simulation finds them. Only here: nothing that ships has a switch.

Each is a small change of the kind that a slip of the pen, or of the mind, makes. `with planted(name): simulate(seed)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from rayflow.model.ids import Attempt
from rayflow.operators.map_async import MapAsyncOperator
from rayflow.operators.sink import SinkOperator
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.coordinator import CheckpointCoordinator, DiscardCheckpoint, PublishManifest
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.protocol.sequencing import Accept, ChannelSequence
from rayflow.runtime import assembly, subtask
from rayflow.runtime.barriers import Barriers
from rayflow.runtime.chain import Chain
from rayflow.runtime.gate import InputGate
from rayflow.runtime.master import beginning
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.run import JobRun
from rayflow.runtime.master.running import Running
from rayflow.runtime.master.sources import SourceSplits
from rayflow.runtime.master.storage import JobStorage
from rayflow.runtime.messages import BarrierFrame, CheckpointAcked, EndFrame, WatermarkFrame
from rayflow.runtime.outputs import OutputChannel, OutputEdge
from rayflow.runtime.source_driver import SourceDriver
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task import Task
from rayflow.state import files as state_files
from rayflow.state.timers import TimerQueue
from tests.simulation.external import SimReader, SimSink

Patch = pytest.MonkeyPatch
BUGS: dict[str, Callable[[Patch], None]] = {}


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the bug while in the context."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name](patch)
        yield


def bug(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Register a bug by its name."""
    BUGS[plant.__name__] = plant
    return plant


def _around(patch: Patch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper(original, self, *args)` instead of a method."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: wrapper(original, self, *args, **kwargs))


# ------------------------------------------------------------------------------------------ barriers, snapshots


@bug
def no_alignment(patch: Patch) -> None:
    patch.setattr(InputGate, "block", lambda self, channel: None)


@bug
def barrier_overtakes_gathered_rows(patch: Patch) -> None:
    def broadcast(self: Any, frame: Any) -> None:
        for channel in self.channels:
            channel.push(frame)

    patch.setattr(OutputEdge, "broadcast", broadcast)


@bug
def barrier_not_forwarded_on_one_output(patch: Patch) -> None:
    def broadcast(original: Any, self: Any, frame: Any) -> None:
        if not isinstance(frame, BarrierFrame) or len(self.channels) == 1:
            original(self, frame)
            return
        self.flush()
        for channel in self.channels[:-1]:
            channel.push(frame)

    _around(patch, OutputEdge, "broadcast", broadcast)


@bug
def snapshot_after_the_next_rows(patch: Patch) -> None:
    """The source says where it is only after it has read on."""

    def snapshot(original: Any, self: Any) -> Any:
        for opened in self._open:
            opened.reader.at = min(opened.reader.at + 1, len(opened.reader.rows))
        states = original(self)
        for opened in self._open:
            opened.reader.at = max(opened.reader.at - 1, 0)
        return states

    _around(patch, SourceDriver, "snapshot", snapshot)


@bug
def state_of_one_operator_not_snapshotted(patch: Patch) -> None:
    def snapshot(original: Any, self: Any, checkpoint_id: Any) -> Any:
        return [part for part in original(self, checkpoint_id) if part[0] in ("sink",)]

    _around(patch, Chain, "snapshot", snapshot)


@bug
def in_flight_rows_not_recorded(patch: Patch) -> None:
    patch.setattr(Barriers, "_inputs", lambda self, unfinished: {})


@bug
def acknowledged_before_upload(patch: Patch) -> None:
    def on_snapshot(original: Any, self: Any, snapshot: Any) -> None:
        self._link.report(
            CheckpointAcked(
                subtask=self._subtask,
                attempt=self._fence.attempt,
                checkpoint_id=snapshot.checkpoint_id,
                files=(),
                splits=snapshot.splits,
            )
        )
        original(self, snapshot)

    _around(patch, SubtaskEngine, "_on_snapshot", on_snapshot)


@bug
def files_written_after_the_ack(patch: Patch) -> None:
    """The files are named, with their checksums, and then written."""
    upload = subtask.upload

    class Later:
        def __init__(self, store: Any) -> None:
            self.store = store
            self.url = store.url
            self.waiting: list[tuple[str, bytes]] = []

        def write(self, path: str, data: bytes) -> None:
            self.waiting.append((path, data))

        def flush(self) -> None:
            for path, data in self.waiting:
                self.store.write(path, data)

    def on_snapshot(original: Any, self: Any, snapshot: Any) -> None:
        made: list[Later] = []

        def late(store: Any, *args: Any, **kwargs: Any) -> Any:
            made.append(Later(store))
            return upload(made[-1], *args, **kwargs)

        submit = self._io.submit

        class Io:
            def submit(self, work: Any, done: Any) -> None:
                def then(result: Any, error: Any) -> None:
                    done(result, error)
                    submit(lambda: [later.flush() for later in made], lambda r, e: None)

                submit(work, then)

        subtask.upload, io = late, self._io
        self._io = Io()
        try:
            original(self, snapshot)
        finally:
            self._io = io

    patch.setattr(subtask, "upload", upload)
    _around(patch, SubtaskEngine, "_on_snapshot", on_snapshot)


# ------------------------------------------------------------------------------------------ the coordinator


@bug
def complete_before_all_acks(patch: Patch) -> None:
    def on_acked(original: Any, self: Any, event: Any) -> Any:
        commands = original(self, event)
        pending = self._pending.get(event.checkpoint_id)
        if pending is not None and len(pending.waiting) == 1 and len(self._subtasks) > 1:
            pending.waiting.clear()
            return (PublishManifest(pending.id),)
        return commands

    def manifest(original: Any, self: Any, report: Any) -> Any:
        for missing in self._ctx.job.subtasks:
            report.acks.setdefault(
                missing,
                CheckpointAcked(
                    subtask=missing, attempt=self._ctx.attempt, checkpoint_id=report.id, files=()
                ),
            )
        return original(self, report)

    _around(patch, CheckpointCoordinator, "_on_acked", on_acked)
    _around(patch, Checkpoints, "_manifest", manifest)


@bug
def aborted_checkpoint_published(patch: Patch) -> None:
    """What is aborted is published with the acks that are there, and restored later."""

    def abort(original: Any, self: Any, command: Any) -> None:
        report = self._reports[command.checkpoint_id]
        for missing in self._ctx.job.subtasks:
            report.acks.setdefault(
                missing,
                CheckpointAcked(
                    subtask=missing, attempt=self._ctx.attempt, checkpoint_id=report.id, files=()
                ),
            )
        manifest, attempt = self._manifest(report), self._ctx.attempt
        self._settle(report, "aborted", command.reason)
        self._ctx.background.run(
            lambda: self._ctx.storage.publish(manifest, attempt), lambda r, e: None, critical=True
        )

    _around(patch, Checkpoints, "_abort", abort)


@bug
def retention_discards_the_newest(patch: Patch) -> None:
    def retire(original: Any, self: Any) -> Any:
        commands = original(self)
        return (DiscardCheckpoint(self._completed[-1]),) if commands else ()

    _around(patch, CheckpointCoordinator, "_retire", retire)


@bug
def final_checkpoint_skipped(patch: Patch) -> None:
    def request_final(original: Any, self: Any) -> None:
        if self.latest is None:
            original(self)
        else:
            self.final_completed = self.latest

    _around(patch, Checkpoints, "request_final", request_final)
    patch.setattr(Running, "finished", property(lambda self: self.checkpoints.final_completed is not None))


@bug
def zombie_master_announces(patch: Patch) -> None:
    patch.setattr(JobStorage, "is_superseded", lambda self, attempt: False)


@bug
def attempt_number_used_again(patch: Patch) -> None:
    def claim(original: Any, self: Any, first: Any, at: Any) -> Any:
        original(self, first, at)
        return Attempt(max(1, first - 1))

    _around(patch, JobStorage, "claim_attempt", claim)


# ------------------------------------------------------------------------------------------ fencing


@bug
def no_attempt_check_in_the_subtask(patch: Patch) -> None:
    def serve(original: Any, self: Any, message: Any) -> None:
        if not isinstance(message, subtask.Deploy) and self._deploy is not None:
            message = replace(message, attempt=self._fence.attempt)
        original(self, message)

    _around(patch, SubtaskEngine, "_serve", serve)


@bug
def no_attempt_check_in_the_master(patch: Patch) -> None:
    def message(original: Any, self: Any, told: Any) -> None:
        original(self, replace(told, attempt=self._ctx.attempt))

    _around(patch, JobRun, "message", message)


@bug
def no_attempt_in_the_sink(patch: Patch) -> None:
    def prepare(original: Any, self: Any, checkpoint_id: Any) -> Any:
        self.ctx = replace(self.ctx, attempt=1)
        return original(self, checkpoint_id)

    _around(patch, SimSink, "prepare", prepare)


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
    _around(patch, Channel, "on_credit", on_credit)


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

    _around(patch, OutputChannel, "_send_rows", send_rows)
    _around(patch, ChannelSequence, "handle", handle)


@bug
def end_before_the_last_rows(patch: Patch) -> None:
    def broadcast(original: Any, self: Any, frame: Any) -> None:
        if isinstance(frame, EndFrame):
            for channel in self.channels:
                channel.push(frame)
        original(self, frame) if not isinstance(frame, EndFrame) else self.flush()

    _around(patch, OutputEdge, "broadcast", broadcast)


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
    _around(patch, Edge, "emit_watermark", emit_watermark)


@bug
def watermark_not_restored(patch: Patch) -> None:
    def init(original: Any, self: Any, spec: Any, **kwargs: Any) -> None:
        original(self, spec, **{**kwargs, "watermark": None})

    _around(patch, SourceDriver, "__init__", init)


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
    _around(patch, TimerQueue, "take", take)
    _around(patch, TimerQueue, "freeze", freeze)


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
    _around(patch, Splits, "begin", begin)
    _around(patch, Splits, "_state", state)


@bug
def split_assigned_twice(patch: Patch) -> None:
    """An assignment that is told again after the split was read is taken for a new one."""

    def assign(original: Any, self: Any, message: Any) -> None:
        finished, self._finished = self._finished, []
        original(self, message)
        self._finished = finished

    _around(patch, SourceDriver, "assign", assign)


# ------------------------------------------------------------------------------------------ sinks


@bug
def committed_at_the_barrier(patch: Patch) -> None:
    def snapshot(original: Any, self: Any, checkpoint_id: Any) -> Any:
        parts = original(self, checkpoint_id)
        for item in list(self._ledger.open):
            self._sink.commit(CommitPermit(self.ctx.job_id, self.ctx.attempt, checkpoint_id, item[1]))
        return parts

    _around(patch, SinkOperator, "snapshot", snapshot)


@bug
def committed_on_the_ack(patch: Patch) -> None:
    def on_state_written(original: Any, self: Any, message: Any) -> None:
        original(self, message)
        if message.error is None and self._task is not None:
            self._on_completed(message.snapshot.checkpoint_id)

    _around(patch, SubtaskEngine, "_on_state_written", on_state_written)


@bug
def transactions_not_committed_on_restore(patch: Patch) -> None:
    def open_(original: Any, self: Any, ctx: Any, out: Any, restored: Any) -> None:
        original(self, ctx, out, ())

    _around(patch, SinkOperator, "open", open_)


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

    _around(patch, MapAsyncOperator, "open", open_)


@bug
def checksum_not_verified(patch: Patch) -> None:
    decode = state_files.decode_table

    def unverified(data: bytes, expected: str, *args: Any) -> Any:
        return decode(data, state_files.sha256_hex(data), *args)

    patch.setattr(state_files, "decode_table", unverified)


@bug
def falls_back_past_a_commit(patch: Patch) -> None:
    patch.setattr(beginning, "_may_be_committed", lambda *args: False)


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
