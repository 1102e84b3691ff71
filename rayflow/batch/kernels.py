"""What an expression's nodes compute: Arrow's compute functions, under rayflow's rules.

Arrow's kernels are called directly (10–100 µs a batch). The rules they are held to: integer overflow raises;
`/` is true division; `//` and `%` floor, as Python's do; `&`, `|` follow SQL's three-valued logic; timestamps
without zone are UTC. A *datum* is a `pa.Array` or a `pa.Scalar`; kernels broadcast scalars.

Dictionaries and string views are decoded where a kernel does not take them as they are.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.modulo import modulo, remainder
from rayflow.model.errors import PlanError

Datum = Any
"""A `pa.Array` or a `pa.Scalar`."""

_CHECKED = {"abs", "add", "multiply", "negate", "power", "shift_left", "shift_right", "subtract"}
"""Functions that would wrap around silently; their checked twins are called instead."""

_OTHER_ROWWISE = {"fill_null": 2, "dictionary_decode": 1}
"""Functions of pyarrow.compute that work row by row without being registered as scalar, and their arity."""


class UnknownFunctionError(PlanError, AttributeError):
    """An expression has no such method. Also an AttributeError, so that `hasattr` works."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"`, or an empty text where nothing is near."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


@lru_cache(maxsize=1)
def _registered() -> dict[str, tuple[str, int | None]]:
    """Return kind and arity (None: any number) of every function that Arrow registers."""
    functions = {name: pc.get_function(name) for name in pc.list_functions()}
    return {name: (f.kind, None if f.arity is Ellipsis else f.arity) for name, f in functions.items()}


def rowwise_functions() -> list[str]:
    """Return the names of all functions that expressions may call, sorted."""
    rowwise = {name for name, (kind, arity) in _registered().items() if kind == "scalar" and arity != 0}
    return sorted(rowwise | set(_OTHER_ROWWISE))


def data_arguments(name: str) -> int | None:
    """Return how many arguments of function `name` are data (None: all positional ones); the rest are options.

    Raises UnknownFunctionError for anything but a function that works row by row.
    """
    if name in _OTHER_ROWWISE:
        return _OTHER_ROWWISE[name]
    kind, arity = _registered().get(name.rstrip("_"), ("", None))
    if kind == "scalar" and arity != 0:
        return arity
    if kind == "scalar":
        raise UnknownFunctionError(f"function {name!r} takes no column: it cannot be called on an expression")
    if kind in ("vector", "meta"):
        raise UnknownFunctionError(
            f"function {name!r} looks at more than one row, so it is no expression of a stream; use an "
            "aggregate over key_by(...) or a window, or map_batches for whole batches"
        )
    if kind:
        raise UnknownFunctionError(
            f"aggregate {name!r} of pyarrow is not one of rayflow's aggregates; those are count, sum, min, "
            "max, mean, stddev, variance, first, last, count_distinct, approx_count_distinct, approx_quantile and "
            "collect_list"
        )
    raise UnknownFunctionError(f"unknown function {name!r}{nearest(name, rowwise_functions())}")


def bind_options(name: str, data_count: int, rest: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a call of function `name` by their names.

    Raises PlanError where they do not fit the function's signature.
    """
    function = getattr(pc, name)
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*(None,) * data_count, *rest, **named)
    except TypeError as error:
        raise PlanError(f"{name}{signature}, called on its first argument: {error}") from None
    data = {p.name for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.VAR_POSITIONAL)}
    data |= set(list(signature.parameters)[: _OTHER_ROWWISE.get(name, 0)])
    options = {key: value for key, value in bound.arguments.items() if key not in data}
    if "value_set" in options and not isinstance(options["value_set"], pa.Array):
        options["value_set"] = pa.array(list(options["value_set"]))
    return options


def call(name: str, data: list[Datum], options: dict[str, Any]) -> Datum:
    """Call function `name` of pyarrow.compute; integer overflow raises."""
    function = getattr(pc, f"{name}_checked" if name in _CHECKED else name)
    return apply(function, align(*data) if len(data) == 2 else data, options)


def apply(function: Callable[..., Datum], data: Iterable[Datum], options: dict[str, Any]) -> Datum:
    """Call `function`, decoding dictionaries and views where it has no kernel for them."""
    arguments = list(data)
    try:
        return function(*arguments, **options)
    except pa.ArrowNotImplementedError:
        decoded = [_decoded(argument) for argument in arguments]
        if all(new is old for new, old in zip(decoded, arguments)):
            raise
        return function(*decoded, **options)


def _decoded(datum: Datum) -> Datum:
    if pa.types.is_dictionary(datum.type):
        return datum.cast(datum.type.value_type)
    if pa.types.is_string_view(datum.type):
        return datum.cast(pa.string())
    if pa.types.is_binary_view(datum.type):
        return datum.cast(pa.binary())
    return datum


def align(left: Datum, right: Datum) -> tuple[Datum, Datum]:
    """Return two operands with literals, and zones of timestamps, fitted to each other."""
    if left.type == right.type:
        return left, right
    if pa.types.is_timestamp(left.type) and pa.types.is_timestamp(right.type):
        zone = left.type.tz or right.type.tz
        return _in_zone(left, zone), _in_zone(right, zone)
    return _fitted(left, right.type), _fitted(right, left.type)


def _in_zone(datum: Datum, zone: str | None) -> Datum:
    # A zone is only how an instant is shown; Arrow's cast takes a timestamp without one as UTC.
    return datum if datum.type.tz == zone else datum.cast(pa.timestamp(datum.type.unit, zone))


def _fitted(datum: Datum, other: pa.DataType) -> Datum:
    if not isinstance(datum, pa.Scalar):
        return datum
    if pa.types.is_null(datum.type):
        return pa.scalar(None, other)
    if pa.types.is_integer(datum.type) and datum.is_valid:
        # int64 and uint64 have no common type that holds both.
        if pa.types.is_uint64(other) and datum.as_py() >= 0:
            return datum.cast(other)
        # int64 as a decimal has 19 digits; the literal's own few leave room in the result.
        if pa.types.is_decimal(other):
            return pa.scalar(Decimal(datum.as_py()))
    return datum


def choose(conditions: list[Datum], values: list[Datum]) -> Datum:
    """Return by row the value of the first condition that is true, else the last value, or null where there
    is none more than conditions."""
    typed = [value.type for value in values if not pa.types.is_null(value.type)]
    if typed:
        values = [value.cast(typed[0]) if pa.types.is_null(value.type) else value for value in values]
    tests = pc.make_struct(*conditions, field_names=[str(index) for index in range(len(conditions))])
    return apply(lambda *plain: pc.case_when(tests, *plain), values, {})


def add(left: Datum, right: Datum) -> Datum:
    """Add; strings are joined."""
    if _is_text(left) and _is_text(right):
        return pc.binary_join_element_wise(left, right, "")
    return pc.add_checked(left, right)


def _is_text(datum: Datum) -> bool:
    return bool(pa.types.is_string(datum.type) or pa.types.is_large_string(datum.type))


def true_divide(left: Datum, right: Datum) -> Datum:
    """Divide; integers as float64 (by zero: inf or NaN), decimals as decimals, durations by numbers."""
    if pa.types.is_integer(left.type) and pa.types.is_integer(right.type):
        return pc.divide(left.cast(pa.float64(), safe=False), right.cast(pa.float64(), safe=False))
    return pc.divide(left, right)


def floor_divide(left: Datum, right: Datum) -> Datum:
    """Divide, rounding down. Integers and decimals raise on zero, floats give NaN."""
    if pa.types.is_integer(left.type) and pa.types.is_integer(right.type):
        quotient = pc.divide_checked(left, right)
        # Division truncates; modulo floors and remainder truncates: they differ exactly where it rounded up.
        rounded_up = pc.not_equal(modulo(left, right), remainder(left, right))
        return pc.subtract(quotient, rounded_up.cast(quotient.type))
    if pa.types.is_floating(left.type) or pa.types.is_floating(right.type):
        # Not floor(left / right): that quotient may round up to the next integer (1.0 // 0.1 is 9).
        return pc.round(pc.divide(pc.subtract(left, modulo(left, right)), right))
    return pc.floor(pc.divide(left, right))


OPERATORS: dict[str, Callable[[Datum, Datum], Datum]] = {
    "+": add,
    "-": pc.subtract_checked,
    "*": pc.multiply_checked,
    "/": true_divide,
    "//": floor_divide,
    "%": modulo,
    "**": pc.power_checked,
    "==": pc.equal,
    "!=": pc.not_equal,
    "<": pc.less,
    "<=": pc.less_equal,
    ">": pc.greater,
    ">=": pc.greater_equal,
    "&": pc.and_kleene,
    "|": pc.or_kleene,
    "^": pc.xor,
}
"""What Python's binary operators do."""

UNARY: dict[str, Callable[[Datum], Datum]] = {
    "-": pc.negate_checked,
    "~": pc.invert,
}
"""What Python's unary operators do."""
