"""Operators that keep nothing between batches: projection, filter, Python functions, explode, identity.

They let the hidden column of upsert streams (`batch.changelog`) through and hide it from users' expressions
and functions. `MapBatchesOperator` and `AssignWatermarksOperator`, which do keep a little, have modules of
their own and are found here too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.changelog import (
    DELETE,
    INSERT,
    OP_COLUMN,
    OP_FIELD,
    UPDATE_AFTER,
    UPDATE_BEFORE,
    is_changelog,
    ops,
    visible,
    with_op,
)
from rayflow.batch.expressions import Expr
from rayflow.operators.assign_watermarks import AssignWatermarksOperator
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import ResultShape, UserFunction
from rayflow.operators.map_batches import MapBatchesOperator
from rayflow.state.parts import RestoredPart

__all__ = [
    "AssignWatermarksOperator",
    "ExplodeOperator",
    "FilterOperator",
    "FlatMapOperator",
    "IdentityOperator",
    "MapBatchesOperator",
    "MapOperator",
    "ProjectOperator",
]


class ProjectOperator(Operator):
    """Replaces the columns by `columns`, (name, expression) each."""

    def __init__(self, columns: Sequence[tuple[str, Expr]]) -> None:
        self._columns = tuple(columns)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        arrays = [expr.evaluate(rows) for _, expr in self._columns]
        projected = pa.RecordBatch.from_arrays(arrays, names=[name for name, _ in self._columns])
        if is_changelog(batch.schema):
            projected = projected.append_column(OP_FIELD, batch.column(OP_COLUMN))
        self.out.emit(projected)


class FilterOperator(Operator):
    """Keeps the rows for which `predicate` is true; null is not true.

    Of an upsert stream, an update to a row that is not kept deletes it: consumers replace rows by key, and
    would otherwise keep the row before. Deletions pass, since they need not carry the row's values; deleting
    a row that never came does nothing.

    With `old_rows` every change carries the row that goes, and consumers may count on that: a row goes exactly
    if it came. An update of which only the old row is kept becomes its deletion, one of which only the new row
    is kept an insertion.

    A function gets each row as a dict, or, with `scalar`, the value of the stream's one column.
    """

    def __init__(
        self, predicate: Expr | Callable[[Any], bool], scalar: bool = False, old_rows: bool = False
    ) -> None:
        self._old_rows = old_rows
        self._changes = _with_old_rows if old_rows else _with_deletions
        self._expr = predicate if isinstance(predicate, Expr) else None
        self._function = None if isinstance(predicate, Expr) else UserFunction(predicate)
        self._scalar = scalar

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        if self._function is not None:
            self._function.open(ctx)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        mask = self._mask(batch)
        if is_changelog(batch.schema):
            batch, mask = self._changes(batch, mask)
        kept = batch.filter(mask)
        if kept.num_rows:
            self.out.emit(batch if kept.num_rows == batch.num_rows else kept)

    def _mask(self, batch: pa.RecordBatch) -> pa.Array:
        rows = visible(batch)
        if self._expr is not None:
            return self._expr.evaluate(rows)
        assert self._function is not None
        asked = np.ones(rows.num_rows, np.bool_)
        if not self._old_rows and is_changelog(batch.schema):
            # A deletion may have no more than its key, which is no row to show to a function.
            asked = ops(batch) != DELETE
            rows = rows.filter(pa.array(asked))
        verdicts = _call_per_row(self._function, rows, self._scalar)
        kept = np.zeros(len(asked), np.bool_)
        kept[asked] = [bool(verdict) for verdict in verdicts]
        return pa.array(kept)

    def close(self) -> None:
        """See `Operator`."""
        if self._function is not None:
            self._function.close()


class MapOperator(Operator):
    """Replaces each row by what `fn` returns for it: a dict, or a value where the result has one column.

    `scalar`: the stream has one column and `fn` gets its value. `returns` None: see `ResultShape`.
    """

    def __init__(self, fn: Callable[[Any], Any] | type, returns: pa.Schema | None, scalar: bool) -> None:
        self._function = UserFunction(fn)
        self._shape = ResultShape(self._function, returns)
        self._scalar = scalar

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._function.open(ctx)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows = visible(batch)
        results = self._results(_call_per_row(self._function, rows, self._scalar), rows)
        made = self._shape.batch_of_rows(results, rows)
        if made is not None:
            self.out.emit(made)

    def _results(self, returned: list[Any], rows: pa.RecordBatch) -> list[Any]:
        return returned

    def close(self) -> None:
        """See `Operator`."""
        self._function.close()


class FlatMapOperator(MapOperator):
    """Replaces each row by all that `fn` yields or returns for it; None and empty make no row."""

    def _results(self, returned: list[Any], rows: pa.RecordBatch) -> list[Any]:
        results: list[Any] = []
        for index, many in enumerate(returned):
            if many is None:
                continue
            row = rows.slice(index, 1)
            if not isinstance(many, Iterable) or isinstance(many, (str, bytes, Mapping)):
                raise self._function.error(
                    f"the function returned {many!r} ({type(many).__name__}), expected a list or generator "
                    "of results; yield it, or use map for one result a row",
                    row,
                )
            # A generator runs here, so this is where it may raise.
            with self._function.blamed(row):
                results.extend(many)
        return results


class ExplodeOperator(Operator):
    """A row per element of the list column `column`, other columns repeated. A null or empty list makes no
    row, as Spark's `explode`; null elements stay."""

    def __init__(self, column: str) -> None:
        self._column = column

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        index = batch.schema.get_field_index(self._column)
        lists = batch.column(index)
        elements = pc.list_flatten(lists)
        if len(elements) == 0:
            return
        exploded = batch.take(pc.list_parent_indices(lists))
        self.out.emit(exploded.set_column(index, pa.field(self._column, elements.type), elements))


class IdentityOperator(Operator):
    """Passes rows on: where streams unite or are dealt out anew."""

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self.out.emit(batch)


def _with_deletions(batch: pa.RecordBatch, mask: pa.Array) -> tuple[pa.RecordBatch, pa.Array]:
    operations = ops(batch)
    keep = mask.fill_null(False).to_numpy(zero_copy_only=False)
    gone = (operations == UPDATE_AFTER) & ~keep | (operations == DELETE)
    if not gone.any():
        return batch, mask
    return with_op(batch, np.where(gone, np.int8(DELETE), operations)), pa.array(keep | gone)


def _with_old_rows(batch: pa.RecordBatch, mask: pa.Array) -> tuple[pa.RecordBatch, pa.Array]:
    operations = ops(batch)
    keep = mask.fill_null(False).to_numpy(zero_copy_only=False)
    # Both halves of an update stand side by side, unless a batch was cut between them: then each is for itself.
    second = np.zeros(len(keep), np.bool_)
    second[1:] = (operations[:-1] == UPDATE_BEFORE) & (operations[1:] == UPDATE_AFTER)
    first = np.append(second[1:], False)
    other_kept = np.where(first, np.append(keep[1:], False), np.insert(keep[:-1], 0, False))
    alone = ~((first | second) & other_kept)
    gone, came = alone & (operations == UPDATE_BEFORE), alone & (operations == UPDATE_AFTER)
    changed = np.where(gone, np.int8(DELETE), np.where(came, np.int8(INSERT), operations))
    if (changed != operations).any():
        batch = with_op(batch, changed)
    return batch, pa.array(keep)


def _call_per_row(function: UserFunction, rows: pa.RecordBatch, scalar: bool) -> list[Any]:
    """Return what the function returns for each row; blame it with the row for which it raises."""
    arguments = rows.column(0).to_pylist() if scalar else rows.to_pylist()
    results: list[Any] = []
    try:
        for argument in arguments:
            results.append(function(argument))
    except Exception as error:
        with function.blamed(rows.slice(len(results), 1)):
            raise error
    return results
