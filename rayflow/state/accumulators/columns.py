"""A list of aggregate expressions bound to the columns of a stream: what keyed operators update per batch.

For every aggregate its input expression is evaluated on the batch, rows that its filter rejects or whose
value is null are taken out, and the rest goes to its accumulator under the rows' slots. Which key a slot
stands for is the operator's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.aggregates import AggregateExpr
from rayflow.model.errors import PlanError
from rayflow.state.accumulators.base import I64, Accumulator
from rayflow.state.accumulators.collections import CollectList, CountDistinct
from rayflow.state.accumulators.extremes import FixedExtreme, PooledExtreme
from rayflow.state.accumulators.numeric import Count, ExactSum, FloatSum, Variance
from rayflow.state.accumulators.ordered import ByTime
from rayflow.state.fixed_width import is_fixed_width


class FrozenAggregates:
    """The state of `AggregateColumns` at one moment. Immutable: may be read on any thread."""

    def __init__(self, accumulators: Sequence[tuple[str, Accumulator]]) -> None:
        self._accumulators = accumulators

    def state_columns(self, slots: I64) -> list[tuple[str, pa.Array]]:
        """Return the state of `slots`: columns named `<aggregate>.<part>`, a row per slot."""
        return [
            (f"{name}.{part}", column)
            for name, accumulator in self._accumulators
            for part, column in accumulator.state_columns(slots)
        ]


class AggregateColumns:
    """Accumulators for `aggregates`, (output name, expression) each, over rows of `input_schema`.

    Raises PlanError for an aggregate that its input's type does not have.
    """

    def __init__(self, aggregates: Sequence[tuple[str, AggregateExpr]], input_schema: pa.Schema) -> None:
        self._aggregates = [
            (name, expr, make_accumulator(name, expr, input_schema)) for name, expr in aggregates
        ]
        self.fields = [pa.field(name, expr.output_type(input_schema)) for name, expr in aggregates]
        """The output columns."""
        self._arrivals = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(accumulator.nbytes for _, _, accumulator in self._aggregates)

    def update(self, batch: pa.RecordBatch, slots: I64, slot_limit: int, times: I64 | None = None) -> None:
        """Add every row of `batch` under its slot. `times` are the rows' event times; where there are none,
        rows are ordered by arrival. Raises what the expressions raise."""
        if times is None:
            times = np.arange(self._arrivals, self._arrivals + batch.num_rows)
            self._arrivals += batch.num_rows
        for _, expr, accumulator in self._aggregates:
            accumulator.reserve(slot_limit)
            values = _workable_values(expr.input_values(batch))
            keep = _kept_rows(expr, batch, values)
            if keep is None:
                accumulator.update(slots, values, times)
                continue
            rows = keep.to_numpy(zero_copy_only=False)
            if not rows.any():
                continue
            kept = None if values is None else values.filter(keep)
            accumulator.update(slots[rows], kept, times[rows])

    def merge(self, table: pa.RecordBatch, slots: I64, slot_limit: int) -> None:
        """Add states that `state_columns` gave, row i to `slots[i]`. `table` may have other columns before
        them, but none of their names."""
        for name, _, accumulator in self._aggregates:
            prefix = name + "."
            accumulator.reserve(slot_limit)
            columns = {
                column.removeprefix(prefix): table.column(i)
                for i, column in enumerate(table.schema.names)
                if column.startswith(prefix)
            }
            accumulator.merge(slots, columns)
            self._arrivals = max(self._arrivals, accumulator.latest_time + 1)

    def results(self, slots: I64) -> list[pa.Array]:
        """Return the output columns for `slots`. Raises OverflowError naming the aggregate."""
        columns = []
        for (name, expr, accumulator), field in zip(self._aggregates, self.fields):
            try:
                column = accumulator.results(slots)
            except OverflowError as error:
                raise OverflowError(f"aggregate {name!r} ({expr!r}): {error}") from error
            columns.append(column if column.type == field.type else column.cast(field.type))
        return columns

    def clear(self, slots: I64) -> None:
        """Forget `slots` (none given twice)."""
        for _, _, accumulator in self._aggregates:
            accumulator.clear(slots)

    def freeze(self) -> FrozenAggregates:
        """Return the state as it is now, for building a snapshot on another thread."""
        return FrozenAggregates([(name, acc.freeze()) for name, _, acc in self._aggregates])


# Arrow neither filters nor takes from views.
_WORKABLE = {pa.string_view(): pa.large_string(), pa.binary_view(): pa.large_binary()}


def _workable_values(values: pa.Array | None) -> pa.Array | None:
    if values is None or values.type not in _WORKABLE:
        return values
    return values.cast(_WORKABLE[values.type])


def _kept_rows(expr: AggregateExpr, batch: pa.RecordBatch, values: pa.Array | None) -> pa.Array | None:
    """Return which rows count, None for all."""
    keep = expr.selected(batch)
    if keep is not None and keep.null_count:
        keep = pc.fill_null(keep, False)
    if values is not None and values.null_count:
        keep = values.is_valid() if keep is None else pc.and_(keep, values.is_valid())
    return keep


def make_accumulator(name: str, expr: AggregateExpr, input_schema: pa.Schema) -> Accumulator:
    """Return an empty accumulator for `expr`. Raises PlanError where its input's type does not fit."""
    output = expr.output_type(input_schema)
    if expr.kind == "count":
        return Count(output)
    input_ = expr.input_type(input_schema)
    input_ = _WORKABLE.get(input_, input_)
    maker = _MAKERS.get(expr.kind)
    if maker is None:
        raise PlanError(
            f"aggregate {name!r}: {expr.kind} is not known; known are count, {', '.join(_MAKERS)}"
        )
    try:
        return maker(input_, output)
    except TypeError as error:
        raise PlanError(f"aggregate {name!r}: {expr.kind} of {input_} is not possible: {error}") from error


def _sum(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return _added(input_, output, mean=False)


def _mean(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return _added(input_, output, mean=True)


def _added(input_: pa.DataType, output: pa.DataType, *, mean: bool) -> Accumulator:
    if pa.types.is_floating(input_):
        return FloatSum(output, mean=mean)
    return ExactSum(input_, output, mean=mean)


def _variance(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return Variance(output, root=False)


def _stddev(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return Variance(output, root=True)


def _min(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return _extreme(input_, largest=False)


def _max(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return _extreme(input_, largest=True)


def _extreme(input_: pa.DataType, *, largest: bool) -> Accumulator:
    if is_fixed_width(input_):
        return FixedExtreme(input_, largest=largest)
    return PooledExtreme(input_, largest=largest)


def _first(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return ByTime(input_, last=False)


def _last(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return ByTime(input_, last=True)


def _collect_list(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return CollectList(input_, output)


def _count_distinct(input_: pa.DataType, output: pa.DataType) -> Accumulator:
    return CountDistinct(input_, output)


_MAKERS: dict[str, Callable[[pa.DataType, pa.DataType], Accumulator]] = {
    "sum": _sum,
    "min": _min,
    "max": _max,
    "mean": _mean,
    "stddev": _stddev,
    "variance": _variance,
    "first": _first,
    "last": _last,
    "count_distinct": _count_distinct,
    "collect_list": _collect_list,
}
