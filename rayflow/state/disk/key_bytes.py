"""Keys of an index as bytes, and as entries of a store (see `cached_keys`)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from rayflow.state.disk.row_codec import joined, pieces
from rayflow.state.key_codec import I64, ByteKeys, KeyCodec, WordKeys, gather

ROW, LOG, DUE = b"R", b"D", b"T"
_NUMBER_BYTES = 9
_BIAS = 1 << 63
_HEAD_BYTES = 8


def log_name(epoch: int, number: int = 0) -> bytes:
    """Return the name of a log entry, the first of its epoch by default."""
    return LOG + _number(epoch) + _number(number)


def due_prefix(kind: int) -> bytes:
    """Return how entries of that kind of timers begin."""
    return DUE + bytes([kind])


def due_name(kind: int, time: int, key: bytes = b"") -> bytes:
    """Return the entry that says when a key is due; without a key, one before all of that time."""
    return due_prefix(kind) + _number(time + _BIAS) + key


def due_of(name: bytes) -> tuple[int, bytes]:
    """Return time and key of an entry that `due_name` named."""
    return int.from_bytes(name[2 : 2 + _NUMBER_BYTES], "big") - _BIAS, name[2 + _NUMBER_BYTES :]


def _number(value: int) -> bytes:
    return value.to_bytes(_NUMBER_BYTES, "big")


def after(prefix: bytes) -> bytes:
    """Return what comes after everything that begins with `prefix`."""
    return prefix[:-1] + bytes([prefix[-1] + 1])


def taken(keys: WordKeys | ByteKeys, rows: I64) -> WordKeys | ByteKeys:
    """Return the keys at `rows`."""
    valid = keys.valid[rows] if len(keys.valid) else keys.valid
    if isinstance(keys, WordKeys):
        return WordKeys(keys.words[rows], valid)
    return gather(keys.data, keys.offsets[rows], np.diff(keys.offsets)[rows], valid)


def key_bytes(keys: WordKeys | ByteKeys) -> list[bytes]:
    """Return each key as bytes: whether it is valid, and its word or bytes."""
    rows = len(keys)
    valid = keys.valid if len(keys.valid) else np.ones(rows, np.uint8)
    if isinstance(keys, WordKeys):
        table = np.empty((rows, 9), np.uint8)
        table[:, 0] = valid
        table[:, 1:] = keys.words.view(np.uint8).reshape(rows, 8)
        table[valid == 0, 1:] = 0
        data = table.tobytes()
        return [data[at : at + 9] for at in range(0, 9 * rows, 9)]
    return [b"\1" + key if mark else b"\0" for mark, key in zip(valid.tolist(), pieces(keys))]


def in_order(keys: WordKeys | ByteKeys) -> I64:
    """Return the rows of `keys` in the order of their bytes, about: a store takes them faster so."""
    if isinstance(keys, WordKeys):
        return np.argsort(keys.words.byteswap())
    heads = np.zeros(len(keys), np.uint64)
    for i in range(_HEAD_BYTES):
        there = np.flatnonzero(np.diff(keys.offsets) > i)
        heads[there] |= keys.data[keys.offsets[there] + i].astype(np.uint64) << np.uint64(
            8 * (_HEAD_BYTES - 1 - i)
        )
    return np.argsort(heads)


def decoded_keys(codec: KeyCodec, keys: list[bytes]) -> pa.RecordBatch:
    """Return the key columns of keys as bytes."""
    if codec.is_words:
        table = np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 9)
        words = np.ascontiguousarray(table[:, 1:]).view(np.uint64).reshape(len(keys))
        return codec.decode(WordKeys(words, table[:, 0].copy()))
    valid = np.fromiter((key[0] for key in keys), np.uint8, len(keys))
    rest = joined([key[1:] for key in keys])
    return codec.decode(ByteKeys(rest.data, rest.offsets, valid if not valid.all() else valid[:0]))


def joined_keys(keys: Sequence[bytes]) -> bytes:
    """Return keys as one value that `split_keys` reads."""
    lengths = np.fromiter(map(len, keys), np.uint32, len(keys))
    return len(keys).to_bytes(4, "little") + lengths.tobytes() + b"".join(keys)


def split_keys(entry: bytes) -> list[bytes]:
    """Return the keys that `joined_keys` joined."""
    count = int.from_bytes(entry[:4], "little")
    lengths = np.frombuffer(entry, np.uint32, count, 4)
    ends = (np.cumsum(lengths, dtype=np.int64) + 4 + 4 * count).tolist()
    return [entry[end - length : end] for end, length in zip(ends, lengths.tolist())]
