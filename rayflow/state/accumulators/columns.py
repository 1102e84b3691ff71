"""A list of aggregate expressions bound to the columns of a stream: what keyed operators update per batch.

For every aggregate its input expression is evaluated on the batch, rows that its filter rejects or whose
value is null are taken out, and the rest goes to its accumulator under the rows' slots. Which key a slot
stands for is the operator's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.aggregates import AggregateExpr
from rayflow.state.accumulators.base import I64, Accumulator
from rayflow.state.accumulators.collections import lists
from rayflow.state.accumulators.lanes import Lane, Numbers
from rayflow.state.accumulators.making import make_accumulator, workable
from rayflow.state.accumulators.numeric import Count, int64s

_ROWS = "__rows"
"""Prefix of the state column that counts all rows of a slot, where rows can be taken back."""


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

    `retractable`: rows can be taken back (`retract`), and the rows of each slot are counted (`row_counts`), as
    operators on upsert streams need. That costs memory: see `making`.

    Raises PlanError for an aggregate that its input's type does not have, or that cannot take rows back.
    """

    def __init__(
        self,
        aggregates: Sequence[tuple[str, AggregateExpr]],
        input_schema: pa.Schema,
        *,
        retractable: bool = False,
    ) -> None:
        self._aggregates = [
            (name, expr, make_accumulator(name, expr, input_schema, retractable=retractable))
            for name, expr in aggregates
        ]
        self.fields = [pa.field(name, expr.output_type(input_schema)) for name, expr in aggregates]
        """The output columns."""
        self._rows = Count(pa.int64()) if retractable else None
        self._arrivals = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(accumulator.nbytes for _, accumulator in self._all())

    def _all(self) -> list[tuple[str, Accumulator]]:
        rows = [] if self._rows is None else [(_ROWS, self._rows)]
        return [*((name, accumulator) for name, _, accumulator in self._aggregates), *rows]

    def update(self, batch: pa.RecordBatch, slots: I64, slot_limit: int, times: I64 | None = None) -> None:
        """Add every row of `batch` under its slot. `times` are the rows' event times; where there are none,
        rows are ordered by arrival. Raises what the expressions raise."""
        if times is None:
            times = np.arange(self._arrivals, self._arrivals + batch.num_rows)
            self._arrivals += batch.num_rows
        self.reserve(slot_limit)
        if self._rows is not None:
            self._rows.update(slots, None, times)
        for accumulator, values, rows in self._inputs(batch):
            accumulator.update(slots[rows], values, times[rows])

    def retract(self, batch: pa.RecordBatch, slots: I64, slot_limit: int, times: I64 | None = None) -> None:
        """Take back every row of `batch`, as if it had never come. `times` as in `update`; without them, `first`,
        `last` and `collect_list` lose the earliest of several equal values.

        The rows must have been added: of a batch that adds and takes back, add first. What `results` gives then
        equals that of the rows left: exactly, but for sums, means and variances of doubles, and variances, which
        may differ in the last digits (see `compensated`)."""
        self.reserve(slot_limit)
        assert self._rows is not None, "made without retractable=True"
        self._rows.retract(slots, None, times)
        for accumulator, values, rows in self._inputs(batch):
            accumulator.retract(slots[rows], values, None if times is None else times[rows])

    def row_counts(self, slots: I64) -> I64:
        """Return how many rows `slots` have, those that filters reject and nulls too. Only if `retractable`."""
        assert self._rows is not None, "made without retractable=True"
        return self._rows.counts(slots)

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        for _, accumulator in self._all():
            accumulator.reserve(slot_limit)

    def _inputs(self, batch: pa.RecordBatch) -> Iterator[tuple[Accumulator, pa.Array | None, Any]]:
        """Yield for each aggregate that has any: the values of the rows that count, and which rows those are."""
        for _, expr, accumulator in self._aggregates:
            values = _workable_values(expr.input_values(batch))
            keep = _kept_rows(expr, batch, values)
            if keep is None:
                yield accumulator, values, slice(None)
                continue
            rows = keep.to_numpy(zero_copy_only=False)
            if rows.any():
                yield accumulator, None if values is None else values.filter(keep), rows

    def merge(self, table: pa.RecordBatch, slots: I64, slot_limit: int, *, by_arrival: bool = False) -> None:
        """Add states that `state_columns` gave, row i to `slots[i]`. `table` may have other columns before
        them, but none of their names. `by_arrival`: their times are no event times but numbers of arrival elsewhere,
        and whatever is in the table came after all that is here."""
        self.reserve(slot_limit)
        base = self._arrivals
        for name, accumulator in self._all():
            prefix = name + "."
            columns = {
                column.removeprefix(prefix): table.column(i)
                for i, column in enumerate(table.schema.names)
                if column.startswith(prefix)
            }
            accumulator.merge(slots, _later(columns, base) if by_arrival else columns)
            self._arrivals = max(self._arrivals, accumulator.latest_time + 1)

    def merge_slots(
        self, into: I64, from_: I64, slot_limit: int, source: AggregateColumns | None = None
    ) -> None:
        """Add the state of slot `from_[i]` of `source`, bound to the same aggregates, to that of `into[i]`. Without
        `source` both are slots of this one, and none is in both. Slots may occur more than once: sliding
        windows add up slices so, sessions what a bridge joins. `from_` keeps its state."""
        self.reserve(slot_limit)
        others = self._all() if source is None else source._all()
        for (_, accumulator), (_, other) in zip(self._all(), others, strict=True):
            accumulator.merge_slots(into, from_, other)
            accumulator.latest_time = max(accumulator.latest_time, other.latest_time)

    def state_columns(self, slots: I64) -> list[tuple[str, pa.Array]]:
        """Return the state of `slots` as it is now, see `FrozenAggregates`."""
        return FrozenAggregates(self._all()).state_columns(slots)

    def states_of_rows(self, batch: pa.RecordBatch, times: I64) -> list[tuple[str, pa.Array]]:
        """Return the state of every row, as if each had a slot of its own. There is nothing in any slot, before and
        after. Raises what the expressions raise."""
        assert self._rows is None, "rows that may be taken back have no states of their own"
        each = np.arange(batch.num_rows)
        found: list[tuple[str, pa.Array]] = []
        for name, expr, accumulator in self._aggregates:
            values = _workable_values(expr.input_values(batch))
            keep = _kept_rows(expr, batch, values)
            states = None if keep is not None else accumulator.states_of(batch.num_rows, values)
            if states is None:
                rows = slice(None) if keep is None else keep.to_numpy(zero_copy_only=False)
                if keep is not None and values is not None:
                    values = values.filter(keep)
                accumulator.reserve(batch.num_rows)
                accumulator.update(each[rows], values, times[rows])
                states = accumulator.state_columns(each)
                accumulator.clear(each)
            found += [(f"{name}.{part}", column) for part, column in states]
        return found

    def come_after(self, other: AggregateColumns) -> None:
        """Number arrivals on from where `other` has come to."""
        self._arrivals = other._arrivals

    @property
    def is_columnar(self) -> bool:
        """Whether no state is an object of its own, so that a state costs little more than its row."""
        return all(accumulator.is_columnar for _, accumulator in self._all())

    def lanes(self) -> list[Lane] | None:
        """Return all states as lanes, in the order of the aggregates; None where some are more than that."""
        lanes: list[Lane] = []
        for _, accumulator in self._all():
            own = accumulator.lanes()
            if own is None:
                return None
            lanes += own
        return lanes

    def results(self, slots: I64) -> list[pa.Array]:
        """Return the output columns for `slots`. Raises OverflowError naming the aggregate."""
        return self._results(lambda accumulator: accumulator.results(slots))

    def results_of(self, numbers: Sequence[Numbers]) -> list[pa.Array]:
        """As `results`, for states given as one array for each of `lanes`, which may be changed."""
        rest = iter(numbers)
        return self._results(lambda acc: acc.results_of([next(rest) for _ in acc.lanes() or ()]))

    def _results(self, make: Callable[[Accumulator], pa.Array]) -> list[pa.Array]:
        columns = []
        for (name, expr, accumulator), field in zip(self._aggregates, self.fields):
            try:
                column = make(accumulator)
            except OverflowError as error:
                raise OverflowError(f"aggregate {name!r} ({expr!r}): {error}") from error
            columns.append(column if column.type == field.type else column.cast(field.type))
        return columns

    def clear(self, slots: I64) -> None:
        """Forget `slots` (none given twice)."""
        for _, accumulator in self._all():
            accumulator.clear(slots)

    def freeze(self) -> FrozenAggregates:
        """Return the state as it is now, for building a snapshot on another thread."""
        return FrozenAggregates([(name, acc.freeze()) for name, acc in self._all()])


def _later(columns: Mapping[str, pa.Array], base: int) -> dict[str, pa.Array]:
    """Return a state with its times moved so that they begin at `base`."""
    moved = dict(columns)
    if "time" in moved:
        moved["time"] = _begun_at(base, moved["time"])
    if "times" in moved:
        times = moved["times"]
        moved["times"] = lists(int64s(times.value_lengths()), _begun_at(base, times.flatten()))
    return moved


def _begun_at(base: int, times: pa.Array) -> pa.Array:
    least = pc.min(times)
    return pc.add(times, pc.subtract(pa.scalar(base), least)) if least.is_valid else times


def _workable_values(values: pa.Array | None) -> pa.Array | None:
    if values is None or (type_ := workable(values.type)) == values.type:
        return values
    return values.cast(type_)


def _kept_rows(expr: AggregateExpr, batch: pa.RecordBatch, values: pa.Array | None) -> pa.Array | None:
    """Return which rows count, None for all."""
    keep = expr.selected(batch)
    if keep is not None and keep.null_count:
        keep = pc.fill_null(keep, False)
    if values is not None and values.null_count:
        keep = values.is_valid() if keep is None else pc.and_(keep, values.is_valid())
    return keep
