"""Small jobs for the simulator, their input, and the external system their sink commits to.

The jobs are built from the planner's values directly: source (2) → hash → keyed operator + sink (2).
Sources and sinks travel by pickle, so they find the run's external system by its number.
"""

from __future__ import annotations

import functools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.graph.plan import Exchange, JobEdge, JobGraph, JobVertex, OperatorSpec, TimeSpec
from rayflow.model.ids import EdgeId, VertexId
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.operators.contracts import Sink, SinkContext, Source, Split, SplitReader
from rayflow.operators.map_async import AsyncOptions, MapAsyncOperator
from rayflow.operators.stateless import IdentityOperator
from rayflow.protocol.commits import CommitPermit
from rayflow.windows.making import time_window_operator
from rayflow.windows.time_windows import TimeWindows

SCHEMA = pa.schema([("key", pa.int64()), ("value", pa.int64()), ("time", pa.timestamp("ms"))])
WINDOW_MS = 1_000
Row = tuple[Any, ...]


@dataclass
class External:
    """The system outside: staged and committed transactions, by id. Survives all processes."""

    staged: dict[str, list[Row]] = field(default_factory=dict)
    committed: dict[str, list[Row]] = field(default_factory=dict)
    fresh_starts: int = 0

    def rows(self) -> list[Row]:
        """All committed rows, transaction by transaction in order of commit."""
        return [row for rows in self.committed.values() for row in rows]


EXTERNAL: dict[int, External] = {}
"""The external system of each running simulation, by its number."""


def make_rows(seed: int, splits: int, rows_per_split: int) -> list[list[Row]]:
    """Return the rows (key, value, time in ms) of each split; times within a split are disordered by < 200 ms."""
    rng = random.Random(seed * 31 + 7)
    out: list[list[Row]] = []
    for index in range(splits):
        start = index * 2_000
        times = [start + i * 2_000 // rows_per_split for i in range(rows_per_split)]
        out.append([(rng.randrange(7), rng.randrange(100), t + rng.randrange(200)) for t in times])
    return out


class SimSource(Source):
    """Reads the rows of a seed, a few at a time."""

    def __init__(self, seed: int, splits: int, rows_per_split: int) -> None:
        self.args = (seed, splits, rows_per_split)

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def splits(self) -> Sequence[Split]:
        rows = make_rows(*self.args)
        return [
            Split(
                id=f"s{i}",
                payload={"index": i},
                min_time=min(r[2] for r in part) * 1_000_000,
                order=f"{i:04}",
            )
            for i, part in enumerate(rows)
        ]

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        return SimReader(make_rows(*self.args)[split.payload["index"]], position or 0)


class SimReader(SplitReader):
    def __init__(self, rows: list[Row], position: int) -> None:
        self.rows = rows
        self.at = position

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self.at >= len(self.rows):
            return None
        take = min(max_rows, 1 + self.at % 5)
        part = self.rows[self.at : self.at + take]
        self.at += len(part)
        columns = [pa.array([r[i] for r in part], SCHEMA.field(i).type) for i in range(3)]
        return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)

    def position(self) -> int:
        return self.at


class SimSink(Sink):
    """Exactly-once sink over an `External`; of every other run it commits in the background."""

    def __init__(self, run: int) -> None:
        self.run = run
        self.commit_in_background = run % 2 == 1
        self.buffer: list[Row] = []

    def start_job(self, ctx: SinkContext) -> None:
        EXTERNAL[self.run].fresh_starts += 1

    def open(self, ctx: SinkContext) -> None:
        self.ctx = ctx

    def write(self, batch: pa.RecordBatch) -> None:
        self.buffer.extend(tuple(row.values()) for row in batch.to_pylist())

    def prepare(self, checkpoint_id: int) -> str | None:
        if not self.buffer:
            return None
        transaction = f"a{self.ctx.attempt}-s{self.ctx.subtask_index}-c{checkpoint_id}"
        EXTERNAL[self.run].staged[transaction] = self.buffer
        self.buffer = []
        return transaction

    def commit(self, permit: CommitPermit) -> None:
        external, transaction = EXTERNAL[self.run], permit.pending
        if transaction not in external.committed:
            external.committed[transaction] = external.staged.pop(transaction)


def passthrough() -> Any:
    return IdentityOperator()


def running_sum() -> Any:
    return RunningAggregateOperator(("key",), [("n", count()), ("total", col("value").sum())], SCHEMA, False)


def windowed_sum() -> Any:
    size_ns = WINDOW_MS * 1_000_000
    windows = TimeWindows(keys=("key",), size_ns=size_ns, slide_ns=size_ns, time_column="time")
    return time_window_operator(windows, [("n", count()), ("total", col("value").sum())], SCHEMA)


async def look_up(row: dict[str, Any]) -> dict[str, Any]:
    return row


def looked_up() -> Any:
    return MapAsyncOperator(
        look_up, SCHEMA, False, AsyncOptions(capacity=4, timeout_ms=500, retries=5, retry_delay_ms=20)
    )


KINDS = {
    "passthrough": passthrough,
    "running": running_sum,
    "windowed": windowed_sum,
    "looked_up": looked_up,
}


def job_graph(kind: str, run: int, source: SimSource, parallelism: int = 2) -> JobGraph:
    """Return source → hash by key → operator of `kind` + sink."""
    src, work = VertexId("source"), VertexId("work")
    delay = TimeSpec(column="time", delay=200_000_000)
    return JobGraph(
        name="simulated",
        max_parallelism=16,
        vertices=(
            JobVertex(
                id=src,
                operators=(
                    OperatorSpec(
                        uid="source", name="source", kind="source", payload=source, schema=SCHEMA, time=delay
                    ),
                ),
                parallelism=parallelism,
            ),
            JobVertex(
                id=work,
                operators=(
                    OperatorSpec(
                        uid="work", name=kind, kind="operator", payload=functools.partial(KINDS[kind])
                    ),
                    OperatorSpec(uid="sink", name="sink", kind="sink", payload=SimSink(run)),
                ),
                parallelism=parallelism,
            ),
        ),
        edges=(
            JobEdge(
                id=EdgeId(0), source=src, target=work, exchange=Exchange("hash", ("key",)), schema=SCHEMA
            ),
        ),
    )


def check_output(kind: str, source: SimSource, external: External) -> None:
    """I1, I2, I3: the committed rows are those of a run without faults."""
    rows = [row for part in make_rows(*source.args) for row in part]
    if kind in ("passthrough", "looked_up"):
        got = Counter((k, v) for k, v, _ in external.rows())
        want = Counter((k, v) for k, v, _ in rows)
    elif kind == "windowed":
        sums: dict[Row, list[int]] = {}
        for key, value, time in rows:
            entry = sums.setdefault((key, time // WINDOW_MS), [0, 0])
            entry[0] += 1
            entry[1] += value
        want = Counter((k, w, n, t) for (k, w), (n, t) in sums.items())
        got = Counter(
            (k, int(start.timestamp() * 1000) // WINDOW_MS, n, t)
            for k, start, _, n, t in _utc(external.rows())
        )
    else:
        totals: dict[int, list[int]] = {}
        for key, value, _ in rows:
            entry = totals.setdefault(key, [0, 0])
            entry[0] += 1
            entry[1] += value
        want = Counter((k, n, t) for k, (n, t) in totals.items())
        last: dict[int, Row] = {}
        for key, n, total, *_ in external.rows():
            assert key not in last or last[key][1] < n, f"I2: key {key} went from {last[key]} to {(n, total)}"
            last[key] = (key, n, total)
        got = Counter(last.values())
    assert not want - got, f"I1: lost {dict(want - got)}"
    assert not got - want, f"I2: too much {dict(got - want)}"


def _utc(rows: list[Row]) -> list[Row]:
    import datetime as dt

    return [(r[0], r[1].replace(tzinfo=dt.timezone.utc), *r[2:]) for r in rows]
