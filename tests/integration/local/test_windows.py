"""Time windows in whole jobs: sliding against DuckDB, late rows, updates, clocks, windows over windows, mistakes."""

from __future__ import annotations

import random
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col

BASE = datetime(2024, 1, 1)


def env(parallelism: int = 1, rows: int = 65536, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(parallelism=parallelism, config={"batch.rows": rows, **config})


def clicks(rows: int = 600, seed: int = 1, disorder_s: int = 20) -> pa.Table:
    """Rows over 10 minutes, up to `disorder_s` out of order."""
    rng = random.Random(seed)
    seconds = sorted(range(rows), key=lambda n: n + rng.uniform(0, disorder_s))
    return pa.table(
        {
            "k": [rng.choice(["a", "b", None]) for _ in seconds],
            "n": pa.array([rng.randrange(100) for _ in seconds], pa.int64()),
            "t": pa.array([BASE + timedelta(seconds=s) for s in seconds], pa.timestamp("ms")),
        }
    )


def stream(e: rf.StreamEnvironment, table: pa.Table, delay: str = "20s", **watermark: Any) -> rf.DataStream:
    return e.from_arrow(table, watermark=rf.Watermark("t", delay=delay, **watermark))


@pytest.mark.parametrize("with_distinct", [True, False], ids=["merged", "kept up"])
@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (2, 7), (3, 50)])
@pytest.mark.parametrize(("size", "slide", "offset"), [(60, 5, 0), (90, 60, 7), (10, 25, 0)])
def test_sliding_windows_equal_duckdb(
    lab: Any, parallelism: int, rows: int, size: int, slide: int, offset: int, with_distinct: bool
) -> None:
    # Distinct values can only be merged; without them the results of the present window are kept up.
    distinct = {"kinds": col("n").count_distinct()} if with_distinct else {}
    table = clicks(seed=parallelism)
    got = (
        stream(env(parallelism, rows), table)
        .key_by("k")
        .window(rf.Sliding(f"{size}s", f"{slide}s", offset=f"{offset}s"))
        .aggregate(n=rf.count(), least=col("n").min(), total=col("n").sum(), **distinct)
        .execute_and_collect(local=True)
    )
    last = f"time_bucket(interval {slide} second, t, interval {offset} second)"
    kinds = ", count(distinct n)" if with_distinct else ""
    query = f"""
        select k, ws, ws + interval {size} second we, count(*), min(n), sum(n){kinds} from (
            select k, n, t, unnest(range({size // slide + 1})) * interval {slide} second as back,
            {last} - back as ws from "table"
        ) where t < ws + interval {size} second group by k, ws
    """
    assert table.num_rows
    assert lab.bag(got) == Counter(duckdb.sql(query).fetchall())


def test_late_rows_go_to_the_side_output_with_the_inputs_columns(lab: Any, tmp_path: Path) -> None:
    times = [0, 60, 5, None, 61, 30, 119, 59, 200]
    table = pa.table(
        {
            "k": ["a"] * len(times),
            "n": range(len(times)),
            "t": pa.array(
                [None if s is None else BASE + timedelta(seconds=s) for s in times], pa.timestamp("ms")
            ),
        }
    )
    e = env(1, 1)
    windowed = (
        stream(e, table, delay="0s")
        .key_by("k")
        .window(rf.Tumbling("1m"))
        .allowed_lateness("0s", late_to="late")
        .aggregate(ns=col("n").collect_list())
    )
    windowed.write_parquet(tmp_path / "results")
    late = windowed.side_output("late")
    assert late.schema.names == ["k", "n", "t"]
    late.write_parquet(tmp_path / "late")
    lab.finish(e)
    # Which rows are late depends on when watermarks come, but none is lost, and none is in both.
    aside = lab.read(tmp_path / "late")["n"].to_pylist()
    kept = [n for row in lab.read(tmp_path / "results").to_pylist() for n in row["ns"]]
    assert sorted(aside + kept) == list(range(len(times)))
    assert 3 in aside


@pytest.mark.parametrize("rows", [1, 7, 1000])
@pytest.mark.parametrize("where", ["source", "stream"])
def test_a_time_far_in_the_future_closes_no_window_and_is_in_none(lab: Any, rows: int, where: str) -> None:
    seconds = list(range(100))
    seconds[3] = seconds[40] = seconds[99] = 10**9
    table = pa.table(
        {
            "k": ["a"] * 100,
            "t": pa.array([BASE + timedelta(seconds=s) for s in seconds], pa.timestamp("ms")),
        }
    )
    watermark = rf.Watermark("t", delay="1s", max_ahead="10s")
    e = env(1, rows)
    if where == "source":
        read = e.from_arrow(table, watermark=watermark)
    else:
        read = e.from_arrow(table).assign_watermarks(watermark)
    windows = read.key_by("k").window(rf.Tumbling("1m")).allowed_lateness("0s", late_to="late")
    minutes = windows.aggregate(n=rf.count())
    assert sorted(minutes.execute_and_collect(local=True)["n"].to_pylist()) == [39, 58]
    # Late they are, and put aside, without the time that was not believed.
    late = minutes.side_output("late").execute_and_collect(local=True)
    assert late["t"].to_pylist() == [None] * 3


@pytest.mark.parametrize("spec", [rf.Tumbling("1m"), rf.Sliding("1m", "20s"), rf.Sliding("5m", "3s")])
@pytest.mark.parametrize("parallelism", [1, 2])
def test_late_rows_within_the_allowed_lateness_update_results(
    lab: Any, tmp_path: Path, spec: Any, parallelism: int
) -> None:
    table = clicks(disorder_s=120)
    e = env(parallelism, 20)
    in_order = stream(env(), table.sort_by("t"), delay="1s").key_by("k").window(spec)
    aggregates = {"n": rf.count(), "total": col("n").sum()}
    want = lab.bag(in_order.aggregate(**aggregates).execute_and_collect(local=True))

    updated = (
        stream(e, table, delay="0s").key_by("k").window(spec).allowed_lateness("3m").aggregate(**aggregates)
    )
    with pytest.raises(rf.PlanError, match="upsert"):
        updated.write_parquet(tmp_path / "append")
    updated.write_parquet(tmp_path / "upserts", mode="upsert")
    lab.finish(e)
    assert lab.bag(lab.read(tmp_path / "upserts", schema=updated.schema)) == want
    assert lab.bag(updated.execute_and_collect(local=True)) == want


@pytest.mark.parametrize("trigger", [rf.OnCount(3), rf.OnProcessingTime("1ms"), rf.OnWatermark()])
@pytest.mark.parametrize("spec", [rf.Tumbling("1m"), rf.Sliding("1m", "20s")])
def test_early_results_end_in_the_final_ones(lab: Any, trigger: Any, spec: Any) -> None:
    table = clicks()
    final = stream(env(2, 10), table).key_by("k").window(spec)
    early = stream(env(2, 10), table).key_by("k").window(spec).trigger(trigger)
    want = final.aggregate(n=rf.count()).execute_and_collect(local=True)
    got = early.aggregate(n=rf.count()).execute_and_collect(local=True)
    assert lab.bag(got) == lab.bag(want)


def test_early_results_are_printed_as_updates(capfd: pytest.CaptureFixture[str], lab: Any) -> None:
    table = pa.table({"k": ["a"] * 5, "t": pa.array([BASE] * 5, pa.timestamp("ms"))})
    e = env(1, 1)
    stream(e, table).key_by("k").window(rf.Tumbling("1m")).trigger(rf.OnCount(2)).aggregate(
        n=rf.count()
    ).print()
    lab.finish(e)
    text = capfd.readouterr().out
    changes = [line for line in text.splitlines() if line.startswith(("+", "-"))]
    assert [change[:2] for change in changes] == ["+I", "-U", "+U", "-U", "+U"]


@pytest.mark.parametrize(
    "spec", [rf.Tumbling("1d", time="processing"), rf.Sliding("2d", "1d", time="processing")]
)
def test_windows_of_processing_time_need_no_watermark_and_end_with_the_input(lab: Any, spec: Any) -> None:
    table = pa.table({"k": [n % 5 for n in range(1000)], "n": range(1000)})
    got = (
        env(2, 50)
        .from_arrow(table)
        .key_by("k")
        .window(spec)
        .aggregate(n=rf.count(), total=col("n").sum())
        .execute_and_collect(local=True)
    )
    assert got.schema.field("window_start").type == pa.timestamp("ms")
    # Midnight may pass while this runs: then a key is in one window more.
    per_key = Counter()
    for row in got.to_pylist():
        per_key[row["k"]] += row["n"]
        assert row["window_end"] - row["window_start"] == timedelta(days=1 if spec.size == "1d" else 2)
    assert per_key == {k: 200 * (1 if spec.size == "1d" else 2) for k in range(5)}


def test_results_of_one_sliding_window_are_grouped_by_windows_of_the_slide(lab: Any) -> None:
    table = clicks()
    counts = stream(env(2, 20), table).key_by("k").window(rf.Sliding("30s", "10s")).aggregate(n=rf.count())
    most = (
        counts.key_by("window_start")
        .window(rf.Tumbling("10s"))
        .aggregate(most=col("n").max(), keys=rf.count())
    )
    got = most.select("window_start", "most", "keys").execute_and_collect(local=True)
    by_window: dict[Any, list[int]] = {}
    for row in counts.execute_and_collect(local=True).to_pylist():
        by_window.setdefault(row["window_start"], []).append(row["n"])
    assert lab.bag(got) == Counter((start, max(ns), len(ns)) for start, ns in by_window.items())


def test_sliding_windows_survive_crashes_and_rescaling(lab: Any, tmp_path: Path) -> None:
    e = env(2, 50, **{"checkpoint.interval": "20ms"})
    base = 1_700_000_000_000
    numbers = e.generate(
        lambda start, count: pa.RecordBatch.from_pydict(
            {
                "k": [n % 7 for n in range(start, start + count)],
                "t": pa.array([base + n * 10 for n in range(start, start + count)], pa.timestamp("ms")),
            }
        ),
        rows=4000,
        rate_limit=8000,
        watermark=rf.Watermark("t"),
    )
    windows = numbers.key_by("k").window(rf.Sliding("10s", "1s")).aggregate(n=rf.count())
    windows.write_parquet(tmp_path / "out")
    watcher = lab.crashing(e, 2, seed=3, every=3)
    lab.finish(e, on_start=watcher)
    assert len(watcher.stop()) == 2
    want: Counter[Any] = Counter()
    for n in range(4000):
        last = (base + n * 10) // 1000 * 1000
        for start in range(last - 9000, last + 1000, 1000):
            want[n % 7, start] += 1
    table = lab.read(tmp_path / "out")
    starts = table["window_start"].cast(pa.int64()).to_pylist()
    assert Counter(dict(zip(zip(table["k"].to_pylist(), starts), table["n"].to_pylist()))) == want
    assert table.num_rows == len(want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: s.window(rf.Sliding("1m", "7ns")), "slide of 7 ns is no multiple of the unit"),
        (
            lambda s: s.window(rf.Tumbling("1m")).allowed_lateness("1us"),
            "allowed lateness of 1000 ns is no mult",
        ),
        (
            lambda s: s.window(rf.Tumbling("1m", time="processing")).allowed_lateness("1s"),
            "know no late rows",
        ),
        (
            lambda s: s.window(rf.Tumbling("1ns", time="processing")),
            "no multiple of the unit .* of processing time",
        ),
        (lambda s: s.window("1m"), "expected a window such as"),
        (lambda s: s.window(rf.Tumbling("1m")).trigger("now"), "expected a trigger such as"),
        (lambda s: s.window(rf.Tumbling("1m")).allowed_lateness("1s", late_to=""), "expected a tag"),
    ],
)
def test_mistakes_are_plan_errors_at_the_users_line(make: Any, message: str) -> None:
    keyed = stream(env(), clicks(10)).key_by("k")
    with pytest.raises(rf.PlanError, match=message) as caught:
        make(keyed).aggregate(n=rf.count())
    assert "test_windows.py" in str(caught.value.location)


def test_a_watermark_must_be_less_behind_than_times_may_be_ahead() -> None:
    with pytest.raises(rf.PlanError, match="must be longer than delay"):
        rf.Watermark("t", delay="1m", max_ahead="10s")


def test_event_time_windows_ask_for_a_watermark() -> None:
    keyed = env().from_arrow(clicks(10)).key_by("k")
    for spec in (rf.Tumbling("1m"), rf.Sliding("1m", "1s")):
        with pytest.raises(rf.PlanError, match=r"has no watermark.*time='processing'"):
            keyed.window(spec)
    with pytest.raises(rf.PlanError, match="is not supported on upsert streams"):
        keyed.aggregate(n=rf.count()).key_by("n").window(rf.Tumbling("1m"))


def test_a_job_whose_windows_changed_does_not_start_from_the_checkpoint_of_the_old_ones(
    lab: Any, tmp_path: Path
) -> None:
    def job(slide: str, output: str) -> rf.StreamEnvironment:
        e = env(2, 7)
        windowed = stream(e, clicks()).key_by("k").window(rf.Sliding("60s", slide))
        windowed.aggregate(n=rf.count()).uid("windows").write_parquet(tmp_path / output)
        return e

    lab.finish(job("5s", "first"), checkpoint__interval="10ms", checkpoint__storage=str(tmp_path / "chk"))
    newest = sorted((tmp_path / "chk").glob("*/chk-*"), key=lambda path: int(path.name.split("-")[1]))[-1]
    error = lab.fail(job("10s", "second"), restore_from=newest)
    assert "slide 5s" in str(error)
    assert "slide 10s" in str(error)
