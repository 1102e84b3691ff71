"""Record batches as the engine handles them: joined, cut, measured, made from rows, shown to people.

Small batches are joined before work and large ones cut before they travel; cutting never copies (a slice
shares its parent's buffers), so the size of a batch must be the size of its *slice*, not of the buffers
behind it: `nbytes` is what a consumer's credit pays for. `RecordBatch.nbytes` gives that at about 3 µs a
column; `get_total_buffer_size` is faster and wrong for slices. String views count their whole character
buffers, which is also what travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.changelog import visible

_SAMPLE_VALUE_CHARS = 60
_LARGE_ROWS = 8192

_FIXED_WIDTH_IDS = {
    type_.id
    for type_ in (
        pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
        pa.float16(), pa.float32(), pa.float64(), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"),
        pa.timestamp("us"), pa.duration("us"),
    )
}  # fmt: skip


def concat(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of `batches` (at least one, of one schema) in order. One batch is not copied."""
    if len(batches) == 1:
        return batches[0]
    return pa.concat_batches(batches)


def nbytes(batch: pa.RecordBatch) -> int:
    """Return the bytes that the rows of `batch` take, counting only the slice of each buffer."""
    size: int = batch.nbytes
    return size


def row_bytes(schema: pa.Schema) -> float | None:
    """Return the bytes that every row of `schema` takes, None where that differs from row to row."""
    bits = 0
    for field in schema:
        try:
            bits += field.type.bit_width + field.nullable
        except ValueError:  # of no fixed width
            return None
    return bits / 8


def slice_rows(batch: pa.RecordBatch, max_rows: int) -> list[pa.RecordBatch]:
    """Cut `batch` into consecutive pieces of at most `max_rows` (≥ 1) rows each, copying nothing. An empty batch is one
    piece."""
    if batch.num_rows <= max_rows:
        return [batch]
    return [batch.slice(start, max_rows) for start in range(0, batch.num_rows, max_rows)]


def sized_pieces(batch: pa.RecordBatch, limit_bytes: int) -> list[tuple[pa.RecordBatch, int]]:
    """Cut `batch` into consecutive pieces of at most `limit_bytes` bytes each; return them with their `nbytes`.

    Copies nothing. A piece holds at least one row, however large that row is. An empty batch is one piece.
    """
    size = nbytes(batch)
    if batch.num_rows <= 1 or size <= limit_bytes:
        return [(batch, size)]
    # Halving adapts to rows of very different sizes: one huge row does not scatter the small ones.
    middle = batch.num_rows // 2
    return sized_pieces(batch.slice(0, middle), limit_bytes) + sized_pieces(batch.slice(middle), limit_bytes)


def take(batch: pa.RecordBatch, indices: npt.NDArray[np.int64]) -> pa.RecordBatch:
    """Return the rows of `batch` numbered `indices` (each in [0, rows)), in that order.

    In large batches NumPy gathers fixed-width columns without nulls faster than Arrow's kernel, which does the
    rest; either way the result lies in Arrow's memory pool, which reuses pages that malloc gives back.
    """
    positions = pa.array(indices)
    if len(indices) < _LARGE_ROWS:
        return batch.take(positions)
    arrays = [
        _take_fixed_width(column, indices)
        if column.type.id in _FIXED_WIDTH_IDS and column.null_count == 0
        else column.take(positions)
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _take_fixed_width(column: pa.Array, indices: npt.NDArray[np.int64]) -> pa.Array:
    type_ = column.type
    width = type_.bit_width // 8
    values = np.frombuffer(column.buffers()[1], f"u{width}")[column.offset : column.offset + len(column)]
    buffer = pa.allocate_buffer(len(indices) * width)
    # mode="wrap": indices are in range, and NumPy's default checks and buffers.
    values.take(indices, out=np.frombuffer(buffer, values.dtype), mode="wrap")
    return pa.Array.from_buffers(type_, len(indices), [None, buffer], null_count=0)


def rows_to_batch(rows: Sequence[Mapping[str, Any]], schema: pa.Schema | None = None) -> pa.RecordBatch:
    """Return `rows` as one batch. A key that a row lacks is null there.

    With a schema, values are converted to its types and a key it does not name is an error; without one,
    columns are all keys in order of first appearance, and types are inferred from all rows.
    Raises ValueError naming the column (and a row, where one row is to blame).
    """
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {index} is {row!r}: expected a dict of column name to value")
    names = list(dict.fromkeys(key for row in rows for key in row))
    if schema is None:
        arrays = [_column(rows, name, None) for name in names]
        return pa.RecordBatch.from_arrays(arrays, names=names)
    unknown = [name for name in names if name not in schema.names]
    if unknown:
        raise ValueError(
            f"rows have the column {unknown[0]!r}, which the schema does not name (it names "
            f"{', '.join(map(repr, schema.names))}); add it to the schema or leave it out of the rows"
        )
    arrays = [_column(rows, field.name, field) for field in schema]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _column(rows: Sequence[Mapping[str, Any]], name: str, field: pa.Field | None) -> pa.Array:
    values = [row.get(name) for row in rows]
    type_ = None if field is None else field.type
    if field is not None and not field.nullable and None in values:
        raise ValueError(f"row {values.index(None)} lacks a value for column {name!r}, which is not nullable")
    try:
        return pa.array(values, type_)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        if type_ is None:
            raise ValueError(f"column {name!r} has values of different types: {error}") from error
        for index, value in enumerate(values):
            try:
                pa.array([value], type_)
            except (pa.ArrowException, TypeError, ValueError, OverflowError):
                raise ValueError(f"row {index}: column {name!r} is {value!r}, expected {type_}") from error
        raise ValueError(f"column {name!r} cannot be made {type_}: {error}") from error


def render_sample(batch: pa.RecordBatch, rows: int = 3) -> str:
    """Return the first `rows` rows as one short line for an error message, without hidden columns."""
    shown = visible(batch.slice(0, rows))
    texts = [
        "{"
        + ", ".join(
            f"{name}: {short_text(shown.column(i)[row])}" for i, name in enumerate(shown.schema.names)
        )
        + "}"
        for row in range(shown.num_rows)
    ]
    more = f" … ({batch.num_rows} rows)" if batch.num_rows > rows else ""
    return ", ".join(texts) + more


def short_text(value: pa.Scalar) -> str:
    """Return a value as Python shows it, cut to 60 characters."""
    try:
        text = repr(value.as_py())
    except (OverflowError, ValueError):
        # Arrow holds times that Python's datetime does not.
        text = str(value.cast(pa.string()).as_py())
    return text if len(text) <= _SAMPLE_VALUE_CHARS else text[: _SAMPLE_VALUE_CHARS - 1] + "…"
