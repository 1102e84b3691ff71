"""Partial states as sorted runs on disk: written once, merged when they are wanted.

Theory of operation. Where states merge, a key that comes again need not be looked up: what memory holds is written as
a *run*, and memory begins anew. A run has one row per key (the key columns, then the state columns) in ascending
order of the keys' hashes, cut into blocks of some KiB; a block is one value of the store, an Arrow record batch. So a
row costs a share of a few large writes and reads, and no look-up.

Merging goes through the hashes, which are even, from the least to the largest in equal steps: a step takes of every
run the rows up to its end, so all rows of a key come in one step, those of earlier runs first. Memory holds one step's
rows and, of every run, a block; so no more than `MOST_RUNS` are merged at once. Whoever has more merges some into one
first: the latest, as long as those before them are no larger (`to_combine`), so that a row is written anew as often
as what it lies with has doubled.

Runs are known by their number, and a block by run and number: what is written last lies last, and runs are dropped
whole. A run carries the *epoch* in which it was written, the number of the checkpoint before it: as runs do not change,
what a checkpoint has that an earlier one had not are the runs of that one's epoch and later.

No number is used twice in a chain of checkpoints, since a link's rows lie in it by number even after their run was
dropped: who goes on with checkpoint c counts on from c · 2³², which is above all that those before c gave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.hashing import hash_arrays
from rayflow.model.errors import TransientError
from rayflow.observe.metrics import MetricGroup
from rayflow.state.disk.row_store import RowStore, RowView
from rayflow.state.key_codec import restored_as, storage_of

MOST_RUNS = 96
_RUN = b"W"
_NUMBER_BYTES = 8
_BLOCKS_IN_MEMORY, _STEPS_IN_MEMORY = 64, 8
_MIN_BLOCK_BYTES, _MAX_BLOCK_BYTES = 512, 128 << 10
_BYTES_AT_ONCE = 256 << 10
_MIN_FILE_BYTES, _MAX_FILE_BYTES = 1 << 20, 8 << 20
_WRITTEN_AT_ONCE = 4
_RUNS_BITS = 32
_END = 1 << 64

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Run:
    """Rows on disk, in `blocks` blocks, written after checkpoint `epoch`."""

    number: int
    blocks: int
    rows: int
    nbytes: int
    epoch: int


class BlockFormat:
    """Rows of key columns `keys`, then `states`, as bytes. Raises TypeError for types that cannot be."""

    def __init__(self, keys: pa.Schema, states: pa.Schema) -> None:
        plain = [storage_of(pa.nulls(0, field.type)).type for field in keys]
        self.schema = pa.schema([*keys, *states])
        self._stored = pa.schema([*(pa.field(f.name, t) for f, t in zip(keys, plain)), *states])
        self._width = len(keys)
        for field_ in self._stored:
            _check_plain(field_.type)

    def stored(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows as they are stored."""
        return pa.RecordBatch.from_arrays([storage_of(c) for c in batch.columns], schema=self._stored)

    def encoded(self, stored: pa.RecordBatch) -> bytes:
        """Return rows as bytes."""
        return bytes(stored.serialize())

    def read(self, data: bytes) -> pa.RecordBatch:
        """Return rows as they are stored."""
        return pa.ipc.read_record_batch(pa.py_buffer(data), self._stored)

    def shown(self, stored: pa.RecordBatch) -> pa.RecordBatch:
        """Return stored rows as rows of `schema`."""
        columns = [restored_as(c, f.type) for c, f in zip(stored.columns, self.schema, strict=True)]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)

    def hashes(self, stored: pa.RecordBatch) -> Hashes:
        """Return the hash of each row's key: the first columns, whether others follow or not."""
        return hash_arrays(stored.columns[: self._width])


class SortedRuns:
    """Runs in `store`. Memory for rows on their way is about `memory_bytes`; `ticks_ns` is a clock for durations;
    errors name the operator `owner`. Reading raises TransientError where a block is gone: a restart writes all anew."""

    def __init__(
        self,
        store: RowStore,
        format_: BlockFormat,
        memory_bytes: int,
        ticks_ns: Callable[[], int],
        metrics: MetricGroup,
        owner: str,
    ) -> None:
        self._store, self._format, self._owner = store, format_, owner
        self._block_bytes = min(_MAX_BLOCK_BYTES, max(_MIN_BLOCK_BYTES, memory_bytes // _BLOCKS_IN_MEMORY))
        self._step_bytes = max(1, memory_bytes // _STEPS_IN_MEMORY)
        self.file_bytes = max(_MIN_FILE_BYTES, min(_MAX_FILE_BYTES, self._step_bytes))
        """About how large the files of a checkpoint may be, so that rows on their way there fit their share."""
        self._ticks_ns, self._metrics = ticks_ns, metrics
        self._runs = 0
        self._epoch = 0

    def write(self, pieces: Iterable[pa.RecordBatch], number: int | None = None) -> Run | None:
        """Write rows (columns of the format's schema), a key once, in ascending order of hashes: pieces of any size,
        but all rows of one hash in one of them. Return their run, None where there are none. `number` is that of a run
        as it was in a checkpoint: higher than those of all that were written."""
        began_ns = self._ticks_ns()
        number = self._runs if number is None else number
        self._runs = number + 1
        blocks: list[tuple[bytes, bytes]] = []
        written = rows = nbytes = 0
        for piece in pieces:
            stored = self._format.stored(piece)
            step = max(1, int(self._block_bytes * stored.num_rows / max(1, stored.nbytes)))
            for begin, end in cuts(self._format.hashes(stored), step):
                data = self._format.encoded(stored.slice(begin, end - begin))
                blocks.append((_name(number, written), data))
                written, rows, nbytes = written + 1, rows + end - begin, nbytes + len(data)
                if len(blocks) == _WRITTEN_AT_ONCE:
                    self._store.write(blocks)
                    blocks = []
        self._store.write(blocks)
        self._metrics.counter("state_evict_ns").inc(self._ticks_ns() - began_ns)
        return Run(number, written, rows, nbytes, self._epoch) if written else None

    def merged(self, runs: Sequence[Run]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of up to `MOST_RUNS` runs, some at a time: all rows of a key at once, in the order of runs."""
        if len(runs) > MOST_RUNS:
            raise ValueError(f"{len(runs)} runs at once, at most {MOST_RUNS}")
        cursors = [_Cursor(run) for run in runs]
        # A step may have no rows, but more steps than rows serve nothing.
        steps = min(sum(run.nbytes for run in runs) // self._step_bytes, sum(run.rows for run in runs))
        steps = max(1, steps)
        for step in range(1, steps + 1):
            began_ns = self._ticks_ns()
            last = _END * step // steps - 1
            pieces = [piece for cursor in cursors for piece in self._taken(cursor, last)]
            self._metrics.counter("state_fetch_ns").inc(self._ticks_ns() - began_ns)
            if pieces:
                self._metrics.counter("state_fetched_keys").inc(sum(piece.num_rows for piece in pieces))
                yield self._format.shown(pa.concat_batches(pieces))

    def _taken(self, cursor: _Cursor, last: int) -> Iterator[pa.RecordBatch]:
        """Take the rows up to hash `last` off a run."""
        while True:
            if cursor.rows is not None:
                end = int(np.searchsorted(cursor.hashes, np.uint64(last), "right"))
                if end > cursor.at:
                    yield cursor.rows.slice(cursor.at, end - cursor.at)
                    cursor.at = end
                if cursor.at < len(cursor.hashes):
                    return
                cursor.rows = None
            if cursor.block == cursor.run.blocks:
                return
            (data,) = self._store.get([_name(cursor.run.number, cursor.block)])
            if data is None:
                raise self._lost(cursor.run, cursor.block)
            cursor.rows, cursor.at, cursor.block = self._format.read(data), 0, cursor.block + 1
            cursor.hashes = self._format.hashes(cursor.rows)

    def rows(self, run: Run, view: RowView) -> Iterator[pa.RecordBatch]:
        """Yield a run's rows, some at a time, as of `view`. On any thread."""
        blocks = max(1, _BYTES_AT_ONCE * run.blocks // run.nbytes)
        for begin in range(0, run.blocks, blocks):
            names = [_name(run.number, i) for i in range(begin, min(run.blocks, begin + blocks))]
            found = view.get(names)
            if None in found:
                raise self._lost(run, begin + found.index(None))
            rows = [self._format.read(data) for data in found if data is not None]
            yield self._format.shown(pa.concat_batches(rows))

    def _lost(self, run: Run, block: int) -> TransientError:
        return TransientError(
            f"operator {self._owner!r}: block {block} of the {run.blocks} of run {run.number}, written after "
            f"checkpoint {run.epoch}, is not on disk any more; has somebody removed files below state.dir?"
        )

    def drop(self, runs: Iterable[Run]) -> None:
        """Forget runs."""
        for run in runs:
            self._store.delete_range(_name(run.number, 0), _name(run.number + 1, 0))

    def barrier(self, checkpoint_id: int) -> RowView:
        """Return what there is now. What is written from now on is of this checkpoint's epoch."""
        self._epoch = checkpoint_id
        return self._store.view()

    def restored(self, checkpoint_id: int) -> None:
        """What there is is as in this checkpoint, in whose files there may be runs of higher numbers that were dropped
        since."""
        self._epoch = checkpoint_id
        self._runs = max(self._runs, checkpoint_id << _RUNS_BITS)

    def nbytes(self) -> int:
        """Return about how many bytes are on disk."""
        return self._store.nbytes()

    def close(self) -> None:
        """Give the store back."""
        self._store.close()


@dataclass(slots=True)
class _Cursor:
    """How far a run was read: row `at` of the block before `block`."""

    run: Run
    block: int = 0
    rows: pa.RecordBatch | None = None
    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    at: int = 0


def to_combine(runs: Sequence[Run], most: int) -> int:
    """Return how many of `runs` (of one thing, in the order in which they were written), from the last on, to merge
    into one so that there are at most `most`: 0 where there are."""
    if len(runs) <= most:
        return 0
    count = len(runs) - most + 1
    nbytes = sum(run.nbytes for run in runs[-count:])
    while count < min(len(runs), MOST_RUNS) and runs[-count - 1].nbytes <= nbytes:
        count += 1
        nbytes += runs[-count].nbytes
    return count


def cuts(hashes: Hashes, step: int) -> Iterator[tuple[int, int]]:
    """Cut rows with ascending hashes into stretches (begin, end) of about `step` rows, none between equal hashes."""
    begin, rows = 0, len(hashes)
    while begin < rows:
        end = min(rows, begin + step)
        end = int(np.searchsorted(hashes, hashes[end - 1], "right"))
        yield begin, end
        begin = end


def _name(run: int, block: int) -> bytes:
    return _RUN + run.to_bytes(_NUMBER_BYTES, "big") + block.to_bytes(_NUMBER_BYTES, "big")


def _check_plain(type_: pa.DataType) -> None:
    t = pa.types
    if t.is_dictionary(type_) or isinstance(type_, pa.BaseExtensionType):
        raise TypeError(f"values of type {type_} within others cannot be stored as blocks")
    for i in range(type_.num_fields):
        _check_plain(type_.field(i).type)
