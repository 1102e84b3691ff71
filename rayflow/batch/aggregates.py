"""What an aggregate computes: kind, input, filter and result type. How, is the operators' business.

The rules are SQL's: nulls are skipped, `count()` alone counts rows; over no values the
counts give 0, everything else null.

| kind | takes | gives |
|---|---|---|
| count, count_distinct | anything (count_distinct: what can be a key) | int64 |
| sum | integers; unsigned; floats; decimals | int64; uint64; double; decimal of 38 (256 bit: 76) digits, same scale |
| mean, stddev, variance | numbers (decimals are computed as doubles) | double |
| min, max | anything ordered | the input's type |
| first, last | anything | the input's type |
| collect_list | anything | list of the input's type |
| approx_count_distinct | what can be a key | int64 |
| approx_quantile | numbers (computed as doubles); dates, times, durations | double; the input's type |

The approximate ones keep sketches of bounded size (`state.accumulators.sketches` has their error bounds).
`rf.Aggregate`s of users (kind "user") are in `user_aggregates`.

A dictionary counts as its values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rayflow.batch.hashing import check_key_type
from rayflow.model.errors import PlanError

if TYPE_CHECKING:
    from rayflow.batch.expressions import Expr

AggregateKind = Literal[
    "count",
    "sum",
    "min",
    "max",
    "mean",
    "stddev",
    "variance",
    "first",
    "last",
    "count_distinct",
    "collect_list",
    "approx_count_distinct",
    "approx_quantile",
    "user",
]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AggregateExpr:
    """One aggregate. `input` None: rows are counted. `where`: only rows for which it is true (not null) count.

    `params` belong to the kind. `name` is the alias, None without.
    """

    kind: AggregateKind
    input: Expr | None = None
    where: Expr | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    name: str | None = None

    def filter(self, condition: Expr) -> AggregateExpr:
        """Aggregate only rows for which `condition` is true, as SQL's FILTER; several must all be true."""
        return replace(self, where=condition if self.where is None else self.where & condition)

    def alias(self, name: str) -> AggregateExpr:
        """Name the resulting column."""
        return replace(self, name=name)

    def columns(self) -> frozenset[str]:
        """Return the names of all columns it reads."""
        return frozenset().union(*(expr.columns() for expr in (self.input, self.where) if expr is not None))

    def input_values(self, batch: pa.RecordBatch) -> pa.Array | None:
        """Return the values to aggregate, one a row of `batch`, dictionaries decoded; None: rows are counted."""
        if self.input is None:
            return None
        values = self.input.evaluate(batch)
        return values.dictionary_decode() if pa.types.is_dictionary(values.type) else values

    def selected(self, batch: pa.RecordBatch) -> pa.Array | None:
        """Return which rows the filter lets through, as booleans (null: not); None where there is none."""
        return None if self.where is None else self.where.evaluate(batch)

    def input_type(self, schema: pa.Schema) -> pa.DataType | None:
        """Return the type of `input_values` over batches of `schema`. Raises PlanError as `Expr.output_type`."""
        if self.input is None:
            return None
        type_ = self.input.output_type(schema)
        return type_.value_type if pa.types.is_dictionary(type_) else type_

    def output_type(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of the result over batches of `schema`.

        Raises PlanError for unknown columns, an input the kind does not take, a filter that is not boolean.
        """
        self.check_filter(schema)
        type_ = self.input_type(schema)
        return pa.int64() if type_ is None else _RESULTS[self.kind](self, type_)

    def check_filter(self, schema: pa.Schema) -> None:
        """Raise PlanError where the filter is not boolean over batches of `schema`."""
        if self.where is not None:
            where_type = self.where.output_type(schema)
            if not pa.types.is_boolean(where_type):
                raise PlanError(f"{self!r}: the filter is of type {where_type}, expected bool")

    def refuse(self, type_: pa.DataType, expected: str) -> PlanError:
        """Return the error for an input of a wrong type."""
        return PlanError(f"{self!r}: the input is of type {type_}, expected {expected}; cast it, or drop it")

    def __repr__(self) -> str:
        inner = ", ".join(f"{key}={value!r}" for key, value in self.params.items())
        text = f"{self.kind}({inner})" if self.input is None else f"{self.input!r}.{self.kind}({inner})"
        return self.shown(text)

    def shown(self, text: str) -> str:
        """Return `text`, which says what is aggregated, with filter and alias."""
        text = text if self.where is None else f"{text}.filter({self.where!r})"
        return text if self.name is None else f'{text}.alias("{self.name}")'


def count() -> AggregateExpr:
    """Aggregate: the number of rows."""
    return AggregateExpr("count")


def _count(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    return pa.int64()


def _count_distinct(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    check_key_type(repr(aggregate), type_)
    return pa.int64()


def _sum(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    if pa.types.is_unsigned_integer(type_):
        return pa.uint64()
    if pa.types.is_integer(type_):
        return pa.int64()
    if pa.types.is_floating(type_):
        return pa.float64()
    if pa.types.is_decimal256(type_):
        return pa.decimal256(76, type_.scale)
    if pa.types.is_decimal(type_):
        return pa.decimal128(38, type_.scale)
    raise aggregate.refuse(type_, "integers, floats or decimals")


def _moment(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return pa.float64()
    raise aggregate.refuse(type_, "integers, floats or decimals")


def _quantile(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    q = aggregate.params["q"]
    if isinstance(q, bool) or not isinstance(q, int | float) or not 0 <= q <= 1:
        raise PlanError(
            f"{aggregate!r}: q is {q!r}, expected a number from 0 (the smallest) to 1 (the largest)"
        )
    if pa.types.is_temporal(type_) and not pa.types.is_interval(type_):
        return type_
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return pa.float64()
    raise aggregate.refuse(type_, "integers, floats, decimals, dates, times or durations")


def _extreme(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    if pa.types.is_nested(type_) or pa.types.is_null(type_):
        raise aggregate.refuse(type_, "numbers, booleans, strings, binaries, dates, times or durations")
    return type_


def _any(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    return type_


def _list(aggregate: AggregateExpr, type_: pa.DataType) -> pa.DataType:
    return pa.list_(type_)


_RESULTS = {
    "count": _count,
    "count_distinct": _count_distinct,
    "sum": _sum,
    "mean": _moment,
    "stddev": _moment,
    "variance": _moment,
    "min": _extreme,
    "max": _extreme,
    "first": _any,
    "last": _any,
    "collect_list": _list,
    "approx_count_distinct": _count_distinct,
    "approx_quantile": _quantile,
}
"""Result type by kind."""
