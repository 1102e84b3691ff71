"""Windows with `state.backend=disk` in jobs that die, are rescaled, and change their backend: results as in memory."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.state.manifest import Manifest

DISK = {"state.backend": "disk", "memory.managed": 0.0005}
"""Some hundred KiB for state: a few thousand keys."""

WINDOWS = {
    "tumbling": rf.Tumbling("1h"),
    "sliding": rf.Sliding("40m", "10m"),
    "kept up": rf.Sliding("40m", "10m"),
}
SIZES = {"tumbling": (60, 60), "sliding": (40, 10), "kept up": (40, 10)}


def rows(count: int, begin: int = 0, seed: int = 1) -> pa.Table:
    """Rows over `count` seconds from second `begin`, most with a key of their own."""
    rng = random.Random(seed)
    return pa.table(
        {
            "k": [f"key {rng.randrange(count)}" for _ in range(count)],
            "v": [rng.randrange(100) for _ in range(count)],
            "t": pa.array(
                [datetime(2024, 1, 1) + timedelta(seconds=begin + i) for i in range(count)],
                pa.timestamp("ms"),
            ),
        }
    )


def job(table: pa.Table, how: str, out: Path, parallelism: int = 2, **config: Any) -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(parallelism=parallelism, max_parallelism=8, config={**config})
    watermark = rf.Watermark("t")
    stream = env.from_arrow(table, watermark=watermark).uid("read")
    aggregates: dict[str, Any] = {"n": rf.count(), "most": col("v").max(), "total": col("v").sum()}
    if how == "sliding":
        aggregates["all"] = col("v").collect_list()
    windows = stream.key_by("k").window(WINDOWS[how]).aggregate(**aggregates).uid("windows")
    windows.select("k", "window_start", "n", "most", "total").write_parquet(out, if_exists="append")
    return env


def expected(table: pa.Table, how: str) -> list[Any]:
    size, slide = SIZES[how]
    query = f"""
        select k, ws, count(*), max(v), sum(v) from (
            select k, v, t, unnest(range({size // slide})) * interval {slide} minute as back,
            time_bucket(interval {slide} minute, t) - back as ws from "table"
        ) group by k, ws order by all
    """
    assert table.num_rows
    return duckdb.sql(query).fetchall()


def found(lab: Any, *outs: Path) -> list[Any]:
    return sorted(tuple(row.values()) for out in outs for row in lab.read(out).to_pylist())


@pytest.mark.parametrize("how", ["tumbling", "sliding"])
def test_windows_beyond_memory_survive_subtasks_that_die(lab: Any, tmp_path: Path, how: str) -> None:
    table = rows(12_000)
    env = job(table, how, tmp_path / "out", **DISK, **{"state.dir": str(tmp_path / "scratch")})
    watcher = lab.crashing(env, 2, seed=3, every=2)
    result = lab.finish(
        env,
        on_start=watcher,
        source__rate_limit=10_000,
        checkpoint__interval="60ms",
        batch__rows=500,
        restart__delay="1ms",
    )
    assert found(lab, tmp_path / "out") == expected(table, how)
    assert len(watcher.stop()) == 2
    # What the last attempt wrote it has read, or rows were missing.
    assert result.metrics["operators"]["windows"]["state_evicted_keys"] > 0
    # Scratch is gone with its attempts.
    assert list((tmp_path / "scratch").rglob("*.sst")) == []


@pytest.mark.parametrize(
    ("how", "before", "after"),
    [("kept up", {}, DISK), ("sliding", DISK, {}), ("tumbling", DISK, DISK)],
)
def test_a_checkpoint_of_either_backend_restores_into_either_at_any_parallelism(
    lab: Any, tmp_path: Path, how: str, before: Any, after: Any
) -> None:
    table = rows(12_000)
    kept = {"checkpoint.storage": str(tmp_path / "checkpoints"), "checkpoint.retained": 100}
    first = job(table, how, tmp_path / "first", 2, **kept, **before)
    lab.finish(first, source__rate_limit=8_000, checkpoint__interval="100ms", batch__rows=500)
    again = job(table, how, tmp_path / "second", 3, **after)
    checkpoint = with_open_windows(tmp_path / "checkpoints")
    result = lab.finish(again, restore_from=checkpoint, allow_duplicates=True, batch__rows=700)
    assert 0 < result.metrics["operators"]["windows"]["rows_in"] < table.num_rows
    second, wanted = found(lab, tmp_path / "second"), expected(table, how)
    # Windows that were open then come whole, and no others.
    starts = {row[1] for row in second}
    assert second == [row for row in wanted if row[1] in starts]
    assert max(row[1] for row in wanted) in starts


def with_open_windows(checkpoints: Path) -> Path:
    """Return the first checkpoint with something in windows: most rows were still to be read."""
    found = {
        int(path.parent.name[4:]): (path.parent, Manifest.from_json(path.read_bytes()))
        for path in checkpoints.glob("*/chk-*/manifest.json")
    }
    return next(
        path
        for _, (path, manifest) in sorted(found.items())
        if any(file.uid == "windows" and file.part == "windows" and file.rows for file in manifest.files)
    )


def test_a_plan_names_the_windows_that_stay_in_memory() -> None:
    env = rf.StreamEnvironment(config={"state.backend": "disk"})
    given = [{"k": 1, "v": 2, "t": datetime(2024, 1, 1)}]
    stream = env.from_rows(given, watermark=rf.Watermark("t")).key_by("k")
    for window in (rf.Tumbling("1h"), rf.Sliding("1h", "1m"), rf.GlobalWindow(), rf.CountWindow(9)):
        stream.window(window).aggregate(n=rf.count()).discard()
        stream.window(window).aggregate(n=col("v").count_distinct()).discard()
        stream.window(window).process(lambda rows, ctx: None, returns={"n": int}).discard()
    assert not [text for text in env.plan().warnings if "memory" in text]
    stream.window(rf.Tumbling("1h")).allowed_lateness("1m").aggregate(n=rf.count()).discard()
    stream.window(rf.Tumbling("1h")).trigger(rf.OnCount(9)).aggregate(n=rf.count()).discard()
    stream.window(rf.GlobalWindow()).trigger(rf.OnCount(9)).aggregate(n=rf.count()).discard()
    stream.window(rf.Session("1m")).aggregate(n=rf.count()).discard()
    warnings = [text for text in env.plan().warnings if "keeps its state in memory" in text]
    assert len(warnings) == 4
    assert all("test_windows_on_disk.py" in text for text in warnings)
