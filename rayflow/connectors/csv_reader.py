"""Reads a CSV file in a stream; says which line is wrong when one is."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from rayflow.model.errors import DataError
from rayflow.operators.source_contract import SplitReader


class CsvReader(SplitReader):
    """Rows of one file, from row `position` on (earlier ones are parsed again and skipped)."""

    def __init__(self, filesystem: Any, path: str, schema: pa.Schema, position: int) -> None:
        self._filesystem = filesystem
        self._path = path
        self._schema = schema
        self._rows = position
        self._skip = position
        self._stream = self._open()
        self._rest: pa.RecordBatch | None = None

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """Return the next rows."""
        while self._rest is None or self._rest.num_rows == 0:
            try:
                self._rest = self._stream.read_next_batch()
            except StopIteration:
                return None
            except pa.ArrowInvalid as error:
                raise self._explained(error) from error
            skipped = min(self._skip, self._rest.num_rows)
            self._rest, self._skip = self._rest.slice(skipped), self._skip - skipped
        batch, self._rest = self._rest.slice(0, max_rows), self._rest.slice(max_rows)
        self._rows += batch.num_rows
        return batch

    def position(self) -> int:
        """Rows read of the file."""
        return self._rows

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _open(self) -> Any:
        types = {field.name: field.type for field in self._schema}
        try:
            return open_csv(self._filesystem, self._path, types, self._schema.names)
        except pa.ArrowKeyError as error:
            raise DataError(
                f"{self._path}: {error}; the header must name every column of the schema"
            ) from error
        except pa.ArrowInvalid as error:
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> DataError:
        """Find the line to blame by reading the file once more, every column as text, one row after the other."""
        bad: list[tuple[int, str]] = []

        def note(row: Any) -> str:
            bad.append(
                (
                    row.number,
                    f"expected {row.expected_columns} columns, got {row.actual_columns}: {row.text!r}",
                )
            )
            return "error"

        row = 1
        with suppress(pa.ArrowInvalid):
            texts = dict.fromkeys(self._schema.names, pa.string())
            stream = open_csv(self._filesystem, self._path, texts, self._schema.names, note)
            for batch in stream:
                found = unconvertible(batch, self._schema)
                if found is not None:
                    index, column, value, wanted = found
                    problem = f"column {column!r} is {value!r}, expected {wanted}"
                    return DataError(f"{self._path}, line {row + index + 1}: {problem}")
                row += batch.num_rows
        if bad:
            number, problem = bad[0]
            return DataError(f"{self._path}, line {number if number > 0 else '?'}: {problem}")
        return DataError(f"{self._path}, after row {self._rows}: {error}")


def csv_schema(filesystem: Any, path: str) -> pa.Schema:
    """Return the columns that the header names, with types inferred from the first block (1 MiB)."""
    with open_csv(filesystem, path, None, None) as stream:
        schema = stream.schema
    # A column without any value in the first block may turn out to be anything: text holds everything.
    return pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])


def open_csv(
    filesystem: Any,
    path: str,
    types: dict[str, pa.DataType] | None,
    columns: list[str] | None,
    invalid_row: Any = None,
) -> Any:
    """Return a streaming reader of the file's `columns` as `types`, None for all and for what they look like.
    `invalid_row` is asked what to do about records of another number of values."""
    return pa_csv.open_csv(
        filesystem.open_input_stream(path),
        read_options=pa_csv.ReadOptions(use_threads=invalid_row is None),
        parse_options=pa_csv.ParseOptions(
            delimiter="\t" if path.endswith(".tsv") else ",",
            newlines_in_values=True,
            invalid_row_handler=invalid_row,
        ),
        convert_options=pa_csv.ConvertOptions(
            column_types=types,
            include_columns=columns,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )


def unconvertible(batch: pa.RecordBatch, schema: pa.Schema) -> tuple[int, str, str, pa.DataType] | None:
    """Return the first value, of columns read as text, that is none of its column's type: row, column, value, type."""
    for field in schema:
        column = batch.column(field.name)
        if _converts(column, field.type):
            continue
        for index, value in enumerate(column):
            if not _converts(pa.array([value.as_py()], pa.string()), field.type):
                return index, field.name, value.as_py(), field.type
    return None


def _converts(column: pa.Array, wanted: pa.DataType) -> bool:
    # Spellings that CSV knows and cast does not would be blamed wrongly, so ask the CSV converter itself.
    text = pa.table({"c": column})
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(text, sink)
    try:
        pa_csv.read_csv(
            pa.BufferReader(sink.getvalue()),
            parse_options=pa_csv.ParseOptions(newlines_in_values=True),
            convert_options=pa_csv.ConvertOptions(
                column_types={"c": wanted}, strings_can_be_null=True, quoted_strings_can_be_null=True
            ),
        )
    except pa.ArrowInvalid:
        return False
    return True
