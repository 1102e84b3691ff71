"""Approximate aggregates, aggregates written by users, and reduce: whole jobs."""

from __future__ import annotations

import random
from collections import defaultdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rayflow as rf
from rayflow import col


class Range(rf.Aggregate):
    """Largest minus smallest, of two columns together."""

    def create(self) -> Any:
        return None

    def update(self, state: Any, batch: pa.RecordBatch) -> Any:
        low = min(pc.min(c).as_py() for c in batch.columns)
        high = max(pc.max(c).as_py() for c in batch.columns)
        return (low, high) if state is None else (min(low, state[0]), max(high, state[1]))

    def merge(self, left: Any, right: Any) -> Any:
        return (min(left[0], right[0]), max(left[1], right[1]))

    def result(self, state: Any) -> int | None:
        return None if state is None else state[1] - state[0]


class Longest(rf.Aggregate):
    """The longest text, written without states."""

    result_type = "string"

    def create(self) -> None:
        self.longest = ""

    def update(self, batch: pa.RecordBatch) -> None:
        for text in batch.column("s").to_pylist():
            self.longest = max(self.longest, text, key=lambda t: (len(t), t))

    def merge(self, other: Longest) -> None:
        self.longest = max(self.longest, other.longest, key=lambda t: (len(t), t))

    def result(self) -> str:
        return self.longest


def rows(count: int) -> list[dict[str, Any]]:
    rng, base = random.Random(3), datetime(2024, 1, 1)
    return [
        {
            "k": rng.choice("abc"),
            "x": rng.randrange(100),
            "y": rng.randrange(100),
            "s": "s" * rng.randrange(9) + rng.choice("pqr"),
            "t": base + timedelta(seconds=n),
        }
        for n in range(count)
    ]


def expected(some: list[dict[str, Any]]) -> tuple[Any, ...]:
    both = [r[c] for r in some for c in "xy"]
    late = [r[c] for r in some for c in "xy" if r["x"] > 95]
    ordered = sorted(r["x"] for r in some)
    return (
        max(both) - min(both),
        max(late) - min(late) if late else None,
        max((r["s"] for r in some), key=lambda t: (len(t), t)),
        len({r["s"] for r in some}),
        float(ordered[max(-(-9 * len(ordered) // 10), 1) - 1]),
    )


AGGREGATES: dict[str, Any] = {
    "range": Range("x", col("y")),
    "late": Range("x", "y").filter(col("x") > 95),
    "longest": Longest,
    "distinct": col("s").approx_count_distinct(),
    "p90": col("x").approx_quantile(0.9),
}


@pytest.mark.parametrize(("parallelism", "cut"), [(1, 65536), (3, 7)])
def test_running_and_windowed(parallelism: int, cut: int) -> None:
    given = rows(400)
    e = rf.StreamEnvironment(parallelism=parallelism, config={"batch.rows": cut})
    keyed = e.from_rows(given).assign_watermarks(rf.Watermark("t", delay="1h")).key_by("k")
    by_key, by_window = defaultdict(list), defaultdict(list)
    for row in given:
        by_key[row["k"]].append(row)
        by_window[row["k"], row["t"].replace(second=0)].append(row)
    running = keyed.aggregate(**AGGREGATES).execute_and_collect(local=True)
    assert running.schema.field("range").type == pa.int64()
    got = {row["k"]: tuple(row[name] for name in AGGREGATES) for row in running.to_pylist()}
    assert got == {key: expected(some) for key, some in by_key.items()}
    windowed = keyed.window(rf.Tumbling("1m")).aggregate(**AGGREGATES).execute_and_collect(local=True)
    got = {(r["k"], r["window_start"]): tuple(r[name] for name in AGGREGATES) for r in windowed.to_pylist()}
    assert got == {key: expected(some) for key, some in by_window.items()}


def test_states_survive_crashes(lab: Any, tmp_path: Path) -> None:
    given = rows(3000)
    e = rf.StreamEnvironment(parallelism=2, config={"batch.rows": 50, "checkpoint.interval": "20ms"})
    e.config["restart.delay"] = "10ms"
    stream = e.generate(
        lambda start, count: pa.RecordBatch.from_pylist(given[start : start + count]),
        rows=len(given),
        rate_limit=6000,
    )
    keyed = stream.key_by("k")
    keyed.aggregate(**AGGREGATES).write_parquet(tmp_path / "a", mode="upsert")
    keyed.reduce(lambda old, new: {**new, "x": old["x"] + new["x"]}).write_parquet(
        tmp_path / "r", mode="upsert"
    )
    watcher = lab.crashing(e, 2, seed=1, every=2)
    lab.finish(e, on_start=watcher)
    by_key = defaultdict(list)
    for row in given:
        by_key[row["k"]].append(row)
    got = {r["k"]: tuple(r[name] for name in AGGREGATES) for r in lab.read(tmp_path / "a").to_pylist()}
    assert got == {key: expected(some) for key, some in by_key.items()}
    sums = {row["k"]: row["x"] for row in lab.read(tmp_path / "r").to_pylist()}
    assert sums == {key: sum(r["x"] for r in some) for key, some in by_key.items()}
    assert len(watcher.stop()) == 2


def test_reduced_rows_are_an_upsert_stream_that_others_go_on_from() -> None:
    e = rf.StreamEnvironment(parallelism=2, config={"batch.rows": 3})
    numbers = e.from_rows([{"k": n % 4, "n": n} for n in range(100)])
    largest = numbers.key_by("k").reduce(lambda old, new: max(old, new, key=lambda row: row["n"]))
    assert sorted(largest.execute_and_collect(local=True).to_pylist(), key=lambda r: r["k"]) == [
        {"k": k, "n": 96 + k} for k in range(4)
    ]
    total = largest.with_columns(all=rf.lit(1)).key_by("all").aggregate(total=col("n").sum(), rows=rf.count())
    assert total.execute_and_collect(local=True).to_pylist() == [
        {"all": 1, "total": 96 + 97 + 98 + 99, "rows": 4}
    ]


class Failing(Range):
    def update(self, state: Any, batch: pa.RecordBatch) -> Any:
        raise ValueError("no such luck")


def test_errors_name_operator_and_line(lab: Any) -> None:
    e = rf.StreamEnvironment()
    e.config["restart.strategy"] = "none"
    e.from_rows([{"k": 1, "x": 1}]).key_by("k").aggregate(r=Failing("x")).name("my ranges").discard()
    error = str(lab.fail(e))
    for part in (
        "my ranges",
        "aggregate 'r': ValueError: no such luck",
        "in update, ",
        "test_own_aggregates.py",
    ):
        assert part in error


def test_mistakes_are_plan_errors_at_the_users_line() -> None:
    keyed = rf.StreamEnvironment().from_rows([{"k": 1, "x": 1}]).key_by("k")
    for make, message in [
        (lambda: keyed.aggregate(r=Range("y")), "unknown column 'y'"),
        (lambda: keyed.aggregate(r=col("x")), 'aggregate: r=col("x") is not an aggregate'),
        (lambda: keyed.aggregate(q=col("x").approx_quantile(2)), "expected a number from 0"),
        (
            lambda: keyed.aggregate(n=rf.count()).key_by("n").aggregate(r=Range("n")),
            "give Range a method retract",
        ),
        (lambda: keyed.aggregate(n=rf.count()).key_by("n").reduce(max), "not supported on upsert streams"),
        (lambda: keyed.reduce("max"), "expected a function"),
    ]:
        with pytest.raises(rf.PlanError) as caught:
            make()
        assert message in str(caught.value)
        assert "test_own_aggregates.py" in str(caught.value)
