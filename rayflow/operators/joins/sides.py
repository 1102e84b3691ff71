"""The state of a join that keeps rows of both inputs: one index of the keys, and the rows of each side by key.

Both sides share the index, so that a row's key is looked up once, to keep the row and to find its matches. A row
whose key has a null is kept under slot −1, where nothing matches it. Keys without rows are forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.operators.joins.columns import LEFT, RIGHT, JoinSide
from rayflow.operators.joins.stored import restored_rows, rows_part
from rayflow.state.key_index import KeyIndex
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.rows import I64, Bools, RowStore

SLOT = "slot"
"""The number under which stores list their rows by key."""

_NAMES = ("left", "right")
_MIN_UNUSED_KEYS = 1024


def null_keys(keys: pa.RecordBatch) -> Bools | None:
    """Return where a key has a null, None where none does."""
    nulls = [column.is_null() for column in keys.columns if column.null_count]
    if not nulls:
        return None
    found = nulls[0]
    for more in nulls[1:]:
        found = pc.or_(found, more)
    mask: Bools = found.to_numpy(zero_copy_only=False)
    return mask


def without_null_keys(batch: pa.RecordBatch, keys: Sequence[str]) -> pa.RecordBatch:
    """Return the rows whose key has no null."""
    null = null_keys(batch.select(list(keys)))
    return batch if null is None else batch.filter(pa.array(~null))


class Keys:
    """An index of key columns in which a null has no slot."""

    def __init__(self, schema: pa.Schema) -> None:
        self.index = KeyIndex(schema)

    def slots(self, keys: pa.RecordBatch) -> I64:
        """Return the slot of every row's key, adding new keys; −1 where a column is null."""
        null = null_keys(keys)
        if null is None:
            return self.index.slots(keys)
        slots = np.full(keys.num_rows, -1, np.int64)
        slots[~null] = self.index.slots(keys.filter(pa.array(~null)))
        return slots

    def find(self, keys: pa.RecordBatch) -> I64:
        """As `slots`, but nothing is added: −1 for a key that is not there too."""
        slots = self.index.find(keys)
        null = null_keys(keys)
        if null is not None:
            slots[null] = -1
        return slots

    def forget(self, stores: Sequence[RowStore], number: str) -> None:
        """Forget the keys that no row is listed under."""
        live = self.index.live()
        used = np.zeros(len(live), np.bool_)
        for store in stores:
            used |= store.counts(number, live) > 0
        self.index.remove(live[~used])


class KeyedSides:
    """Rows of two inputs by key. Beside the slot of its key a row has the numbers `stored` (for its side), which are
    part of a snapshot, those `listed`, by which rows are found too, and `numbers`."""

    def __init__(
        self,
        sides: tuple[JoinSide, JoinSide],
        stored: tuple[Sequence[str], Sequence[str]] = ((), ()),
        listed: tuple[Sequence[str], Sequence[str]] = ((), ()),
        numbers: Sequence[str] = (),
    ) -> None:
        self._sides, self._stored = sides, stored
        self.keys = Keys(sides[LEFT].key_schema)
        self.stores = tuple(
            RowStore(
                sides[port].schema,
                (SLOT, *listed[port], *stored[port], *numbers),
                (SLOT, *listed[port]),
            )
            for port in (LEFT, RIGHT)
        )
        self._key_numbers = tuple(side.key_numbers for side in sides)
        for store in self.stores:
            store.warm_up()

    def slots(self, port: int, rows: pa.RecordBatch) -> I64:
        """Return the slot of the key of every row of side `port`; −1 where it has a null."""
        return self.keys.slots(rows.select(self._key_numbers[port]))

    def tidy(self) -> bool:
        """Give memory back where it is worth the work. Returns whether rows were numbered anew."""
        moved = [store.tidy() for store in self.stores]
        rows = sum(len(store) for store in self.stores)
        if any(moved) or len(self.keys.index) > 2 * rows + _MIN_UNUSED_KEYS:
            self.keys.forget(self.stores, SLOT)
        return any(moved)

    def snapshot(self, max_parallelism: int) -> list[StatePart]:
        """Return the rows of each side as a part."""
        return [
            rows_part(
                _NAMES[port],
                self.stores[port].freeze(),
                self._sides[port].keys,
                self._stored[port],
                max_parallelism,
            )
            for port in (LEFT, RIGHT)
        ]

    def restored(
        self, port: int, restored: Sequence[RestoredPart]
    ) -> Iterator[tuple[pa.RecordBatch, dict[str, I64]]]:
        """Yield (rows, numbers) of side `port`, to be added by the operator."""
        return restored_rows(restored, _NAMES[port], self._sides[port].schema, self._stored[port])
