"""A key index whose rows lie on disk, with those in use in memory: a write-back cache.

Theory of operation. Operators see a `KeyIndex`: keys become slots, and what belongs to a key lies in columns by slot,
which stay as they are and know nothing of disks. `insert` first brings in the rows of those keys of the batch that are
on disk (one read for all), the way a restore would. Where the columns outgrow their share of memory, the keys that were
not used for longest go: in bulk, a quarter at once, since taking slots out costs about the same for one as for many. A
row is written only if it was changed since it was read.

Room. Columns by slot never shrink, so bytes alone cannot say when to evict: when they first pass the limit, the number
of keys there are then becomes the *capacity*. It falls when the bytes grow all the same (longer values), and rises when
they have fallen. Columns grow by half at a time, and the limit leaves room for that.

Changes. Each row carries the *epoch* in which its key was last logged as changed; an epoch begins at each barrier and
has the number of its checkpoint (the first one, of an attempt that was restored, that of what it was restored from).
With every write goes one log entry that lists the keys changed for the first time in
the current epoch, deletions too. What changed since a checkpoint is what the log says for its epoch and those after;
the row then shows whether it was a change or a deletion. At a barrier all changed rows are written, and a view of the
store is the snapshot: it is read on another thread while the task goes on.

| key in the store | value |
|---|---|
| `R` key | the row: its epoch, its columns |
| `D` epoch, number | keys changed in this epoch: their lengths, and these |
| `T` kind, time, key | nothing: a key on disk is due then (see `Due`) |

Invariants:

1. A key is in memory, or its row is on disk, or it does not exist; if both, what is in memory counts.
2. A clean slot's row is on disk as it is in memory.
3. A key whose row is on disk only is in `AbsentKeys`.
4. Between two barriers every key that was inserted or removed is logged by the next barrier.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.observe.metrics import MetricGroup
from rayflow.state.disk.absent_keys import AbsentKeys
from rayflow.state.disk.key_bytes import (
    LOG,
    ROW,
    after,
    decoded_keys,
    due_name,
    due_of,
    due_prefix,
    in_order,
    joined_keys,
    key_bytes,
    log_name,
    taken,
)
from rayflow.state.disk.row_codec import RowCodec, joined, pieces
from rayflow.state.disk.row_store import RowStore
from rayflow.state.disk.slot_rows import SlotRows
from rayflow.state.disk.stored_rows import StoredRows
from rayflow.state.key_codec import I64, ByteKeys, WordKeys
from rayflow.state.key_index import KeyIndex
from rayflow.state.key_table import grown

_EPOCH = "__epoch"
_NO_EPOCH = -1
_GROWTH = 1.5
_EVICTED_SHARE = 0.25
_ROOM_LEFT = 0.8
_GREW = 1.05
_CHUNK_ROWS = 16_384
_CHUNK_PART, _MIN_CHUNK_BYTES, _MAX_CHUNK_BYTES = 32, 64 << 10, 2 << 20
_FILE_CHUNKS = 4
_FILTER_PART = 4


class CachedKeys(KeyIndex):
    """See the module. `live`, `len` and `freeze` are of what is in memory. `budget_bytes` bounds that."""

    def __init__(
        self,
        schema: pa.Schema,
        rows: SlotRows,
        store: RowStore,
        budget_bytes: int,
        ticks_ns: Callable[[], int],
        metrics: MetricGroup,
        give_back: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(schema)
        self._rows = rows
        self._store = store
        self._limit_bytes = int(budget_bytes / _GROWTH)
        self._chunk_bytes = min(max(budget_bytes // _CHUNK_PART, _MIN_CHUNK_BYTES), _MAX_CHUNK_BYTES)
        self._row_codec = _row_codec(rows.schema)
        self._capacity: int | None = None
        self._settled_bytes = 0
        self._turn = 0
        self._used: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._dirty: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._stored: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._logged: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._epoch = 0
        self.first_epoch: int | None = None
        """From which checkpoint on it is known what changed since; None before the first."""
        self._entries = 0
        self._absent = 0
        self._absent_keys = AbsentKeys(budget_bytes // _FILTER_PART)
        self._swept_to = ROW
        self._next_due: list[int | None] = [None] * rows.kinds_of_due
        self._ticks_ns = ticks_ns
        self._metrics = metrics
        self._give_back = give_back

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, those of the rows included."""
        own = (self._used, self._dirty, self._stored, self._logged)
        kept = self._table.nbytes + self._rows.nbytes + self._absent_keys.nbytes
        return kept + sum(array.nbytes for array in own)

    @property
    def file_bytes(self) -> int:
        """About how large the files of a checkpoint may be, so that rows on their way there fit their share."""
        return _FILE_CHUNKS * self._chunk_bytes

    @property
    def count(self) -> int:
        """How many keys there are, in memory and on disk."""
        return len(self) + self._absent

    # ---------------------------------------------------------------------------------- batches

    def insert(self, keys: pa.RecordBatch) -> tuple[I64, I64]:
        """See `KeyIndex`: the slots of the keys, whose rows are in memory until the next `insert`, and the rows of
        `keys` that brought one that is nowhere. The keys count as changed."""
        return self._insert(keys, changes=True)

    def look_up(self, keys: pa.RecordBatch) -> tuple[I64, I64]:
        """As `insert`, but of the keys only the new ones count as changed."""
        slots, fresh = self._insert(keys, changes=False)
        self._dirty[slots[fresh]] = True
        return slots, fresh

    def _insert(self, keys: pa.RecordBatch, *, changes: bool) -> tuple[I64, I64]:
        encoded = self._codec.encode(keys)
        self._turn += 1
        self._make_room(encoded)
        slots, fresh = self._table.insert(encoded)
        self._reserve()
        self._used[slots] = self._turn
        if len(fresh):
            new = slots[fresh]
            self._dirty[new] = False
            self._stored[new] = False
            self._logged[new] = _NO_EPOCH
            fresh = self._load(encoded, slots, fresh)
        if changes:
            self._dirty[slots] = True
        self._metrics.counter("state_keys").inc(len(slots))
        return slots, fresh

    def touch(self, slots: I64) -> None:
        """The rows of `slots` are about to change."""
        self._used[slots] = self._turn
        self._dirty[slots] = True

    def remove(self, slots: I64) -> None:
        """See `KeyIndex`."""
        stored = slots[self._stored[slots]]
        if len(stored):
            keys = key_bytes(self._table.stored().gather(stored))
            unlogged = np.flatnonzero(self._logged[stored] != self._epoch)
            entry = self._log_entry([keys[i] for i in unlogged.tolist()])
            self._store.write(entry, [ROW + key for key in keys])
        self._dirty[slots] = False
        self._stored[slots] = False
        super().remove(slots)

    def close(self) -> None:
        """Give the store back."""
        self._store.close()

    def _reserve(self) -> None:
        limit = self.slot_limit
        self._rows.reserve(limit)
        self._used, self._logged = grown(self._used, limit), grown(self._logged, limit)
        self._dirty, self._stored = grown(self._dirty, limit), grown(self._stored, limit)

    def _load(self, encoded: WordKeys | ByteKeys, slots: I64, fresh: I64) -> I64:
        """Bring in the rows of new slots that are on disk; return which of `fresh` are not."""
        if self._absent == 0:
            return fresh
        began_ns = self._ticks_ns()
        maybe = self._absent_keys.may_have(taken(encoded, fresh))
        nowhere = [fresh[~maybe]]
        fresh = fresh[maybe]
        step = self._chunk_rows()
        for begin in range(0, len(fresh), step):
            chunk = fresh[begin : begin + step]
            found = self._store.get([ROW + key for key in key_bytes(taken(encoded, chunk))])
            there = np.fromiter((row is not None for row in found), np.bool_, len(found))
            self._take_in(slots[chunk[there]], [row for row in found if row is not None])
            nowhere.append(chunk[~there])
        self._metrics.counter("state_fetch_ns").inc(self._ticks_ns() - began_ns)
        return np.sort(np.concatenate(nowhere))

    def _take_in(self, slots: I64, packed: list[bytes]) -> None:
        if not packed:
            return
        rows = self._row_codec.decode(joined(packed))
        self._rows.restore(slots, rows.select(self._rows.schema.names))
        self._logged[slots] = rows.column(_EPOCH).to_numpy()
        self._stored[slots] = True
        self._absent -= len(packed)
        if self._absent == 0:
            self._absent_keys.clear()
        self._metrics.counter("state_fetched_keys").inc(len(packed))

    # ---------------------------------------------------------------------------------- room

    def _make_room(self, coming: WordKeys | ByteKeys) -> None:
        nbytes = self.nbytes
        if nbytes > max(self._limit_bytes, int(_GREW * self._settled_bytes)):
            self._capacity = len(self) if self._capacity is None else min(self._capacity, len(self))
        capacity = self._capacity
        if capacity is None or len(self) + len(coming) <= capacity:
            return
        known = self._table.find(coming)
        new = known < 0
        missing = int(np.count_nonzero(new))
        if len(self) + missing <= capacity:
            return
        if nbytes < _ROOM_LEFT * self._limit_bytes:
            self._capacity = len(self) + missing
            return
        # What is needed now is not cold.
        self._used[known[~new]] = self._turn
        self._used[self._rows.pinned()] = self._turn
        wanted = max(0, int((1 - _EVICTED_SHARE) * capacity) - missing)
        if len(self) > wanted:
            self._evict(len(self) - wanted)
            self._settled_bytes = self.nbytes

    def _evict(self, count: int) -> None:
        began_ns = self._ticks_ns()
        live = self.live()
        used = self._used[live]
        cold = live[used < self._turn]
        if len(cold) > count:
            cold = np.sort(cold[np.argpartition(self._used[cold], count)[:count]])
        if len(cold) == 0:
            return
        self._write(cold[self._dirty[cold]])
        for kind in range(len(self._next_due)):
            self._index_due(kind, cold)
        self._absent_keys.add(self._table.stored().gather(cold))
        self._rows.clear(cold)
        self._stored[cold] = False
        super().remove(cold)
        self._absent += len(cold)
        # Allocators keep what is freed here, which is most of what the budget is for.
        self._give_back()
        self._metrics.counter("state_evicted_keys").inc(len(cold))
        self._metrics.counter("state_evict_ns").inc(self._ticks_ns() - began_ns)
        self.measure()

    def measure(self) -> None:
        """Update the gauges of bytes in memory and on disk."""
        self._metrics.gauge("state_memory_bytes").set(self.nbytes)
        self._metrics.gauge("state_disk_bytes").set(self._store.nbytes())

    def _write(self, slots: I64) -> None:
        """Write rows, and log what changes for the first time in this epoch."""
        slots = slots[in_order(self._table.stored().gather(slots))]
        step = self._chunk_rows()
        for begin in range(0, len(slots), step):
            chunk = slots[begin : begin + step]
            keys = key_bytes(self._table.stored().gather(chunk))
            unlogged = np.flatnonzero(self._logged[chunk] != self._epoch)
            entry = self._log_entry([keys[i] for i in unlogged.tolist()])
            rows = self._rows.rows(chunk)
            epochs = pa.array(np.full(len(chunk), self._epoch))
            packed = self._row_codec.encode(
                pa.RecordBatch.from_arrays([epochs, *rows.columns], schema=self._row_codec.schema)
            )
            puts = list(zip((ROW + key for key in keys), pieces(packed)))
            self._store.write([*puts, *entry])
            self._dirty[chunk] = False
            self._stored[chunk] = True
            self._logged[chunk] = self._epoch

    def _chunk_rows(self) -> int:
        """How many rows to have on their way at a time, by what one takes now."""
        row_bytes = max(1, self.nbytes // max(1, len(self)))
        return min(max(1, self._chunk_bytes // row_bytes), _CHUNK_ROWS)

    def _log_entry(self, keys: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
        if not keys:
            return []
        self._entries += 1
        return [(log_name(self._epoch, self._entries), joined_keys(keys))]

    # ---------------------------------------------------------------------------------- on disk

    def revisit(self, count: int) -> I64:
        """Bring in the next keys on disk, about `count`, in an order that comes to each in time; return their slots.
        They do not count as changed."""
        if self._absent == 0:
            return np.zeros(0, np.int64)
        found = self._store.scan(self._swept_to, after(ROW), count)
        self._swept_to = found[-1][0] + b"\0" if len(found) == count else ROW
        return self._bring([key[1:] for key, _ in found])

    def next_due(self, kind: int) -> int | None:
        """Return when the first timer of a key on disk is due, or earlier; None where there is none."""
        return self._next_due[kind]

    def bring_due(self, kind: int, limit: int, most: int) -> tuple[int, bool]:
        """Bring in keys on disk that have timers due up to `limit`, the earliest first, up to `most`. Return up to when
        what is due may fire now, and whether more may be due."""
        first = self._next_due[kind]
        if first is None or first > limit:
            return limit, False
        prefix = due_prefix(kind)
        # The end of time is beyond 64 bits.
        stop = due_name(kind, limit + 1) if limit < np.iinfo(np.int64).max else after(prefix)
        found = self._store.scan(prefix, stop, most)
        if found:
            self._bring([due_of(name)[1] for name, _ in found])
            self._store.write([], [name for name, _ in found])
        rest = self._store.scan(prefix, after(prefix), 1)
        self._next_due[kind] = due_of(rest[0][0])[0] if rest else None
        return (limit, False) if len(found) < most else (due_of(found[-1][0])[0], True)

    def _bring(self, keys: list[bytes]) -> I64:
        if not keys:
            return np.zeros(0, np.int64)
        slots, nowhere = self._insert(decoded_keys(self._codec, keys), changes=False)
        gone = slots[nowhere]
        if len(gone):
            # Due once, and removed since.
            self.remove(gone)
        return np.unique(slots[~np.isin(slots, gone)])

    def _index_due(self, kind: int, slots: I64) -> None:
        due = self._rows.due(kind, slots)
        if not due:
            return
        keys = key_bytes(self._table.stored().gather(np.fromiter(due, np.int64, len(due))))
        self._store.write([(due_name(kind, time, key), b"") for time, key in zip(due.values(), keys)])
        first, soonest = self._next_due[kind], min(due.values())
        self._next_due[kind] = soonest if first is None else min(first, soonest)

    # ---------------------------------------------------------------------------------- checkpoints

    def barrier(self, checkpoint_id: int) -> StoredRows:
        """Write what changed; return all rows as they are now. What changes from now on belongs to the epoch of this
        checkpoint."""
        live = self.live()
        began_ns = self._ticks_ns()
        self._write(live[self._dirty[live]])
        self._metrics.counter("state_evict_ns").inc(self._ticks_ns() - began_ns)
        self.measure()
        self._begin_epoch(checkpoint_id)
        return StoredRows(self._store.view(), self._codec, self._row_codec, self._chunk_bytes)

    def restored(self, checkpoint_id: int) -> None:
        """All rows are as this checkpoint has them, so it is known what later ones have that it has not."""
        live = self.live()
        self._write(live[self._dirty[live]])
        self._begin_epoch(checkpoint_id)
        self.completed(checkpoint_id)

    def _begin_epoch(self, checkpoint_id: int) -> None:
        self._epoch = checkpoint_id
        if self.first_epoch is None:
            self.first_epoch = checkpoint_id

    def completed(self, checkpoint_id: int) -> None:
        """What changed before this checkpoint will not be asked for any more."""
        self._store.delete_range(LOG, log_name(checkpoint_id))


def _row_codec(schema: pa.Schema) -> RowCodec:
    return RowCodec(pa.schema([pa.field(_EPOCH, pa.int64()), *schema]))
