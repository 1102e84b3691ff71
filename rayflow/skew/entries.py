"""Which entry belongs to a key, or to a key in a slice: the slots of a combiner's accumulators."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.key_index import KeyIndex
from rayflow.state.pair_table import PairIndex

I64 = npt.NDArray[np.int64]


class Entries:
    """Entries of keys of `key_schema`; `sliced`: of keys and slices."""

    def __init__(self, key_schema: pa.Schema, *, sliced: bool) -> None:
        self._keys = KeyIndex(key_schema)
        self._pairs = PairIndex(pa.int64()) if sliced else None

    @property
    def limit(self) -> int:
        """All entries ever given out are below this."""
        return self._keys.slot_limit if self._pairs is None else self._pairs.limit

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._keys.nbytes + (0 if self._pairs is None else self._pairs.nbytes)

    def of(self, keys: pa.RecordBatch, slices: I64 | None) -> tuple[I64, I64]:
        """Return the entry of every row, and the rows (ascending) that brought a new one."""
        numbers, fresh = self._keys.insert(keys)
        if self._pairs is None:
            return numbers, fresh
        return self._pairs.insert(numbers, pa.array(slices))

    def columns(self, entries: I64) -> tuple[list[pa.Array], list[pa.Array]]:
        """Return the key columns of `entries`, and the column of their slices where there are any."""
        if self._pairs is None:
            return self._keys.keys(entries).columns, []
        return self._keys.keys(self._pairs.slots(entries)).columns, [self._pairs.values(entries)]

    def forget(self, entries: I64) -> None:
        """Forget `entries`, which are all there are."""
        if self._pairs is not None:
            self._pairs.remove(entries)
        self._keys.remove(self._keys.live())
