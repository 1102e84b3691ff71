"""Expressions over columns: `col("a") + 1`, written by users, evaluated by Arrow kernels a batch at a time.

Theory of operation
-------------------
An `Expr` is the face of a tree of `nodes`: operators, methods and functions build larger trees and compute
nothing. A plan is checked by the code that will run it: `output_type` evaluates over zero rows, so a type that
a kernel does not take fails when the plan is built, with the text of the expression. What operators mean on
data is in `kernels`.

A scalar function of `pyarrow.compute` becomes a method by `__getattr__`: its first arguments are data
(expressions or literals), the others options (plain values). Aggregates (`col("a").sum()`) are not expressions
but `AggregateExpr`s, and win over functions of that name.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayflow.batch import kernels, nodes
from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.ordering import SortKey
from rayflow.model.errors import PlanError


def _binary(operator: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: Expr(nodes.Binary(operator, self.node, as_expr(other).node))


def _reflected(operator: str) -> Callable[[Any, Any], Any]:
    return lambda self, other: Expr(nodes.Binary(operator, as_expr(other).node, self.node))


class Expr:
    """A value per row, computed from the columns of a batch. Immutable."""

    __slots__ = ("node",)
    __hash__ = None  # type: ignore[assignment]  # == builds an expression
    __array_ufunc__ = None  # lets NumPy scalars on the left hand over to the reflected operators

    def __init__(self, node: nodes.Node) -> None:
        self.node = node

    def evaluate(self, batch: pa.RecordBatch) -> pa.Array:
        """Return one value for each row of `batch`.

        Raises PlanError for a column that `batch` lacks, ExpressionError where values cannot be computed.
        """
        result = self.node.compute(batch)
        if isinstance(result, pa.Scalar):
            return pa.repeat(result, batch.num_rows)
        return result.combine_chunks() if isinstance(result, pa.ChunkedArray) else result

    def output_type(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of the result over batches of `schema`.

        Raises PlanError for an unknown column (naming the nearest), or where a type does not fit.
        """
        names = sorted(self.columns())
        types = [nodes.find_field(schema, name).type for name in names]
        batch = pa.RecordBatch.from_arrays([pa.nulls(0, type_) for type_ in types], names=names)
        try:
            return self.evaluate(batch).type
        except nodes.ExpressionError as error:
            given = ", ".join(f"{name}: {type_}" for name, type_ in zip(names, types))
            raise PlanError(f"{error}; the columns are {given or 'none'}") from error

    def columns(self) -> frozenset[str]:
        """Return the names of all columns it reads."""
        return self.node.columns()

    @property
    def name(self) -> str:
        """Name of the resulting column: the alias, else that of the leftmost column, else `literal`."""
        return self.node.name

    def alias(self, name: str) -> Expr:
        """Name the resulting column."""
        return Expr(nodes.Alias(self.node, name))

    def cast(self, type: Any, safe: bool = True) -> Expr:
        """Convert to an Arrow type, given as such, by name (`"int32"`, `"timestamp[ms]"`), or as Python's
        `int`, `float`, `str`, `bool`. A value that does not fit raises; with `safe=False` it is cut."""
        return Expr(nodes.Cast(self.node, as_type(type), safe))

    def between(self, low: Any, high: Any) -> Expr:
        """Whether low ≤ value ≤ high."""
        return Expr(nodes.Binary("&", (self >= low).node, (self <= high).node))

    def asc(self) -> SortKey:
        """Order by it, smallest first; for `top_n(order_by=)`."""
        return SortKey(self, descending=False)

    def desc(self) -> SortKey:
        """Order by it, largest first; for `top_n(order_by=)`."""
        return SortKey(self, descending=True)

    def count(self) -> AggregateExpr:
        """Aggregate: how many values are not null."""
        return AggregateExpr("count", self)

    def sum(self) -> AggregateExpr:
        """Aggregate: the sum."""
        return AggregateExpr("sum", self)

    def min(self) -> AggregateExpr:
        """Aggregate: the smallest value."""
        return AggregateExpr("min", self)

    def max(self) -> AggregateExpr:
        """Aggregate: the largest value."""
        return AggregateExpr("max", self)

    def mean(self) -> AggregateExpr:
        """Aggregate: the arithmetic mean."""
        return AggregateExpr("mean", self)

    def stddev(self) -> AggregateExpr:
        """Aggregate: the standard deviation of the sample; null for fewer than two values."""
        return AggregateExpr("stddev", self)

    def variance(self) -> AggregateExpr:
        """Aggregate: the variance of the sample; null for fewer than two values."""
        return AggregateExpr("variance", self)

    def first(self) -> AggregateExpr:
        """Aggregate: the first value by event time."""
        return AggregateExpr("first", self)

    def last(self) -> AggregateExpr:
        """Aggregate: the last value by event time."""
        return AggregateExpr("last", self)

    def count_distinct(self) -> AggregateExpr:
        """Aggregate: how many different values there are, exactly."""
        return AggregateExpr("count_distinct", self)

    def approx_count_distinct(self) -> AggregateExpr:
        """Aggregate: how many different values there are: exactly up to some hundreds, beyond with a standard error
        of 1.6 %, in 4 KiB."""
        return AggregateExpr("approx_count_distinct", self)

    def approx_quantile(self, q: float) -> AggregateExpr:
        """Aggregate: the value at or below which a fraction `q` (0 to 1) of all values lies: exactly up to 400 values,
        beyond one whose rank is within 0.7 % of `q` (in 99 of 100 cases), in 10 KiB. NaNs do not count."""
        return AggregateExpr("approx_quantile", self, params={"q": q})

    def collect_list(self) -> AggregateExpr:
        """Aggregate: all values, by event time."""
        return AggregateExpr("collect_list", self)

    def __getattr__(self, name: str) -> Callable[..., Expr]:
        if name.startswith("_"):
            raise AttributeError(name)
        kernels.data_arguments(name)  # fails at once where there is no such function
        return functools.partial(_call, name, self)

    def __bool__(self) -> bool:
        raise PlanError(
            f"{self!r} has no truth value before rows flow: use & | ~ for and, or, not, with parentheses "
            "around comparisons, and .between(low, high) for a < x < b"
        )

    def __repr__(self) -> str:
        return repr(self.node)

    __add__, __radd__ = _binary("+"), _reflected("+")
    __sub__, __rsub__ = _binary("-"), _reflected("-")
    __mul__, __rmul__ = _binary("*"), _reflected("*")
    __truediv__, __rtruediv__ = _binary("/"), _reflected("/")
    __floordiv__, __rfloordiv__ = _binary("//"), _reflected("//")
    __mod__, __rmod__ = _binary("%"), _reflected("%")
    __pow__, __rpow__ = _binary("**"), _reflected("**")
    __and__, __rand__ = _binary("&"), _reflected("&")
    __or__, __ror__ = _binary("|"), _reflected("|")
    __xor__, __rxor__ = _binary("^"), _reflected("^")
    __eq__, __ne__ = _binary("=="), _binary("!=")
    __lt__, __le__ = _binary("<"), _binary("<=")
    __gt__, __ge__ = _binary(">"), _binary(">=")

    def __neg__(self) -> Expr:
        return Expr(nodes.Unary("-", self.node))

    def __invert__(self) -> Expr:
        return Expr(nodes.Unary("~", self.node))

    def __abs__(self) -> Expr:
        return _call("abs", self)


def _call(function: str, *arguments: Any, **options: Any) -> Expr:
    """Return the call that the user wrote. Raises PlanError where arguments do not fit the function."""
    count = kernels.data_arguments(function)
    data = arguments if count is None else arguments[:count]
    rest = () if count is None else arguments[count:]
    if count is not None and len(data) < count:
        raise PlanError(f"{function}() takes {count - 1} more column(s) or value(s), got {len(data) - 1}")
    bound = kernels.bind_options(function, len(data), rest, options)
    for name, value in bound.items():
        if isinstance(value, Expr):
            raise PlanError(f"{function}(): option {name!r} must be a plain value, got {value!r}")
    inputs = tuple(as_expr(argument).node for argument in data)
    return Expr(nodes.Call(function, inputs, tuple(bound.items())))


class CaseExpr(Expr):
    """The value of the first branch whose condition is true (null counts as false), else the default.

    Null where no condition is true, until `otherwise` says what.
    """

    __slots__ = ("_case",)

    def __init__(self, case: nodes.Case) -> None:
        super().__init__(case)
        self._case = case

    def when(self, condition: Any) -> When:
        """Begin another branch."""
        return When(self._case.branches, as_expr(condition).node)

    def otherwise(self, value: Any) -> Expr:
        """Set the value where no condition is true."""
        return Expr(nodes.Case(self._case.branches, as_expr(value).node))


@dataclass(frozen=True, slots=True)
class When:
    """A condition that waits for its `then`."""

    branches: tuple[tuple[nodes.Node, nodes.Node], ...]
    condition: nodes.Node

    def then(self, value: Any) -> CaseExpr:
        """Set the value where the condition is true."""
        return CaseExpr(nodes.Case((*self.branches, (self.condition, as_expr(value).node))))


def col(name: str) -> Expr:
    """Return the column `name`."""
    if not isinstance(name, str):
        raise PlanError(f"col({name!r}): expected a column's name")
    return Expr(nodes.Column(name))


def lit(value: Any, type: Any = None) -> Expr:
    """Return the same value for every row: a Python value, or a `pa.Scalar`. `type` as for `cast`."""
    if isinstance(value, pa.Scalar):
        return Expr(nodes.Literal(value if type is None else value.cast(as_type(type))))
    try:
        return Expr(nodes.Literal(pa.scalar(value, None if type is None else as_type(type))))
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise PlanError(f"{value!r} cannot be a value in an expression: {error}") from None


def when(condition: Any) -> When:
    """Begin a case: `when(c).then(a).when(d).then(b).otherwise(z)`."""
    return When((), as_expr(condition).node)


def as_expr(value: Any) -> Expr:
    """Return `value` if it is an expression, else the literal of it. Raises PlanError for neither."""
    if isinstance(value, AggregateExpr):
        raise PlanError(
            f"{value!r} is an aggregate, which cannot be part of an expression: name it in aggregate(...), "
            "then compute with its column"
        )
    return value if isinstance(value, Expr) else lit(value)


_PYTHON_TYPES = {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_(), bytes: pa.binary()}


def as_type(type_: Any) -> pa.DataType:
    """Return the Arrow type that was given as such, by name, or as a Python type. PlanError for others."""
    if isinstance(type_, pa.DataType):
        return type_
    if isinstance(type_, type) and type_ in _PYTHON_TYPES:
        return _PYTHON_TYPES[type_]
    try:
        return pa.type_for_alias(type_)
    except (ValueError, TypeError):
        raise PlanError(
            f"unknown type {type_!r}: expected an Arrow type such as pa.int64(), its name such as 'int64' or "
            "'timestamp[ms]', or one of int, float, str, bool, bytes"
        ) from None
