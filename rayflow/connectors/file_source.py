"""Sources over files: Parquet, CSV, JSON lines, text.

| format | a split | its smallest event time | position |
|---|---|---|---|
| Parquet | a row group | from the column's statistics | rows read |
| CSV | a file | unknown | rows read |
| JSON lines, text | 32 MiB of a file, to the end of a line | unknown | byte offset |

The schema is known when the plan is built: the one given with `schema=`, else that of the first file (Parquet:
its footer; CSV and JSON lines: types inferred from its first block). All files must have these columns; others they
have are ignored. With `watch_ms` the source is unbounded: files that appear later are picked up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from rayflow.connectors.csv_reader import CsvReader, csv_schema
from rayflow.connectors.csv_skipping import SkippingCsvReader
from rayflow.connectors.file_discovery import FoundFile, find_files
from rayflow.connectors.filesystems import open_filesystem
from rayflow.connectors.line_readers import JsonLinesReader, TextReader, json_schema
from rayflow.connectors.parquet_reader import ParquetReader, row_group_min_times
from rayflow.model.errors import DataError, PlanError
from rayflow.operators.source_contract import Source, Split, SplitReader

_LINE_SPLIT_BYTES = 32 << 20

S = TypeVar("S", bound="FileSource")


class FileSource(Source):
    """What all file sources share. `path`: file, directory or glob, local or `s3://`."""

    suffixes: tuple[str, ...] = ()
    can_skip = False
    """Whether records can be broken one by one, and left out (`skipping`)."""

    def __init__(
        self,
        path: str,
        *,
        time_column: str | None = None,
        schema: pa.Schema | None = None,
        watch_ms: int | None = None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        self._path = path
        self._time_column = time_column
        self._watch_ms = watch_ms
        self._options = dict(options or {})
        self._skip_bad = False
        self._schema = schema or self._first_schema()

    def skipping(self: S) -> S:
        """Return the same source, which leaves out and counts the records that it cannot read."""
        lenient = copy(self)
        lenient._skip_bad = self.can_skip
        return lenient

    @property
    def schema(self) -> pa.Schema:
        """The schema of all files."""
        return self._schema

    @property
    def bounded(self) -> bool:
        """Whether new files are not looked for."""
        return self._watch_ms is None

    def discovery_interval_ms(self) -> int | None:
        """How often new files are looked for."""
        return self._watch_ms

    def splits(self) -> Sequence[Split]:
        """List the files there are now, and cut them into splits."""
        filesystem, files = find_files(
            self._path, self.suffixes, self._options, may_be_empty=not self.bounded
        )
        return [split for file in files for split in self._splits_of(filesystem, file)]

    def split_count(self, enough: int) -> int | None:
        """Count the splits of the files there are now, as far as `enough`; not where new ones may come."""
        if not self.bounded:
            return None
        filesystem, files = find_files(self._path, self.suffixes, self._options)
        if len(files) >= enough:
            return len(files)  # A split each at the least, as a rule; to open all of many would take long.
        return sum(len(self._splits_of(filesystem, file)) for file in files)

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        """Open the split's file at `position`."""
        filesystem, _ = open_filesystem(self._path, self._options)
        try:
            return self._open(filesystem, split, position)
        except FileNotFoundError:
            raise DataError(f"{split.payload['path']} was there when the job began, and is gone") from None

    def _first_schema(self) -> pa.Schema:
        filesystem, files = find_files(
            self._path, self.suffixes, self._options, may_be_empty=not self.bounded
        )
        if not files:
            raise PlanError(f"{self._path} holds no file yet to learn the columns from; give schema=")
        try:
            return self._read_schema(filesystem, files[0])
        except (OSError, pa.ArrowException, DataError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read {files[0].path}: {error}") from error

    def _splits_of(self, filesystem: Any, file: FoundFile) -> list[Split]:
        return [Split(id=file.path, payload={"path": file.path}, order=file.path)]

    @abstractmethod
    def _read_schema(self, filesystem: Any, file: FoundFile) -> pa.Schema:
        """Return the schema of a file."""

    @abstractmethod
    def _open(self, filesystem: Any, split: Split, position: Any | None) -> SplitReader:
        """Return a reader of a split."""


class ParquetSource(FileSource):
    """Parquet files, a row group a split."""

    suffixes = (".parquet", ".pq")

    def reading(self, columns: Sequence[str]) -> ParquetSource:
        """Return the same source, of these columns only."""
        narrow = copy(self)
        narrow._schema = pa.schema([self._schema.field(name) for name in columns])
        return narrow

    def _read_schema(self, filesystem: Any, file: FoundFile) -> pa.Schema:
        return pq.read_schema(file.path, filesystem=filesystem)

    def _splits_of(self, filesystem: Any, file: FoundFile) -> list[Split]:
        try:
            metadata = pq.read_metadata(file.path, filesystem=filesystem)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {file.path}: {error}") from error
        times = row_group_min_times(metadata, self._time_column)
        return [
            Split(
                id=f"{file.path}#{group}",
                payload={"path": file.path, "row_group": group},
                min_time=times[group],
                order=f"{file.path}#{group:06}",
            )
            for group in range(metadata.num_row_groups)
        ]

    def _open(self, filesystem: Any, split: Split, position: Any | None) -> SplitReader:
        path, group = split.payload["path"], split.payload["row_group"]
        return ParquetReader(filesystem, path, group, self._schema, position or 0)


class CsvSource(FileSource):
    """CSV files with a header line, compressed (`.gz`, `.bz2`) or not."""

    can_skip = True
    suffixes = (".csv", ".tsv", ".csv.gz", ".csv.bz2")

    def _read_schema(self, filesystem: Any, file: FoundFile) -> pa.Schema:
        return csv_schema(filesystem, file.path)

    def _open(self, filesystem: Any, split: Split, position: Any | None) -> SplitReader:
        path = split.payload["path"]
        if self._skip_bad:
            return SkippingCsvReader(filesystem, path, self._schema, position)
        rows = position[0] if isinstance(position, list) else position or 0
        return CsvReader(filesystem, path, self._schema, rows)


class _LineSource(FileSource):
    """Formats of one record a line, without line ends inside records."""

    can_skip = True

    def _splits_of(self, filesystem: Any, file: FoundFile) -> list[Split]:
        return [
            Split(
                id=f"{file.path}@{start}",
                payload={
                    "path": file.path,
                    "start": start,
                    "stop": min(start + _LINE_SPLIT_BYTES, file.size),
                },
                order=f"{file.path}@{start:015}",
            )
            for start in range(0, file.size, _LINE_SPLIT_BYTES)
        ]


class JsonSource(_LineSource):
    """JSON lines: one object a line."""

    suffixes = (".jsonl", ".ndjson", ".json")

    def _read_schema(self, filesystem: Any, file: FoundFile) -> pa.Schema:
        return json_schema(filesystem, file.path)

    def _open(self, filesystem: Any, split: Split, position: Any | None) -> SplitReader:
        p = split.payload
        at = (filesystem, p["path"], p["start"], p["stop"])
        return JsonLinesReader(*at, self._schema, position, skip_bad=self._skip_bad)


class TextSource(_LineSource):
    """UTF-8 text: a row a line, in the one column `line`."""

    SCHEMA = pa.schema([("line", pa.string())])

    def _first_schema(self) -> pa.Schema:
        find_files(self._path, self.suffixes, self._options, may_be_empty=not self.bounded)
        return self.SCHEMA

    def _read_schema(self, filesystem: Any, file: FoundFile) -> pa.Schema:
        return self.SCHEMA

    def _open(self, filesystem: Any, split: Split, position: Any | None) -> SplitReader:
        p = split.payload
        at = (filesystem, p["path"], p["start"], p["stop"])
        return TextReader(*at, position, skip_bad=self._skip_bad)
