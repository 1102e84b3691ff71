"""Subtasks whose checkpoints go to a store and come from there the way of the engine: increments, rescaling, spools."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rayflow.model.ids import Attempt, CheckpointId, SubtaskId, VertexId
from rayflow.protocol.increments import Increments
from rayflow.protocol.key_groups import key_group_range
from rayflow.runtime.messages import RestoreInfo
from rayflow.runtime.snapshots import restore, upload
from rayflow.state.manifest import StateFile
from rayflow.state.parts import RestoredPart
from rayflow.state.storage import MemoryStore

UID = "op"
URL = "memory://windows-on-disk/job"


class Checkpoints:
    """Of the subtasks in `driven`. `written`: the bytes that each checkpoint wrote; `files`: what each consists of."""

    def __init__(self, driven: Any) -> None:
        self.driven = driven
        self.written: dict[int, int] = {}
        self.files: dict[int, list[StateFile]] = {}
        self._attempt = 1
        store = MemoryStore(URL)
        for path in store.list(""):
            store.delete(path)
        self._begin()

    def _begin(self) -> None:
        count = len(self.driven.subtasks)
        self._increments: list[Increments[StateFile]] = [Increments() for _ in range(count)]

    def _go_on(self, number: int) -> None:
        for index, increments in enumerate(self._increments):
            increments.written(
                CheckpointId(number), [f for f in self.files[number] if f.subtask_index == index]
            )
            increments.completed(CheckpointId(number))

    def take(self, number: int, *, completes: Collection[int] | None = None) -> None:
        """Take checkpoint `number`. `completes`: the subtasks that hear of its end, None for all; the others never
        do, as where it was aborted or the word is late."""
        checkpoint_id = CheckpointId(number)
        self.files[number], self.written[number] = [], 0
        for index, subtask in enumerate(self.driven.subtasks):
            increments = self._increments[index]
            files = upload(
                MemoryStore(URL),
                f"chk-{number}",
                [(UID, part) for part in subtask.operator.snapshot(number)],
                subtask=SubtaskId(VertexId("v"), index),
                attempt=Attempt(self._attempt),
                key_groups=key_group_range(8, len(self.driven.subtasks), index),
                increment=increments.plan(checkpoint_id),
            )
            increments.written(checkpoint_id, files)
            if completes is None or index in completes:
                increments.completed(checkpoint_id)
                subtask.complete(number)
            self.files[number] += files
            self.written[number] += sum(file.nbytes for file in files if file.origin is None)

    def restart(self, number: int, parallelism: int, **options: Any) -> None:
        """Throw the subtasks away; restore checkpoint `number` at another parallelism, with other options."""
        driven = self.driven
        driven.done += driven.subtasks
        rescaled = parallelism != len(driven.subtasks)
        for subtask in driven.subtasks:
            subtask.operator.close()
        driven.parallelism, self._attempt = parallelism, self._attempt + 1
        driven.options |= options
        driven.subtasks = driven.open_each(
            [self._restored(number, index, rescaled) for index in range(parallelism)], number
        )
        self._begin()
        if not rescaled:
            self._go_on(number)

    def _restored(self, number: int, index: int, rescaled: bool) -> list[RestoredPart]:
        parallelism = self.driven.parallelism
        own = key_group_range(8, parallelism, index)
        info = RestoreInfo(
            directory=f"{URL}/chk-{number}",
            checkpoint_id=CheckpointId(number),
            rescaled=rescaled,
            files=tuple(
                file
                for file in self.files[number]
                if (file.subtask_index % parallelism == index if file.kind == "list" else True)
            ),
        )
        spool = None if self.driven.options["disk_bytes"] is None else MemoryStore(f"{URL}/spool-{index}")
        restored = restore(
            lambda url, _: MemoryStore(url), {}, info, own, spool, self.driven.options["disk_bytes"]
        )
        return restored.parts.get(UID, [])
