"""Which accumulator serves which aggregate.

Where rows can be taken back (`retractable`) each kind has its own way, and price:

| kind | retractable accumulator | memory |
|---|---|---|
| count; sum, mean of integers and decimals | the same one, which subtracts; exact | the same |
| sum, mean, stddev, variance of floats; stddev, variance | `compensated`: 106-bit sums | 48 to 64 bytes a slot |
| min, max, count_distinct | `multiset`: every distinct value, and how often | by distinct value and slot |
| first, last, collect_list | `multiset`: every value with its time | by row |

A value must then be comparable: what cannot be a key (lists, structs, maps) cannot be kept in a multiset.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.user_aggregates import UserAggregateExpr, UserStates
from rayflow.model.errors import PlanError
from rayflow.state.accumulators.base import Accumulator
from rayflow.state.accumulators.collections import CollectList, CountDistinct
from rayflow.state.accumulators.compensated import RetractableMoments
from rayflow.state.accumulators.extremes import FixedExtreme, PooledExtreme
from rayflow.state.accumulators.multiset import (
    RetractableBest,
    RetractableByTime,
    RetractableDistinct,
    RetractableList,
)
from rayflow.state.accumulators.numeric import Count, ExactSum, FloatSum, Variance
from rayflow.state.accumulators.ordered import ByTime
from rayflow.state.accumulators.sketches import DistinctSketches, QuantileSketches
from rayflow.state.accumulators.user_states import UserStatesBySlot
from rayflow.state.fixed_width import is_fixed_width


def workable(type_: pa.DataType) -> pa.DataType:
    """Return the type as which values of `type_` are accumulated."""
    # Arrow neither filters nor takes from views, and has few functions for narrow decimals.
    if pa.types.is_string_view(type_):
        return pa.large_string()
    if pa.types.is_binary_view(type_):
        return pa.large_binary()
    if pa.types.is_decimal32(type_) or pa.types.is_decimal64(type_):
        return pa.decimal128(type_.precision, type_.scale)
    return type_


def make_accumulator(
    name: str, expr: AggregateExpr, input_schema: pa.Schema, *, retractable: bool = False
) -> Accumulator:
    """Return an empty accumulator for `expr`, the aggregate called `name`; `retractable`: one that has `retract`.

    Raises PlanError where its input's type does not fit."""
    output = expr.output_type(input_schema)
    if expr.kind == "count":
        return Count(output)
    if isinstance(expr, UserAggregateExpr):
        return _user(name, expr, output, retractable)
    input_ = workable(expr.input_type(input_schema))
    makers = _RETRACTABLE if retractable else _MAKERS
    if expr.kind not in makers:
        raise PlanError(
            f"aggregate {name!r}: {expr!r} is not possible on an upsert stream, since a sketch forgets what it "
            "was made of and cannot take rows back; use an exact aggregate, or a window before it"
        )
    try:
        accumulator = makers[expr.kind](input_, output, **expr.params)
        _try_out(accumulator, input_, retractable)
    except (TypeError, pa.ArrowException) as error:
        what = f"{expr!r}: {expr.kind} of {input_}" + (" on an upsert stream" if retractable else "")
        raise PlanError(
            f"aggregate {name!r}: {what} is not possible: {error}; cast it, or drop it"
        ) from error
    return accumulator


def _try_out(accumulator: Accumulator, input_: pa.DataType, retractable: bool) -> None:
    """Run all that rows will run, without rows: what Arrow cannot do with a type shows when the plan is built."""
    nothing, values = np.zeros(0, np.int64), pa.array([], input_)
    accumulator.reserve(1)
    accumulator.update(nothing, values, nothing)
    if retractable:
        accumulator.retract(nothing, values, nothing)
    accumulator.merge(nothing, dict(accumulator.state_columns(nothing)))
    accumulator.results(np.zeros(1, np.int64))


def _user(name: str, expr: UserAggregateExpr, output: pa.DataType, retractable: bool) -> Accumulator:
    states = UserStates(expr.function)
    if retractable and not states.retractable:
        raise PlanError(
            f"aggregate {name!r}: {expr!r} is not possible on an upsert stream unless it can take rows back; give "
            f"{type(expr.function).__name__} a method retract, the reverse of update"
        )
    return UserStatesBySlot(name, states.style, output)


def _added(kind: str) -> Maker:
    def make(input_: pa.DataType, output: pa.DataType) -> Accumulator:
        if pa.types.is_floating(input_):
            return FloatSum(output, mean=kind == "mean")
        return ExactSum(input_, output, mean=kind == "mean")

    return make


def _retractable_added(kind: str) -> Maker:
    def make(input_: pa.DataType, output: pa.DataType) -> Accumulator:
        return (
            _moments(kind)(input_, output) if pa.types.is_floating(input_) else _added(kind)(input_, output)
        )

    return make


def _moments(kind: str) -> Maker:
    return lambda input_, output: RetractableMoments(kind, output)


def _extreme(*, largest: bool) -> Maker:
    def make(input_: pa.DataType, output: pa.DataType) -> Accumulator:
        if is_fixed_width(input_):
            return FixedExtreme(input_, largest=largest)
        return PooledExtreme(input_, largest=largest)

    return make


def _retractable_extreme(*, largest: bool) -> Maker:
    return lambda input_, output: RetractableBest(input_, _extreme(largest=largest)(input_, output))


Maker = Callable[..., Accumulator]
"""Makes an accumulator for types of input and output, and the parameters of the aggregate."""

_MAKERS: dict[str, Maker] = {
    "sum": _added("sum"),
    "mean": _added("mean"),
    "stddev": lambda input_, output: Variance(output, root=True),
    "variance": lambda input_, output: Variance(output, root=False),
    "min": _extreme(largest=False),
    "max": _extreme(largest=True),
    "first": lambda input_, output: ByTime(input_, last=False),
    "last": lambda input_, output: ByTime(input_, last=True),
    "count_distinct": CountDistinct,
    "approx_count_distinct": DistinctSketches,
    "approx_quantile": QuantileSketches,
    "collect_list": CollectList,
}

_RETRACTABLE: dict[str, Maker] = {
    "sum": _retractable_added("sum"),
    "mean": _retractable_added("mean"),
    "stddev": _moments("stddev"),
    "variance": _moments("variance"),
    "min": _retractable_extreme(largest=False),
    "max": _retractable_extreme(largest=True),
    "first": lambda input_, output: RetractableByTime(input_, ByTime(input_, last=False)),
    "last": lambda input_, output: RetractableByTime(input_, ByTime(input_, last=True)),
    "count_distinct": RetractableDistinct,
    "collect_list": RetractableList,
}
