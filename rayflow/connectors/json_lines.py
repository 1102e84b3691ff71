"""JSON lines: batches to text and back, column by column.

Every row has all columns, in order; what a type becomes:

| Arrow | JSON |
|---|---|
| null | `null` |
| integers, decimals | number, exact |
| floats | number, shortest that reads back the same, always with a point or exponent; NaN and ±∞ become `null` |
| timestamp, date, time | ISO 8601 string in the column's unit; with a zone: in UTC, ending in `Z` |
| string, binary | string; binary as base64 |
| duration | number of the column's units |
| list, struct, map | array, object, array of `[key, value]`; values within as above |

Plain columns are rendered by Arrow kernels, nested ones (and strings with control characters) by Python.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pa_json

NULL = pa.scalar("null", pa.large_string())


def encode_lines(batch: pa.RecordBatch | pa.Table) -> bytes:
    """Return the rows as UTF-8 JSON lines, each ended by a newline."""
    table = pa.Table.from_batches([batch]) if isinstance(batch, pa.RecordBatch) else batch
    return b"".join(_encode(piece) for piece in table.combine_chunks().to_batches() if piece.num_rows)


def render_rows(batch: pa.RecordBatch) -> list[str]:
    """Return every row as one JSON object, without newline."""
    return encode_lines(batch).decode().split("\n")[:-1]


def decode_lines(data: bytes, schema: pa.Schema) -> pa.Table:
    """Return the rows that `encode_lines` wrote of a table of `schema` (see `reads_back`)."""
    if not data:
        return schema.empty_table()
    # Arrow's reader knows no dates, but casts them from text.
    as_read = pa.schema([f.with_type(pa.string()) if pa.types.is_date(f.type) else f for f in schema])
    options = pa_json.ParseOptions(explicit_schema=as_read, unexpected_field_behavior="ignore")
    read = pa_json.ReadOptions(
        use_threads=False, block_size=max(len(data), 1 << 16)
    )  # so that no row can be cut
    return pa_json.read_json(pa.BufferReader(data), read, options).select(schema.names).cast(schema)


def finite_only(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return `batch` with null for NaN and ±∞ in its plain float columns."""
    for i, field in enumerate(batch.schema):
        if pa.types.is_floating(field.type):
            batch = batch.set_column(i, field, _finite(batch.column(i)))
    return batch


def reads_back(type_: pa.DataType) -> bool:
    """Return whether `decode_lines` restores values of this type exactly (NaN and ±∞ apart)."""
    return bool(
        pa.types.is_boolean(type_)
        or pa.types.is_integer(type_)
        or (pa.types.is_floating(type_) and type_ != pa.float16())
        or pa.types.is_string(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_timestamp(type_)
        or pa.types.is_date32(type_)
    )


def _encode(batch: pa.RecordBatch) -> bytes:
    pieces: list[Any] = []
    for i, field in enumerate(batch.schema):
        opening = ("{" if i == 0 else ",") + json.dumps(field.name, ensure_ascii=False) + ":"
        pieces += [pa.scalar(opening, pa.large_string()), json_tokens(batch.column(i))]
    if not pieces:
        return b"{}\n" * int(batch.num_rows)
    pieces.append(pa.scalar("}\n", pa.large_string()))
    lines = pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))
    return bytes(characters(lines))


def characters(texts: pa.Array) -> memoryview:
    """Return the bytes of texts (large_string, none of them null), one behind the other, as they lie in the array's
    data already: no join is needed, and nothing is copied."""
    _, ends, data = texts.buffers()
    if not len(texts) or data is None:
        return memoryview(b"")
    offsets = memoryview(ends).cast("q")
    return memoryview(data)[offsets[texts.offset] : offsets[texts.offset + len(texts)]]


def json_tokens(array: pa.Array) -> pa.Array:
    """Return one JSON token per value, as large_string, never null."""
    type_ = array.type
    if pa.types.is_dictionary(type_):
        return json_tokens(array.dictionary_decode())
    if pa.types.is_boolean(type_) or pa.types.is_integer(type_):
        tokens = array.cast(pa.string())
    elif pa.types.is_floating(type_):
        tokens = _floats(array)
    elif pa.types.is_timestamp(type_):
        tokens = _quoted(_iso_timestamps(array))
    elif pa.types.is_date(type_) or pa.types.is_time(type_):
        tokens = _quoted(array.cast(pa.string()))
    elif pa.types.is_string(type_) or pa.types.is_large_string(type_):
        tokens = _strings(array)
    else:
        tokens = pa.array([_dumps(value) for value in array], pa.large_string())
    return pc.fill_null(tokens.cast(pa.large_string()), NULL)


def _floats(array: pa.Array) -> pa.Array:
    finite = _finite(array)
    # float16 has no text form of its own in Arrow.
    text = (finite.cast(pa.float32()) if array.type == pa.float16() else finite).cast(pa.string())
    return pc.replace_substring_regex(text, r"^(-?\d+)$", r"\1.0")


def _finite(array: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_finite(array), array, pa.scalar(None, array.type))


def _iso_timestamps(array: pa.Array) -> pa.Array:
    unit, zone = array.type.unit, array.type.tz
    text = array.cast(pa.timestamp(unit)).cast(pa.string()) if zone else array.cast(pa.string())
    text = pc.replace_substring(text, " ", "T", max_replacements=1)
    return pc.binary_join_element_wise(text, "Z", "") if zone else text


def _quoted(array: pa.Array) -> pa.Array:
    text = array.cast(pa.large_string())
    quote = pa.scalar('"', pa.large_string())
    return pc.binary_join_element_wise(quote, text, quote, pa.scalar("", pa.large_string()))


def _strings(array: pa.Array) -> pa.Array:
    if pc.any(pc.match_substring_regex(array, "[\\x00-\\x1f\\x7f]")).as_py():
        return pa.array([_dumps(value) for value in array], pa.large_string())
    escaped = pc.replace_substring(pc.replace_substring(array, "\\", "\\\\"), '"', '\\"')
    return _quoted(escaped)


def _dumps(value: pa.Scalar) -> str:
    """Return a scalar of any type as JSON text, by the table above."""
    type_ = value.type
    if not value.is_valid:
        return "null"
    if pa.types.is_struct(type_):
        return _object([(_text(name), _dumps(value[name])) for name in value.keys()])  # noqa: SIM118
    if pa.types.is_map(type_):
        return _array([_array([_dumps(e["key"]), _dumps(e["value"])]) for e in value.values])
    if pa.types.is_nested(type_):
        return _array([_dumps(item) for item in value.values])
    if pa.types.is_dictionary(type_):
        return _dumps(value.value)
    if pa.types.is_timestamp(type_):
        return _text(_iso_timestamps(pa.array([value.value], pa.int64()).cast(type_))[0].as_py())
    if pa.types.is_duration(type_):
        return str(value.value)
    return _plain(value)


def _plain(value: pa.Scalar) -> str:
    native = value.as_py()
    if isinstance(native, float):
        return repr(native) if math.isfinite(native) else "null"
    if isinstance(native, bytes):
        return _text(base64.b64encode(native).decode())
    if isinstance(native, decimal.Decimal):
        return format(native, "f")
    if isinstance(native, (datetime.date, datetime.time)):
        return _text(value.cast(pa.string()).as_py())
    return json.dumps(native, ensure_ascii=False)


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _array(items: list[str]) -> str:
    return "[" + ",".join(items) + "]"


def _object(items: list[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{name}:{value}" for name, value in items) + "}"
