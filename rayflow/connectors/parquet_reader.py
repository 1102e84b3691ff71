"""Reads one row group of a Parquet file, and the smallest event time of each from its statistics."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rayflow.model.errors import DataError
from rayflow.operators.source_contract import SplitReader

_DECODED_ROWS = 65_536
_DECODED_BYTES = 16 << 20
_NANOS = {"milliseconds": 1_000_000, "microseconds": 1_000, "nanoseconds": 1}


class ParquetReader(SplitReader):
    """Streams a row group in batches; holds about one data page a column."""

    def __init__(self, filesystem: Any, path: str, row_group: int, schema: pa.Schema, position: int) -> None:
        self._path = path
        self._schema = schema
        self._group = row_group
        self._rows = position
        self._skip = position
        try:
            self._input = filesystem.open_input_file(path)
            self._file = pq.ParquetFile(self._input)
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"cannot read {path}: {error}") from error
        missing = [name for name in schema.names if name not in self._file.schema_arrow.names]
        if missing:
            raise DataError(
                f"{path} has no column {missing[0]!r}, which other files or schema= have; it has "
                f"{', '.join(self._file.schema_arrow.names)}"
            )
        self._batches: Any = None
        self._batch_rows = 0
        self._rest: pa.RecordBatch | None = None

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """Return the next rows."""
        try:
            batch = self._next(max_rows)
            return None if batch is None else self._fit(batch)
        except (OSError, pa.ArrowException) as error:
            where = f"row group {self._group}, after row {self._rows}"
            raise DataError(f"cannot read {self._path} ({where}): {error}") from error

    def position(self) -> int:
        """Rows read of the row group."""
        return self._rows

    def close(self) -> None:
        """Close the file."""
        self._input.close()

    def _next(self, max_rows: int) -> pa.RecordBatch | None:
        if self._batches is None:
            # Decoded in large pieces, however few rows are wanted at first, but not in huge ones.
            self._batches = self._file.iter_batches(
                batch_size=self._decoded_rows(max_rows), row_groups=[self._group], columns=self._schema.names
            )
        while self._rest is None or self._rest.num_rows == 0:
            self._rest = next(self._batches, None)
            if self._rest is None:
                return None
            skipped = min(self._skip, self._rest.num_rows)
            self._rest, self._skip = self._rest.slice(skipped), self._skip - skipped
        batch, self._rest = self._rest.slice(0, max_rows), self._rest.slice(max_rows)
        self._rows += batch.num_rows
        return batch

    def _decoded_rows(self, max_rows: int) -> int:
        group = self._file.metadata.row_group(self._group)
        row_bytes = group.total_byte_size / max(1, group.num_rows)
        return max(1, min(max(max_rows, _DECODED_ROWS), int(_DECODED_BYTES / max(row_bytes, 1))))

    def _fit(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if batch.schema.equals(self._schema):
            return batch
        columns = [
            column if column.type == field.type else column.cast(field.type)
            for field in self._schema
            for column in (batch.column(field.name),)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema.remove_metadata())


def row_group_min_times(metadata: Any, column: str | None) -> list[int | None]:
    """Return the smallest value (ns since the epoch) of timestamp column `column` in each row group of a
    Parquet file, None where statistics do not tell."""
    groups = range(metadata.num_row_groups)
    names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
    if column not in names:
        return [None for _ in groups]
    index = names.index(column)
    logical = json.loads(metadata.schema.column(index).logical_type.to_json())
    nanos = _NANOS.get(logical.get("timeUnit", ""))
    return [_min_time(metadata.row_group(group).column(index).statistics, nanos) for group in groups]


def _min_time(statistics: Any, nanos: int | None) -> int | None:
    if statistics is None or nanos is None or not statistics.has_min_max:
        return None
    return int(statistics.min_raw) * nanos
