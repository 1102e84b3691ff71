"""Bugs of barriers, snapshots, the coordinator, and of fencing by attempts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rayflow.model.ids import Attempt
from rayflow.protocol.coordinator import CheckpointCoordinator, DiscardCheckpoint, PublishManifest
from rayflow.protocol.delivery import Incoming, Outgoing
from rayflow.runtime import uploads
from rayflow.runtime.barriers import Barriers
from rayflow.runtime.chain import Chain
from rayflow.runtime.gate import InputGate
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.run import JobRun
from rayflow.runtime.master.running import Running
from rayflow.runtime.master.storage import JobStorage
from rayflow.runtime.messages import BarrierFrame, CheckpointAcked, Deploy
from rayflow.runtime.outputs import OutputEdge
from rayflow.runtime.source_driver import SourceDriver
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.uploads import Uploads
from tests.simulation.external import SimSink
from tests.simulation.planted.registry import Patch, around, bug

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

    around(patch, OutputEdge, "broadcast", broadcast)


@bug
def triggered_before_all_caught_up(patch: Patch) -> None:
    """Rows that were in flight in the restored checkpoint are still being processed: no snapshot holds them."""

    def on_started(original: Any, self: Any, event: Any) -> None:
        original(self, replace(event, catching_up=frozenset()))

    around(patch, CheckpointCoordinator, "_on_started", on_started)


@bug
def snapshot_after_the_next_rows(patch: Patch) -> None:
    """The source says where it is only after it has read on."""

    def snapshot(original: Any, self: Any) -> Any:
        for opened in self._open:
            opened.reader.at = min(opened.reader.at + 1, opened.reader.rows.num_rows)
        states = original(self)
        for opened in self._open:
            opened.reader.at = max(opened.reader.at - 1, 0)
        return states

    around(patch, SourceDriver, "snapshot", snapshot)


@bug
def state_of_one_operator_not_snapshotted(patch: Patch) -> None:
    def snapshot(original: Any, self: Any, checkpoint_id: Any) -> Any:
        return [part for part in original(self, checkpoint_id) if part[0] in ("sink",)]

    around(patch, Chain, "snapshot", snapshot)


@bug
def in_flight_rows_not_recorded(patch: Patch) -> None:
    patch.setattr(Barriers, "_inputs", lambda self, unfinished: {})


@bug
def acknowledged_before_upload(patch: Patch) -> None:
    def begin(original: Any, self: Any, snapshot: Any) -> None:
        self._report(
            CheckpointAcked(
                subtask=self._deploy.subtask,
                attempt=self._deploy.attempt,
                checkpoint_id=snapshot.checkpoint_id,
                files=(),
                splits=snapshot.splits,
            )
        )
        original(self, snapshot)

    around(patch, Uploads, "begin", begin)


@bug
def files_written_after_the_ack(patch: Patch) -> None:
    """The files are named, with their checksums, and then written."""
    upload = uploads.upload

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

    def begin(original: Any, self: Any, snapshot: Any) -> None:
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

        uploads.upload, io = late, self._io
        self._io = Io()
        try:
            original(self, snapshot)
        finally:
            self._io = io

    patch.setattr(uploads, "upload", upload)
    around(patch, Uploads, "begin", begin)


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

    around(patch, CheckpointCoordinator, "_on_acked", on_acked)
    around(patch, Checkpoints, "_manifest", manifest)


@bug
def aborted_checkpoint_published(patch: Patch) -> None:
    """What is aborted is published with the acks that are there, and restored later."""

    def abort(original: Any, self: Any, command: Any) -> None:
        report = self.books.report(command.checkpoint_id)
        for missing in self._ctx.job.subtasks:
            report.acks.setdefault(
                missing,
                CheckpointAcked(
                    subtask=missing, attempt=self._ctx.attempt, checkpoint_id=report.id, files=()
                ),
            )
        manifest, attempt = self._manifest(report), self._ctx.attempt
        self.books.settle(report, "aborted", command.reason, self._ctx.now_ms)
        self._ctx.background.run(
            lambda: self._ctx.storage.publish(manifest, attempt), lambda r, e: None, critical=True
        )

    around(patch, Checkpoints, "_abort", abort)


@bug
def retention_discards_the_newest(patch: Patch) -> None:
    def retire(original: Any, self: Any) -> Any:
        commands = original(self)
        return (DiscardCheckpoint(self._completed[-1]),) if commands else ()

    around(patch, CheckpointCoordinator, "_retire", retire)


@bug
def final_checkpoint_skipped(patch: Patch) -> None:
    def request_final(original: Any, self: Any) -> None:
        if self.latest is None:
            original(self)
        else:
            self.final_completed = self.latest

    around(patch, Checkpoints, "request_final", request_final)
    patch.setattr(Running, "finished", property(lambda self: self.checkpoints.final_completed is not None))


@bug
def zombie_master_announces(patch: Patch) -> None:
    patch.setattr(JobStorage, "is_superseded", lambda self, attempt: False)


@bug
def attempt_number_used_again(patch: Patch) -> None:
    def claim(original: Any, self: Any, first: Any, at: Any) -> Any:
        original(self, first, at)
        return Attempt(max(1, first - 1))

    around(patch, JobStorage, "claim_attempt", claim)


# ------------------------------------------------------------------------------------------ fencing


@bug
def no_attempt_check_in_the_subtask(patch: Patch) -> None:
    def serve(original: Any, self: Any, message: Any) -> None:
        if not isinstance(message, Deploy) and self._deploy is not None:
            message = replace(message, attempt=self._fence.attempt)
        original(self, message)

    around(patch, SubtaskEngine, "_serve", serve)


@bug
def no_attempt_check_in_the_master(patch: Patch) -> None:
    def message(original: Any, self: Any, told: Any) -> None:
        original(self, replace(told, attempt=self._ctx.attempt))

    around(patch, JobRun, "message", message)


@bug
def no_attempt_in_the_sink(patch: Patch) -> None:
    def prepare(original: Any, self: Any, checkpoint_id: Any) -> Any:
        self.ctx = replace(self.ctx, attempt=1)
        return original(self, checkpoint_id)

    around(patch, SimSink, "prepare", prepare)


# ------------------------------------------------------------------------------------------ control messages


@bug
def lost_message_not_sent_again(patch: Patch) -> None:
    patch.setattr(Outgoing, "arrived", lambda self, attempt, arrived, lacks: ())


@bug
def loss_not_noticed(patch: Patch) -> None:
    """Who has missed a message takes the next one for it."""
    patch.setattr(Incoming, "accepts", lambda self, attempt, number: True)
    patch.setattr(Incoming, "lacks", lambda self, attempt, sent: False)
