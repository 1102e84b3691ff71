"""A naive model of windows, for whoever tests a kind of them: rows as tuples, aggregates as plain Python."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa
import pytest

from rayflow.batch.aggregates import AggregateExpr, count
from rayflow.batch.expressions import col

MS = 1_000_000

SCHEMA = pa.schema(
    [("k", pa.float64()), ("t", pa.timestamp("ms")), ("v", pa.int64()), ("s", pa.string()), ("n", pa.int64())]
)
"""Key, event time, a number, a text, and the row's number, all but the last with nulls."""

Row = tuple[Any, Any, Any, Any, Any]

AGGREGATES: dict[str, tuple[AggregateExpr, Callable[[Sequence[Row]], Any]]] = {
    "count": (count(), len),
    "values": (col("v").count(), lambda rows: len(numbers(rows))),
    "sum": (col("v").sum(), lambda rows: sum(numbers(rows)) if numbers(rows) else None),
    "min": (col("v").min(), lambda rows: min(numbers(rows), default=None)),
    "most": (col("v").max(), lambda rows: max(numbers(rows), default=None)),
    "halves": ((col("v") / 2).sum(), lambda rows: sum(numbers(rows)) / 2 if numbers(rows) else None),
    "least": ((col("v") / 2).min(), lambda rows: min(numbers(rows)) / 2 if numbers(rows) else None),
    "max": (col("s").max(), lambda rows: max(texts(rows), default=None)),
    "mean": (
        col("v").mean(),
        lambda rows: sum(numbers(rows)) / len(numbers(rows)) if numbers(rows) else None,
    ),
    "first": (col("n").first(), lambda rows: in_order(rows)[0][4]),
    "last": (
        col("s").last(),
        lambda rows: ([r[3] for r in in_order(rows) if r[3] is not None] or [None])[-1],
    ),
    "distinct": (col("s").count_distinct(), lambda rows: len(set(texts(rows)))),
    "list": (col("n").collect_list(), lambda rows: [row[4] for row in in_order(rows)]),
    "some": (count().filter(col("v") > 0), lambda rows: len([v for v in numbers(rows) if v > 0])),
}
"""Aggregates by name: as rayflow computes them, and over the rows of a window in order of arrival."""


def numbers(rows: Iterable[Row]) -> list[int]:
    return [row[2] for row in rows if row[2] is not None]


def texts(rows: Iterable[Row]) -> list[str]:
    return [row[3] for row in rows if row[3] is not None]


def in_order(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: row[1])


def key_of(value: Any) -> Any:
    """Return a key such that keys that rayflow takes for equal are equal."""
    return "nan" if value != value else value


class TimeWindowModel:
    """Tumbling and sliding windows of event time; times in milliseconds, like the column `t`.

    `results` are the last for each (key, start, end); `late`, `null_times`, `gaps` the rows that did not count."""

    def __init__(self, size: int, slide: int, offset: int = 0, lateness: int = 0) -> None:
        self.size, self.slide, self.offset, self.lateness = size, slide, offset, lateness
        self.reached = -math.inf
        self.rows: dict[tuple[Any, int, int], list[Row]] = defaultdict(list)
        self.fired: dict[tuple[Any, int, int], list[Row]] = {}
        self.late: list[Row] = []
        self.null_times: list[Row] = []
        self.gaps: list[Row] = []

    def windows(self, time: int) -> list[tuple[int, int]]:
        """Return (start, end) of the windows that hold `time`."""
        last = (time - self.offset) // self.slide * self.slide + self.offset
        starts = []
        while last + self.size > time:
            starts.append(last)
            last -= self.slide
        return [(start, start + self.size) for start in starts]

    def add(self, rows: Iterable[Row]) -> None:
        for row in rows:
            if row[1] is None:
                self.null_times.append(row)
                continue
            windows = self.windows(row[1])
            still = [w for w in windows if w[1] - 1 + self.lateness > self.reached]
            if not windows:
                self.gaps.append(row)
            elif not still:
                self.late.append(row)
            for start, end in still:
                window = (key_of(row[0]), start, end)
                self.rows[window].append(row)
                if end - 1 <= self.reached:
                    self.fired[window] = list(self.rows[window])

    def advance(self, reached: float) -> None:
        self.reached = max(self.reached, reached)
        for window, rows in self.rows.items():
            if window[2] - 1 <= self.reached:
                self.fired[window] = list(rows)

    def results(self, names: Sequence[str]) -> dict[tuple[Any, int, int], tuple[Any, ...]]:
        """Return what should have come out so far."""
        return {
            window: tuple(AGGREGATES[name][1](rows) for name in names) for window, rows in self.fired.items()
        }


class WindowKit:
    """What tests of windows share."""

    schema, aggregates, time_windows = SCHEMA, AGGREGATES, TimeWindowModel
    key_of = staticmethod(key_of)

    @staticmethod
    def batch(rows: Iterable[Row]) -> pa.RecordBatch:
        rows = list(rows)
        arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA)]
        return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)

    @staticmethod
    def results(batches: Iterable[pa.RecordBatch], names: Sequence[str]) -> list[tuple[tuple[Any, ...], Any]]:
        """Return ((key, start, end), (operation or None, values)) of every row, in order."""
        found = []
        for batch in batches:
            starts = batch["window_start"].cast(pa.int64()).to_pylist()
            ends = batch["window_end"].cast(pa.int64()).to_pylist()
            for row, start, end in zip(batch.to_pylist(), starts, ends, strict=True):
                values = tuple(row[name] for name in names)
                found.append(((key_of(row["k"]), start, end), (row.get("__op"), values)))
        return found


@pytest.fixture(scope="session")
def kit() -> type[WindowKit]:
    """Rows, aggregates and naive models to test windows with."""
    return WindowKit
