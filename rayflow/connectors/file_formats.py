"""The formats of file sinks: how rows become files, and, for upserts, files rows again.

A writer takes tables of one schema; each `write` of a Parquet or Arrow file is one row group or record batch,
so callers collect rows first. CSV has its header once per file, quotes every string (so that null, an empty
field, differs from an empty string) and cannot hold nested columns. JSON lines: see `json_lines`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from rayflow.connectors.json_lines import decode_lines, encode_lines, finite_only, reads_back
from rayflow.model.errors import PlanError

FormatName = Literal["parquet", "csv", "json", "arrow"]


class RowWriter(ABC):
    """Writes one file to a binary stream. `close` ends the file, not the stream."""

    @abstractmethod
    def write(self, rows: pa.Table) -> None:
        """Append rows, of the writer's schema."""

    def close(self) -> None:
        """Write what ends a file."""

    def abandon(self) -> None:
        """Never write again, not even when garbage is collected: the stream will be gone."""


class FileFormat(ABC):
    """One format. `suffix` ends the names of committed files, and of nothing else."""

    suffix: str

    @abstractmethod
    def writer(self, stream: Any, schema: pa.Schema) -> RowWriter:
        """Return a writer of a new file."""

    @abstractmethod
    def read(self, data: bytes, schema: pa.Schema) -> pa.Table:
        """Return the rows of a file, with its own schema where it has one, else with `schema`."""

    def as_read_back(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return the rows as they would be after writing and reading them."""
        return rows

    def check(self, schema: pa.Schema, *, read_back: bool) -> None:
        """Raise PlanError where a column cannot be written or, with `read_back`, not be read again."""


class ParquetFormat(FileFormat):
    """Parquet, Snappy."""

    suffix = ".parquet"

    def writer(self, stream: Any, schema: pa.Schema) -> RowWriter:
        """One row group per write."""
        return _ParquetWriter(pq.ParquetWriter(stream, schema))

    def read(self, data: bytes, schema: pa.Schema) -> pa.Table:
        """Read with the file's schema."""
        return pq.read_table(pa.BufferReader(data))


class ArrowFormat(FileFormat):
    """Arrow IPC, uncompressed: what collecting uses. In its streaming form, whose dictionaries may change."""

    suffix = ".arrow"

    def writer(self, stream: Any, schema: pa.Schema) -> RowWriter:
        """One record batch per write."""
        return _ArrowWriter(pa.ipc.new_stream(stream, schema))

    def read(self, data: bytes, schema: pa.Schema) -> pa.Table:
        """Read with the file's schema."""
        return pa.ipc.open_stream(pa.BufferReader(data)).read_all()


class CsvFormat(FileFormat):
    """CSV with a header."""

    suffix = ".csv"

    def writer(self, stream: Any, schema: pa.Schema) -> RowWriter:
        """Header at once, so that a file without rows has it too."""
        return _ArrowWriter(pa_csv.CSVWriter(stream, schema))

    def read(self, data: bytes, schema: pa.Schema) -> pa.Table:
        """Read with `schema`."""
        options = pa_csv.ConvertOptions(
            column_types=schema,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=[""],
            true_values=["true"],
            false_values=["false"],
            include_columns=schema.names,
            include_missing_columns=True,
        )
        parse = pa_csv.ParseOptions(newlines_in_values=True, ignore_empty_lines=False)
        return pa_csv.read_csv(pa.BufferReader(data), parse_options=parse, convert_options=options)

    def check(self, schema: pa.Schema, *, read_back: bool) -> None:
        """Nested columns have no text form; few types are certain to come back."""
        for field in schema:
            nested = pa.types.is_nested(field.type) or pa.types.is_binary(field.type)
            if nested or (read_back and not reads_back(field.type)):
                raise PlanError(_unfit("CSV", field, read_back and not nested))


class JsonFormat(FileFormat):
    """JSON lines."""

    suffix = ".jsonl"

    def writer(self, stream: Any, schema: pa.Schema) -> RowWriter:
        """Rows need nothing around them."""
        return _LinesWriter(stream)

    def read(self, data: bytes, schema: pa.Schema) -> pa.Table:
        """Read with `schema`."""
        return decode_lines(data, schema)

    def as_read_back(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """NaN and infinities become null."""
        return finite_only(rows)

    def check(self, schema: pa.Schema, *, read_back: bool) -> None:
        """Everything can be written; few types are certain to come back."""
        for field in schema:
            if read_back and not reads_back(field.type):
                raise PlanError(_unfit("JSON", field, True))


FORMATS: dict[str, FileFormat] = {
    "parquet": ParquetFormat(),
    "csv": CsvFormat(),
    "json": JsonFormat(),
    "arrow": ArrowFormat(),
}
SUFFIXES = tuple(FORMATS[name].suffix for name in get_args(FormatName))


def _unfit(format_name: str, field: pa.Field, read_back: bool) -> str:
    doing = "be read back from" if read_back else "be written to"
    step = "write Parquet" if read_back else "convert it to a string, or write Parquet or JSON"
    return f"column {field.name!r} of type {field.type} cannot {doing} {format_name}; {step}"


class _ArrowWriter(RowWriter):
    """On one of pyarrow's writers, which are alike in this."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def write(self, rows: pa.Table) -> None:
        self._writer.write_table(rows)

    def close(self) -> None:
        self._writer.close()


class _ParquetWriter(_ArrowWriter):
    def abandon(self) -> None:
        # Else pyarrow's finalizer writes the footer, and complains on stderr that the stream is closed.
        self._writer.is_open = False


class _LinesWriter(RowWriter):
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, rows: pa.Table) -> None:
        self._stream.write(encode_lines(rows))
