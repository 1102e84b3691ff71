"""Reads a CSV file and leaves out the records that are broken: too few or too many values, or one of a wrong kind.

Every column is read as text, and each block is then converted as a whole; what does not convert is cut in two until
single records are left. That reads a good file about three times as slowly as `CsvReader` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from rayflow.batch.tables import concat
from rayflow.connectors.csv_reader import open_csv, unconvertible
from rayflow.model.errors import DataError
from rayflow.operators.source_contract import SplitReader


class SkippingCsvReader(SplitReader):
    """Good rows of one file. The position is [rows with as many values as the header, records without]."""

    def __init__(self, filesystem: Any, path: str, schema: pa.Schema, position: Any) -> None:
        self._path = path
        self._schema = schema
        rows, misshapen = position if isinstance(position, list) else (position or 0, 0)
        self._rows = self._skip = rows
        self._misshapen, self._known = 0, misshapen
        self._skipped: list[str] = []
        self._rest: pa.RecordBatch | None = None
        texts = dict.fromkeys(schema.names, pa.string())
        try:
            self._stream = open_csv(filesystem, path, texts, schema.names, self._note)
        except pa.ArrowKeyError as error:
            raise DataError(f"{path}: {error}; the header must name every column of the schema") from error

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """Return the next good rows; none, if the next ones are all bad."""
        while self._rest is None or self._rest.num_rows == 0:
            try:
                self._rest = self._stream.read_next_batch()
            except StopIteration:
                return None
            skipped = min(self._skip, self._rest.num_rows)
            self._rest, self._skip = self._rest.slice(skipped), self._skip - skipped
        texts, self._rest = self._rest.slice(0, max_rows), self._rest.slice(max_rows)
        made = self._converted(texts)
        self._rows += texts.num_rows
        return made

    def position(self) -> list[int]:
        """See the class."""
        return [self._rows, max(self._misshapen, self._known)]

    def skipped(self) -> Sequence[str]:
        """See `SplitReader`."""
        problems, self._skipped = self._skipped, []
        return problems

    def close(self) -> None:
        """Close the file."""
        self._stream.close()

    def _note(self, row: Any) -> str:
        self._misshapen += 1
        if self._misshapen > self._known:
            line = row.number if row.number and row.number > 0 else "?"
            self._skipped.append(
                f"{self._path}, line {line}: expected {row.expected_columns} columns, got "
                f"{row.actual_columns}: {row.text!r}"
            )
        return "skip"

    def _converted(self, texts: pa.RecordBatch) -> pa.RecordBatch:
        batches = [pa.RecordBatch.from_pylist([], schema=self._schema)]
        todo = [(texts, self._rows)]
        while todo:
            piece, before = todo.pop()
            try:
                batches += _convert(piece, self._schema)
            except pa.ArrowInvalid as error:
                half = piece.num_rows // 2
                if half == 0:
                    self._skipped.append(self._explained(piece, before, error))
                else:
                    todo += [(piece.slice(half), before + half), (piece.slice(0, half), before)]
        return concat(batches)

    def _explained(self, row: pa.RecordBatch, before: int, error: Exception) -> str:
        found = unconvertible(row, self._schema)
        problem = str(error) if found is None else f"column {found[1]!r} is {found[2]!r}, expected {found[3]}"
        return f"{self._path}, record {before + 1}: {problem}"


def _convert(texts: pa.RecordBatch, schema: pa.Schema) -> list[pa.RecordBatch]:
    # CSV's own converter knows spellings that casts of text do not.
    sink = pa.BufferOutputStream()
    pa_csv.write_csv(texts, sink)
    data = sink.getvalue()
    table = pa_csv.read_csv(
        pa.BufferReader(data),
        # One block, so that no record is cut.
        read_options=pa_csv.ReadOptions(use_threads=False, block_size=max(data.size + 1, 1 << 16)),
        parse_options=pa_csv.ParseOptions(newlines_in_values=True),
        convert_options=pa_csv.ConvertOptions(
            column_types={field.name: field.type for field in schema},
            include_columns=schema.names,
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    batches: list[pa.RecordBatch] = table.cast(schema).combine_chunks().to_batches()
    return batches
