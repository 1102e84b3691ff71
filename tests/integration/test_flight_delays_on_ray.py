"""The main job on real Ray actors, against DuckDB; its subtask processes killed one after the other."""

from __future__ import annotations

import importlib.util
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pytest

import rayflow as rf

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROOT = Path(__file__).parents[2]
FLIGHTS = ROOT / "jobs" / "data" / "flights.parquet"
ROWS = 336_776
COLUMNS = "origin, window_start, window_end, flights, round(mean_delay, 6), worst_delay"


def build(env: rf.StreamEnvironment, output: Path) -> None:
    spec = importlib.util.spec_from_file_location("flight_delays", ROOT / "jobs" / "flight_delays.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build(env, input=str(FLIGHTS), output=str(output))


@pytest.fixture(scope="module")
def expected() -> Counter[Any]:
    per_hour = f"""select origin, date_trunc('hour', departure) window_start,
            window_start + interval 1 hour window_end, count(*) flights, avg(dep_delay) mean_delay,
            max(dep_delay) worst_delay from '{FLIGHTS}' where dep_delay is not null group by 1, 2"""
    return Counter(duckdb.sql(f"select {COLUMNS} from ({per_hour})").fetchall())


def committed(out: Path) -> Counter[Any]:
    files = [str(file) for file in out.rglob("*.parquet")]
    if not files:
        return Counter()
    return Counter(duckdb.connect().sql(f"select {COLUMNS} from read_parquet({files})").fetchall())


def await_that(what: str, condition: Callable[[], Any], within_s: float = 60) -> Any:
    """Return the first true answer of `condition`."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        time.sleep(0.05)
    return found


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_it_equals_duckdb(expected: Counter[Any], tmp_path: Path, parallelism: int) -> None:
    env = rf.StreamEnvironment(
        name="flights", parallelism=parallelism, config={"checkpoint.interval": "200ms"}
    )
    build(env, tmp_path / "out")
    assert env.execute().state == "FINISHED"
    assert committed(tmp_path / "out") == expected


def test_each_subtask_is_killed_in_turn_and_no_row_is_lost_or_doubled(
    expected: Counter[Any], tmp_path: Path
) -> None:
    env = rf.StreamEnvironment(
        name="flights",
        parallelism=2,
        config={
            "checkpoint.interval": "200ms",
            "source.rate_limit": 12_000,
            "batch.rows": 2000,
            "restart.max_attempts": 20,
        },
    )
    build(env, tmp_path / "out")
    job = env.submit()
    subtasks = job.describe()["subtasks"]
    seen: list[Counter[Any]] = []
    read: Counter[int] = Counter()

    def look() -> dict[str, Any]:
        seen.append(committed(tmp_path / "out"))
        description = job.describe()
        sources = [s["rows_in"] for s in description["subtasks"] if s["operator"] == subtasks[0]["operator"]]
        read[description["attempt"]] = max(read[description["attempt"]], sum(sources))
        return description

    for number, subtask in enumerate(subtasks):

        def has_new_checkpoint(number: int = number) -> int | None:
            description = look()
            assert description["state"] not in ("FINISHED", "FAILED"), description["failure"]
            done = [c for c in job.checkpoints() if c["status"] == "completed"]
            going = description["state"] == "RUNNING" and len(description["restarts"]) == number
            # Two checkpoints since the last kill: this one is not the one that was restored.
            fresh = len(done) >= 2 and all(s["rows_in"] for s in description["subtasks"][:1])
            here = description["subtasks"][number]
            return here["pid"] if going and fresh and here["state"] == "RUNNING" else None

        pid = await_that(f"a running {subtask['operator']} with a checkpoint behind it", has_new_checkpoint)
        os.kill(pid, signal.SIGKILL)
        await_that("the restart", lambda number=number: len(look()["restarts"]) == number + 1)

    await_that("the end", lambda: look()["state"] == "FINISHED", within_s=120)
    description = look()
    assert committed(tmp_path / "out") == expected
    assert len(description["restarts"]) == len(subtasks)
    for restart in description["restarts"]:
        assert "/chk-" in restart["restored_from"], restart
    assert ROWS <= read.total() < 1.5 * ROWS, read
    for before, after in pairwise(seen):
        assert before <= after <= expected
    assert any(0 < rows.total() < expected.total() for rows in seen)
