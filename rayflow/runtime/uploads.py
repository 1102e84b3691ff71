"""Snapshots on their way to storage: one attempt's, from the barrier to the word that the master gets of it.

Theory of operation. The task thread hands over what a barrier captured. The I/O pool writes it, building on the files
of earlier checkpoints where the state can (`protocol.increments`), and acknowledges or declines at once, on whatever
thread: the task may be in a long call. What is stale by then the master drops.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayflow.model.config import JobConfig
from rayflow.model.ids import CheckpointId
from rayflow.protocol.increments import Increment, Increments
from rayflow.runtime.assembly import own_key_groups
from rayflow.runtime.barriers import Snapshot
from rayflow.runtime.faults import is_storage_away
from rayflow.runtime.in_flight import upload_in_flight
from rayflow.runtime.messages import CheckpointAcked, CheckpointDeclined, Deploy, FromSubtask
from rayflow.runtime.ports import IoPool
from rayflow.runtime.snapshots import OpenStore, upload
from rayflow.state.manifest import StateFile, checkpoint_directory


class Uploads:
    """The uploads of the attempt that `deploy` began. Task thread, but for `phase` and the ends of uploads.

    `now_ms` returns the engine's time.
    """

    def __init__(
        self,
        deploy: Deploy,
        config: JobConfig,
        *,
        io: IoPool,
        open_store: OpenStore,
        report: Callable[[FromSubtask], None],
        now_ms: Callable[[], int],
    ) -> None:
        self._deploy = deploy
        self._config = config
        self._io = io
        self._open_store = open_store
        self._report = report
        self._now_ms = now_ms
        # Since when (ms) each checkpoint is being uploaded.
        self._under_way: dict[CheckpointId, int] = {}
        self._increments: Increments[StateFile] = Increments()
        self._go_on()

    def begin(self, snapshot: Snapshot) -> None:
        """Write the snapshot, then acknowledge its checkpoint, or decline it."""
        self._under_way[snapshot.checkpoint_id] = self._now_ms()
        increment = self._increments.plan(snapshot.checkpoint_id)

        def done(files: tuple[StateFile, ...] | None, error: BaseException | None) -> None:
            self._increments.written(snapshot.checkpoint_id, files or ())
            self._written(snapshot, files or (), increment, error)

        self._io.submit(lambda: self._write(snapshot, increment), done)

    def _go_on(self) -> None:
        """Build on the chains that were restored, where they are this subtask's own."""
        restore, index = self._deploy.restore, self._deploy.subtask.index
        if restore is None or not restore.goes_on:
            return
        own = [file for file in restore.files if file.subtask_index == index]
        self._increments.written(restore.checkpoint_id, own)
        self._increments.completed(restore.checkpoint_id)

    def completed(self, checkpoint_id: CheckpointId) -> None:
        """The checkpoint is complete: later ones may build on it."""
        self._increments.completed(checkpoint_id)

    def aborted(self, checkpoint_id: CheckpointId) -> None:
        """The checkpoint was aborted: none will build on it."""
        self._under_way.pop(checkpoint_id, None)
        self._increments.aborted(checkpoint_id)

    def phase(self) -> dict[str, Any] | None:
        """Return the oldest checkpoint under way as `HeartbeatAnswered` tells it, None where there is none."""
        under_way = sorted(list(self._under_way.items()))
        if not under_way:
            return None
        checkpoint_id, since_ms = under_way[0]
        return {"id": checkpoint_id, "phase": "uploading", "since_ms": since_ms}

    def _write(self, snapshot: Snapshot, increment: Increment[StateFile] | None) -> tuple[StateFile, ...]:
        if not snapshot.parts and snapshot.in_flight is None:
            return ()
        deploy, config = self._deploy, self._config
        assert config.checkpoint_storage is not None
        store = self._open_store(config.checkpoint_storage, config.storage_options)
        directory = checkpoint_directory(deploy.job_id, snapshot.checkpoint_id)
        files = upload(
            store,
            directory,
            snapshot.parts,
            subtask=deploy.subtask,
            attempt=deploy.attempt,
            key_groups=own_key_groups(deploy),
            increment=increment,
        )
        return files + upload_in_flight(store, directory, snapshot.in_flight, deploy)

    def _written(
        self,
        snapshot: Snapshot,
        files: tuple[StateFile, ...],
        increment: Increment[StateFile] | None,
        error: BaseException | None,
    ) -> None:
        deploy, checkpoint_id = self._deploy, snapshot.checkpoint_id
        self._under_way.pop(checkpoint_id, None)
        if error is not None:
            reason = f"{type(error).__name__}: {error}"
            away = is_storage_away(error)
            self._report(CheckpointDeclined(deploy.subtask, deploy.attempt, checkpoint_id, reason, away))
            return
        self._report(
            CheckpointAcked(
                subtask=deploy.subtask,
                attempt=deploy.attempt,
                checkpoint_id=checkpoint_id,
                files=files,
                splits=snapshot.splits,
                alignment_ms=snapshot.alignment_ms,
                duration_ms=self._now_ms() - snapshot.started_ms,
                watermark=snapshot.watermark,
                builds_on=increment.since if increment and any(f.origin is not None for f in files) else None,
            )
        )
