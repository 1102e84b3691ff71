"""Users' Python functions inside operators: their life cycle, their errors, and the columns they make.

A function may be a plain one, a callable object, or a class, which is made once per subtask. An object may
have `open(ctx)`, called before its first row, and `close()`, called at the end whatever happened.

What it raises becomes a `UserFunctionError` with the operator's name, the user's line that made the operator,
the error's type and text with the innermost line of the user's own code, and the rows at hand.

Its output columns are those of `returns=`. Without that, the first results decide, and later ones must be the
same: a stream has one schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from rayflow.batch.tables import render_sample, rows_to_batch
from rayflow.model.errors import RayflowError, UserFunctionError
from rayflow.model.tracebacks import describe_error
from rayflow.observe.metrics import Counter
from rayflow.operators.contracts import OperatorContext

SCALAR_COLUMN = "value"
"""Column of results that are not rows, where nothing names it."""


class FunctionContext:
    """What `open(ctx)` of a user's function gets. Valid until `close`."""

    def __init__(self, ctx: OperatorContext) -> None:
        self._ctx = ctx
        self.subtask_index = ctx.subtask_index
        """Which of the operator's subtasks this is, from 0."""
        self.parallelism = ctx.parallelism
        """How many subtasks the operator has."""

    def counter(self, name: str) -> Counter:
        """Return the counter `name` of this operator; it shows up in the job's metrics."""
        return self._ctx.metrics.counter(name)


class UserFunction:
    """A user's function in one subtask."""

    def __init__(self, fn: Any) -> None:
        self._given = fn
        self._fn: Any = None

    def open(self, ctx: OperatorContext) -> None:
        """Make the function ready. Called once, first."""
        self.make(ctx)
        self.begin(FunctionContext(ctx))

    def make(self, ctx: OperatorContext) -> None:
        """The first half of `open`: make the instance, where a class was given."""
        self._ctx = ctx
        with self.blamed(None):
            self._fn = self._given() if isinstance(self._given, type) else self._given

    def begin(self, context: FunctionContext) -> None:
        """The second half of `open`: call the function's own `open(context)`."""
        hook = getattr(self._fn, "open", None)
        if callable(hook):
            with self.blamed(None):
                hook(context)

    @property
    def instance(self) -> Any:
        """The function, once it is made."""
        return self._fn

    def close(self) -> None:
        """Let the function release what it holds. Harmless where `open` failed or was never called."""
        hook = getattr(self._fn, "close", None)
        self._fn = None
        if callable(hook):
            hook()

    def __call__(self, *arguments: Any) -> Any:
        """Call the function; to be used within `blamed`."""
        return self._fn(*arguments)

    @contextmanager
    def blamed(self, rows: pa.RecordBatch | None) -> Iterator[None]:
        """Turn what the user's code raises within into a `UserFunctionError` with a sample of `rows`."""
        try:
            yield
        except RayflowError:
            raise
        except Exception as error:
            raise self.error(describe_error(error), rows) from error

    def error(self, cause: str, rows: pa.RecordBatch | None) -> UserFunctionError:
        """Return the error that says `cause` of this operator."""
        return user_error(self._ctx, cause, rows)


def user_error(ctx: OperatorContext, cause: str, rows: pa.RecordBatch | None) -> UserFunctionError:
    """Return a `UserFunctionError` for the operator of `ctx`, with a sample of `rows`."""
    return UserFunctionError(ctx.name, cause, ctx.location, None if rows is None else render_sample(rows))


class ResultShape:
    """The columns of a function's results: those of `returns`, else those of the first results."""

    def __init__(self, function: UserFunction, returns: pa.Schema | None) -> None:
        self._function = function
        self._returns = returns
        self._schema = returns

    def batch_of_rows(self, results: Sequence[Any], given: pa.RecordBatch) -> pa.RecordBatch | None:
        """Return results (dicts, dataclasses, or values of the one column) as a batch, None where there
        are none. `given` is shown in errors."""
        if not results:
            return None
        rows = [self._row(result, given) for result in results]
        try:
            batch = rows_to_batch(rows, self._schema)
        except ValueError as error:
            raise self._misfit(str(error), given) from error
        self._schema = batch.schema
        return batch

    def _row(self, result: Any, given: pa.RecordBatch) -> Mapping[str, Any]:
        if isinstance(result, Mapping):
            return result
        if dataclasses.is_dataclass(result) and not isinstance(result, type):
            return dataclasses.asdict(result)
        if self._schema is not None and len(self._schema) == 1:
            return {self._schema.names[0]: result}
        if self._schema is None and result is not None:
            return {SCALAR_COLUMN: result}
        expected = "a dict" if self._schema is None else f"a dict with {_names(self._schema)}"
        raise self._function.error(
            f"the function returned {result!r} ({type(result).__name__}), expected {expected}", given
        )

    def batches_of_table(self, table: pa.Table, given: pa.RecordBatch) -> list[pa.RecordBatch]:
        """Return `table`, a function's result, as batches of the expected columns."""
        table = _without_views(table)
        if self._schema is None:
            self._schema = table.schema.remove_metadata()
        fitted = self._fit(table, self._schema, given)
        batches: list[pa.RecordBatch] = fitted.combine_chunks().to_batches()
        return batches

    def _fit(self, table: pa.Table, schema: pa.Schema, given: pa.RecordBatch) -> pa.Table:
        if table.schema.names != schema.names and sorted(table.schema.names) != sorted(schema.names):
            raise self._misfit(f"expected the columns {_names(schema)}, got {_names(table.schema)}", given)
        columns = []
        for field in schema:
            column = table.column(field.name)
            if column.type != field.type:
                column = self._cast(column, field, given)
            if not field.nullable and column.null_count:
                raise self._misfit(
                    f"column {field.name!r}: expected no nulls, got {column.null_count}", given
                )
            columns.append(column)
        return pa.Table.from_arrays(columns, schema=schema)

    def _cast(self, column: pa.ChunkedArray, field: pa.Field, given: pa.RecordBatch) -> pa.ChunkedArray:
        if self._returns is None and not pa.types.is_null(column.type):
            raise self._misfit(f"column {field.name!r}: expected {field.type}, got {column.type}", given)
        try:
            return column.cast(field.type)
        except pa.ArrowException as error:
            raise self._misfit(
                f"column {field.name!r}: expected {field.type}, got {column.type}: {error}", given
            ) from error

    def _misfit(self, what: str, given: pa.RecordBatch) -> UserFunctionError:
        if self._returns is None and self._schema is not None:
            what += " as in the first results; say returns=, an Arrow schema, to settle the columns"
        elif self._returns is None:
            what += "; say returns=, an Arrow schema, to settle the columns"
        else:
            what = f"results do not fit returns=: {what}"
        return self._function.error(what, given)


def _without_views(table: pa.Table) -> pa.Table:
    # Arrow neither filters nor takes from string views, so no later operator could.
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    for index, field in enumerate(table.schema):
        if field.type in plain:
            as_plain = field.with_type(plain[field.type])
            table = table.set_column(index, as_plain, table.column(index).cast(as_plain.type))
    return table


def _names(schema: pa.Schema) -> str:
    return ", ".join(map(repr, schema.names))
