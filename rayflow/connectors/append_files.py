"""Appending: every checkpoint adds files, at most one per subtask and partition until a size is reached.

Final names are unique for ever, since checkpoint numbers never repeat within a job, over attempts either:
`[column=value/]part-<job id>-<checkpoint>-<sink>-<subtask>-<counter><suffix>`; sorted by name they are in the
order of checkpoints. Rows within a file keep their order.

Rows are collected to row groups before they are written. What is collected, and how many files are open, is
bounded; meeting a bound closes or flushes early, never loses.

Schema drift. Without a declared schema a batch may differ from the last. If its columns are the same and their
types can be widened to those of the current file (null to any, int32 to int64, int to float), its rows are; else
the file is finished and a new one is begun with the new schema. So a data set may hold files of different schemas.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.changelog import visible
from rayflow.connectors.file_formats import FileFormat
from rayflow.connectors.staged_files import FileWriter, StagedFile, StagedNames, remove_quietly, unified
from rayflow.connectors.targets import Target

BUFFER_BYTES = 64 << 20
FILE_BYTES = 256 << 20
"""Size, in memory, at which a file is finished; compressed files are smaller."""
OPEN_FILES = 64

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"


class AppendWriter(FileWriter):
    """The append side of `FileSink`."""

    def __init__(
        self,
        target: Target,
        names: StagedNames,
        format: FileFormat,
        partition_by: Sequence[str],
        *,
        drop_ops: bool,
    ) -> None:
        self._target = target
        self._names = names
        self._format = format
        self._partition_by = tuple(partition_by)
        self._drop_ops = drop_ops
        # By partition directory, least recently written first.
        self._open: OrderedDict[str, StagedFile] = OrderedDict()
        self._finished: list[tuple[str, str]] = []
        self._schema: pa.Schema | None = None

    def write(self, batch: pa.RecordBatch) -> None:
        """Take rows."""
        rows = visible(batch) if self._drop_ops else batch
        for directory, part in split_by_partition(rows, self._partition_by):
            self._append(directory, self._widened(part))
        if sum(file.buffered_bytes for file in self._open.values()) > BUFFER_BYTES:
            for file in self._open.values():
                file.flush()

    def prepare(self, checkpoint_id: int) -> list[tuple[str, str]]:
        """Finish all files."""
        for directory in list(self._open):
            self._finish(directory)
        stem = f"part-{self._names.job_id}-{checkpoint_id:08d}-{self._names.who}"
        files = [
            (staged, f"{directory}{stem}-{i:04d}{self._format.suffix}")
            for i, (directory, staged) in enumerate(self._finished)
        ]
        self._finished = []
        self._names.reached(checkpoint_id)
        return files

    def close(self) -> None:
        """Drop what is not prepared."""
        for file in self._open.values():
            file.abandon()
        self._open.clear()
        remove_quietly(self._target, [staged for _, staged in self._finished])
        self._finished = []

    def _append(self, directory: str, rows: pa.RecordBatch) -> None:
        file = self._open.get(directory)
        if file is not None and (file.schema != rows.schema or file.nbytes > FILE_BYTES):
            self._finish(directory)
            file = None
        if file is None:
            if len(self._open) >= OPEN_FILES:
                self._finish(next(iter(self._open)))
            file = StagedFile(self._target, self._names.next(), self._format, rows.schema)
            self._open[directory] = file
        self._open.move_to_end(directory)
        file.append(rows)

    def _finish(self, directory: str) -> None:
        file = self._open.pop(directory)
        file.finish()
        self._finished.append((directory, file.path))

    def _widened(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        known = self._schema
        if known is not None and rows.schema != known and set(rows.schema.names) == set(known.names):
            ordered = rows.select(known.names)
            if unified(known, ordered.schema) == known:
                return ordered.cast(known)
        self._schema = rows.schema
        return rows


def split_by_partition(rows: pa.RecordBatch, columns: Sequence[str]) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield (directory ending in "/", rows without the partition columns), rows in order; without columns
    all rows under ""."""
    if not columns:
        yield "", rows
        return
    codes = partition_directories(rows, columns).dictionary_encode()
    kept = rows.select([name for name in rows.schema.names if name not in columns])
    indices = codes.indices.to_numpy(zero_copy_only=False)
    order = np.argsort(indices, kind="stable")
    ends = np.cumsum(np.bincount(indices, minlength=len(codes.dictionary)))
    start = 0
    for directory, end in zip(codes.dictionary.to_pylist(), ends.tolist(), strict=True):
        yield directory, kept.take(pa.array(order[start:end]))
        start = end


def partition_directories(rows: pa.RecordBatch, columns: Sequence[str]) -> pa.Array:
    """Return each row's directory, as Hive names them: `column=value/`, one level per column; values are
    percent-encoded, null is `__HIVE_DEFAULT_PARTITION__`."""
    levels = [_level(rows.column(name), name) for name in columns]
    return pc.binary_join_element_wise(*levels, "") if len(levels) > 1 else levels[0]


def canonical_floats(array: pa.Array) -> pa.Array:
    """Return floats such that equal keys have equal bits: one NaN, no negative zero. Others as they are."""
    if not pa.types.is_floating(array.type):
        return array
    wide = pc.add(array.cast(pa.float64()), 0.0)
    return pc.if_else(pc.is_nan(wide), pa.scalar(float("nan")), wide)


def _level(column: pa.Array, name: str) -> pa.Array:
    encoded = canonical_floats(column).cast(pa.string()).dictionary_encode()
    values = [f"{quote(name, safe='')}={quote(value, safe='')}/" for value in encoded.dictionary.to_pylist()]
    null = f"{quote(name, safe='')}={NULL_PARTITION}/"
    return pc.fill_null(pa.array(values, pa.string()).take(encoded.indices), null)
