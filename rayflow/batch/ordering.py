"""What rows are ordered by: an expression and a direction. Written by users as `col("price").desc()`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayflow.batch.expressions import Expr


@dataclass(frozen=True, slots=True)
class SortKey:
    """One key of an order. NaN comes after all numbers and null after everything, in both directions."""

    expr: Expr
    descending: bool

    def __str__(self) -> str:
        return f"{self.expr} {'desc' if self.descending else 'asc'}"
