"""Rows of state as bytes: what a key-value store keeps under a key.

A row is its columns one after another, packed as the key index packs keys of several columns: a word for fixed-width
values, else a length and bytes. Nested values are packed from within: a list is the lengths of its packed elements
and then these, a struct its validity and then its fields, a map the list of its entries. Unlike keys, values come back
bit by bit: −0.0 and the payload of a NaN are kept.

Whole columns are packed and unpacked by compiled loops; no value becomes a Python object.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.state.fixed_width import FixedWidth, is_fixed_width
from rayflow.state.key_codec import (
    ByteColumn,
    ByteKeys,
    Unpacker,
    WordKeys,
    pack,
    restored_as,
    storage_of,
    validity,
)

Parts = list[WordKeys | ByteKeys]


class RowCodec:
    """Packs rows of `schema`, and unpacks them. Raises TypeError for a column type that cannot be packed."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._columns = [_codec(field.type) for field in schema]

    def encode(self, batch: pa.RecordBatch) -> ByteKeys:
        """Return the rows of `batch`, whose columns are those of the schema."""
        parts: Parts = []
        for codec, column in zip(self._columns, batch.columns, strict=True):
            parts += codec.parts(column)
        return pack(parts, batch.num_rows)

    def decode(self, rows: ByteKeys) -> pa.RecordBatch:
        """Return the batch that `encode` made `rows` of."""
        packed = Unpacker(rows)
        arrays = [codec.column(packed) for codec in self._columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


class _Codec(Protocol):
    def parts(self, array: pa.Array) -> Parts:
        """Return the column as words or bytes."""

    def column(self, packed: Unpacker) -> pa.Array:
        """Read the column back."""


def _codec(type_: pa.DataType) -> _Codec:
    t = pa.types
    plain = type_.value_type if t.is_dictionary(type_) else type_
    plain = plain.storage_type if isinstance(plain, pa.BaseExtensionType) else plain
    if is_fixed_width(plain):
        return _Words(type_, plain)
    if t.is_list(plain) or t.is_large_list(plain) or t.is_fixed_size_list(plain):
        return _Lists(plain, pa.list_(plain.value_field))
    if t.is_map(plain):
        entry = pa.struct([plain.key_field, plain.item_field])
        return _Lists(plain, pa.list_(pa.field("entries", entry, nullable=False)))
    if t.is_struct(plain):
        return _Structs(plain)
    if _is_bytes(plain):
        return _Bytes(type_, plain)
    raise TypeError(f"values of type {type_} cannot be stored as bytes")


def _is_bytes(type_: pa.DataType) -> bool:
    t = pa.types
    return bool(
        t.is_string(type_)
        or t.is_large_string(type_)
        or t.is_binary(type_)
        or t.is_large_binary(type_)
        or t.is_fixed_size_binary(type_)
        or t.is_decimal(type_)
    )


class _Words:
    """Fixed-width values."""

    def __init__(self, type_: pa.DataType, plain: pa.DataType) -> None:
        self._type = type_
        self._fixed = FixedWidth(plain)

    def parts(self, array: pa.Array) -> Parts:
        """See `_Codec`."""
        array = storage_of(array)
        # A copy, even if nothing changed its type: what Arrow shares is read-only.
        return [WordKeys(np.array(self._fixed.numbers(array)).view(np.uint64), validity(array))]

    def column(self, packed: Unpacker) -> pa.Array:
        """See `_Codec`."""
        words = packed.words()
        values = self._fixed.array(words.words.view(self._fixed.dtype), words.valid == 0)
        return restored_as(values, self._type)


class _Bytes:
    """Strings, binaries, decimals."""

    def __init__(self, type_: pa.DataType, plain: pa.DataType) -> None:
        self._column = ByteColumn(type_, plain)

    def parts(self, array: pa.Array) -> Parts:
        """See `_Codec`."""
        return [self._column.encode(array)]

    def column(self, packed: Unpacker) -> pa.Array:
        """See `_Codec`."""
        return self._column.decode(packed.bytes())


class _Lists:
    """Lists and maps; `as_list` is the type as a plain list."""

    def __init__(self, type_: pa.DataType, as_list: pa.DataType) -> None:
        self._type, self._as_list = type_, as_list
        self._items = RowCodec(pa.schema([as_list.value_field]))

    def parts(self, array: pa.Array) -> Parts:
        """See `_Codec`."""
        lists = _plain_lists(array, self._as_list)
        valid = validity(lists)
        ends = np.zeros(len(lists) + 1, np.int64)
        np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False), out=ends[1:])
        items = self._items.encode(pa.RecordBatch.from_arrays([lists.flatten()], schema=self._items.schema))
        lengths = np.diff(items.offsets).astype(np.uint32).view(np.uint8)
        return [ByteKeys(lengths, ends * 4, valid), ByteKeys(items.data, items.offsets[ends], valid)]

    def column(self, packed: Unpacker) -> pa.Array:
        """See `_Codec`."""
        lengths, items = packed.bytes(), packed.bytes()
        starts = np.zeros(len(lengths.data) // 4 + 1, np.int64)
        np.cumsum(lengths.data.view(np.uint32), out=starts[1:])
        values = self._items.decode(ByteKeys(items.data, starts, np.zeros(0, np.uint8))).column(0)
        ends = pa.array((lengths.offsets // 4).astype(np.int32))
        mask = pa.array(lengths.valid == 0)
        t = pa.types
        if t.is_map(self._type):
            keys, entries = values.field(0), values.field(1)
            return pa.MapArray.from_arrays(ends, keys, entries, type=self._type, mask=mask)
        lists = pa.ListArray.from_arrays(ends, values, type=self._as_list, mask=mask)
        return lists if lists.type == self._type else lists.cast(self._type)


class _Structs:
    """Structs: which are null, and every field."""

    def __init__(self, type_: pa.DataType) -> None:
        self._type = type_
        self._fields = [_codec(field.type) for field in type_]

    def parts(self, array: pa.Array) -> Parts:
        """See `_Codec`."""
        parts: Parts = [WordKeys(np.zeros(len(array), np.uint64), validity(array))]
        # flatten() gives the fields as of the array's own rows, null where the struct is.
        for codec, column in zip(self._fields, array.flatten(), strict=True):
            parts += codec.parts(column)
        return parts

    def column(self, packed: Unpacker) -> pa.Array:
        """See `_Codec`."""
        null = packed.words().valid == 0
        columns = [codec.column(packed) for codec in self._fields]
        if not columns:
            return pa.array([None if gone else {} for gone in null], self._type)
        return pa.StructArray.from_arrays(columns, fields=list(self._type), mask=pa.array(null))


def _plain_lists(array: pa.Array, as_list: pa.DataType) -> Any:
    if not pa.types.is_map(array.type):
        return array if array.type == as_list else array.cast(as_list)
    # `keys` and `items` are those of the whole buffers, whatever part of these the array is.
    first, last = array.offsets[0].as_py(), array.offsets[-1].as_py()
    entries = pa.StructArray.from_arrays(
        [array.keys.slice(first, last - first), array.items.slice(first, last - first)],
        fields=list(as_list.value_type),
    )
    offsets = pc.subtract(array.offsets, first)
    return pa.ListArray.from_arrays(offsets, entries, type=as_list, mask=array.is_null())


def pieces(packed: ByteKeys) -> Iterator[bytes]:
    """Yield every row's bytes."""
    data = packed.data.tobytes()
    ends = packed.offsets.tolist()
    return map(data.__getitem__, map(slice, ends, ends[1:]))


def joined(rows: list[bytes]) -> ByteKeys:
    """Return rows of bytes, as `pieces` gave them, side by side."""
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, rows), np.int64, len(rows)), out=offsets[1:])
    # A copy: the compiled loops want arrays that may be written.
    return ByteKeys(np.frombuffer(b"".join(rows), np.uint8).copy(), offsets, np.zeros(0, np.uint8))
