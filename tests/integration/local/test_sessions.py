"""Windows that their rows make, in whole jobs, against DuckDB: whatever the parallelism, whoever dies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import col

ROWS = 12_000
FILES = 3


@pytest.fixture(scope="module")
def bids(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bids in three files, each with its rows up to 5 s out of order."""
    path = tmp_path_factory.mktemp("bids")
    rng = np.random.default_rng(11)
    # Bidders come and go: some have rows all the time, most of them once in a while.
    bidder = np.where(rng.random(ROWS) < 0.3, rng.integers(0, 5, ROWS), rng.integers(5, 900, ROWS))
    time = np.sort(rng.integers(0, 600_000, ROWS)) + 1_436_918_400_000
    price = rng.integers(1, 10_000, ROWS)
    for number in range(FILES):
        own = np.arange(number, ROWS, FILES)
        own = own[np.argsort(time[own] + rng.integers(0, 5_000, len(own)), kind="stable")]
        table = pa.table(
            {
                "bidder": bidder[own],
                "price": price[own],
                "dateTime": pa.array(time[own]).cast(pa.timestamp("ms")),
                "position": np.arange(len(own)),
            }
        )
        pq.write_table(table, path / f"part-{number}.parquet", row_group_size=1000)
    return path


def read(env: rf.StreamEnvironment, bids: Path, **options: Any) -> rf.DataStream:
    return env.read_parquet(str(bids), watermark=rf.Watermark("dateTime", delay="5s"), **options)


SESSIONS = """
    select bidder, min(dateTime) window_start, max(dateTime) + interval 10 second window_end, count(*) bids,
        sum(price) total, max(price) highest
    from (
        select *, sum(is_first) over (partition by bidder order by dateTime, price) session
        from (
            select *, coalesce(dateTime - lag(dateTime) over (partition by bidder order by dateTime, price)
                > interval 10 second, true)::int is_first
            from '{bids}/*.parquet'
        )
    ) group by bidder, session
"""


@pytest.fixture(scope="module")
def expected(bids: Path) -> Counter[tuple[Any, ...]]:
    return Counter(duckdb.sql(SESSIONS.format(bids=bids)).fetchall())


def sessions(stream: rf.DataStream) -> Any:
    return stream.key_by("bidder").window(rf.Session("10s"))


AGGREGATES = {"bids": rf.count(), "total": col("price").sum(), "highest": col("price").max()}


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_bids_per_session_equal_duckdbs(
    lab: Any, bids: Path, expected: Counter[Any], tmp_path: Path, parallelism: int
) -> None:
    env = rf.StreamEnvironment(parallelism=parallelism)
    sessions(read(env, bids)).aggregate(**AGGREGATES).write_parquet(str(tmp_path / "out"))
    result = lab.finish(env, checkpoint__interval="20ms", batch__rows=500)
    assert lab.rows(tmp_path / "out") == expected
    assert max(expected, key=lambda row: row[3])[3] > 50
    assert result.state == "FINISHED"


def test_bids_per_session_survive_crashes(
    lab: Any, bids: Path, expected: Counter[Any], tmp_path: Path
) -> None:
    env = rf.StreamEnvironment(parallelism=2, config={"restart.delay": "1ms"})
    sessions(read(env, bids, rate_limit=15_000)).aggregate(**AGGREGATES).write_parquet(str(tmp_path / "out"))
    watcher = lab.crashing(env, 2, seed=3, every=3)
    lab.finish(env, on_start=watcher, checkpoint__interval="20ms", batch__rows=500)
    assert len(watcher.stop()) == 2
    assert lab.rows(tmp_path / "out") == expected


def test_sessions_with_late_rows_and_allowed_lateness_end_as_if_all_had_come_in_time(
    lab: Any, bids: Path, expected: Counter[Any], tmp_path: Path
) -> None:
    # Nothing is allowed for disorder, so sessions end too early, and are put right.
    env = rf.StreamEnvironment(parallelism=2)
    stream = env.read_parquet(str(bids), watermark=rf.Watermark("dateTime"))
    late = sessions(stream).allowed_lateness("1h", late_to="late").aggregate(**AGGREGATES)
    late.write_parquet(str(tmp_path / "out"), mode="upsert")
    late.side_output("late").write_parquet(str(tmp_path / "late"))
    lab.finish(env, batch__rows=200)
    assert lab.rows(tmp_path / "out") == expected
    assert lab.read(tmp_path / "late").num_rows == 0


def test_kept_and_late_rows_are_all_rows(lab: Any, bids: Path, tmp_path: Path) -> None:
    env = rf.StreamEnvironment()
    stream = env.read_parquet(str(bids / "part-0.parquet"), watermark=rf.Watermark("dateTime"))
    windows = stream.key_by("bidder").window(rf.Session("1s")).allowed_lateness("0s", late_to="late")
    results = windows.aggregate(bids=rf.count())
    results.write_parquet(str(tmp_path / "out"))
    results.side_output("late").write_parquet(str(tmp_path / "late"))
    lab.finish(env, batch__rows=200, batch__linger="0s")
    late = lab.read(tmp_path / "late")
    assert late.schema.names == ["bidder", "price", "dateTime", "position"]
    assert late.num_rows + sum(lab.read(tmp_path / "out")["bids"].to_pylist()) == ROWS // FILES
    assert late.num_rows > 0


def test_sessions_of_sessions_go_by_their_ends(lab: Any, bids: Path, expected: Counter[Any]) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    minutes = sessions(read(env, bids)).aggregate(bids=rf.count()).key_by("bidder").window(rf.Tumbling("1m"))
    found = minutes.aggregate(sessions=rf.count(), bids=col("bids").sum()).execute_and_collect(local=True)
    per_minute: Counter[Any] = Counter()
    for bidder, _, end, _, _, _ in expected:
        per_minute[bidder, end.replace(second=0, microsecond=0)] += 1
    got = found.select(["bidder", "window_start", "sessions"]).to_pylist()
    assert {(row["bidder"], row["window_start"]): row["sessions"] for row in got} == per_minute
    assert sum(found["bids"].to_pylist()) == ROWS


def test_sessions_of_processing_time_count_every_row(bids: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    stream = env.read_parquet(str(bids)).key_by("bidder").window(rf.Session("1h", time="processing"))
    found = stream.aggregate(bids=rf.count()).execute_and_collect(local=True)
    bidders = duckdb.sql(f"select bidder, count(*) from '{bids}/*.parquet' group by 1").fetchall()
    assert sorted(zip(*[found[name].to_pylist() for name in ("bidder", "bids")])) == sorted(bidders)
    assert found.schema.field("window_start").type == pa.timestamp("ms")


# -------------------------------------------------------------------------- count and global windows


def test_count_windows_equal_duckdbs(lab: Any, bids: Path, tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    one_file = env.read_parquet(str(bids / "part-0.parquet"), watermark=rf.Watermark("dateTime", delay="5s"))
    # One subtask reads the row groups, so that a bidder's rows stay in order.
    windows = one_file.with_parallelism(1).key_by("bidder").window(rf.CountWindow(7))
    windows.aggregate(low=col("position").min(), total=col("price").sum()).write_parquet(
        str(tmp_path / "out")
    )
    lab.finish(env, batch__rows=300, checkpoint__interval="20ms")
    expected = duckdb.sql(f"""
        select bidder, min(dateTime) window_start, max(dateTime) window_end, min(position), sum(price)
        from (select *, (row_number() over (partition by bidder order by position) - 1) // 7 number
              from '{bids}/part-0.parquet')
        group by bidder, number having count(*) = 7""").fetchall()
    assert lab.rows(tmp_path / "out") == Counter(expected)
    assert len(expected) > 100


@pytest.mark.parametrize("trigger", [rf.OnWatermark(), rf.OnCount(4), rf.OnProcessingTime("5ms")])
def test_the_global_window_ends_with_the_input(bids: Path, trigger: Any) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    window = env.read_parquet(str(bids)).key_by("bidder").window(rf.GlobalWindow()).trigger(trigger)
    found = window.aggregate(bids=rf.count(), total=col("price").sum()).execute_and_collect(local=True)
    assert found.schema.names == ["bidder", "bids", "total"]
    query = f"select bidder, count(*), sum(price) from '{bids}/*.parquet' group by 1"
    assert Counter(zip(*[column.to_pylist() for column in found.columns])) == Counter(
        duckdb.sql(query).fetchall()
    )
