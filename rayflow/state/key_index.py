"""The key index: which slot belongs to a key. Exact, whatever the hashes.

Keyed state is columnar: an index turns each row's key into a slot, and accumulators keep their values in
arrays under that slot. Keys are compared by value (hashes only guide the search): nulls are a key, NaN equals
NaN, −0.0 equals 0.0. The loops are compiled by Numba on the first use in a process, from a cache on disk.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

from rayflow.state.key_codec import I64, KeyCodec
from rayflow.state.key_table import ByteTable, KeyTable, StoredBytes, StoredWords, WordTable


@dataclass(frozen=True, slots=True)
class FrozenKeys:
    """The keys of an index at one moment. Immutable: may be read on any thread."""

    codec: KeyCodec
    stored: StoredWords | StoredBytes

    def keys(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`, which were live at that moment."""
        return self.codec.decode(self.stored.gather(slots))


class KeyIndex:
    """Slots of the distinct keys seen, for key columns of `schema`.

    Slots are dense: new keys get the next one, or one freed by `remove`. Raises TypeError for a column
    type that cannot be a key.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self._codec = KeyCodec(schema)
        self._table: KeyTable = WordTable() if self._codec.is_words else ByteTable()
        self._table.warm_up()
        no_rows = pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
        self._codec.decode(self._codec.encode(no_rows))

    def __len__(self) -> int:
        return len(self._table)

    @property
    def schema(self) -> pa.Schema:
        """Schema of the key columns."""
        return self._codec.schema

    @property
    def slot_limit(self) -> int:
        """All slots ever given out are below this."""
        return self._table.slot_limit

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, the keys' own included."""
        return self._table.nbytes

    def slots(self, keys: pa.RecordBatch) -> I64:
        """Return the slot of every row's key (int64), adding keys not seen before.

        `keys` holds the key columns in the order of the schema."""
        return self.insert(keys)[0]

    def insert(self, keys: pa.RecordBatch) -> tuple[I64, I64]:
        """As `slots`, and also return the rows (ascending) that brought a new key."""
        return self._table.insert(self._codec.encode(keys))

    def find(self, keys: pa.RecordBatch) -> I64:
        """As `slots`, but nothing is added: −1 for a key that is not there."""
        return self._table.find(self._codec.encode(keys))

    def keys(self, slots: I64) -> pa.RecordBatch:
        """Return the key columns of `slots`, which must be live."""
        return self._codec.decode(self._table.stored().gather(slots))

    def live(self) -> I64:
        """Return the slots in use, ascending."""
        return self._table.live()

    def remove(self, slots: I64) -> None:
        """Forget the keys of `slots` (live, none twice); the slots may be given to other keys."""
        self._table.remove(slots)

    def view(self) -> FrozenKeys:
        """As `freeze`, without a copy: valid until the next change."""
        return FrozenKeys(self._codec, self._table.stored())

    def freeze(self) -> FrozenKeys:
        """Return the keys as they are now, for building a snapshot on another thread. Costs one copy
        of the fixed-width part of the keys; strings are shared."""
        return FrozenKeys(self._codec, self._table.freeze())
