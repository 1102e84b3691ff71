"""`rf.Aggregate`: aggregates that users write, and the expression that such an object becomes.

Theory of operation. An aggregate has a *state* per key (or per key and window). Users write it in one of two ways,
told apart by how many arguments `update` takes:

- `update(self, state, batch)`: the object is shared by all keys and never changes; states are plain data that
  `create` makes, `update` and `merge` return (or change in place, returning None), and `result` reads.
- `update(self, batch)`: every key has a copy of the object, whose `create` sets attributes that the other methods
  change and read; `merge(self, other)` and `result(self)` take no state. The attributes are the state.

`UserStates` makes both look alike to the accumulator that runs them.
"""

from __future__ import annotations

import copy
import inspect
import typing
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.type_hints import arrow_type
from rayflow.model.errors import PlanError

if TYPE_CHECKING:
    from rayflow.batch.expressions import Expr


class Aggregate(ABC):
    """A public contract: an aggregate of one's own, over the columns it is given.

        class GeometricMean(rf.Aggregate):
            result_type = "double"

            def create(self):
                return {"n": 0, "logs": 0.0}

            def update(self, state, batch):
                logs = pc.ln(batch.column(0).drop_null())
                return {"n": state["n"] + len(logs), "logs": state["logs"] + (pc.sum(logs).as_py() or 0.0)}

            def merge(self, left, right):
                return {"n": left["n"] + right["n"], "logs": left["logs"] + right["logs"]}

            def result(self, state):
                return math.exp(state["logs"] / state["n"]) if state["n"] else None

        stream.key_by("k").aggregate(mean=GeometricMean("price"))

    All methods are called on the task thread and should not block. States are plain data: None, booleans, numbers,
    text, bytes, decimals, dates and times, lists, tuples, sets, dicts of such, NumPy arrays. They are checkpointed
    as such, never pickled; anything else fails when it first appears. `update` and `merge` may change a
    state in place and return None. They may also be written without states, as `update(self, batch)`,
    `merge(self, other)` and `result(self)`: every key then has its own object, and its attributes are the state.

    An aggregate that also has `retract(self, state, batch)`, the reverse of `update`, works on upsert streams.
    """

    result_type: Any = None
    """Type of the results: an Arrow type, its name, or a Python type. Without one, the return hint of `result`."""

    _inputs: tuple[Expr, ...] = ()

    def __init__(self, *columns: str | Expr, returns: Any = None) -> None:
        """Aggregate these columns (names or expressions); none: all of the stream's. `returns` is the result type.

        A subclass may have arguments of its own, and pass the columns on to `super().__init__(*columns)`."""
        from rayflow.batch.expressions import Expr, col

        for column in columns:
            if not isinstance(column, str | Expr):
                raise PlanError(
                    f"{type(self).__name__}: expected columns (names or expressions); got {column!r}; arguments of "
                    "your own belong into an __init__ of your own, which passes the columns to super().__init__"
                )
        self._inputs = tuple(col(column) if isinstance(column, str) else column for column in columns)
        if returns is not None:
            self.result_type = returns

    @abstractmethod
    def create(self) -> Any:
        """Return the state of a key that has no rows. Called when its first ones come."""

    @abstractmethod
    def update(self, *state_and_batch: Any) -> Any:
        """`update(self, state, batch)`: return the state with the rows of `batch` (a `pyarrow.RecordBatch` of the
        columns, at least one row, nulls included) added. Called once per key and input batch."""

    @abstractmethod
    def merge(self, *states: Any) -> Any:
        """`merge(self, left, right)`: return the state of the rows of both. `right` is not used again."""

    @abstractmethod
    def result(self, *state: Any) -> Any:
        """`result(self, state)`: return the value for the rows so far, None for null. Must not change the state."""

    def filter(self, condition: Expr) -> AggregateExpr:
        """Aggregate only rows for which `condition` is true, as SQL's FILTER."""
        return as_aggregate(self).filter(condition)

    def alias(self, name: str) -> AggregateExpr:
        """Name the resulting column."""
        return as_aggregate(self).alias(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._inputs))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class UserAggregateExpr(AggregateExpr):
    """`function` over `inputs`; none: over all columns."""

    function: Aggregate = field(kw_only=True)
    inputs: tuple[Expr, ...] = field(kw_only=True)

    def columns(self) -> frozenset[str]:
        """Return the names of all columns it reads; not those it reads by reading all."""
        # Not super(): slots make the class anew, which Python 3.10 does not follow.
        read = AggregateExpr.columns(self)
        return read.union(*(expr.columns() for expr in self.inputs))

    def input_values(self, batch: pa.RecordBatch) -> pa.Array:
        """Return the columns to aggregate as one column of structs without nulls."""
        if not self.inputs:
            return batch.to_struct_array()
        arrays = [expr.evaluate(batch) for expr in self.inputs]
        return pa.StructArray.from_arrays(arrays, [expr.name for expr in self.inputs])

    def input_type(self, schema: pa.Schema) -> pa.DataType:
        """Return the struct type of the columns over batches of `schema`."""
        if not self.inputs:
            return pa.struct(list(schema))
        for name, times in Counter(expr.name for expr in self.inputs).items():
            if times > 1:
                raise PlanError(f"{self!r}: two columns are named {name!r}; give one of them .alias(name)")
        return pa.struct([pa.field(expr.name, expr.output_type(schema)) for expr in self.inputs])

    def output_type(self, schema: pa.Schema) -> pa.DataType:
        """Return the type of the result. Raises PlanError for whatever does not fit."""
        self.check_filter(schema)
        self.input_type(schema)
        UserStates(self.function)
        return _result_type(self.function)

    def __repr__(self) -> str:
        return self.shown(repr(self.function))


def as_aggregate(value: Any, what: str = "") -> AggregateExpr:
    """Return the expression for an aggregate: itself, or what an `Aggregate` (or a class of those) becomes.

    Raises PlanError, which begins with `what`, for anything else."""
    if isinstance(value, AggregateExpr):
        return value
    if isinstance(value, type) and issubclass(value, Aggregate):
        value = value()
    if isinstance(value, Aggregate):
        return UserAggregateExpr("user", function=value, inputs=value._inputs)
    raise PlanError(f"{what}{value!r} is not an aggregate; expected one such as rf.count() or col('x').sum()")


def _result_type(function: Aggregate) -> pa.DataType:
    given = function.result_type
    found = arrow_type(_return_hint(function.result) if given is None else given)
    if found is None:
        what = "has no result type" if given is None else f"has the result type {given!r}, which is not one"
        raise PlanError(
            f"{type(function).__name__} {what}; say result_type = pa.float64() in the class (an Arrow type, its name "
            "or a Python type), or annotate it: def result(self, state) -> float"
        )
    return found


def _return_hint(method: Any) -> Any:
    try:
        return typing.get_type_hints(method).get("return")
    except (NameError, TypeError):
        return None


class Style(Protocol):
    """One of the two ways to write an aggregate. States are opaque to the caller."""

    def create(self) -> Any:
        """Return an empty state."""

    def change(self, method: str, state: Any, batch: pa.RecordBatch) -> Any:
        """Return the state after `update` or `retract` with the rows of `batch`; it may be the same object."""

    def merge(self, left: Any, right: Any) -> Any:
        """Return the state of both."""

    def result(self, state: Any) -> Any:
        """Return the aggregate's value."""

    def data(self, state: Any) -> Any:
        """Return the state as plain data."""

    def state(self, data: Any) -> Any:
        """Return the state that `data` was made of."""

    def copied(self, state: Any) -> Any:
        """Return a copy that changes of the other do not touch."""


class UserStates:
    """How to run an `Aggregate`: its style, and whether rows can be taken back. Raises PlanError where the
    arguments of its methods fit neither way of writing one."""

    def __init__(self, function: Aggregate) -> None:
        separate = _arguments(function.update) != 1
        self.retractable = callable(getattr(function, "retract", None))
        wanted = {"create": 0, "update": 2, "merge": 2, "result": 1, "retract": 2}
        for method, count in wanted.items():
            written = getattr(function, method, None)
            expected = count if separate or count == 0 else count - 1
            if written is not None and _arguments(written) not in (expected, None):
                raise PlanError(
                    f"{type(function).__name__}.{method} takes {_arguments(written)} arguments, expected {expected}; "
                    "write create(self), update(self, state, batch), merge(self, left, right) and "
                    "result(self, state); or without states: update(self, batch), merge(self, other), result(self)"
                )
        self.style: Style = _SeparateStates(function) if separate else _OwnObjects(function)


def _arguments(method: Any) -> int | None:
    """Return how many arguments a bound method must be given; None where it takes any number."""
    parameters = inspect.signature(method).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters)


class _SeparateStates:
    """States are data beside the object."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def create(self) -> Any:
        return self._function.create()

    def change(self, method: str, state: Any, batch: pa.RecordBatch) -> Any:
        changed = getattr(self._function, method)(state, batch)
        return state if changed is None else changed

    def merge(self, left: Any, right: Any) -> Any:
        merged = self._function.merge(left, right)
        return left if merged is None else merged

    def result(self, state: Any) -> Any:
        return self._function.result(state)

    def data(self, state: Any) -> Any:
        return state

    def state(self, data: Any) -> Any:
        return data

    def copied(self, state: Any) -> Any:
        return copy.deepcopy(state)


_CHANGEABLE = (list, dict, set, bytearray, np.ndarray)
"""What keys must not share where the object's __init__ has set it."""


class _OwnObjects:
    """States are copies of the object; what they have beyond it is the data."""

    def __init__(self, function: Any) -> None:
        self._function = function

    def create(self) -> Any:
        made = copy.copy(self._function)
        for name, value in vars(made).items():
            if isinstance(value, _CHANGEABLE):
                setattr(made, name, copy.deepcopy(value))
        other = made.create()
        # create() may as well return an object that it made.
        return other if isinstance(other, type(made)) else made

    def change(self, method: str, state: Any, batch: pa.RecordBatch) -> Any:
        getattr(state, method)(batch)
        return state

    def merge(self, left: Any, right: Any) -> Any:
        merged = left.merge(right)
        return merged if isinstance(merged, type(left)) else left

    def result(self, state: Any) -> Any:
        return state.result()

    def data(self, state: Any) -> Any:
        common = vars(self._function)
        missing = object()
        return {name: value for name, value in vars(state).items() if value is not common.get(name, missing)}

    def state(self, data: Any) -> Any:
        made = copy.copy(self._function)
        vars(made).update(data)
        return made

    def copied(self, state: Any) -> Any:
        return self.state(copy.deepcopy(self.data(state)))
