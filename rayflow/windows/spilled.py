"""Panes on disk: what time windows keep where their state outgrows its memory (`state.backend=disk`).

Theory of operation. Memory is a buffer for writes: when it is full, the states in it are written as runs
(`state.disk.sorted_runs`), one for each pane, and it begins anew. So a pane that gets no more rows lies there once, and
one that does in a few partial states of each key, which are merged when a window is shown. That is done some keys at a
time, in the order of their hashes, whatever the size of the window.

A window of many slices does not read them all each time: where it holds a whole row of `_RADIX` neighbours, these are
merged once, into a *node*, those into nodes of as many again, and so on (as in memory, see `slice_tree`). Nodes are
dropped when one of their slices gets another run or is closed. They are no part of snapshots.

A checkpoint has the runs of all panes; one that extends an earlier one has those that were written since, and says
which of the others there still are (`state.chains`): panes that were closed, and runs that were merged, are gone. What
is restored to a subtask with the same keys are the same runs, under their numbers.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import pyarrow as pa

from rayflow.operators.contracts import OperatorContext
from rayflow.operators.keyed_parts import keyed_table
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.chains import packed_runs
from rayflow.state.disk.row_store import RowView
from rayflow.state.disk.sorted_runs import MOST_RUNS, BlockFormat, Run, SortedRuns, cuts, to_combine
from rayflow.state.key_index import KeyIndex
from rayflow.state.parts import RUN_COLUMN, RUNS, RestoredPart, StatePart
from rayflow.windows.bounds import I64
from rayflow.windows.panes import FrozenPanes

_RADIX = 4
_FEW_SLICES = 8
"""Up to so many slices a window are merged directly."""

_ENDS = 2 * (_RADIX - 1)
_RUNS_OF_SLICE = 8
"""At most. A window is up to `_ENDS` slices at its ends, and as many nodes a level, in all within `MOST_RUNS`. With
fewer, small runs are merged so often that they are most of what a checkpoint uploads."""

_SMALL_SHARE = 0.25
_PIECE_BYTES, _PIECE_ROWS = 1 << 20, 16_384
_GROWTH = 1.5

Others = Callable[[int, int], list[tuple[str, pa.Array]]]


class SpilledPanes:
    """Panes of keys of `key_schema` with the states of aggregates that `make` makes, in a store of `ctx`'s.

    Raises TypeError where they cannot lie on disk."""

    def __init__(
        self,
        ctx: OperatorContext,
        key_schema: pa.Schema,
        make: Callable[[], AggregateColumns],
        per_window: int,
    ) -> None:
        share = ctx.disk
        assert share is not None
        self._ctx, self._share, self._make = ctx, share, make
        self._merging = Merging(key_schema, make)
        self._format = BlockFormat(key_schema, self._merging.state_schema)
        store = share.open_rows(share.memory_bytes // 4, True)
        quarter = share.memory_bytes // 4
        self._runs = SortedRuns(store, self._format, quarter, share.ticks_ns, ctx.metrics, ctx.name)
        self.memory_bytes = int(share.memory_bytes / 2 / _GROWTH)
        """How much panes in memory may take. They grow by half at a time."""
        self._open: list[int] = []
        self._first_checkpoint: int | None = None
        self._of_pane: dict[int, list[Run]] = {}
        self._levels = 0
        while per_window > _FEW_SLICES and _RADIX ** (self._levels + 1) <= per_window:
            self._levels += 1
        of_slice = max(1, min(_RUNS_OF_SLICE, MOST_RUNS // _ENDS - self._levels))
        self._most_of_pane = of_slice if per_window > 1 else MOST_RUNS
        # None: the node's slices have one run at most, which is no node's.
        self._nodes: dict[tuple[int, int], Run | None] = {}

    def __len__(self) -> int:
        """Return how many panes are on disk."""
        return len(self._open)

    # ---------------------------------------------------------------------------------- writing

    def add(self, panes: FrozenPanes, columns: AggregateColumns) -> None:
        """Write all states of `panes` and `columns`."""
        slots = panes.slots
        of = panes.panes_of(slots)
        order = np.argsort(of, kind="stable")
        slots, of = slots[order], of[order]
        begins = np.flatnonzero(np.diff(of, prepend=of[:1] - 1))
        size = columns.nbytes / max(1, len(slots))
        rows = int(max(1, min(_PIECE_ROWS, _PIECE_BYTES / max(1.0, size))))
        for pane, own in zip(of[begins].tolist(), np.split(slots, begins[1:])):
            run = self._runs.write(self._sorted(panes, columns, own, rows))
            if run is not None:
                self._put(pane, run)
        self._ctx.metrics.counter("state_evicted_keys").inc(len(slots))

    def _sorted(
        self, panes: FrozenPanes, columns: AggregateColumns, slots: I64, rows: int
    ) -> Iterator[pa.RecordBatch]:
        hashes = np.concatenate(
            [self._format.hashes(panes.keys_of(slots[at : at + rows])) for at in range(0, len(slots), rows)]
        )
        order = np.argsort(hashes)
        for begin, end in cuts(hashes[order], rows):
            own = slots[order[begin:end]]
            yield self._merging.rows(panes.keys_of(own), columns, own)

    def _put(self, pane: int, run: Run) -> None:
        runs = self._append(pane, run)
        for level in range(1, self._levels + 1):
            self._forget((level, pane // _RADIX**level))
        if count := to_combine(runs, self._most_of_pane):
            latest = runs[-count:]
            runs[-count:] = self._combined(latest)
            self._runs.drop(latest)

    def _append(self, pane: int, run: Run) -> list[Run]:
        if pane not in self._of_pane:
            bisect.insort(self._open, pane)
            self._of_pane[pane] = []
        self._of_pane[pane].append(run)
        return self._of_pane[pane]

    def restore_runs(
        self, restored: Sequence[RestoredPart], name: str, panes_in: Callable[[pa.RecordBatch], I64]
    ) -> list[RestoredPart]:
        """Take up the parts `name` that have runs, as they are in a checkpoint, on which later ones build then; return
        the others. `panes_in` gives the panes of a part's rows."""
        runs = [part for part in restored if part.name == name and RUN_COLUMN in part.schema.names]
        for part in runs:
            for (pane, number), pieces in groupby(self._pieces(part, panes_in), lambda piece: piece[:2]):
                run = self._runs.write((rows for _, _, rows in pieces), number)
                if run is not None:
                    self._append(pane, run)
            self._runs.restored(part.checkpoint_id)
            self._first_checkpoint = part.checkpoint_id
        return [part for part in restored if part not in runs]

    def _pieces(
        self, part: RestoredPart, panes_in: Callable[[pa.RecordBatch], I64]
    ) -> Iterator[tuple[int, int, pa.RecordBatch]]:
        schema = self._merging.schema
        for batch in part.batches(_PIECE_ROWS):
            rows = pa.RecordBatch.from_arrays([batch.column(name) for name in schema.names], schema=schema)
            panes, runs = panes_in(batch), batch.column(RUN_COLUMN).to_numpy()
            begins = np.flatnonzero(np.diff(runs, prepend=-1)).tolist()
            for begin, end in zip(begins, [*begins[1:], len(runs)]):
                yield int(panes[begin]), int(runs[begin]), rows.slice(begin, end - begin)

    def is_over(self, nbytes: int) -> bool:
        """Return whether panes of so many bytes in memory are to be written now."""
        if nbytes > self.memory_bytes:
            return True
        self._ctx.metrics.gauge("state_memory_bytes").set(nbytes)
        return False

    def measure(self) -> None:
        """What was written is not in memory any more: update the gauges of bytes there and on disk."""
        self._share.give_back()
        self._ctx.metrics.gauge("state_memory_bytes").set(0)
        self._ctx.metrics.gauge("state_disk_bytes").set(self._runs.nbytes())

    # ---------------------------------------------------------------------------------- reading

    def next_pane(self, begin: int) -> int | None:
        """Return the first pane on disk from `begin` on, None where there is none."""
        at = bisect.bisect_left(self._open, begin)
        return self._open[at] if at < len(self._open) else None

    def merged(self, begin: int, end: int) -> Iterator[tuple[pa.RecordBatch, AggregateColumns, I64]]:
        """Yield what panes from `begin` to before `end` hold, merged, some keys at a time: keys, and the slots of
        their states in accumulators."""
        for batch in self._runs.merged(self._cover(begin, end)):
            with self._merging.of(batch) as (keys, columns, slots):
                yield keys, columns, slots

    def _cover(self, begin: int, end: int) -> list[Run]:
        """Return the fewest runs that are, together, the panes from `begin` to before `end`."""
        runs: list[Run] = []
        while begin < end:
            level, width = 0, 1
            while level < self._levels and begin % (width * _RADIX) == 0 and begin + width * _RADIX <= end:
                level, width = level + 1, width * _RADIX
            runs += self._node(level, begin // width)
            begin += width
        return runs

    def _node(self, level: int, index: int) -> list[Run]:
        if level == 0:
            return self._of_pane.get(index, [])
        at = (level, index)
        if at not in self._nodes:
            runs = [run for i in range(_RADIX) for run in self._node(level - 1, index * _RADIX + i)]
            if len(runs) <= 1:
                self._nodes[at] = None
                return runs
            (self._nodes[at],) = self._combined(runs)
        node = self._nodes[at]
        if node is not None:
            return [node]
        return [run for i in range(_RADIX) for run in self._node(level - 1, index * _RADIX + i)]

    def _combined(self, runs: list[Run]) -> list[Run]:
        run = self._runs.write(self._merged_rows(runs))
        return [] if run is None else [run]

    def _merged_rows(self, runs: list[Run]) -> Iterator[pa.RecordBatch]:
        for batch in self._runs.merged(runs):
            with self._merging.of(batch) as (keys, columns, slots):
                rows = self._merging.rows(keys, columns, slots)
            order = np.argsort(self._format.hashes(keys))
            yield rows.take(pa.array(order))

    # ---------------------------------------------------------------------------------- forgetting

    def drop_before(self, end: int) -> None:
        """Forget the panes before `end`."""
        for level, index in [at for at in self._nodes if at[1] * _RADIX ** at[0] < end]:
            self._forget((level, index))
        count = bisect.bisect_left(self._open, end)
        for pane in self._open[:count]:
            self._runs.drop(self._of_pane.pop(pane))
        del self._open[:count]

    def _forget(self, at: tuple[int, int]) -> None:
        node = self._nodes.pop(at, None)
        if node is not None:
            self._runs.drop([node])

    def close(self) -> None:
        """Give the store back."""
        self._runs.close()

    # ---------------------------------------------------------------------------------- snapshots

    def is_worth(self, nbytes: int) -> bool:
        """Return whether panes of so many bytes in memory are to be written at a checkpoint, so that the next one need
        not have them again."""
        return bool(self._open) or nbytes > _SMALL_SHARE * self.memory_bytes

    def part(self, name: str, checkpoint_id: int, others: Others) -> StatePart:
        """Return all panes on disk, as of this checkpoint, as a keyed part, in pieces. `others(pane, rows)` gives the
        columns between keys and states for so many rows of a pane, by name."""
        runs = [(pane, run) for pane in self._open for run in self._of_pane[pane]]
        runs.sort(key=lambda item: item[1].number)
        if self._first_checkpoint is None:
            self._first_checkpoint = checkpoint_id
        frozen = _FrozenPanes(
            runs,
            self._first_checkpoint,
            self._runs.barrier(checkpoint_id),
            self._runs,
            self._merging,
            others,
            self._ctx.max_parallelism,
        )
        return StatePart(
            name=name,
            kind="keyed",
            build=frozen.table,
            stream=frozen.tables,
            file_bytes=self._runs.file_bytes,
            extends=frozen.is_much_of_before,
        )


def spilled_panes(
    ctx: OperatorContext, key_schema: pa.Schema, make: Callable[[], AggregateColumns], per_window: int
) -> SpilledPanes | None:
    """Return where an operator's panes go that has a share of the disk; None, and an event, where they cannot."""
    try:
        return SpilledPanes(ctx, key_schema, make, per_window)
    except TypeError as error:
        ctx.warn("state_in_memory", f"operator {ctx.name!r} keeps its state in memory: {error}")
        return None


class Merging:
    """Merges rows of keys and states, some at a time."""

    def __init__(self, key_schema: pa.Schema, make: Callable[[], AggregateColumns]) -> None:
        self._key_schema, self._keys, self._columns = key_schema, KeyIndex(key_schema), make()
        nothing = self._columns.state_columns(np.zeros(0, np.int64))
        self.state_schema = pa.schema([(name, column.type) for name, column in nothing])
        self.schema = pa.schema([*key_schema, *self.state_schema])

    def rows(self, keys: pa.RecordBatch, columns: AggregateColumns, slots: I64) -> pa.RecordBatch:
        """Return keys with the states in `slots` of `columns`."""
        states = [_plain(column) for _, column in columns.state_columns(slots)]
        return pa.RecordBatch.from_arrays([*keys.columns, *states], schema=self.schema)

    def nothing(self) -> pa.RecordBatch:
        """Return no rows of keys and states."""
        return pa.RecordBatch.from_pylist([], schema=self.schema)

    def split(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the keys and the states of rows."""
        width = len(self._key_schema)
        keys = pa.RecordBatch.from_arrays(rows.columns[:width], schema=self._key_schema)
        return keys, pa.RecordBatch.from_arrays(rows.columns[width:], schema=self.state_schema)

    @contextmanager
    def of(self, rows: pa.RecordBatch) -> Iterator[tuple[pa.RecordBatch, AggregateColumns, I64]]:
        """Merge rows; give the keys, and the slots of their states in accumulators, which are good for so long."""
        keys, states = self.split(rows)
        slots, fresh = self._keys.insert(keys)
        self._columns.merge(states, slots, self._keys.slot_limit)
        distinct = slots[fresh]
        yield keys.take(pa.array(fresh)), self._columns, distinct
        self._keys.remove(distinct)
        self._columns.clear(distinct)


def _plain(column: pa.Array | pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


@dataclass(frozen=True, slots=True)
class _FrozenPanes:
    """Runs of panes at a checkpoint, in the order in which they were written. For one thread, any."""

    runs: Sequence[tuple[int, Run]]
    first_checkpoint: int
    view: RowView
    store: SortedRuns
    merging: Merging
    others: Others
    max_parallelism: int

    def is_much_of_before(self, since: int) -> bool:
        """Return whether at least half of what there is was there at checkpoint `since`, in the same runs."""
        if since < self.first_checkpoint:
            return False
        new = sum(run.nbytes for _, run in self.runs if run.epoch >= since)
        there = sum(run.nbytes for _, run in self.runs)
        return 2 * new <= there

    def tables(self, since: int | None) -> Iterator[pa.Table]:
        """Yield the rows of all runs, or of those that checkpoint `since` does not have; with their runs."""
        metadata = {RUNS: packed_runs(run.number for _, run in self.runs)}
        new = [(pane, run) for pane, run in self.runs if since is None or run.epoch >= since]
        for pane, run in new:
            for rows in self.store.rows(run, self.view):
                yield self._table(pane, run.number, rows).replace_schema_metadata(metadata)
        if not new:
            # What was dropped is to be known all the same.
            yield self._table(0, 0, self.merging.nothing()).replace_schema_metadata(metadata)

    def table(self) -> pa.Table:
        """Return the rows of all runs."""
        return pa.concat_tables(table.drop_columns([RUN_COLUMN]) for table in self.tables(None))

    def _table(self, pane: int, run: int, rows: pa.RecordBatch) -> pa.Table:
        keys, states = self.merging.split(rows)
        columns = [
            *self.others(pane, rows.num_rows),
            *zip(states.schema.names, states.columns),
            (RUN_COLUMN, pa.repeat(pa.scalar(run, pa.int64()), rows.num_rows)),
        ]
        return keyed_table(keys, columns, self.max_parallelism)
