"""The port of state on disk: an ordered map of bytes, local to one operator of one attempt.

It is scratch: it need not survive anything, and nothing but its own process reads it. What must survive is in
checkpoints. So implementations write no log and sync nothing.

Calls are batches. The store itself is used by one thread; a view may be read by another one, and shows what was there
when it was made. Views are released when nobody refers to them any more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Protocol

Pairs = list[tuple[bytes, bytes]]


class RowView(Protocol):
    """The map as it was at one moment."""

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values of `keys`, None where there is none."""

    def scan(self, start: bytes, stop: bytes, limit: int) -> Pairs:
        """Return the first `limit` entries of [start, stop), in order of their keys."""

    def scan_apart(self, start: bytes, stop: bytes, limit: int) -> tuple[list[bytes], list[bytes]]:
        """As `scan`: the keys, and the values. For many."""


class RowStore(RowView, Protocol):
    """The map. Every failure is a StateStoreError that says where the store is and what to do."""

    def write(self, puts: Pairs, deletes: Sequence[bytes] = ()) -> None:
        """Put entries, and remove others; no key may be in both."""

    def delete_range(self, start: bytes, stop: bytes) -> None:
        """Remove all entries of [start, stop)."""

    def view(self) -> RowView:
        """Return the map as it is now."""

    def nbytes(self) -> int:
        """Return about how many bytes it takes on disk."""

    def close(self) -> None:
        """Give everything back, the files included: when views that are in use are not used any more. Harmless when
        told twice."""


class MemoryRows:
    """A `RowStore` in memory: for tests and simulation."""

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._order: list[bytes] | None = []

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `RowView`."""
        return [self._rows.get(key) for key in keys]

    def scan(self, start: bytes, stop: bytes, limit: int) -> Pairs:
        """See `RowView`."""
        if self._order is None:
            self._order = sorted(self._rows)
        begin = bisect_left(self._order, start)
        end = min(bisect_left(self._order, stop), begin + limit)
        return [(key, self._rows[key]) for key in self._order[begin:end]]

    def scan_apart(self, start: bytes, stop: bytes, limit: int) -> tuple[list[bytes], list[bytes]]:
        """See `RowView`."""
        found = self.scan(start, stop, limit)
        return [key for key, _ in found], [value for _, value in found]

    def write(self, puts: Pairs, deletes: Sequence[bytes] = ()) -> None:
        """See `RowStore`."""
        self._order = None
        self._rows.update(puts)
        for key in deletes:
            self._rows.pop(key, None)

    def delete_range(self, start: bytes, stop: bytes) -> None:
        """See `RowStore`."""
        self.write([], [key for key, _ in self.scan(start, stop, len(self._rows))])

    def view(self) -> MemoryRows:
        """See `RowStore`."""
        seen = MemoryRows()
        seen._rows, seen._order = dict(self._rows), None
        return seen

    def nbytes(self) -> int:
        """See `RowStore`."""
        return sum(len(key) + len(value) for key, value in self._rows.items())

    def close(self) -> None:
        """See `RowStore`."""
        self._rows, self._order = {}, []
