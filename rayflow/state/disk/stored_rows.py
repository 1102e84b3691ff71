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

_SCAN_ROWS = 4_096
_CHUNK_ROWS = 16_384
_CHUNK_BYTES = 4 << 20

Table = tuple[pa.RecordBatch, pa.RecordBatch, npt.NDArray[np.bool_]]
"""Keys, their rows, and which of them are gone (their rows are nulls)."""


class StoredRows:
    """All rows at a barrier. For one thread, any."""

    def __init__(self, view: RowView, keys: KeyCodec, rows: RowCodec) -> None:
        self._view, self._keys, self._rows = view, keys, rows

    def all(self) -> Iterator[Table]:
        """Yield all keys with their rows, some MiB at a time; nothing is gone."""
        held: list[tuple[bytes, bytes]] = []
        nbytes = 0
        start = ROW
        while found := self._view.scan(start, after(ROW), _SCAN_ROWS):
            start = found[-1][0] + b"\0"
            held += found
            nbytes += sum(len(key) + len(row) for key, row in found)
            if nbytes >= _CHUNK_BYTES:
                yield self._table([key[1:] for key, _ in held], [row for _, row in held])
                held, nbytes = [], 0
        if held:
            yield self._table([key[1:] for key, _ in held], [row for _, row in held])

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
                yield self._changed(sorted(keys))
                keys = set()
        if keys:
            yield self._changed(sorted(keys))

    def _changed(self, keys: list[bytes]) -> Table:
        return self._table(keys, self._view.get([ROW + key for key in keys]))

    def _table(self, keys: list[bytes], packed: Sequence[bytes | None]) -> Table:
        gone = np.fromiter((row is None for row in packed), np.bool_, len(packed))
        rows = self._rows.decode(joined([row for row in packed if row is not None]))
        columns = rows.select(rows.schema.names[1:])
        if gone.any():
            # A null where the row is gone.
            places = np.cumsum(~gone) - 1
            columns = columns.take(pa.array(places, mask=gone))
        return decoded_keys(self._keys, keys), columns, gone
