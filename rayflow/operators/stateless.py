"""Operators that keep nothing between batches: projection, filter, Python functions, explode, identity.

What they do with rows on which they raise, `operators.poison` says; of upsert streams all must succeed.

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
from rayflow.batch.tables import concat
from rayflow.model.errors import RayflowError, UserFunctionError
from rayflow.model.tracebacks import describe_error
from rayflow.operators.assign_watermarks import AssignWatermarksOperator
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import ResultShape, UserFunction
from rayflow.operators.map_batches import MapBatchesOperator
from rayflow.operators.poison import PoisonRows, in_pieces
from rayflow.state.parts import RestoredPart, StatePart

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


class _Tolerant(Operator):
    """What these operators share: poison rows."""

    state_place = "little"

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._poison = PoisonRows(ctx, out, restored)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """See `Operator`."""
        return self._poison.snapshot()

    def _emit_pieces(self, pieces: Sequence[pa.RecordBatch]) -> None:
        self._poison.flush()
        if pieces:
            self.out.emit(concat(pieces))


class ProjectOperator(_Tolerant):
    """Replaces the columns by `columns`, (name, expression) each."""

    def __init__(self, columns: Sequence[tuple[str, Expr]]) -> None:
        self._columns = tuple(columns)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self._emit_pieces(in_pieces(batch, self._projected, self._poison))

    def _projected(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        rows = visible(batch)
        arrays = [expr.evaluate(rows) for _, expr in self._columns]
        projected = pa.RecordBatch.from_arrays(arrays, names=[name for name, _ in self._columns])
        if is_changelog(batch.schema):
            projected = projected.append_column(OP_FIELD, batch.column(OP_COLUMN))
        return projected


class FilterOperator(_Tolerant):
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
        pieces = in_pieces(batch, self._kept, self._poison)
        self._emit_pieces([piece for piece in pieces if piece.num_rows])

    def _kept(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        mask = self._mask(batch)
        if is_changelog(batch.schema):
            batch, mask = self._changes(batch, mask)
        kept = batch.filter(mask)
        return batch if kept.num_rows == batch.num_rows else kept

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
        function, verdicts = self._function, list[bool]()
        for index, argument in enumerate(arguments_of(rows, self._scalar)):
            try:
                verdicts.append(bool(function(argument)))
            except Exception as error:
                blamed = _blamed(function, rows.slice(index, 1), error)
                if not self._poison.tolerates(blamed):
                    raise blamed from error
                self._poison.add(rows.slice(index, 1), blamed)
                verdicts.append(False)
        kept = np.zeros(len(asked), np.bool_)
        kept[asked] = verdicts
        return pa.array(kept)

    def close(self) -> None:
        """See `Operator`."""
        if self._function is not None:
            self._function.close()


class MapOperator(_Tolerant):
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
        bad: dict[int, Exception] = {}
        made = self._made(rows, self._called(rows, bad), bad)
        for index in sorted(bad):
            self._poison.add(rows.slice(index, 1), bad[index])
        self._poison.flush()
        if made is not None:
            self.out.emit(made)

    def _called(self, rows: pa.RecordBatch, bad: dict[int, Exception]) -> list[Sequence[Any]]:
        """Return the results of every row; none, where the function raised, which goes into `bad`."""
        function, returned = self._function, list[Sequence[Any]]()
        for index, argument in enumerate(arguments_of(rows, self._scalar)):
            try:
                # A generator runs here, so this is where it may raise.
                returned.append(self._results(function(argument)))
            except Exception as error:
                blamed = _blamed(function, rows.slice(index, 1), error)
                if not self._poison.tolerates(blamed):
                    raise blamed from error
                bad[index] = blamed
                returned.append(())
        return returned

    def _results(self, returned: Any) -> Sequence[Any]:
        return (returned,)

    def _made(
        self, rows: pa.RecordBatch, returned: list[Sequence[Any]], bad: dict[int, Exception]
    ) -> pa.RecordBatch | None:
        """Return all results as one batch; rows whose results do not fit the columns go into `bad` too."""
        try:
            return self._shape.batch_of_rows([result for results in returned for result in results], rows)
        except UserFunctionError as error:
            if not self._poison.tolerates(error):
                raise
        fitting: list[Any] = []
        for index, results in enumerate(returned):
            try:
                self._shape.batch_of_rows(results, rows.slice(index, 1))
            except UserFunctionError as error:
                bad[index] = error
            else:
                fitting += results
        return self._shape.batch_of_rows(fitting, rows)

    def close(self) -> None:
        """See `Operator`."""
        self._function.close()


class FlatMapOperator(MapOperator):
    """Replaces each row by all that `fn` yields or returns for it; None and empty make no row."""

    def _results(self, returned: Any) -> Sequence[Any]:
        if returned is None:
            return ()
        if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes, Mapping)):
            raise _WrongKind(
                f"the function returned {returned!r} ({type(returned).__name__}), expected a list or generator "
                "of results; yield it, or use map for one result a row"
            )
        return list(returned)


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


def arguments_of(rows: pa.RecordBatch, scalar: bool) -> list[Any]:
    """Return what a function of rows is called with: dicts, or the values of the one column."""
    arguments: list[Any] = rows.column(0).to_pylist() if scalar else rows.to_pylist()
    return arguments


class _WrongKind(TypeError):
    """A function returned what it may not. The text says it all."""


def _blamed(function: UserFunction, row: pa.RecordBatch, error: Exception) -> RayflowError:
    """Return the error that blames the function, and the row for which it raised."""
    if isinstance(error, RayflowError):
        return error
    cause = str(error) if isinstance(error, _WrongKind) else describe_error(error)
    blamed = function.error(cause, row)
    blamed.__cause__ = error
    return blamed
