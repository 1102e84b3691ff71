"""The main job on real input, against DuckDB: whatever the parallelism, whoever dies."""

from __future__ import annotations

import glob
import importlib.util
import random
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import duckdb
import pytest

import rayflow as rf

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")

ROWS = 336_776
COLUMNS = "origin, window_start, window_end, flights, round(mean_delay, 6), worst_delay"


@pytest.fixture(scope="module")
def job(root: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("flight_delays", root / "jobs" / "flight_delays.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def flights(root: Path) -> Path:
    return root / "jobs" / "data" / "flights.parquet"


@pytest.fixture(scope="module")
def expected(flights: Path) -> Counter[tuple[Any, ...]]:
    per_hour = f"""select origin, date_trunc('hour', departure) window_start,
            window_start + interval 1 hour window_end, count(*) flights, avg(dep_delay) mean_delay,
            max(dep_delay) worst_delay from '{flights}' where dep_delay is not null group by 1, 2"""
    return Counter(duckdb.sql(f"select {COLUMNS} from ({per_hour})").fetchall())


def committed(out: Path) -> Counter[tuple[Any, ...]]:
    """Return what a reader sees now; files may be added meanwhile."""
    # Not rglob, which fails where a directory goes while it looks.
    files = glob.glob(f"{out}/**/*.parquet", recursive=True)
    if not files:
        return Counter()
    return Counter(duckdb.connect().sql(f"select {COLUMNS} from read_parquet({files})").fetchall())


@pytest.mark.parametrize("parallelism", [1, 2, 4])
def test_it_equals_duckdb_and_committed_rows_only_grow(
    lab: Any, job: ModuleType, flights: Path, expected: Counter[Any], tmp_path: Path, parallelism: int
) -> None:
    env = rf.StreamEnvironment(parallelism=parallelism)
    job.build(env, input=str(flights), output=str(tmp_path / "out"))
    watcher = lab.watch(lambda _: committed(tmp_path / "out"), every_s=0.05)
    result = lab.finish(
        env, on_start=watcher, checkpoint__interval="50ms", batch__rows=1000, source__rate_limit=500_000
    )
    assert committed(tmp_path / "out") == expected
    assert result.describe["checkpoints"]["completed"] > 1
    # What was counted is still told when the job has ended.
    sources = [s["rows_in"] for s in result.describe["subtasks"] if s["operator"] == "read_parquet-1"]
    assert sum(sources) == ROWS
    assert lab.leftovers(tmp_path / "out") == []
    only_grows(watcher.stop(), expected)


def only_grows(seen: list[Counter[Any]], expected: Counter[Any]) -> None:
    assert any(0 < rows.total() < expected.total() for rows in seen), "nothing was visible while the job ran"
    for before, after in pairwise(seen):
        assert before <= after
    for rows in seen:
        assert rows <= expected


@pytest.mark.parametrize("seed", range(4))
def test_subtasks_that_die_lose_and_double_nothing(
    lab: Any, job: ModuleType, flights: Path, expected: Counter[Any], tmp_path: Path, seed: int
) -> None:
    env = rf.StreamEnvironment(parallelism=seed % 2 + 1)
    job.build(env, input=str(flights), output=str(tmp_path / "out"))
    rng, crashed, seen_at = random.Random(seed), [], [0]

    def look(running: Any) -> Counter[Any]:
        # A subtask dies whenever two more checkpoints have completed, three times; not at the very end, when
        # the job may finish without it.
        shown = committed(tmp_path / "out")
        far_from_done = shown.total() < 0.8 * expected.total()
        if len(crashed) < 3 and lab.completed(running) >= seen_at[0] + 2 and far_from_done:
            # Between two attempts there is nobody to die.
            crashed.extend(filter(None, [lab.crash(running, rng)]))
            seen_at[0] = lab.completed(running)
        return shown

    watcher = lab.watch(look, every_s=0.05)
    result = lab.finish(
        env,
        on_start=watcher,
        checkpoint__interval="50ms",
        batch__rows=1000,
        source__rate_limit=250_000,
        restart__delay="1ms",
    )
    only_grows(watcher.stop(), expected)
    assert committed(tmp_path / "out") == expected
    assert lab.leftovers(tmp_path / "out") == []
    restarts = result.describe["restarts"]
    # On a busy machine the job may end before the third.
    assert len(restarts) == len(crashed) >= 1
    assert all("/chk-" in restart["restored_from"] for restart in restarts)
