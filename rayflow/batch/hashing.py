"""The stable hash of key columns: which key group, hence which subtask, a row belongs to.

Theory of operation
-------------------
Checkpoints store state by key group, so the hash of a key must never change: not between machines, runs,
Python, Arrow or rayflow versions (golden values in the tests guard that). The builtin `hash` is out. The
hash is of the *value*, not its layout:

- integers, booleans, dates, times, timestamps and durations: the 64-bit integer they hold, so an int32 5
  and an int64 5 agree. A timestamp counts in its own unit: equal instants agree within one type, and a
  stream has one type;
- floats: the bits as float64, with −0.0 taken as 0.0 and every NaN as one;
- strings and binaries of every layout: their bytes; decimals: their unscaled integer;
- dictionaries: their values;
- null: one fixed hash. Composite keys fold their columns' hashes in order.

Integers pass through the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014; constants: Stafford's variant 13), a bijection: different integers never collide.
Bytes are chained through it eight at a time, starting from their length.

Plain NumPy, in blocks that fit the L1/L2 caches: on one core of the reference machine 200–400 M int64 keys/s
(a Numba loop does 1,300, but saves only 5 % of a split and costs its import and compilation),
and 25–75 M strings/s of up to 16 bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.model.errors import PlanError

Hashes = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_30, _SHIFT_27, _SHIFT_31 = np.uint64(30), np.uint64(27), np.uint64(31)
_NULL_HASH = np.uint64(0x6E756C6C206B6579)

_BLOCK_ROWS = 16_384
_LONG_BYTES = 256
_TAIL_MASKS = np.array([(1 << (8 * n)) - 1 for n in range(9)], np.uint64)
"""Keeps the first n bytes of a little-endian word."""

# Arrow type ids: one number a kind, whatever the unit, zone or precision.
_INTEGRAL = {
    type_.id
    for type_ in (
        pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64(),
        pa.bool_(), pa.date32(), pa.date64(), pa.time32("s"), pa.time64("us"), pa.timestamp("us"),
        pa.duration("us"),
    )
}  # fmt: skip
_FLOATING = {pa.float16().id, pa.float32().id, pa.float64().id}
_DECIMAL = {pa.decimal32(1).id, pa.decimal64(1).id, pa.decimal128(1).id, pa.decimal256(1).id}
_BYTES = {
    pa.string().id, pa.large_string().id, pa.string_view().id, pa.binary().id, pa.large_binary().id,
    pa.binary_view().id, pa.binary(1).id,
}  # fmt: skip


def hash_columns(batch: pa.RecordBatch, names: Sequence[str]) -> Hashes:
    """Return the hash of each row's key, the columns `names` (at least one) in that order.

    Raises PlanError where a column's type cannot be a key (see `check_key_type`).
    """
    return hash_arrays([batch.column(name) for name in names])


def hash_arrays(arrays: Sequence[pa.Array]) -> Hashes:
    """Return the hash of each row of parallel arrays (at least one). The result is the caller's own."""
    hashes = _hash_array(arrays[0])
    for array in arrays[1:]:
        hashes *= _GOLDEN
        hashes += _hash_array(array)
        _mix(hashes)
    return hashes


def key_groups(batch: pa.RecordBatch, names: Sequence[str], max_parallelism: int) -> npt.NDArray[np.int32]:
    """Return the key group of each row: hash modulo `max_parallelism`, in [0, max_parallelism)."""
    return groups_of_hashes(hash_columns(batch, names), max_parallelism).astype(np.int32)


def groups_of_hashes(hashes: Hashes, max_parallelism: int) -> npt.NDArray[np.int64]:
    """Return hash modulo `max_parallelism`, by a mask where that is a power of two. Overwrites `hashes`."""
    if max_parallelism & (max_parallelism - 1) == 0:
        hashes &= np.uint64(max_parallelism - 1)
    else:
        hashes %= np.uint64(max_parallelism)
    groups: npt.NDArray[np.int64] = hashes.view(np.int64)
    return groups


def is_key_type(type_: pa.DataType) -> bool:
    """Return whether a column of `type_` can be a key."""
    try:
        _hash_array(pa.nulls(0, type_))
    except PlanError:
        return False
    return True


def check_key_type(name: str, type_: pa.DataType) -> None:
    """Raise PlanError where column `name` of `type_` cannot be a key: lists, structs, maps and unions."""
    if not is_key_type(type_):
        raise PlanError(
            f"column {name!r} of type {type_} cannot be a key; keys may be integers, floats, booleans, "
            "strings, binaries, decimals, dates, times, timestamps and durations. Make a key column of it "
            "first, e.g. with_columns(key=...)"
        )


def _mix(values: Hashes) -> Hashes:
    """Apply SplitMix64's output function to each element, in place."""
    scratch = np.empty(min(_BLOCK_ROWS, len(values)), np.uint64)
    for start in range(0, len(values), _BLOCK_ROWS):
        z = values[start : start + _BLOCK_ROWS]
        t = scratch[: len(z)]
        np.add(z, _GOLDEN, out=z)
        np.bitwise_xor(z, np.right_shift(z, _SHIFT_30, out=t), out=z)
        np.multiply(z, _MIX_1, out=z)
        np.bitwise_xor(z, np.right_shift(z, _SHIFT_27, out=t), out=z)
        np.multiply(z, _MIX_2, out=z)
        np.bitwise_xor(z, np.right_shift(z, _SHIFT_31, out=t), out=z)
    return values


def _hash_array(array: pa.Array) -> Hashes:
    kind = array.type.id
    if kind in _INTEGRAL:
        hashes = _mix(_integer_words(array))
    elif kind in _BYTES:
        hashes = _hash_bytes(array)
    elif kind in _FLOATING:
        hashes = _mix(_float_words(array))
    elif kind in _DECIMAL:
        hashes = _hash_decimal(array)
    elif pa.types.is_dictionary(array.type):
        return _hash_dictionary(array)
    elif pa.types.is_null(array.type):
        return np.full(len(array), _NULL_HASH)
    elif isinstance(array.type, pa.BaseExtensionType):
        return _hash_array(array.storage)
    else:
        raise PlanError(f"values of type {array.type} cannot be keys")
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = _NULL_HASH
    return hashes


def _values(array: pa.Array, dtype: Any) -> npt.NDArray[Any]:
    """View the value buffer of a fixed-width array as `dtype`; slots that are null hold anything."""
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(buffer, dtype)[array.offset : array.offset + len(array)]


def _integer_words(array: pa.Array) -> Hashes:
    """Return the values, widened with their sign to 64 bits, in a fresh array."""
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    signed = not pa.types.is_unsigned_integer(array.type)
    narrow = _values(array, f"{'i' if signed else 'u'}{array.type.bit_width // 8}")
    words: Hashes = narrow.astype(np.int64).view(np.uint64)
    return words


def _float_words(array: pa.Array) -> Hashes:
    values = _values(array, f"f{array.type.bit_width // 8}").astype(np.float64)
    values += 0.0  # −0.0 + 0.0 is 0.0
    values[np.isnan(values)] = np.nan
    words: Hashes = values.view(np.uint64)
    return words


def _hash_decimal(array: pa.Array) -> Hashes:
    if array.type.bit_width < 128:
        array = array.cast(pa.decimal128(38, array.type.scale))
    count = array.type.bit_width // 64
    words = _values(array, np.dtype((np.uint64, (count,))))
    hashes = _mix(words[:, 0].copy())
    for index in range(1, count):
        hashes ^= words[:, index]
        _mix(hashes)
    return hashes


def _hash_dictionary(array: pa.DictionaryArray) -> Hashes:
    if len(array.dictionary) == 0:
        return np.full(len(array), _NULL_HASH)
    indices = array.indices
    if not indices.null_count:
        return _hash_array(array.dictionary).take(_integer_words(indices).view(np.int64))
    hashes = _hash_array(array.dictionary).take(_integer_words(indices.fill_null(0)).view(np.int64))
    hashes[indices.is_null().to_numpy(zero_copy_only=False)] = _NULL_HASH
    return hashes


def _hash_bytes(array: pa.Array) -> Hashes:
    """Chain the bytes of each value through `_mix`; a few long values go through BLAKE2b instead, so that
    one huge value does not cost thousands of rounds over the others."""
    data, starts, lengths = _byte_ranges(array)
    # Overlapping words, one beginning at every byte: unaligned reads by plain indexing.
    words: Hashes = np.ndarray((len(data) - 7,), np.dtype("<u8"), data.data, strides=(1,))
    hashes: Hashes = lengths.view(np.uint64) * _GOLDEN
    long = np.flatnonzero(lengths > _LONG_BYTES)
    chained = lengths
    if len(long):
        chained = lengths.copy()
        chained[long] = 0
    for first in range(0, len(array), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        _chain(words, starts[rows], chained[rows], hashes[rows])
    for index in long:
        value = data[starts[index] : starts[index] + lengths[index]]
        digest = hashlib.blake2b(value.data, digest_size=8).digest()
        hashes[index] = int.from_bytes(digest, "little")
    return hashes


def _chain(
    words: Hashes, position: npt.NDArray[np.int64], rest: npt.NDArray[np.int64], hashes: Hashes
) -> None:
    """Mix into `hashes` eight bytes a round (at least one round), zero-padded at the end of each value."""
    live: npt.NDArray[np.int64] | None = None  # rows not yet finished; None: all of them
    while len(rest):
        word = words[position]
        word &= _TAIL_MASKS.take(rest, mode="clip")
        if live is None:
            hashes ^= word
            _mix(hashes)
        else:
            hashes[live] = _mix(hashes[live] ^ word)
        if rest.min() <= 8:
            unfinished = np.flatnonzero(rest > 8)
            live = unfinished if live is None else live[unfinished]
            position, rest = position[unfinished], rest[unfinished]
        position, rest = position + 8, rest - 8


def _byte_ranges(
    array: pa.Array,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the bytes of all values (padded by eight), and where in them each value begins and how long
    it is. Null values are made empty or left as they are: the caller overrides their hash."""
    type_ = array.type
    if pa.types.is_string_view(type_) or pa.types.is_binary_view(type_):
        array = pc.cast(array, pa.large_binary())
    if pa.types.is_fixed_size_binary(type_):
        width = type_.byte_width
        starts = np.arange(len(array), dtype=np.int64) * width
        lengths = np.full(len(array), width, np.int64)
        first, last = array.offset * width, (array.offset + len(array)) * width
        buffer = array.buffers()[1]
    else:
        large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
        offset_buffer, buffer = array.buffers()[1:3]
        if offset_buffer is None or len(array) == 0:
            offsets = np.zeros(len(array) + 1, np.int64)
        else:
            whole = np.frombuffer(offset_buffer, np.int64 if large else np.int32)
            offsets = whole[array.offset : array.offset + len(array) + 1].astype(np.int64)
        first, last = int(offsets[0]), int(offsets[-1])
        starts, lengths = offsets[:-1] - first, np.diff(offsets)
    data = np.zeros(last - first + 8, np.uint8)
    if buffer is not None:
        data[: last - first] = np.frombuffer(buffer, np.uint8, last - first, first)
    return data, starts, lengths
