"""Users' functions over whole batches, in the format they ask for.

With `batch_size`, rows are held back until there are so many, so that the function sees exactly that number;
fewer only before a barrier, at the end, or when rows have waited for `_MAX_WAIT_MS`. A watermark that comes
while rows are held waits behind them, as it must not overtake them.

Where rows on which the function raises are left out (`operators.poison`), a batch for which it raises is handed
over again in halves, and so on down to single rows. Nothing that came of the failed call is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.tables import concat, slice_rows
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import ResultShape, UserFunction
from rayflow.operators.poison import PoisonRows, in_pieces
from rayflow.state.parts import RestoredPart, StatePart

BatchFormat = Literal["pyarrow", "pandas", "polars", "numpy"]

_MAX_WAIT_MS = 1_000


class MapBatchesOperator(Operator):
    """Replaces each batch by what `fn_or_class` returns for it: one result, or an iterator of results.

    The function gets a `pyarrow.RecordBatch`, a pandas or Polars `DataFrame`, or (`numpy`) a dict of arrays,
    and may return any of these, or a `pyarrow.Table`. `returns` None: see `ResultShape`.
    """

    state_place = "little"

    def __init__(
        self,
        fn_or_class: Callable[[Any], Any] | type,
        batch_format: BatchFormat,
        batch_size: int | None,
        returns: pa.Schema | None,
    ) -> None:
        self._function = UserFunction(fn_or_class)
        self._shape = ResultShape(self._function, returns)
        self._format = batch_format
        self._batch_size = batch_size
        self._held: list[pa.RecordBatch] = []
        self._held_rows = 0
        self._held_watermark: int | None = None
        self._due_ms: int | None = None

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._poison = PoisonRows(ctx, out, restored)
        self._function.open(ctx)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        if self._batch_size is None:
            self._call(rows)
            return
        self._held.append(rows)
        self._held_rows += rows.num_rows
        if self._held_rows >= self._batch_size:
            self._call_full_batches(self._batch_size)

    def _call_full_batches(self, size: int) -> None:
        pieces = slice_rows(concat(self._held), max_rows=size)
        rest = pieces.pop() if pieces[-1].num_rows < size else None
        self._held = [] if rest is None else [rest]
        self._held_rows = 0 if rest is None else rest.num_rows
        self._due_ms = None
        for piece in pieces:
            self._call(piece)
        if rest is None:
            self._release_watermark()

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`."""
        if not self._held:
            return watermark
        self._held_watermark = watermark
        return None

    def drained(self) -> bool:
        """See `Operator`."""
        return not self._held

    def next_timer_ms(self) -> int | None:
        """See `Operator`. Due at once when rows began to wait, to learn the time."""
        if not self._held:
            return None
        return 0 if self._due_ms is None else self._due_ms

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        if self._due_ms is None:
            self._due_ms = now_ms + _MAX_WAIT_MS
        elif now_ms >= self._due_ms:
            self._flush()

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Held rows belong before the barrier."""
        self._flush()
        return self._poison.snapshot()

    def end(self) -> None:
        """See `Operator`."""
        self._flush()

    def close(self) -> None:
        """See `Operator`."""
        self._function.close()

    def _flush(self) -> None:
        held, self._held, self._held_rows, self._due_ms = self._held, [], 0, None
        if held:
            self._call(concat(held))
        self._release_watermark()

    def _release_watermark(self) -> None:
        watermark, self._held_watermark = self._held_watermark, None
        if watermark is not None:
            self.out.emit_watermark(watermark)

    def _call(self, rows: pa.RecordBatch) -> None:
        if not self._poison.tolerant:
            for batch in self._made(rows):
                self.out.emit(batch)
            return
        pieces = in_pieces(rows, lambda piece: list(self._made(piece)), self._poison)
        self._poison.flush()
        if made := [batch for piece in pieces for batch in piece]:
            for batch in slice_rows(concat(made), max_rows=self.ctx.batch_rows):
                self.out.emit(batch)

    def _made(self, rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        with self._function.blamed(rows):
            returned = self._function(as_format(rows, self._format))
        results = returned if is_many(returned) else [returned]
        iterator = iter(results)
        while True:
            # The next result of a generator is made here; what is emitted is none of its business.
            with self._function.blamed(rows):
                try:
                    result = next(iterator)
                except StopIteration:
                    return
                table = as_table(result, self._function, rows)
            for batch in self._shape.batches_of_table(table, rows):
                if batch.num_rows:
                    yield batch


def as_table(result: Any, function: UserFunction, rows: pa.RecordBatch) -> pa.Table:
    """Return what a function returned for `rows` as a table. Raises `UserFunctionError` where it is none."""
    if isinstance(result, pa.Table):
        return result
    if isinstance(result, pa.RecordBatch):
        return pa.Table.from_batches([result])
    if isinstance(result, Mapping):
        return pa.table({name: _array(values) for name, values in result.items()})
    package = type(result).__module__.partition(".")[0]
    if package == "pandas" and hasattr(result, "columns"):
        return pa.Table.from_pandas(result, preserve_index=False)
    if package == "polars" and hasattr(result, "to_arrow") and hasattr(result, "columns"):
        return result.to_arrow()
    raise function.error(
        f"the function returned {type(result).__name__}, expected a pyarrow RecordBatch or Table, a pandas "
        "or Polars DataFrame, a dict of arrays, or an iterator of these",
        rows,
    )


def as_format(rows: pa.RecordBatch, batch_format: BatchFormat) -> Any:
    """Return `rows` as a function wants them."""
    return _FORMATS[batch_format](rows)


def is_many(returned: Any) -> bool:
    """Return whether a function returned an iterator of results, rather than one."""
    if isinstance(returned, (pa.RecordBatch, pa.Table, Mapping, str, bytes)) or hasattr(returned, "columns"):
        return False
    return isinstance(returned, Iterable)


def _array(values: Any) -> pa.Array:
    # Arrow takes arrays of one dimension; more become lists.
    return pa.array(list(values)) if isinstance(values, np.ndarray) and values.ndim > 1 else pa.array(values)


def _as_pyarrow(rows: pa.RecordBatch) -> Any:
    return rows


def _as_pandas(rows: pa.RecordBatch) -> Any:
    return rows.to_pandas()


def _as_polars(rows: pa.RecordBatch) -> Any:
    import polars

    return polars.from_arrow(rows)


def _as_numpy(rows: pa.RecordBatch) -> Any:
    return {
        name: column.to_numpy(zero_copy_only=False) for name, column in zip(rows.schema.names, rows.columns)
    }


_FORMATS: dict[str, Callable[[pa.RecordBatch], Any]] = {
    "pyarrow": _as_pyarrow,
    "pandas": _as_pandas,
    "polars": _as_polars,
    "numpy": _as_numpy,
}
