"""What an operator hands over at a barrier, and what it gets back on restore.

A snapshot is a list of `StatePart`s. Building the Arrow table of a part may be slow, so it happens in
`build`, off the task thread; `build` must only touch data that the operator no longer changes (a copy,
or immutable Arrow chunks).

*Keyed* parts have an int32 column `KEY_GROUP_COLUMN` naming each row's key group; on restore every
subtask gets the rows of its own key groups, whatever the parallelism was. *List* parts have no owner:
they are dealt out whole, the part written by subtask i going to subtask `i % parallelism`. *Broadcast* parts
are the same in every subtask: one of them writes it, and every subtask gets it. *In-flight* files are no part of an
operator's state: they hold what was under way to it (see `in_flight`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import pyarrow as pa

KEY_GROUP_COLUMN = "__key_group"
GONE_COLUMN = "__gone"
"""Of a table of changes: whether the key of the row does not exist any more."""

KEY_COLUMNS = b"rayflow.key_columns"
"""Metadata of a keyed table: how many columns are the key. They come first."""

RUN_COLUMN = "__run"
"""Of a table of runs: the number of the run that the row is in. See `chains`."""

RUNS = b"rayflow.runs"
"""Metadata of a table of runs: which ones there are at its checkpoint (`packed_runs`)."""

PartKind = Literal["keyed", "list", "broadcast", "in-flight"]

PART_KINDS: tuple[PartKind, ...] = get_args(PartKind)


@dataclass(frozen=True, slots=True, kw_only=True)
class StatePart:
    """One named table of an operator's state. `name` is unique within the operator (`[a-z0-9_-]+`).

    `stream`, where it is given, is the same in pieces, for what is too large to be built at once: `stream(None)` yields
    tables of all rows, and `stream(n)` those of what changed since checkpoint n, in one of the two ways of `chains`.
    What n may be: a checkpoint that is complete, of this attempt or the one that it was restored from, for which
    `extends(n)` says that it can be, and is worth it. Its files have about `file_bytes`.
    """

    name: str
    kind: PartKind
    build: Callable[[], pa.Table]
    stream: Callable[[int | None], Iterator[pa.Table]] | None = None
    file_bytes: int = 8 << 20
    extends: Callable[[int], bool] = lambda since: True


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoredPart:
    """A part read back. Keyed parts hold only rows of the restoring subtask's key groups.

    `writer_index` is the index of the subtask that wrote it, `checkpoint_id` the checkpoint's number.
    """

    name: str
    kind: PartKind
    table: pa.Table
    writer_index: int
    checkpoint_id: int

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table."""
        return self.table.schema

    def batches(self, max_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows, at most so many at a time."""
        yield from self.table.to_batches(max_chunksize=max_rows)


class StreamedPart(RestoredPart):
    """A part that is too large to be held at once: `read` yields its tables again each time it is called. Has no
    `table`. Where later checkpoints may build on its runs, it has `RUN_COLUMN`."""

    _schema: pa.Schema
    _read: Callable[[], Iterator[pa.Table]]

    def __init__(
        self,
        name: str,
        kind: PartKind,
        writer_index: int,
        checkpoint_id: int,
        schema: pa.Schema,
        read: Callable[[], Iterator[pa.Table]],
    ) -> None:
        super().__init__(
            name=name, kind=kind, table=None, writer_index=writer_index, checkpoint_id=checkpoint_id
        )
        object.__setattr__(self, "_schema", schema)
        object.__setattr__(self, "_read", read)

    @property
    def schema(self) -> pa.Schema:
        """See `RestoredPart`."""
        return self._schema

    def batches(self, max_rows: int) -> Iterator[pa.RecordBatch]:
        """See `RestoredPart`."""
        for table in self._read():
            yield from table.to_batches(max_chunksize=max_rows)
