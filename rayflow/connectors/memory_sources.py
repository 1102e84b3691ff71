"""Sources that need no storage: a table at hand, a re-iterable of batches, a function of row numbers.

| source | split | position |
|---|---|---|
| `RowsSource` | a range of the table's rows | rows read of it |
| `BatchesSource` | the whole iteration (parallelism 1) | rows read; a replay iterates anew and skips them |
| `GeneratorSource`, bounded | a range of row numbers, taken in order | rows made of it |
| `GeneratorSource`, unbounded | a stripe: every n-th block of row numbers | the next row number |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from rayflow.model.errors import DataError
from rayflow.operators.source_contract import Source, Split, SplitReader

_ROWS_PER_SPLIT = 65_536
_LARGEST_RANGE_ROWS = 1_048_576
_RANGES = 64
_STRIPES = 16
_BLOCK_ROWS = 16_384

Batches = Callable[[], Iterable[pa.RecordBatch]] | Iterable[pa.RecordBatch]
Generate = Callable[[int, int], pa.RecordBatch]


class RowsSource(Source):
    """The rows of `table`, which travels with the job."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table.combine_chunks()

    @property
    def schema(self) -> pa.Schema:
        """Schema of the table."""
        return self._table.schema

    def splits(self) -> Sequence[Split]:
        """Ranges of 65,536 rows, in the table's order."""
        starts = range(0, self._table.num_rows, _ROWS_PER_SPLIT)
        return [Split(id=f"rows-{s}", payload={"start": s}, order=f"{s:020}") for s in starts]

    def split_count(self, enough: int) -> int | None:
        """So few rows that one range holds them are soon read, whoever does."""
        count = len(self.splits())
        return count if count > 1 else None

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        """Read one range."""
        part = self._table.slice(split.payload["start"], _ROWS_PER_SPLIT)
        return _TableReader(part, position or 0)


class _TableReader(SplitReader):
    def __init__(self, part: pa.Table, position: int) -> None:
        self._part = part
        self._at = position

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self._at >= self._part.num_rows:
            return None
        batch = self._part.slice(self._at, max_rows).combine_chunks().to_batches()[0]
        self._at += batch.num_rows
        return batch

    def position(self) -> int:
        return self._at


class BatchesSource(Source):
    """Batches of a callable that returns an iterable, or of something that can be iterated more than once.

    Iteration happens on the task thread of the only subtask; an iterator that waits holds the task up.
    Every iteration must give the same rows, or a restart would not continue where it stopped.
    """

    def __init__(self, batches: Batches, schema: pa.Schema | None = None) -> None:
        self._batches = batches
        self._schema = schema

    @property
    def schema(self) -> pa.Schema | None:
        """The schema given, else None."""
        return self._schema

    @property
    def max_parallelism(self) -> int:
        """One: there is one iteration."""
        return 1

    def splits(self) -> Sequence[Split]:
        """One split."""
        return [Split(id="batches")]

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        """Iterate anew, skipping what was read."""
        batches = self._batches() if callable(self._batches) else self._batches
        return _IterationReader(iter(batches), self._schema, position or 0)


class _IterationReader(SplitReader):
    def __init__(self, batches: Iterator[Any], schema: pa.Schema | None, skip_rows: int) -> None:
        self._batches = batches
        self._schema = schema
        self._skip_rows = skip_rows
        self._rest: pa.RecordBatch | None = None
        self._rows = skip_rows

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        while self._rest is None or self._rest.num_rows == 0:
            item = next(self._batches, None)
            if item is None:
                return None
            self._rest = self._skip(_checked(item, self._schema))
        batch, self._rest = self._rest.slice(0, max_rows), self._rest.slice(max_rows)
        self._rows += batch.num_rows
        return batch

    def position(self) -> int:
        return self._rows

    def close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()

    def _skip(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        skipped = min(self._skip_rows, batch.num_rows)
        self._skip_rows -= skipped
        return batch.slice(skipped)


def _checked(item: Any, schema: pa.Schema | None) -> pa.RecordBatch:
    if not isinstance(item, pa.RecordBatch):
        raise DataError(f"from_batches got a {type(item).__name__}; expected pyarrow.RecordBatch")
    if schema is None or item.schema.equals(schema):
        return item
    try:
        return item.select(schema.names).cast(schema)
    except (KeyError, pa.ArrowException) as error:
        raise DataError(f"a batch of from_batches does not fit schema=: {error}") from error


class GeneratorSource(Source):
    """Rows made by `fn(start, count)`: the rows numbered start … start+count−1, the same on every call.

    `rows` None makes it unbounded. The function runs on the task threads of the subtasks.
    """

    def __init__(self, fn: Generate, rows: int | None, schema: pa.Schema | None = None) -> None:
        self._fn = fn
        self._rows = rows
        self._schema = schema

    @property
    def schema(self) -> pa.Schema | None:
        """The schema given, else None."""
        return self._schema

    @property
    def bounded(self) -> bool:
        """Whether a number of rows was given."""
        return self._rows is not None

    def splits(self) -> Sequence[Split]:
        """Ranges in order when bounded, else stripes."""
        if self._rows is None:
            return [Split(id=f"stripe-{i}", payload={"stripe": i}, order=f"{i:04}") for i in range(_STRIPES)]
        size = max(_BLOCK_ROWS, min(_LARGEST_RANGE_ROWS, -(-self._rows // _RANGES)))
        return [
            Split(
                id=f"range-{start}",
                payload={"start": start, "stop": min(start + size, self._rows)},
                order=f"{start:020}",
            )
            for start in range(0, self._rows, size)
        ]

    def split_count(self, enough: int) -> int | None:
        """Too few rows for `_RANGES` ranges are soon made, whoever does."""
        count = len(self.splits())
        return count if self._rows is None or count >= _RANGES else None

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        """Make rows from the position on."""
        if "stripe" in split.payload:
            start = split.payload["stripe"] * _BLOCK_ROWS
            return _StripeReader(self._fn, start if position is None else position)
        start = split.payload["start"] if position is None else position
        return _RangeReader(self._fn, start, split.payload["stop"])


def _generate(fn: Generate, start: int, count: int) -> pa.RecordBatch:
    batch = fn(start, count)
    if not isinstance(batch, pa.RecordBatch) or batch.num_rows != count:
        got = f"{batch.num_rows} rows" if isinstance(batch, pa.RecordBatch) else f"a {type(batch).__name__}"
        raise DataError(
            f"generate's fn({start}, {count}) returned {got}; expected a RecordBatch of {count} rows"
        )
    return batch


class _RangeReader(SplitReader):
    def __init__(self, fn: Generate, start: int, stop: int) -> None:
        self._fn = fn
        self._at = start
        self._stop = stop

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        count = min(max_rows, self._stop - self._at)
        if count <= 0:
            return None
        batch = _generate(self._fn, self._at, count)
        self._at += count
        return batch

    def position(self) -> int:
        return self._at


class _StripeReader(SplitReader):
    def __init__(self, fn: Generate, at: int) -> None:
        self._fn = fn
        self._at = at

    def read(self, max_rows: int) -> pa.RecordBatch:
        count = min(max_rows, _BLOCK_ROWS - self._at % _BLOCK_ROWS)
        batch = _generate(self._fn, self._at, count)
        self._at += count
        if self._at % _BLOCK_ROWS == 0:
            self._at += (_STRIPES - 1) * _BLOCK_ROWS
        return batch

    def position(self) -> int:
        return self._at
