"""Drives one operator, or the subtasks of a keyed one, without an engine: rows in, events out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayflow.batch.hashing import key_groups
from rayflow.model.config import JobConfig
from rayflow.model.error_policy import ErrorPolicy
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.observe.metrics import MetricGroup
from rayflow.operators import keyed_parts
from rayflow.operators.async_calls import OpenAsyncCalls, no_async_calls
from rayflow.operators.contracts import Operator, OperatorContext
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.key_groups import key_group_range, subtask_of_key_group
from rayflow.state.disk.row_store import MemoryRows, RowStore
from rayflow.state.disk.share import DiskShare
from rayflow.state.parts import KEY_GROUP_COLUMN, RestoredPart

JOB = JobId("job")


@pytest.fixture(scope="module", autouse=True)
def _restored_in_small_batches() -> Iterator[None]:
    """State comes back in batches of few rows: what belongs to one key lies in several."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keyed_parts, "_RESTORED_ROWS", 3)
        yield


class Harness:
    """One subtask of an operator. `events` are ("rows", batch), ("watermark", ns), ("idle",), in order."""

    def __init__(
        self,
        make: Callable[[], Operator],
        *,
        index: int = 0,
        parallelism: int = 1,
        max_parallelism: int = 8,
        batch_rows: int = 65_536,
        attempt: int = 1,
        restored: Sequence[RestoredPart] = (),
        restored_from: int | None = None,
        side_outputs: Mapping[str, pa.Schema | None] | None = None,
        now_ms: Callable[[], int] = lambda: 0,
        open_async_calls: OpenAsyncCalls = no_async_calls,
        errors: ErrorPolicy = "fail",
        run_in_background: Callable[[Any, Any], None] = lambda work, done: done(work(), None),
        disk_bytes: int | None = None,
        open_rows: Callable[[int, bool], RowStore] = lambda memory_bytes, appended: MemoryRows(),
        config: JobConfig | None = None,
        consumers: int = 1,
        salted: Sequence[int] = (),
    ) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.warnings: list[str] = []
        self.metrics = MetricGroup()
        self.operator = make()
        permit = None
        if restored_from is not None:
            permit = CommitPermit(JOB, Attempt(attempt), CheckpointId(restored_from))
        self.context = OperatorContext(
            job_id=JOB,
            job_name="job",
            attempt=attempt,
            uid="op",
            name="my operator",
            subtask_index=index,
            parallelism=parallelism,
            max_parallelism=max_parallelism,
            key_groups=key_group_range(max_parallelism, parallelism, index),
            metrics=self.metrics,
            now_ms=now_ms,
            location="job.py:7: stream.map(f)",
            restored_from=restored_from,
            restored_permit=permit,
            batch_rows=batch_rows,
            config=config or JobConfig(),
            consumers=consumers,
            salted=salted,
            side_outputs=side_outputs or {},
            open_async_calls=open_async_calls,
            errors=errors,
            run_in_background=run_in_background,
            warn=lambda type, message: self.warnings.append(message),
            disk=None if disk_bytes is None else DiskShare(open_rows, disk_bytes, lambda: 0, self.metrics),
        )
        self.operator.open(self.context, self, restored)

    # ------------------------------------------------------------------ what operators call

    def emit(self, batch: pa.RecordBatch) -> None:
        batch.validate(full=True)
        if batch.num_rows:
            self.events.append(("rows", batch))

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None:
        self.events.append(("side", tag, batch))

    def emit_watermark(self, watermark: int) -> None:
        self.events.append(("watermark", watermark))

    def emit_idle(self) -> None:
        self.events.append(("idle",))

    # ---------------------------------------------------------------------- what tests call

    def feed(self, batch: pa.RecordBatch, port: int = 0) -> Harness:
        if batch.num_rows:
            self.operator.process(batch, port)
        return self

    def watermark(self, watermark: int) -> Harness:
        passed_on = self.operator.on_watermark(watermark)
        if passed_on is not None:
            self.events.append(("watermark", passed_on))
        return self

    def snapshot(self, checkpoint_id: int) -> list[RestoredPart]:
        """Return the parts as a restore would see them, before key groups are picked."""
        parts = self.operator.snapshot(checkpoint_id)
        return [
            RestoredPart(
                name=part.name,
                kind=part.kind,
                table=part.build(),
                writer_index=self.context.subtask_index,
                checkpoint_id=checkpoint_id,
            )
            for part in parts
        ]

    def complete(self, checkpoint_id: int) -> None:
        permit = CommitPermit(JOB, Attempt(self.context.attempt), CheckpointId(checkpoint_id))
        self.operator.notify_complete(permit)

    @property
    def batches(self) -> list[pa.RecordBatch]:
        return [event[1] for event in self.events if event[0] == "rows"]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for batch in self.batches for row in batch.to_pylist()]

    @property
    def side(self) -> list[tuple[str, pa.RecordBatch]]:
        return [event[1:] for event in self.events if event[0] == "side"]

    @property
    def watermarks(self) -> list[int]:
        return [event[1] for event in self.events if event[0] == "watermark"]


class Subtasks:
    """All subtasks of a keyed operator: rows go where their key belongs."""

    def __init__(
        self, make: Callable[[], Operator], keys: list[str], parallelism: int = 1, **options: Any
    ) -> None:
        self.make, self.keys, self.parallelism, self.options = make, keys, parallelism, options
        self.subtasks = self._open([], None)
        self.done: list[Harness] = []

    def _open(self, parts: list[RestoredPart], restored_from: int | None) -> list[Harness]:
        each = [restorable(parts, index, self.parallelism) for index in range(self.parallelism)]
        return self.open_each(each, restored_from)

    def open_each(self, parts: list[list[RestoredPart]], restored_from: int | None) -> list[Harness]:
        return [
            Harness(
                self.make,
                index=index,
                parallelism=self.parallelism,
                restored=parts[index],
                restored_from=restored_from,
                **self.options,
            )
            for index in range(self.parallelism)
        ]

    def feed(self, batch: pa.RecordBatch, port: int = 0) -> None:
        groups = key_groups(batch, self.keys, 8).tolist()
        owners = np.array([subtask_of_key_group(g, 8, self.parallelism) for g in groups])
        for index, subtask in enumerate(self.subtasks):
            subtask.feed(batch.filter(pa.array(owners == index)), port)

    def watermark(self, watermark: int) -> None:
        for subtask in self.subtasks:
            subtask.watermark(watermark)

    def restart(self, checkpoint_id: int, parallelism: int, **options: Any) -> None:
        """Snapshot everything, throw it away, restore at another parallelism, with other options."""
        parts = [part for subtask in self.subtasks for part in subtask.snapshot(checkpoint_id)]
        self.done += self.subtasks
        for subtask in self.subtasks:
            subtask.operator.close()
        self.parallelism = parallelism
        self.options |= options
        self.subtasks = self._open(parts, checkpoint_id)

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for subtask in [*self.done, *self.subtasks] for row in subtask.rows]

    def count(self, counter: str) -> int:
        return sum(subtask.metrics.counter(counter).value for subtask in [*self.done, *self.subtasks])


def restorable(parts: list[RestoredPart], index: int, parallelism: int) -> list[RestoredPart]:
    """Return what subtask `index` gets of all written `parts`, as the engine deals them out."""
    mine = []
    for part in parts:
        if part.kind == "broadcast":
            mine.append(part)
            continue
        if part.kind == "list":
            if part.writer_index % parallelism == index:
                mine.append(part)
            continue
        own = key_group_range(8, parallelism, index)
        rows = [group in own for group in part.table.column(KEY_GROUP_COLUMN).to_pylist()]
        mine.append(
            RestoredPart(
                name=part.name,
                kind=part.kind,
                table=part.table.filter(pa.array(rows, pa.bool_())),
                writer_index=part.writer_index,
                checkpoint_id=part.checkpoint_id,
            )
        )
    return mine


@pytest.fixture(scope="session")
def harness() -> type[Harness]:
    """The class that drives one subtask."""
    return Harness


@pytest.fixture(scope="session")
def subtasks() -> type[Subtasks]:
    """The class that drives all subtasks of a keyed operator."""
    return Subtasks
