"""Rows of many types, aggregates of every kind, and last rows per key, for whoever tests combining."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from rayflow.batch.aggregates import AggregateExpr, count
from rayflow.batch.expressions import col
from rayflow.batch.user_aggregates import Aggregate, as_aggregate
from rayflow.model.config import JobConfig
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.skew.combiner import CombineOperator
from rayflow.skew.combining import Combination

SCHEMA = pa.schema(
    [
        ("a", pa.string()),
        ("b", pa.int32()),
        ("t", pa.timestamp("us")),
        ("v", pa.int64()),
        ("f", pa.float64()),
        ("d", pa.decimal128(20, 2)),
        ("s", pa.string()),
        ("n", pa.int64()),
    ]
)


class Spread(Aggregate):
    """Largest less smallest: states that are merged."""

    result_type = pa.int64()

    def create(self) -> list[int]:
        return []

    def update(self, state: list[int], batch: pa.RecordBatch) -> list[int]:
        values = [v for v in batch.column("v").to_pylist() if v is not None]
        return self.merge(state, values)

    def merge(self, left: list[int], right: list[int]) -> list[int]:
        both = [*left, *right]
        return [min(both), max(both)] if both else []

    def result(self, state: list[int]) -> int | None:
        return state[-1] - state[0] if state else None


UNORDERED: dict[str, AggregateExpr] = {
    "count": count(),
    "values": col("v").count(),
    "sum": col("v").sum(),
    "money": col("d").sum(),
    "float": col("f").sum(),
    "mean": col("v").mean(),
    "spread": col("f").stddev(),
    "min": col("v").min(),
    "least": col("s").min(),
    "max": col("f").max(),
    "distinct": col("s").count_distinct(),
    "about": col("v").approx_count_distinct(),
    "some": col("v").sum().filter(col("s") == "x"),
    "user": as_aggregate(Spread()),
}

ORDERED: dict[str, AggregateExpr] = {
    "first": col("n").first(),
    "last": col("s").last(),
    "list": col("n").collect_list(),
}


class CombineKit:
    """What tests of combining share."""

    schema, unordered, ordered = SCHEMA, UNORDERED, ORDERED

    @staticmethod
    def batch(rows: Sequence[Sequence[Any]], first: int = 0) -> pa.RecordBatch:
        """Return rows of (a, b, t, v, f, d, s), numbered from `first`."""
        columns = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA.remove(7))]
        numbers = pa.array(range(first, first + len(rows)), pa.int64())
        return pa.RecordBatch.from_arrays([*columns, numbers], schema=SCHEMA)

    @staticmethod
    def combination(keys: Sequence[str], names: Iterable[str], time_column: str | None) -> Combination:
        known = {**UNORDERED, **ORDERED}
        return Combination(
            keys=tuple(keys),
            aggregates=tuple((name, known[name]) for name in names),
            schema=SCHEMA,
            time_column=time_column,
        )

    @staticmethod
    def combine(harness: Any, combination: Combination, rows: int) -> Any:
        config = JobConfig(skew_rows=rows)
        return harness(lambda: CombineOperator(combination), config=config)

    @staticmethod
    def aggregate(combination: Combination) -> Any:
        return lambda: RunningAggregateOperator(
            combination.keys, combination.aggregates, SCHEMA, False, combination.time_column
        )

    @staticmethod
    def last_rows(rows: Iterable[dict[str, Any]], keys: Sequence[str]) -> dict[Any, dict[str, Any]]:
        """Return the last row per key, floats as they compare between orders of addition."""
        last = {tuple(row[key] for key in keys): row for row in rows}
        return {
            key: {n: pytest.approx(v, rel=1e-9, abs=1e-9, nan_ok=True) if isinstance(v, float) else v
                  for n, v in row.items() if n != "__op"}
            for key, row in last.items()
        }  # fmt: skip


@pytest.fixture(scope="session")
def kit() -> type[CombineKit]:
    """Rows, aggregates and operators to test combining with."""
    return CombineKit
