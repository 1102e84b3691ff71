"""What appending and upserting share: staged files, their names, and widening of schemas.

A staged file's name says after which checkpoint it was begun: `<sink>-<subtask>-<checkpoint>-<counter>.pending`.
It belongs to the next one that the subtask prepared; so once the job has ended, files begun before the newest
complete checkpoint may be pending in it, and all others are garbage (see `may_be_pending`).
"""

from __future__ import annotations

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import pyarrow as pa

from rayflow.connectors.file_formats import FileFormat, RowWriter
from rayflow.connectors.targets import Target
from rayflow.model.errors import RayflowError, StorageError
from rayflow.operators.contracts import SinkContext

ROW_GROUP_ROWS = 128 * 1024
ROW_GROUP_BYTES = 32 << 20


class FileWriter(ABC):
    """What differs between appending and upserting, on one subtask in one attempt."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows."""

    @abstractmethod
    def prepare(self, checkpoint_id: int) -> list[tuple[str, str]]:
        """Finish all staged files; return (staged, final) of each, relative to the target."""

    def published(self, staged: str) -> None:
        """The staged file got its final name."""

    @abstractmethod
    def close(self) -> None:
        """Give up what is not prepared, and remove it as far as that is possible."""


class StagedNames:
    """Makes the names of one subtask's staged files in one attempt. `who` is unique among those who write to
    one path in one job: two sinks may."""

    def __init__(self, directory: str, ctx: SinkContext) -> None:
        self.job_id = ctx.job_id
        self.who = f"{hashlib.sha256(ctx.uid.encode()).hexdigest()[:6]}-{ctx.subtask_index:04d}"
        self._directory = directory
        self._checkpoint_id = 0
        self._counter = 0

    def next(self) -> str:
        """Return a path not returned before."""
        self._counter += 1
        return f"{self._directory}/{self.who}-{self._checkpoint_id:08d}-{self._counter:06d}.pending"

    def reached(self, checkpoint_id: int) -> None:
        """Files begun from now on belong to checkpoints after this one."""
        self._checkpoint_id = max(self._checkpoint_id, checkpoint_id)


def remove_quietly(target: Target, paths: Iterable[str]) -> None:
    """Remove staged files that belong to no checkpoint. What cannot be removed now, a later attempt removes."""
    for path in paths:
        with suppress(StorageError):
            target.delete(path)


def may_be_pending(staged: str, completed_checkpoint: int) -> bool:
    """Return whether the staged file may be pending in the newest complete checkpoint."""
    begun_after = staged.removesuffix(".pending").split("-")[-2:-1]
    return bool(begun_after) and begun_after[0].isdigit() and int(begun_after[0]) < completed_checkpoint


class StagedFile:
    """One file being written. Whatever fails is a StorageError that names it, unless it is the rows' fault; then
    nothing of the file is left, and it is of no more use."""

    def __init__(self, target: Target, path: str, format: FileFormat, schema: pa.Schema) -> None:
        self.path = path
        self.schema = schema
        self.nbytes = 0
        self.buffered_bytes = 0
        self._target = target
        self._rows: list[pa.RecordBatch] = []
        self._buffered_rows = 0
        self._stream = target.open_output(path)
        self._writer: RowWriter | None = None
        self._writer = self._guard(lambda: format.writer(self._stream, schema))

    def append(self, rows: pa.RecordBatch) -> None:
        """Collect rows; write them when they are a row group."""
        self._rows.append(rows)
        self._buffered_rows += rows.num_rows
        self.buffered_bytes += rows.nbytes
        self.nbytes += rows.nbytes
        if self._buffered_rows >= ROW_GROUP_ROWS or self.buffered_bytes >= ROW_GROUP_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write what is collected."""
        if self._rows:
            self._guard(self._write_rows)
            self._rows, self._buffered_rows, self.buffered_bytes = [], 0, 0

    def _write_rows(self) -> None:
        assert self._writer is not None
        self._writer.write(pa.Table.from_batches(self._rows, self.schema))

    def finish(self) -> None:
        """Write the rest and make the file durable."""
        self.flush()
        assert self._writer is not None
        self._guard(self._writer.close)
        self._guard(self._stream.close)
        self._guard(lambda: self._target.finish(self.path))

    def abandon(self) -> None:
        """Drop the file without finishing it."""
        self._rows = []
        if self._writer is not None:
            self._writer.abandon()
        self._target.abandon(self._stream, self.path)

    def _guard(self, act: Callable[[], Any]) -> Any:
        try:
            return act()
        except (RayflowError, pa.ArrowInvalid, pa.ArrowNotImplementedError):
            self.abandon()
            raise
        except Exception as error:
            self.abandon()
            reason = str(error)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                # Arrow's own text says it twice, between its own words.
                reason = f"{os.strerror(error.errno)}; free space there, or write elsewhere"
            raise StorageError(f"cannot write {self._target.url}/{self.path}: {reason}") from None


def unified(one: pa.Schema, other: pa.Schema) -> pa.Schema | None:
    """Return the schema that both can be widened to, None if there is none."""
    try:
        return pa.unify_schemas([one, other], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return None
