"""Whole rows as state: columns in Arrow chunks, numbers beside them, found again through slots.

Theory of operation. Rows are numbered as they are added, and lie in Arrow chunks in that order. Chunks are
merged as in a log-structured merge tree up to a size, so appending costs amortised O(log n) and there are few of them
to gather from. Beside the columns each row has int64 *numbers* (its slot, its event time, …) in arrays. Lists by
slot (`row_kernels`) find the rows of a key; removing only marks a row. When more rows are dead than alive, `tidy`
leaves the dead ones out and numbers the others anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.tables import concat, nbytes, take
from rayflow.state.key_table import grown

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_MIN_DEAD_ROWS = 1024
_MAX_MERGED_BYTES = 64 << 20
_MAX_ROWS = 2**31 - 1


class _Lists:
    """Lists of row numbers by the slot in one of the rows' numbers."""

    def __init__(self) -> None:
        from rayflow.state import row_kernels

        self.kernels: Any = row_kernels
        self.heads = np.zeros(0, np.int32)
        self.tails = np.zeros(0, np.int32)
        self.counts = np.zeros(0, np.int32)
        self.following = np.zeros(0, np.int32)

    @property
    def nbytes(self) -> int:
        return self.heads.nbytes + self.tails.nbytes + self.counts.nbytes + self.following.nbytes

    def reserve(self, slot_limit: int) -> None:
        self.heads = grown(self.heads, slot_limit, -1)
        self.tails = grown(self.tails, slot_limit, -1)
        self.counts = grown(self.counts, slot_limit)

    def add(self, slots: I64, begin: int) -> None:
        self.following = grown(self.following, begin + len(slots))
        self.kernels.link_rows(self.heads, self.tails, self.following, self.counts, slots, begin)

    def rebuild(self, slots: I64) -> None:
        self.heads[:], self.tails[:], self.counts[:] = -1, -1, 0
        self.add(slots, 0)

    def arrays(self) -> tuple[Any, ...]:
        return self.heads, self.tails, self.following


@dataclass(frozen=True, slots=True)
class FrozenRows:
    """The rows of a `RowStore` at one moment. Immutable: may be read on any thread."""

    chunks: tuple[pa.RecordBatch, ...]
    live: Bools
    numbers: dict[str, I64]

    def batches(self) -> Iterator[tuple[pa.RecordBatch, dict[str, I64]]]:
        """Yield the live rows and their numbers, oldest first."""
        begin = 0
        for chunk in self.chunks:
            part = slice(begin, begin + chunk.num_rows)
            begin += chunk.num_rows
            live = self.live[part]
            if live.any():
                yield chunk.filter(pa.array(live)), {n: a[part][live] for n, a in self.numbers.items()}


class RowStore:
    """Rows of `schema`, each with the int64 `numbers`; those in `listed` are slots, by which rows are found (a
    negative one: not at all).

    Row numbers stay valid until `tidy`.
    """

    def __init__(self, schema: pa.Schema, numbers: Sequence[str] = (), listed: Sequence[str] = ()) -> None:
        self.schema = schema
        self._chunks: list[pa.RecordBatch] = []
        self._ends: I64 = np.zeros(0, np.int64)
        self._limit = 0
        self._live: Bools = np.zeros(0, np.bool_)
        self._live_rows = 0
        self._numbers: dict[str, I64] = {name: np.zeros(0, np.int64) for name in numbers}
        self._lists = {name: _Lists() for name in listed}

    def __len__(self) -> int:
        return self._live_rows

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        arrays = [self._live, *self._numbers.values()]
        lists = sum(lists.nbytes for lists in self._lists.values())
        return lists + sum(a.nbytes for a in arrays) + sum(nbytes(chunk) for chunk in self._chunks)

    # ------------------------------------------------------------------------------------- changes

    def add(self, rows: pa.RecordBatch, **numbers: I64) -> I64:
        """Add rows of the schema's types, with all their numbers; return the row numbers they get."""
        begin, end = self._limit, self._limit + rows.num_rows
        if rows.num_rows == 0:
            return np.zeros(0, np.int64)
        if end > _MAX_ROWS:
            raise OverflowError(f"a subtask holds at most {_MAX_ROWS} rows of state; raise the parallelism")
        self._append(pa.RecordBatch.from_arrays(_owned(rows).columns, schema=self.schema))
        self._live = grown(self._live, end)
        self._live[begin:end] = True
        for name, values in self._numbers.items():
            self._numbers[name] = grown(values, end)
            self._numbers[name][begin:end] = numbers[name]
        for name, lists in self._lists.items():
            slots = np.ascontiguousarray(numbers[name], np.int64)
            lists.reserve(int(slots.max()) + 1)
            lists.add(slots, begin)
        self._limit = end
        self._live_rows += rows.num_rows
        return np.arange(begin, end)

    def remove(self, rows: I64) -> None:
        """Remove these rows (live, none twice)."""
        self._live[rows] = False
        self._live_rows -= len(rows)
        for name, lists in self._lists.items():
            slots = self._numbers[name][rows]
            np.subtract.at(lists.counts, slots[slots >= 0], 1)

    def tidy(self) -> bool:
        """Give memory back where it is worth the work; return whether rows were numbered anew."""
        if self._limit - self._live_rows <= max(_MIN_DEAD_ROWS, self._live_rows):
            return False
        kept = self.live()
        chunks = FrozenRows(tuple(self._chunks), self._live, {}).batches()
        self._chunks, self._ends, self._limit = [], np.zeros(0, np.int64), 0
        for chunk, _ in chunks:
            self._append(chunk)
            self._limit += chunk.num_rows
        self._numbers = {name: values[kept] for name, values in self._numbers.items()}
        self._live = np.ones(len(kept), np.bool_)
        for name, lists in self._lists.items():
            lists.rebuild(self._numbers[name])
        return True

    def _append(self, rows: pa.RecordBatch) -> None:
        self._chunks.append(rows)
        while len(self._chunks) > 1 and self._worth_merging(*self._chunks[-2:]):
            self._chunks[-2:] = [concat(self._chunks[-2:])]
        self._ends = np.cumsum([chunk.num_rows for chunk in self._chunks])

    @staticmethod
    def _worth_merging(older: pa.RecordBatch, newer: pa.RecordBatch) -> bool:
        return 2 * newer.num_rows >= older.num_rows and nbytes(older) + nbytes(newer) <= _MAX_MERGED_BYTES

    # ------------------------------------------------------------------------------------- reading

    def live(self) -> I64:
        """Return the numbers of all rows, oldest first."""
        return np.flatnonzero(self._live[: self._limit])

    def numbers(self, name: str) -> I64:
        """Return one of the numbers of every row, indexed by row number: a view, of removed rows too."""
        return self._numbers[name][: self._limit]

    def counts(self, name: str, slots: I64) -> I64:
        """Return how many rows are listed under each slot of `name`; none under a negative one."""
        lists = self._lists[name]
        lists.reserve(max(1, int(slots.max(initial=-1)) + 1))
        counts: I64 = np.where(slots < 0, 0, lists.counts[slots]).astype(np.int64)
        return counts

    def match(
        self, name: str, slots: I64, max_pairs: int, between: tuple[str, I64, I64] | None = None
    ) -> Iterator[tuple[I64, I64]]:
        """Yield (positions in `slots`, numbers of the rows listed there), at most `max_pairs` at a time, in the
        order of `slots`, oldest rows first. A negative slot has none. The store may not change in between.

        `between` is (number, least, most): only rows whose number lies between these, of each position."""
        lists = self._lists[name]
        slots = np.ascontiguousarray(slots, np.int64)
        lists.reserve(int(slots.max(initial=-1)) + 1)
        place = np.array([0, -1], np.int64)
        while place[0] < len(slots):
            probes, rows = np.empty(max_pairs, np.int64), np.empty(max_pairs, np.int64)
            if between is None:
                found = lists.kernels.match_rows(*lists.arrays(), self._live, slots, place, probes, rows)
            else:
                number, least, most = between
                found = lists.kernels.match_rows_between(
                    *lists.arrays(),
                    self._live,
                    self._numbers[number],
                    least,
                    most,
                    slots,
                    place,
                    probes,
                    rows,
                )
            if found:
                yield probes[:found], rows[:found]

    def first(self, name: str, slots: I64) -> I64:
        """Return the oldest row listed under each slot, -1 where there is none."""
        lists, out = self._lists[name], np.empty(len(slots), np.int64)
        slots = np.ascontiguousarray(slots, np.int64)
        lists.reserve(int(slots.max(initial=-1)) + 1)
        lists.kernels.first_rows(*lists.arrays(), self._live, slots, out)
        return out

    def latest(self, name: str, slots: I64, number: str, limits: I64) -> I64:
        """Return, of the rows under each slot whose `number` is at most `limits[i]`, the one with the largest (of
        equal ones the newest), -1 where there is none."""
        lists, out = self._lists[name], np.empty(len(slots), np.int64)
        slots = np.ascontiguousarray(slots, np.int64)
        lists.reserve(int(slots.max(initial=-1)) + 1)
        limits = np.ascontiguousarray(limits, np.int64)
        lists.kernels.latest_rows(*lists.arrays(), self._live, self._numbers[number], slots, limits, out)
        return out

    def latest_sorted(self, name: str, slots: I64, number: str, limits: I64) -> I64:
        """Return the same as `latest`, by sorting all rows first: for slots with very many rows."""
        live = self.live()
        row_slots, numbers = self._numbers[name][live], self._numbers[number][live]
        order = np.lexsort((numbers, row_slots))
        out = np.empty(len(slots), np.int64)
        self._lists[name].kernels.latest_sorted(
            row_slots[order], numbers[order], live[order], slots, limits, out
        )
        return out

    def take(self, rows: I64, columns: Sequence[int] | None = None) -> pa.RecordBatch:
        """Return these rows, in that order; of all columns, or those numbered `columns`."""
        schema = self.schema if columns is None else pa.schema([self.schema.field(i) for i in columns])
        if len(rows) == 0:
            return pa.RecordBatch.from_arrays([pa.nulls(0, f.type) for f in schema], schema=schema)
        chunks = self._chunks if columns is None else [c.select(list(columns)) for c in self._chunks]
        # Not ChunkedArray.take: it may join all chunks first.
        which = np.searchsorted(self._ends, rows, side="right").astype(np.int32)
        first = int(which[0])
        if len(chunks) == 1 or (which == first).all():
            return take(chunks[first], rows - (self._ends[first] - chunks[first].num_rows))
        order = np.argsort(which, kind="stable")
        cuts = np.flatnonzero(np.diff(which[order], prepend=-1))
        pieces = []
        for begin, end in zip(cuts.tolist(), [*cuts[1:].tolist(), len(order)]):
            picked = order[begin:end]
            chunk = int(which[picked[0]])
            pieces.append(take(chunks[chunk], rows[picked] - (self._ends[chunk] - chunks[chunk].num_rows)))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return take(concat(pieces), back)

    def freeze(self) -> FrozenRows:
        """Return the rows as they are now, for building a snapshot on another thread; columns are shared."""
        numbers = {name: values[: self._limit].copy() for name, values in self._numbers.items()}
        return FrozenRows(tuple(self._chunks), self._live[: self._limit].copy(), numbers)

    def warm_up(self) -> None:
        """Compile the loops, or load them from the cache: to be called while a subtask is set up."""
        nothing = np.zeros(0, np.int64)
        for name, lists in self._lists.items():
            lists.add(nothing, 0)
            self.first(name, nothing)
            place = np.array([0, -1], np.int64)
            lists.kernels.match_rows(*lists.arrays(), self._live, nothing, place, nothing, nothing)
            for number in self._numbers.keys() - self._lists.keys():
                self.latest(name, nothing, number, nothing)
                self.latest_sorted(name, nothing, number, nothing)
                lists.kernels.match_rows_between(
                    *lists.arrays(), self._live, nothing, nothing, nothing, nothing, place, nothing, nothing
                )


def _owned(rows: pa.RecordBatch) -> pa.RecordBatch:
    # A slice would keep the whole batch it was cut from.
    if rows.get_total_buffer_size() > 2 * nbytes(rows) + 4096:
        return rows.take(pa.array(np.arange(rows.num_rows)))
    return rows
