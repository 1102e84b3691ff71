"""Small jobs for the simulator, built as users build theirs, and what their output must be.

A `Shape` builds a job over some sources, and judges the rows that its sink committed: all of them after a job has
finished, and after one that was cut short whether they could be the beginning of all of them.
"""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.api.streams import DataStream
from rayflow.operators.contracts import Sink
from tests.simulation.external import DISORDER_MS, SCHEMA, Row, SimSink, SimSource

WINDOW_MS = 1_000
JOIN_MS = 300
TIMER_MS = 500
BUCKETS = 3

_EPOCH = dt.datetime(1970, 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A kind of job. `build` leads from the sources' streams to what is written; `check(rows of each source, committed
    rows, complete)` raises AssertionError, naming the invariant. `delay_ms`: of the sources' watermark."""

    build: Callable[[Sequence[DataStream]], Any]
    check: Callable[[list[list[Row]], list[Row], bool], None]
    sources: int = 1
    delay_ms: int = DISORDER_MS


def plan(
    shape: Shape,
    run: int,
    sources: Sequence[SimSource],
    parallelism: int,
    sink: Callable[[int], Sink] = SimSink,
) -> Any:
    """Return the job graph of `shape` over `sources`, writing to the external system of `run`."""
    env = rf.StreamEnvironment(name="simulated", parallelism=parallelism, max_parallelism=16)
    streams = [
        env.from_source(source, watermark=rf.Watermark("time", delay=f"{shape.delay_ms}ms")).uid(
            f"source-{i}"
        )
        for i, source in enumerate(sources)
    ]
    shape.build(streams).sink_to(sink(run)).uid("sink")
    return env.plan()


# ------------------------------------------------------------------------------------------ functions


class Number(rf.KeyedProcessFunction):
    """Numbers the rows of each key."""

    n = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: Any) -> Iterable[Any]:
        self.n.value += 1
        yield {"key": row["key"], "n": self.n.value, "bucket": self.n.value % BUCKETS, "split": row["split"]}


class NumberAgain(rf.KeyedProcessFunction):
    """Numbers the rows of each bucket, and keeps their count per key."""

    m = rf.ValueState("int64", default=0)
    seen = rf.MapState("int64", "int64")

    def process(self, row: dict[str, Any], ctx: Any) -> Iterable[Any]:
        self.m.value += 1
        self.seen[row["key"]] = self.seen.get(row["key"], 0) + 1
        yield {
            "key": row["key"],
            "n": row["n"],
            "bucket": row["bucket"],
            "m": self.m.value,
            "seen": self.seen[row["key"]],
        }


class Alarm(rf.KeyedProcessFunction):
    """Sets a timer `TIMER_MS` after each row; says when it fires."""

    def process(self, row: dict[str, Any], ctx: Any) -> None:
        ctx.register_event_timer(row["time"] + dt.timedelta(milliseconds=TIMER_MS))

    def on_timer(self, ts: dt.datetime, ctx: Any) -> Iterable[Any]:
        yield {"key": ctx.current_key, "at": int((ts - _EPOCH) / dt.timedelta(milliseconds=1))}


class Gather(rf.KeyedProcessFunction):
    """Gathers rows by the clock: a timer of the processing time gives their number."""

    n = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: Any) -> None:
        if self.n.value == 0:
            ctx.register_processing_timer(ctx.processing_time + dt.timedelta(milliseconds=40))
        self.n.value += 1

    def on_timer(self, ts: dt.datetime, ctx: Any) -> Iterable[Any]:
        yield {"key": ctx.current_key, "n": self.n.value}
        self.n.value = 0


class Both(rf.CoProcessFunction):
    """Numbers the rows of two streams by key, in one state."""

    n = rf.ValueState("int64", default=0)

    def process1(self, row: dict[str, Any], ctx: Any) -> Iterable[Any]:
        self.n.value += 1
        yield {"key": row["key"], "n": self.n.value, "bucket": 0, "split": row["split"]}

    process2 = process1


async def look_up(row: dict[str, Any]) -> dict[str, Any]:
    return row


# ------------------------------------------------------------------------------------------ judgements


def compare(want: Counter[Any], got: Counter[Any], complete: bool) -> None:
    """I1, I2: nothing is lost (of what is complete), nothing there twice."""
    assert not got - want, f"I2: too much: {dict(got - want)}"
    assert not complete or not want - got, f"I1: lost: {dict(want - got)}"


def check_rows(rows: list[list[Row]], got: list[Row], complete: bool, *, ordered: bool = True) -> None:
    """The rows themselves, those of a split and key in order. (Of a job that was cut short some sinks may have
    committed the last checkpoint, and others not yet.)"""
    compare(Counter(r for part in rows for r in timed(part)), Counter(got), complete)
    order: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, _, _, split, pos in got:
        order[split, key].append(pos)
    for where, positions in order.items():
        assert not ordered or positions == sorted(positions), f"I4: (split, key) {where}: {positions}"


def check_unordered(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    check_rows(rows, got, complete, ordered=False)


def check_running(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    last: dict[int, Row] = {}
    for key, n, total, *_ in got:
        assert key not in last or last[key][1] < n, f"I2: key {key} went from {last[key]} to {(n, total)}"
        last[key] = (key, n, total)
    want = Counter((k, len(v), sum(v)) for k, v in _by_key(rows, 1).items())
    if complete:
        compare(want, Counter(last.values()), complete)
    for key, n, total in last.values():
        # Input of other splits is interleaved, but the sum is that of n values of the key.
        values = sorted(_by_key(rows, 1)[key])
        assert sum(values[:n]) <= total <= sum(values[len(values) - n :]), (
            f"I3: key {key}: sum {total} of {n}"
        )


def check_windows(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    sums: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, value, time, *_ in (r for part in rows for r in part):
        sums[key, time // WINDOW_MS].append(value)
    want = Counter((k, w, len(v), sum(v)) for (k, w), v in sums.items())
    compare(want, Counter((k, milliseconds(start) // WINDOW_MS, n, t) for k, start, _, n, t in got), complete)


def check_sliding(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    sums: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, value, time, *_ in (r for part in rows for r in part):
        newest = time // 500
        for start in (newest - 1, newest):
            sums[key, start].append(value)
    want = Counter((k, w, len(v), sum(v)) for (k, w), v in sums.items())
    compare(want, Counter((k, milliseconds(start) // 500, n, t) for k, start, _, n, t in got), complete)


def check_numbers(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I3: the n-th row of a key is the n-th, once."""
    counts = {key: len(values) for key, values in _by_key(rows, 1).items()}
    want = Counter((key, n) for key, count in counts.items() for n in range(1, count + 1))
    compare(want, Counter((row[0], row[1]) for row in got), complete)
    for key, numbers in _grouped((row[0], row[1]) for row in got).items():
        assert numbers == sorted(numbers), f"I4: key {key}: {numbers}"
        assert numbers == list(range(1, len(numbers) + 1)), f"I1: key {key}: {numbers}"


def check_numbers_again(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    counts = {key: len(values) for key, values in _by_key(rows, 1).items()}
    want = Counter((key, n) for key, count in counts.items() for n in range(1, count + 1))
    compare(want, Counter((row[0], row[1]) for row in got), complete)
    for what, at, of in (("bucket", 2, 3), ("bucket and key", (2, 0), 4)):
        pick = (
            (lambda row, at=at: row[at])
            if isinstance(at, int)
            else (lambda row, at=at: tuple(row[i] for i in at))
        )
        for group, numbers in _grouped((pick(row), row[of]) for row in got).items():
            assert numbers == list(range(1, len(numbers) + 1)), f"I3: {what} {group}: {numbers}"


def check_join(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    left, right = ([r for part in rows for r in part if r[3] // 100 == side] for side in (0, 1))
    want = Counter(
        (a[3], a[4], b[3], b[4]) for a in left for b in right if a[0] == b[0] and abs(a[2] - b[2]) <= JOIN_MS
    )
    compare(want, Counter(got), complete)


def check_alarms(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I9: each timer fires once."""
    want = Counter({(key, time + TIMER_MS) for part in rows for key, _, time, *_ in part})
    compare(want, Counter(got), complete)


def check_gathered(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    counts = {key: len(values) for key, values in _by_key(rows, 1).items()}
    sums: Counter[int] = Counter()
    for key, n in got:
        assert n > 0, f"I9: key {key}: a timer fired for nothing, or twice"
        sums[key] += n
    compare(Counter(counts), sums, complete)


def check_twice(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    want = Counter(r for part in rows for r in timed(part))
    compare(want + want, Counter(got), complete)


def timed(part: Iterable[Row]) -> Iterable[Row]:
    return ((k, v, _EPOCH + dt.timedelta(milliseconds=t), s, p) for k, v, t, s, p in part)


def milliseconds(time: dt.datetime) -> int:
    return int((time.replace(tzinfo=None) - _EPOCH) / dt.timedelta(milliseconds=1))


def _by_key(rows: list[list[Row]], column: int) -> dict[int, list[Any]]:
    return _grouped((r[0], r[column]) for part in rows for r in part)


def _grouped(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, list[Any]]:
    found: dict[Any, list[Any]] = defaultdict(list)
    for key, value in pairs:
        found[key].append(value)
    return found


# ------------------------------------------------------------------------------------------ shapes

_NUMBERED = {"key": pa.int64(), "n": pa.int64(), "bucket": pa.int64(), "split": pa.int64()}
_AGAIN = {"key": pa.int64(), "n": pa.int64(), "bucket": pa.int64(), "m": pa.int64(), "seen": pa.int64()}
_SUM = {"n": rf.count(), "total": col("value").sum()}


NUMBERED = frozenset({"number", "both"})
"""Operators whose state is the number of rows that each key had."""


def schema_of(columns: dict[str, pa.DataType]) -> pa.Schema:
    return pa.schema(list(columns.items()))


def _number(stream: DataStream) -> DataStream:
    return stream.key_by("key").process(Number(), returns=schema_of(_NUMBERED)).uid("number")


def _keyed_rows(streams: Sequence[DataStream]) -> Any:
    return streams[0].key_by("key").process(_Same(), returns=SCHEMA).uid("same")


class _Same(rf.KeyedProcessFunction):
    def process(self, row: dict[str, Any], ctx: Any) -> Iterable[Any]:
        yield row


SHAPES: dict[str, Shape] = {
    "passthrough": Shape(build=_keyed_rows, check=check_rows),
    "rebalanced": Shape(
        build=lambda s: s[0].rebalance().with_columns(value=col("value") + 0).uid("plus"),
        check=check_unordered,
    ),
    "running": Shape(build=lambda s: s[0].key_by("key").aggregate(**_SUM).uid("sum"), check=check_running),
    "windowed": Shape(
        build=lambda s: s[0].key_by("key").window(rf.Tumbling("1s")).aggregate(**_SUM).uid("window"),
        check=check_windows,
    ),
    "sliding": Shape(
        build=lambda s: s[0].key_by("key").window(rf.Sliding("1s", "500ms")).aggregate(**_SUM).uid("window"),
        check=check_sliding,
    ),
    "looked_up": Shape(
        build=lambda s: (
            s[0]
            .rebalance()
            .map_async(look_up, capacity=4, timeout="500ms", retries=5, retry_delay="20ms", returns=SCHEMA)
            .uid("look-up")
        ),
        check=check_unordered,
    ),
    "hops": Shape(
        build=lambda s: (
            _number(s[0].filter(col("value") >= 0).uid("all"))
            .key_by("bucket")
            .process(NumberAgain(), returns=schema_of(_AGAIN))
            .uid("again")
        ),
        check=check_numbers_again,
    ),
    "union": Shape(build=lambda s: _number(s[0].union(s[1])), check=check_numbers, sources=2),
    "connected": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .connect(s[1].key_by("key"))
            .process(Both(), returns=schema_of(_NUMBERED))
            .uid("both")
        ),
        check=check_numbers,
        sources=2,
    ),
    "joined": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .interval_join(s[1].key_by("key"), f"-{JOIN_MS}ms", f"{JOIN_MS}ms")
            .uid("join")
            .select("split", "pos", "split_right", "pos_right")
        ),
        check=check_join,
        sources=2,
    ),
    "timers": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .process(Alarm(), returns=schema_of({"key": pa.int64(), "at": pa.int64()}))
            .uid("alarm")
        ),
        check=check_alarms,
    ),
    "clocked": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .process(Gather(), returns=schema_of({"key": pa.int64(), "n": pa.int64()}))
            .uid("gather")
        ),
        check=check_gathered,
    ),
    "broadcast": Shape(
        build=lambda s: s[0].broadcast().with_columns(value=col("value") + 0).uid("each").with_parallelism(2),
        check=check_twice,
    ),
}
