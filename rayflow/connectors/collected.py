"""Collecting a stream's rows: they are written, exactly once, as Arrow files to a directory of the job's own,
and read back when the job is finished. An upsert stream is kept as the changes it consists of, and resolved
by the reader."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.changelog import DELETE, OP_COLUMN, UPDATE_BEFORE, is_changelog, visible_schema
from rayflow.connectors.file_formats import FORMATS
from rayflow.connectors.file_sink import STAGING, FileSink
from rayflow.connectors.targets import open_target
from rayflow.connectors.upsert_files import last_rows, remaining_rows

_FORMAT = FORMATS["arrow"]


def collect_sink(
    directory: str | os.PathLike[str],
    options: Mapping[str, str] | None = None,
    *,
    whole_rows: bool = False,
) -> FileSink:
    """Return the sink that `read_collected` reads from; `directory` must be empty or not exist."""
    return FileSink(directory, "arrow", options=options, keep_changes=True, whole_rows=whole_rows)


def read_collected(
    directory: str | os.PathLike[str],
    upsert_key: Sequence[str] | None = None,
    *,
    whole_rows: bool = False,
    schema: pa.Schema | None = None,
    options: Mapping[str, str] | None = None,
) -> pa.Table:
    """Return the rows that `collect_sink(directory)` committed, ordered by checkpoint, subtask and arrival.

    With `upsert_key`, the last row of every key, without deleted ones; an empty key means that all rows are of
    one. With `whole_rows`, the rows that came and did not go. Without rows, an empty table of the stream's schema,
    or of `schema` where the stream had none.
    """
    target = open_target(os.fspath(directory), options or {})
    paths = [
        path
        for path in target.list("")
        if path.endswith(_FORMAT.suffix) and not path.startswith(f"{STAGING}/")
    ]
    empty = (schema or pa.schema([])).empty_table()
    tables = [_FORMAT.read(target.read(path), empty.schema) for path in sorted(paths, key=_order)]
    table = pa.concat_tables(tables, promote_options="permissive") if tables else empty
    if not is_changelog(table.schema):
        return table
    if whole_rows:
        table = table.take(remaining_rows(table))
    elif upsert_key is not None:
        table = table.filter(pc.not_equal(table[OP_COLUMN], UPDATE_BEFORE))
        table = table.take(last_rows(table, upsert_key))
        table = table.filter(pc.not_equal(table[OP_COLUMN], DELETE))
    return table.select(visible_schema(table.schema).names)


def _order(path: str) -> list[str]:
    # Without the job's id: rows may come from two jobs, one restored from the other's checkpoint.
    return path.rsplit("-", 4)[1:]
