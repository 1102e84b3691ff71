"""All rows of a window handed to a user's function, when the window is complete.

Theory of operation. The rows of a window are state like any other: one aggregate, `collect_list` of whole rows, kept
in columns by whatever operator makes the windows, which need not know. This operator wraps that one. It takes what it
emits, a row per window with the list of the window's rows, calls the function for each, and emits what it
yields behind the key columns and the bounds. Time, timers and state are the wrapped operator's.

Rows come in order of event time, those of one time in order of arrival; without event time in order of arrival.

Where a window's result is updated (an allowed lateness, a trigger), the output is an upsert stream of whole rows: the
function is called again for the rows as they were, and what it yields for them is deleted. So it must give
the same for the same rows; what it puts aside or counts in such a call is put aside and counted too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.changelog import DELETE, INSERT, comes, is_changelog, ops, visible, with_op
from rayflow.batch.expressions import Expr
from rayflow.batch.nodes import Node
from rayflow.batch.python_values import pylist, row_dicts
from rayflow.batch.tables import slice_rows
from rayflow.model.times import WATERMARK_MIN
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import FunctionContext, ResultShape, UserFunction
from rayflow.operators.map_batches import BatchFormat, as_format, as_table, is_many
from rayflow.operators.process_functions import TimeFace
from rayflow.protocol.commits import CommitPermit
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.windows.bounds import WINDOW_END, WINDOW_START

ROWS = "__rows"
"""Name of the column with the lists of rows."""

_INT32_MAX = 2**31 - 1

_WINDOWS_AT_ONCE = 1024
"""Windows whose rows are copied out of the state at a time."""


def rows_of(schema: pa.Schema) -> AggregateExpr:
    """Return the aggregate that collects whole rows of `schema`."""
    return AggregateExpr("collect_list", Expr(_WholeRows(schema)))


@dataclass(frozen=True, slots=True, repr=False)
class _WholeRows(Node):
    """Each row as a struct. Types that Arrow cannot join or gather inside of one are replaced."""

    schema: pa.Schema

    def compute(self, batch: pa.RecordBatch) -> pa.Array:
        """See `Node`."""
        fields = [pa.field(field.name, _plain(field.type)) for field in self.schema]
        columns = [batch.column(field.name).cast(field.type) for field in fields]
        return pa.StructArray.from_arrays(columns, fields=fields)

    def columns(self) -> frozenset[str]:
        """See `Node`."""
        return frozenset(self.schema.names)

    @property
    def name(self) -> str:
        """See `Node`."""
        return "rows"

    def __repr__(self) -> str:
        return "rows"


def _plain(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    # Pools of rows outgrow the 2 GiB that 32-bit offsets reach.
    return _PLAIN.get(type_, type_)


_PLAIN = {
    pa.string(): pa.large_string(),
    pa.string_view(): pa.large_string(),
    pa.binary(): pa.large_binary(),
    pa.binary_view(): pa.large_binary(),
}


class WindowContext(FunctionContext):
    """What a function of windows may know besides the rows. One object; says what holds for the call at hand."""

    def __init__(self, ctx: OperatorContext, put_aside: Callable[[str, Any], None]) -> None:
        super().__init__(ctx)
        self._put_aside = put_aside
        self.current_key: Any = None
        """The key: a value, or a tuple where there are several key columns."""
        self.window_start: Any = None
        """As in the results, a datetime. Of count and global windows the smallest event time, None without."""
        self.window_end: Any = None
        """As in the results, a datetime. Of count and global windows the largest event time, None without."""
        self.watermark: Any = None
        """Event time up to which rows have come; `datetime.min` before the first, `datetime.max` at the end."""

    def output(self, tag: str, row: Mapping[str, Any]) -> None:
        """Put a row into the side output `tag`, which `stream.side_output(tag, returns=…)` reads."""
        self._put_aside(tag, row)


class ProcessWindowsOperator(Operator):
    """Calls `fn(rows, ctx)` for each window of the operator that `make` makes, whose last column is `ROWS`.

    `schema` is that of the rows; `keys` are names of key columns. `rows` is a list of dicts, or in
    `batch_format`. `returns` None: see `ResultShape`. Emits the key columns and the bounds, but for those that the
    function's results have too, then the results.
    """

    def __init__(
        self,
        make: Callable[[], Operator],
        fn: Any,
        keys: tuple[str, ...],
        schema: pa.Schema,
        time_type: pa.DataType | None,
        returns: pa.Schema | None,
        batch_format: BatchFormat | None = None,
    ) -> None:
        self._windows = make()
        self._function = UserFunction(fn)
        self._shape = ResultShape(self._function, returns)
        self._keys, self._schema, self._format = keys, schema, batch_format
        self._face = TimeFace(time_type)
        self._aside: dict[str, list[Any]] = {}
        self.state_place = self._windows.state_place

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._function.open(ctx)
        self._call = self._function.instance
        if not callable(self._call):
            self._call = self._call.process
        self._side_shapes = {tag: ResultShape(self._function, of) for tag, of in ctx.side_outputs.items()}
        self._context = WindowContext(ctx, self._put_aside)
        self._context.watermark = self._face.watermark(WATERMARK_MIN)
        few = replace(ctx, batch_rows=min(ctx.batch_rows, _WINDOWS_AT_ONCE))
        self._windows.open(few, _ToFunction(self._process_windows, out), restored)

    # ------------------------------------------------------------------- what the windows live by

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self._windows.process(batch, port)

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`."""
        self._context.watermark = self._face.watermark(watermark)
        return self._windows.on_watermark(watermark)

    def drained(self) -> bool:
        """See `Operator`."""
        return self._windows.drained()

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return self._windows.next_timer_ms()

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        self._windows.on_timer(now_ms)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """See `Operator`."""
        return self._windows.snapshot(checkpoint_id)

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        self._windows.notify_complete(permit)

    def end_input(self, port: int) -> None:
        """See `Operator`."""
        self._windows.end_input(port)

    def end(self) -> None:
        """See `Operator`."""
        self._windows.end()

    def close(self) -> None:
        """See `Operator`."""
        try:
            self._function.close()
        finally:
            self._windows.close()

    # --------------------------------------------------------------------------- complete windows

    def _process_windows(self, windows: pa.RecordBatch) -> None:
        bounds, lists = visible(windows), windows.column(ROWS)
        bounds = bounds.remove_column(bounds.schema.get_field_index(ROWS))
        self._results: list[Any] = []
        self._owners: list[int] = []
        self._emitted = 0
        rows = pa.RecordBatch.from_struct_array(lists.flatten())
        begins = np.cumsum(pc.fill_null(lists.value_lengths(), 0).to_numpy(zero_copy_only=False))
        pieces = self._pieces(rows, [0, *begins.tolist()])
        for window, (key, start, end) in enumerate(zip(*self._described(bounds))):
            context = self._context
            context.current_key, context.window_start, context.window_end = key, start, end
            given, sample = pieces(window)
            with self._function.blamed(sample):
                self._take(self._call(given, context), sample, window)
            if len(self._owners) >= self.ctx.batch_rows:
                self._emit(windows, bounds)
        self._emit(windows, bounds)

    def _described(self, bounds: pa.RecordBatch) -> tuple[Any, Any, Any]:
        """Return key, start and end of each window."""
        columns = {name: pylist(column) for name, column in zip(bounds.schema.names, bounds.columns)}
        nothing = [None] * bounds.num_rows
        keys = [columns[name] for name in self._keys]
        starts, ends = (columns.get(name, nothing) for name in (WINDOW_START, WINDOW_END))
        return (keys[0] if len(keys) == 1 else list(zip(*keys))), starts, ends

    def _pieces(self, rows: pa.RecordBatch, begins: list[int]) -> Callable[[int], tuple[Any, pa.RecordBatch]]:
        """Return what gives the rows of a window: as the function wants them, and as a batch."""
        if self._format is None:
            dicts = list(row_dicts(rows.schema.names, [pylist(c) for c in rows.columns], rows.num_rows))
            return lambda window: (
                dicts[begins[window] : begins[window + 1]],
                rows.slice(begins[window], begins[window + 1] - begins[window]),
            )
        batch_format = self._format
        # At once where that cannot outgrow 32-bit offsets: it costs a window as much as all.
        given = self._as_given(rows) if rows.nbytes <= _INT32_MAX else rows

        def piece(window: int) -> tuple[Any, pa.RecordBatch]:
            batch = given.slice(begins[window], begins[window + 1] - begins[window])
            return as_format(self._as_given(batch), batch_format), batch

        return piece

    def _as_given(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        """Return rows with the types of the input."""
        if rows.schema == self._schema:
            return rows
        columns = [column.cast(field.type) for column, field in zip(rows.columns, self._schema)]
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    # ------------------------------------------------------------------------------------ results

    def _take(self, returned: Any, sample: pa.RecordBatch, window: int) -> None:
        """Remember the results for a window. Generators run here."""
        if returned is None:
            return
        if self._format is not None:
            for result in returned if is_many(returned) else [returned]:
                table = as_table(result, self._function, sample)
                for batch in self._shape.batches_of_table(table, sample):
                    self._results.append(batch)
                    self._owners += [window] * batch.num_rows
            return
        one = not isinstance(returned, Iterable) or isinstance(returned, (str, bytes, Mapping))
        results = [returned] if one else list(returned)
        self._results += results
        self._owners += [window] * len(results)

    def _emit(self, windows: pa.RecordBatch, bounds: pa.RecordBatch) -> None:
        results, owners = self._results, np.array(self._owners, np.int64)
        self._results, self._owners = [], []
        for tag, rows in self._aside.items():
            if (aside := self._side_shapes[tag].batch_of_rows(rows, bounds)) is not None:
                self.out.emit_side(tag, aside)
        self._aside.clear()
        if len(owners) == 0:
            return
        if self._format is None:
            made = self._shape.batch_of_rows(results, bounds)
        else:
            made = pa.concat_batches([batch for batch in results if batch.num_rows])
        assert made is not None
        rows = self._behind_bounds(bounds.take(pa.array(owners)), made)
        if is_changelog(windows.schema):
            here = comes(ops(windows)[owners])
            rows = with_op(rows, np.where(here, INSERT, DELETE).astype(np.int8))
        for piece in slice_rows(rows, max_rows=self.ctx.batch_rows):
            self.out.emit(piece)

    @staticmethod
    def _behind_bounds(bounds: pa.RecordBatch, made: pa.RecordBatch) -> pa.RecordBatch:
        """Return keys and bounds, then results; a column that the results have too is theirs."""
        schema = result_schema(bounds.schema, made.schema)
        return pa.RecordBatch.from_arrays(
            [(made if name in made.schema.names else bounds).column(name) for name in schema.names],
            schema=schema,
        )

    def _put_aside(self, tag: str, row: Any) -> None:
        if tag not in self._side_shapes:
            self.ctx.metrics.counter("unread_side_rows").inc()
            return
        self._aside.setdefault(tag, []).append(row)


def result_schema(bounds: pa.Schema, results: pa.Schema) -> pa.Schema:
    """Return the columns of a process function's output: `bounds` are keys and bounds of windows. One that is
    in `results` too is the function's, in the place of the other."""
    first = [results.field(field.name) if field.name in results.names else field for field in bounds]
    return pa.schema([*first, *(field for field in results if field.name not in bounds.names)])


class _ToFunction:
    """The `Output` of the wrapped operator: rows go to the function, all else on."""

    def __init__(self, take: Callable[[pa.RecordBatch], None], out: Output) -> None:
        self.emit = take
        self.emit_side = out.emit_side
        self.emit_watermark = out.emit_watermark
        self.emit_idle = out.emit_idle
