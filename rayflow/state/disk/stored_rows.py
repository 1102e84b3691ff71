"""What a barrier sees of state on disk: all rows, or those that changed since an earlier one (see `cached_keys`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.disk.key_bytes import LOG, ROW, after, decoded_keys, log_name, split_keys
from rayflow.state.disk.row_codec import RowCodec, joined
from rayflow.state.disk.row_store import RowView
from rayflow.state.key_codec import KeyCodec

_SCAN_ROWS = 1_024
_CHUNK_ROWS = 16_384

Table = tuple[pa.RecordBatch, pa.RecordBatch, npt.NDArray[np.bool_]]
"""Keys, their rows, and which of them are gone (their rows are nulls)."""


class StoredRows:
    """All rows at a barrier. For one thread, any."""

    def __init__(self, view: RowView, keys: KeyCodec, rows: RowCodec, chunk_bytes: int) -> None:
        self._view, self._keys, self._rows = view, keys, rows
        self._chunk_bytes = chunk_bytes

    def all(self) -> Iterator[Table]:
        """Yield all keys with their rows, about `chunk_bytes` at a time; nothing is gone."""
        start, count = ROW, _SCAN_ROWS
        while (found := self._view.scan_apart(start, after(ROW), count))[0]:
            keys, rows = found
            start = keys[-1] + b"\0"
            count = self._next_count(sum(map(len, keys)) + sum(map(len, rows)), len(keys))
            yield self._table([key[1:] for key in keys], rows)

    def _next_count(self, nbytes: int, rows: int) -> int:
        """How many rows to read next, when `rows` had `nbytes`. Carefully: the next ones may be larger."""
        return min(max(1, self._chunk_bytes * rows // max(1, nbytes)), 2 * rows + 1, _CHUNK_ROWS)

    def nothing(self) -> Table:
        """Return no rows."""
        return self._table([], [])

    def since(self, epoch: int) -> Iterator[Table]:
        """Yield the keys that changed in `epoch` or later, with their rows, and which of them are gone."""
        start = log_name(epoch)
        keys: set[bytes] = set()
        while found := self._view.scan(start, after(LOG), 1):
            start = found[-1][0] + b"\0"
            keys.update(split_keys(found[0][1]))
            if len(keys) >= _CHUNK_ROWS:
                yield from self._changed(sorted(keys))
                keys = set()
        yield from self._changed(sorted(keys))

    def _changed(self, keys: list[bytes]) -> Iterator[Table]:
        begin, count = 0, _SCAN_ROWS
        while some := keys[begin : begin + count]:
            begin += count
            found = self._view.get([ROW + key for key in some])
            count = self._next_count(sum(len(row) for row in found if row is not None), len(found))
            yield self._table(some, found)

    def _table(self, keys: list[bytes], packed: Sequence[bytes | None]) -> Table:
        gone = np.fromiter((row is None for row in packed), np.bool_, len(packed))
        rows = self._rows.decode(joined([row for row in packed if row is not None]))
        columns = rows.select(rows.schema.names[1:])
        if gone.any():
            # A null where the row is gone.
            places = np.cumsum(~gone) - 1
            columns = columns.take(pa.array(places, mask=gone))
        return decoded_keys(self._keys, keys), columns, gone
