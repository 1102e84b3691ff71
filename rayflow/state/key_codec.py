"""Key columns as the key index stores them: a 64-bit word, or a string of bytes, per key.

A single column of a fixed-width type (integers, floats, booleans, dates, times, timestamps, durations) is
one word a key. A single string, binary or decimal column is its bytes. Several columns are written one
after another into a string of bytes that says for each column whether it is null and how long it is, so
different keys never have equal bytes.

Floats are made canonical first: −0.0 becomes 0.0, every NaN the same NaN. Null is a key value like others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.fixed_width import FixedWidth, is_fixed_width

U8 = npt.NDArray[np.uint8]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]

_ALL_VALID: U8 = np.zeros(0, np.uint8)


@dataclass(frozen=True, slots=True)
class WordKeys:
    """Keys of one word each. `valid` is empty, or 0 where the key is null."""

    words: U64
    valid: U8

    def __len__(self) -> int:
        return len(self.words)


@dataclass(frozen=True, slots=True)
class ByteKeys:
    """Keys `data[offsets[i]:offsets[i + 1]]`. `valid` is empty, or 0 where the key is null."""

    data: U8
    offsets: I64
    valid: U8

    def __len__(self) -> int:
        return len(self.offsets) - 1


class KeyCodec:
    """Turns key columns of `schema` into keys of the index, and back.

    Raises TypeError for a column type that cannot be a key (lists, structs, maps, unions).
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._columns = [_column_codec(field) for field in schema]
        self._single = self._columns[0] if len(self._columns) == 1 else None

    @property
    def is_words(self) -> bool:
        """Whether keys are `WordKeys` (else `ByteKeys`)."""
        return isinstance(self._single, WordColumn)

    def encode(self, columns: pa.RecordBatch) -> WordKeys | ByteKeys:
        """Return the keys of the rows; `columns` are the key columns, in the order of the schema."""
        if self._single is not None:
            return self._single.encode(columns.column(0))
        parts = [codec.encode(columns.column(i)) for i, codec in enumerate(self._columns)]
        return pack(parts, columns.num_rows)

    def decode(self, keys: WordKeys | ByteKeys) -> pa.RecordBatch:
        """Return the key columns that `encode` made `keys` of."""
        if self._single is not None:
            return pa.RecordBatch.from_arrays([self._single.decode(keys)], schema=self.schema)
        assert isinstance(keys, ByteKeys)
        packed = Unpacker(keys)
        arrays = [
            codec.decode(packed.words() if isinstance(codec, WordColumn) else packed.bytes())
            for codec in self._columns
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def pack(parts: Sequence[WordKeys | ByteKeys], rows: int) -> ByteKeys:
    """Return each row's parts one after another, as bytes that `Unpacker` reads."""
    from rayflow.state import key_kernels

    lengths = np.zeros(rows, np.int64)
    for part in parts:
        lengths += _row_lengths(part)
    offsets = np.zeros(rows + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = np.empty(int(offsets[-1]), np.uint8)
    at = offsets[:-1].copy()
    for part in parts:
        if isinstance(part, WordKeys):
            key_kernels.put_words(data, at, part.words, part.valid)
        else:
            key_kernels.put_bytes(data, at, part.data, part.offsets, part.valid)
    return ByteKeys(data, offsets, _ALL_VALID)


class Unpacker:
    """Reads the parts of packed rows in the order in which they were given."""

    def __init__(self, packed: ByteKeys) -> None:
        self._data = packed.data
        self._at = packed.offsets[:-1].copy()

    def words(self) -> WordKeys:
        """Return the next part, which was a word a row."""
        from rayflow.state import key_kernels

        words, valid = np.empty(len(self._at), np.uint64), np.empty(len(self._at), np.uint8)
        key_kernels.get_words(self._data, self._at, words, valid)
        return WordKeys(words, valid)

    def bytes(self) -> ByteKeys:
        """Return the next part, which was bytes."""
        from rayflow.state import key_kernels

        rows = len(self._at)
        starts, lengths, valid = np.empty(rows, np.int64), np.empty(rows, np.int64), np.empty(rows, np.uint8)
        key_kernels.get_lengths(self._data, self._at, starts, lengths, valid)
        return gather(self._data, starts, lengths, valid)


def gather(arena: U8, starts: I64, lengths: I64, valid: U8) -> ByteKeys:
    """Return the pieces of `arena` that begin at `starts` and are `lengths` long, side by side."""
    from rayflow.state import key_kernels

    offsets = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    data = np.empty(int(offsets[-1]), np.uint8)
    key_kernels.gather_bytes(arena, starts, offsets, data)
    return ByteKeys(data, offsets, valid)


def _row_lengths(part: WordKeys | ByteKeys) -> I64:
    if isinstance(part, WordKeys):
        payload: I64 = np.full(len(part), 8, np.int64)
    else:
        payload = np.diff(part.offsets) + 4
    return 1 + payload * part.valid if len(part.valid) else 1 + payload


def _column_codec(field: pa.Field) -> WordColumn | ByteColumn:
    type_ = field.type
    plain = type_.value_type if pa.types.is_dictionary(type_) else type_
    plain = plain.storage_type if isinstance(plain, pa.BaseExtensionType) else plain
    if is_fixed_width(plain) or pa.types.is_null(plain):
        return WordColumn(type_, plain)
    t = pa.types
    if t.is_string(plain) or t.is_large_string(plain) or t.is_string_view(plain):
        return ByteColumn(type_, plain)
    if t.is_binary(plain) or t.is_large_binary(plain) or t.is_binary_view(plain):
        return ByteColumn(type_, plain)
    if t.is_fixed_size_binary(plain) or t.is_decimal(plain):
        return ByteColumn(type_, plain)
    raise TypeError(
        f"column {field.name!r} of type {type_} cannot be a key; use numbers, strings, binary or times"
    )


def storage_of(array: pa.Array) -> pa.Array:
    """Return `array` without its dictionary or extension type."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array


def restored_as(array: pa.Array, type_: pa.DataType) -> pa.Array:
    """Return `array` of a plain type as `type_`, which may be a dictionary or extension type."""
    if isinstance(type_, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(type_, array)
    if pa.types.is_dictionary(type_):
        encoded = array.dictionary_encode()
        indices = encoded.indices.cast(type_.index_type)
        return pa.DictionaryArray.from_arrays(indices, encoded.dictionary, ordered=type_.ordered)
    return array if array.type == type_ else array.cast(type_)


def validity(array: pa.Array) -> U8:
    """Return 1 where a value is valid, 0 where it is null; nothing where all are valid."""
    if array.null_count == 0:
        return _ALL_VALID
    valid: npt.NDArray[Any] = array.is_valid().to_numpy(zero_copy_only=False)
    return valid.view(np.uint8)


class WordColumn:
    """One fixed-width column (or one of type null) as a word a row."""

    def __init__(self, type_: pa.DataType, plain: pa.DataType) -> None:
        self._type, self._plain = type_, plain
        self._fixed = None if pa.types.is_null(plain) else FixedWidth(plain)

    def encode(self, array: pa.Array) -> WordKeys:
        """Return a word a row."""
        array = storage_of(array)
        if self._fixed is None:
            return WordKeys(np.zeros(len(array), np.uint64), np.zeros(len(array), np.uint8))
        # A copy, even if nothing changed its type: what Arrow shares is read-only.
        numbers = np.array(self._fixed.numbers(array))
        if self._fixed.dtype.kind == "f":
            numbers += 0.0  # turns −0.0 into 0.0
            numbers[np.isnan(numbers)] = np.nan
        return WordKeys(numbers.view(np.uint64), validity(array))

    def decode(self, keys: WordKeys | ByteKeys) -> pa.Array:
        """Return the column of `keys`."""
        assert isinstance(keys, WordKeys)
        if self._fixed is None:
            return restored_as(pa.nulls(len(keys)), self._type)
        null = (keys.valid == 0) if len(keys.valid) else None
        return restored_as(self._fixed.array(keys.words.view(self._fixed.dtype), null), self._type)


class ByteColumn:
    """One column of variable width (or a wide fixed one, as decimals) as bytes a row."""

    def __init__(self, type_: pa.DataType, plain: pa.DataType) -> None:
        self._type, self._plain = type_, plain
        fixed = pa.types.is_fixed_size_binary(plain) or pa.types.is_decimal(plain)
        self._width = plain.bit_width // 8 if fixed else 0

    def encode(self, array: pa.Array) -> ByteKeys:
        """Return the bytes of every row."""
        array = storage_of(array)
        valid = validity(array)
        if self._width:
            array = array.view(pa.binary(self._width))
        raw = array.cast(pa.large_binary())
        buffers = raw.buffers()
        rows = len(raw)
        if rows == 0:
            return ByteKeys(np.zeros(0, np.uint8), np.zeros(1, np.int64), valid)
        offsets = np.frombuffer(buffers[1], np.int64, rows + 1, raw.offset * 8)
        first, last = int(offsets[0]), int(offsets[-1])
        data = np.frombuffer(buffers[2], np.uint8, last - first, first) if last > first else _ALL_VALID
        # Copies: Numba would compile its loops a second time for read-only arrays.
        return ByteKeys(data.copy(), offsets - first, valid)

    def decode(self, keys: WordKeys | ByteKeys) -> pa.Array:
        """Return the column of `keys`."""
        assert isinstance(keys, ByteKeys)
        bitmap = None
        if len(keys.valid):
            bitmap = pa.py_buffer(np.packbits(keys.valid, bitorder="little").tobytes())
        raw = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(keys), [bitmap, pa.py_buffer(keys.offsets), pa.py_buffer(keys.data)]
        )
        if self._width:
            # A null has no bytes, but fixed-width types want some: the cast from binary supplies them.
            plain = raw.cast(pa.binary(self._width)).view(self._plain)
        else:
            plain = raw.cast(self._plain)
        return restored_as(plain, self._type)
