"""Nodes of expression trees: how an expression is evaluated over a batch.

A tree is immutable and holds names and values only, so it pickles. `compute` walks it bottom-up: columns and
literals at the leaves; operators, function calls, casts and cases above. Literals stay scalars, and kernels
broadcast them. Where values cannot be computed, the innermost expression that failed is named.
Users never see nodes: they hold an `Expr`, see `expressions`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch import kernels
from rayflow.batch.changelog import OP_COLUMN
from rayflow.batch.kernels import Datum
from rayflow.model.errors import PlanError


class ExpressionError(ValueError):
    """Rows at hand cannot be computed (overflow, division by zero, a cast that loses); names the expression.

    Not a RayflowError: the operator that evaluates turns it into one, with its name and the user's line.
    """


def find_field(schema: pa.Schema, name: str) -> pa.Field:
    """Return the column `name` of `schema`; the hidden column is not found. PlanError names the nearest."""
    index = schema.get_field_index(name)  # per batch and column: no loop over the names of a wide table
    if index >= 0 and name != OP_COLUMN:
        return schema.field(index)
    known = [known for known in schema.names if known != OP_COLUMN]
    if name in known:
        raise PlanError(f"column {name!r} is ambiguous: {known.count(name)} columns have that name")
    raise PlanError(
        f"unknown column {name!r}{kernels.nearest(name, known)} (columns: {', '.join(known) or 'none'})"
    )


class Node(ABC):
    """A value per row, computed from the columns of a batch. `repr` is the text users read in errors."""

    __slots__ = ()

    @abstractmethod
    def compute(self, batch: pa.RecordBatch) -> Datum:
        """Return the values for `batch`: an array of its length, or a scalar that stands for all rows.

        Raises PlanError for a column that `batch` lacks, ExpressionError where values cannot be computed.
        """

    @abstractmethod
    def columns(self) -> frozenset[str]:
        """Return the names of all columns it reads."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the resulting column: the alias, else that of the leftmost column, else `literal`."""


@dataclass(frozen=True, slots=True, repr=False)
class Column(Node):
    """A column by its name."""

    column: str

    def compute(self, batch: pa.RecordBatch) -> Datum:
        """Return the column itself."""
        find_field(batch.schema, self.column)
        return batch.column(self.column)

    def columns(self) -> frozenset[str]:
        """Return this one name."""
        return frozenset((self.column,))

    @property
    def name(self) -> str:
        """The column's name."""
        return self.column

    def __repr__(self) -> str:
        return f'col("{self.column}")'


@dataclass(frozen=True, slots=True, repr=False)
class Literal(Node):
    """A value that is the same in every row."""

    value: pa.Scalar

    def compute(self, batch: pa.RecordBatch) -> Datum:
        """Return the value as a scalar."""
        return self.value

    def columns(self) -> frozenset[str]:
        """Return nothing: no column is read."""
        return frozenset()

    @property
    def name(self) -> str:
        """As in Polars."""
        return "literal"

    def __repr__(self) -> str:
        return repr(self.value.as_py())


class Combination(Node):
    """An expression over others. `inputs` lists them, the one that names the result first."""

    __slots__ = ()

    @property
    @abstractmethod
    def inputs(self) -> tuple[Node, ...]:
        """The expressions it is computed from."""

    @abstractmethod
    def combine(self, data: list[Datum]) -> Datum:
        """Compute the result from the values of `inputs`."""

    def compute(self, batch: pa.RecordBatch) -> Datum:
        """Compute the inputs, then the result, naming this expression where that fails."""
        data = [node.compute(batch) for node in self.inputs]
        try:
            return self.combine(data)
        except (pa.ArrowException, TypeError, ValueError, OverflowError, KeyError) as error:
            raise ExpressionError(f"{self!r}: {error}") from error

    def columns(self) -> frozenset[str]:
        """Return the names that any of the inputs reads."""
        return frozenset().union(*(node.columns() for node in self.inputs))

    @property
    def name(self) -> str:
        """Name of the first input that reads a column."""
        return next((node.name for node in self.inputs if node.columns()), "literal")


@dataclass(frozen=True, slots=True, repr=False)
class Alias(Combination):
    """An expression under another name."""

    input: Node
    alias_name: str

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The one named."""
        return (self.input,)

    def combine(self, data: list[Datum]) -> Datum:
        """Return the values unchanged."""
        return data[0]

    @property
    def name(self) -> str:
        """The alias."""
        return self.alias_name

    def __repr__(self) -> str:
        return f'{self.input!r}.alias("{self.alias_name}")'


@dataclass(frozen=True, slots=True, repr=False)
class Binary(Combination):
    """A binary operator of Python."""

    operator: str
    left: Node
    right: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        """Both operands."""
        return (self.left, self.right)

    def combine(self, data: list[Datum]) -> Datum:
        """Apply the operator."""
        return kernels.apply(kernels.OPERATORS[self.operator], kernels.align(*data), {})

    def __repr__(self) -> str:
        return f"({self.left!r} {self.operator} {self.right!r})"


@dataclass(frozen=True, slots=True, repr=False)
class Unary(Combination):
    """A unary operator of Python."""

    operator: str
    input: Node

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The operand."""
        return (self.input,)

    def combine(self, data: list[Datum]) -> Datum:
        """Apply the operator."""
        return kernels.UNARY[self.operator](data[0])

    def __repr__(self) -> str:
        return f"{self.operator}{self.input!r}"


@dataclass(frozen=True, slots=True, repr=False)
class Cast(Combination):
    """A conversion to another type."""

    input: Node
    type: pa.DataType
    safe: bool

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The expression converted."""
        return (self.input,)

    def combine(self, data: list[Datum]) -> Datum:
        """Convert."""
        return pc.cast(data[0], self.type, safe=self.safe)

    def __repr__(self) -> str:
        return f"{self.input!r}.cast({str(self.type)!r}{'' if self.safe else ', safe=False'})"


@dataclass(frozen=True, slots=True, repr=False)
class Call(Combination):
    """A scalar function of pyarrow.compute: `arguments` are data, `options` (names and values) are not."""

    function: str
    arguments: tuple[Node, ...]
    options: tuple[tuple[str, Any], ...]

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The data arguments."""
        return self.arguments

    def combine(self, data: list[Datum]) -> Datum:
        """Call the function."""
        return kernels.call(self.function, data, dict(self.options))

    def __repr__(self) -> str:
        parts = [repr(argument) for argument in self.arguments[1:]]
        for name, value in self.options:
            parts.append(f"{name}={value.to_pylist() if isinstance(value, pa.Array) else value!r}")
        return f"{self.arguments[0]!r}.{self.function}({', '.join(parts)})"


@dataclass(frozen=True, slots=True, repr=False)
class Case(Combination):
    """The value of the first branch whose condition is true (null counts as false), else the default."""

    branches: tuple[tuple[Node, Node], ...]
    default: Node | None = None

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The values, then the conditions."""
        values = [value for _, value in self.branches]
        default = [] if self.default is None else [self.default]
        return (*values, *default, *(condition for condition, _ in self.branches))

    def combine(self, data: list[Datum]) -> Datum:
        """Choose by row."""
        count = len(self.branches)
        return kernels.choose(data[-count:], data[:-count])

    def __repr__(self) -> str:
        text = ".".join(f"when({condition!r}).then({value!r})" for condition, value in self.branches)
        return text if self.default is None else f"{text}.otherwise({self.default!r})"
