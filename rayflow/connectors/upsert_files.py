"""Upserting: files that hold the last row of every key, replaced as a whole when one of their keys changes.

Theory of operation. A row's key has a key group, and each key group (in each partition) is a *bucket*, one
file `bucket-<group>-of-<max_parallelism><suffix>`. Key groups are the units in which rows are dealt out to
subtasks, so whatever the parallelism, a bucket belongs to exactly one subtask, before and after rescaling;
there are at most `max_parallelism` files, and fewer with a smaller `max_parallelism`.

Changes are collected between barriers. Then each touched bucket is written anew, staged, as its *base* merged
with its changes: of every key the last row, unless that is a deletion. The base is what this attempt staged last
for the bucket, if that is not published yet, else the committed file. So the staged contents of a checkpoint
that was aborted are contained in the next one's, and several checkpoints may be in flight. A bucket whose last row was
deleted becomes a file without rows. (An empty JSON file, which some readers refuse, goes when the job finishes.)

After a restore nothing of older attempts is looked at: the engine commits the transactions of the restored
checkpoint, on all subtasks, before any subtask writes, and from then on the committed file of each bucket is
exactly its content at that checkpoint. (Had the target committed past it, the base would be newer; such restores
are refused by the engine.) For the same reason a late commit cannot bring back old contents: what it would publish
is gone, published by the restore (see `file_sink`).

Keys are compared as everywhere: null equals null, NaN equals NaN, −0.0 equals 0.0.

Of a stream of whole rows (`batch.changelog`) several rows may share the key, which then only says where a row lies. A
bucket is a multiset: every change adds one row or takes an equal one away.

Schema drift. Columns may come, be widened, or (being null from then on) go; key columns keep their types.

Invariants:

1. A file holds at most one row per key (not with whole rows), only rows of its bucket, and no operation column.
2. Rows of key groups that the subtask does not own are refused.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.changelog import (
    DELETE,
    OP_COLUMN,
    UPDATE_BEFORE,
    comes,
    ops,
    visible,
    with_op,
)
from rayflow.batch.hashing import key_groups
from rayflow.connectors.append_files import canonical_floats, partition_directories
from rayflow.connectors.file_formats import FileFormat
from rayflow.connectors.staged_files import FileWriter, StagedFile, StagedNames, remove_quietly
from rayflow.connectors.targets import Target
from rayflow.model.errors import PlanError, ProtocolViolation
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.key_groups import key_group_range
from rayflow.state.storage import MissingObject

CHANGES_BYTES = 64 << 20
"""Collected changes are merged into staged files when they take more, without waiting for the barrier."""
CACHE_BYTES = 32 << 20
"""Contents of recently written buckets are kept up to this, to be the next base without being read."""


class UpsertWriter(FileWriter):
    """The upsert side of `FileSink`."""

    def __init__(
        self,
        target: Target,
        names: StagedNames,
        format: FileFormat,
        ctx: SinkContext,
        key: Sequence[str],
        partition_by: Sequence[str],
        *,
        whole_rows: bool = False,
    ) -> None:
        self._target = target
        self._names = names
        self._format = format
        self._key = tuple(key)
        self._partition_by = tuple(partition_by)
        self._whole_rows = whole_rows
        self._max_parallelism = ctx.max_parallelism
        self._own = key_group_range(ctx.max_parallelism, ctx.parallelism, ctx.subtask_index)
        self._changes: list[pa.RecordBatch] = []
        self._changes_bytes = 0
        # Final name → staged file: of the current checkpoint, and of all that is not published yet.
        self._current: dict[str, str] = {}
        self._unpublished: dict[str, str] = {}
        self._cache = _BucketCache()

    def write(self, batch: pa.RecordBatch) -> None:
        """Collect changes; what an update replaces is of no interest, but where whole rows go."""
        op = ops(batch)
        rows = with_op(self._stored(visible(batch)), op)
        if not self._whole_rows and (op == UPDATE_BEFORE).any():
            rows = rows.filter(pa.array(op != UPDATE_BEFORE))
        if rows.num_rows == 0:
            return
        self._changes.append(rows)
        self._changes_bytes += rows.nbytes
        if self._changes_bytes > CHANGES_BYTES:
            self._merge()

    def prepare(self, checkpoint_id: int) -> list[tuple[str, str]]:
        """Write the touched buckets."""
        self._merge()
        files = [(staged, final) for final, staged in sorted(self._current.items())]
        self._current = {}
        self._names.reached(checkpoint_id)
        return files

    def published(self, staged: str) -> None:
        """From now on the committed file is the bucket's base, unless something newer is staged."""
        for final, newest in self._unpublished.items():
            if newest == staged:
                del self._unpublished[final]
                return

    def close(self) -> None:
        """Drop what is not prepared."""
        self._changes = []
        remove_quietly(self._target, self._current.values())
        self._current = {}

    def _stored(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        stored = self._format.as_read_back(rows)
        for name in self._key:
            if stored.column(name).null_count != rows.column(name).null_count:
                raise PlanError(
                    f"key column {name!r} holds NaN or infinity, which {self._format.suffix} files cannot; "
                    "write Parquet, or filter such rows out"
                )
        return stored

    def _merge(self) -> None:
        if not self._changes:
            return
        changes = pa.concat_tables(
            [pa.Table.from_batches([batch]) for batch in self._changes], promote_options="permissive"
        ).combine_chunks()
        self._changes, self._changes_bytes = [], 0
        kept = changes.take(last_rows(changes, self._key)) if not self._whole_rows else changes
        rows = kept.combine_chunks().to_batches()[0]
        for final, part in self._buckets(rows):
            self._merge_bucket(final, part)

    def _buckets(self, rows: pa.RecordBatch) -> Iterator[tuple[str, pa.Table]]:
        """Yield (final name, changes without partition columns) of each bucket touched."""
        groups = key_groups(rows, list(self._key), self._max_parallelism)
        if groups.min() not in self._own or groups.max() not in self._own:
            raise ProtocolViolation(
                f"upsert sink got rows of key groups {groups.min()} to {groups.max()}, but owns {self._own}: "
                f"its input must be partitioned by {list(self._key)}, in this order (invariant 2)"
            )
        directories: Any = pa.nulls(rows.num_rows, pa.string()).fill_null("")
        if self._partition_by:
            directories = partition_directories(rows, self._partition_by)
        kept = pa.Table.from_batches([rows]).drop_columns(list(self._partition_by))
        encoded = directories.dictionary_encode()
        units = (
            encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64) * self._max_parallelism + groups
        )
        order = np.argsort(units, kind="stable")
        starts = np.flatnonzero(np.diff(units[order], prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
            directory, group = divmod(int(units[order[start]]), self._max_parallelism)
            name = bucket_name(group, self._max_parallelism, self._format.suffix)
            yield f"{encoded.dictionary[directory].as_py()}{name}", kept.take(order[start:end])

    def _merge_bucket(self, final: str, changes: pa.Table) -> None:
        key = [name for name in self._key if name not in self._partition_by]
        base = self._base(final, changes.schema)
        if base is None and not pc.any(pc.not_equal(changes[OP_COLUMN], DELETE)).as_py():
            return
        content = changes if base is None else _on_top(base, changes, key, final)
        if self._whole_rows:
            content = content.take(remaining_rows(content))
        else:
            if base is not None:
                content = content.take(last_rows(content, key))
            content = content.filter(pc.not_equal(content[OP_COLUMN], DELETE))
        content = content.drop_columns([OP_COLUMN]).combine_chunks()
        file = StagedFile(self._target, self._names.next(), self._format, content.schema)
        for batch in content.to_batches():
            file.append(batch)
        file.finish()
        replaced = self._current.get(final)
        self._current[final] = self._unpublished[final] = file.path
        self._cache.put(final, content)
        if replaced is not None:
            self._target.delete(replaced)

    def _base(self, final: str, changes: pa.Schema) -> pa.Table | None:
        cached = self._cache.get(final)
        if cached is not None:
            return cached
        schema = changes.remove(changes.get_field_index(OP_COLUMN))
        staged = self._unpublished.get(final)
        if staged is not None:
            # A commit in the background may be publishing it now, or have done so; then it is the final file, since
            # what was staged for the bucket later is not published before.
            with suppress(MissingObject):
                return self._format.read(self._target.read(staged), schema)
        try:
            return self._format.read(self._target.read(final), schema)
        except MissingObject:
            return None


class _BucketCache:
    """Contents of buckets by final name, least recently used first, bounded by CACHE_BYTES."""

    def __init__(self) -> None:
        self._tables: OrderedDict[str, pa.Table] = OrderedDict()
        self._nbytes = 0

    def get(self, final: str) -> pa.Table | None:
        return self._tables.get(final)

    def put(self, final: str, table: pa.Table) -> None:
        old = self._tables.pop(final, None)
        self._nbytes += table.nbytes - (0 if old is None else old.nbytes)
        self._tables[final] = table
        while self._nbytes > CACHE_BYTES:
            self._nbytes -= self._tables.popitem(last=False)[1].nbytes


def last_rows(table: pa.Table, key: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the positions of the last row of every key, ascending. Without key columns all rows are of one."""
    if not key or table.num_rows == 0:
        return np.arange(table.num_rows, dtype=np.int64)[-1:]
    columns = {f"k{i}": _groupable(table[name]) for i, name in enumerate(key)}
    keyed = pa.table({**columns, "row": pa.array(np.arange(table.num_rows, dtype=np.int64))})
    last = keyed.group_by(list(columns), use_threads=False).aggregate([("row", "max")])
    rows: npt.NDArray[np.int64] = np.sort(last["row_max"].to_numpy())
    return rows


def remaining_rows(table: pa.Table) -> npt.NDArray[np.int64]:
    """Return the positions of the rows that came and did not go, ascending; rows are told apart by all columns
    but the operation, and of equal ones the first is returned as often as they remain."""
    names = [name for name in table.schema.names if name != OP_COLUMN]
    columns = {f"k{i}": _groupable(table[name]) for i, name in enumerate(names)}
    weights = pa.array(np.where(comes(table[OP_COLUMN].to_numpy()), 1, -1), pa.int64())
    keyed = pa.table({**columns, "row": pa.array(np.arange(table.num_rows)), "weight": weights})
    found = keyed.group_by(list(columns), use_threads=False).aggregate([("row", "min"), ("weight", "sum")])
    remaining = np.maximum(found["weight_sum"].to_numpy(), 0)
    rows: npt.NDArray[np.int64] = np.sort(np.repeat(found["row_min"].to_numpy(), remaining))
    return rows


def bucket_name(group: int, max_parallelism: int, suffix: str) -> str:
    """Return the file name of a key group's bucket."""
    return f"bucket-{group:05d}-of-{max_parallelism:05d}{suffix}"


def check_base(url: str, existing: Sequence[str], suffix: str, max_parallelism: int) -> None:
    """Raise PlanError where `existing` files are not bucket files that an upsert can build upon."""
    pattern = re.compile(rf"bucket-\d{{5}}-of-{max_parallelism:05d}{re.escape(suffix)}")
    for path in existing:
        if not pattern.fullmatch(path.rpartition("/")[2]):
            raise PlanError(
                f"output {url} holds {path}, which is not a {suffix} bucket file of an upsert with "
                f"max_parallelism={max_parallelism}, so it cannot be continued; choose another path, or "
                "if_exists='overwrite'"
            )


def _on_top(base: pa.Table, changes: pa.Table, key: Sequence[str], final: str) -> pa.Table:
    """Return the rows of the base, as inserted, and the changes."""
    try:
        for name in key:
            index = base.schema.get_field_index(name)
            type_ = changes.schema.field(name).type
            base = base.set_column(index, name, base.column(index).cast(type_))
        inserts = pa.array(np.zeros(base.num_rows, np.int8))
        marked = base.append_column(changes.schema.field(OP_COLUMN), inserts)
        return pa.concat_tables([marked, changes], promote_options="permissive").combine_chunks()
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
        raise PlanError(
            f"rows no longer fit what {final} holds: {error}; give the stream a schema (returns=)"
        ) from None


def _groupable(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return canonical_floats(array)
