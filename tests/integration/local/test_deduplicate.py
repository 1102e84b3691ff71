"""Whole jobs that deduplicate: subtasks that die, restores at another parallelism, and what people see."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import rayflow as rf
from rayflow.cli.main import cli

METHODS = ["exact", "bitmap", "bloom"]
ROWS, IDS = 2000, 300


def table() -> pa.Table:
    """Return rows of dense, of scattered and of absent ids, each of them several times."""
    rng = random.Random(7)
    ids = [None, *range(IDS), *(rng.randrange(-(2**63), 2**63) for _ in range(IDS))]
    picked = [rng.choice(ids) for _ in range(ROWS)]
    seconds = [at // 10 for at in range(ROWS)]
    return pa.table(
        {
            "id": pa.array(picked, pa.int64()),
            "of": pa.array([at % 3 for at in range(ROWS)]),
            "t": pa.array(seconds, pa.timestamp("s")),
        }
    )


def options(method: str) -> dict[str, Any]:
    # So rarely wrong that no test will see it.
    return {"false_positive_rate": 1e-6, "expected": ROWS} if method == "bloom" else {}


@pytest.mark.parametrize("method", METHODS)
def test_no_key_is_lost_or_doubled_whoever_dies(lab: Any, tmp_path: Path, method: Any) -> None:
    rows = table()
    env = rf.StreamEnvironment(
        parallelism=3, max_parallelism=8, config={"batch.rows": 50, "source.rate_limit": 3000}
    )
    made = env.from_arrow(rows).deduplicate("id", method=method, **options(method))
    made.select("id").write_parquet(tmp_path / "out")
    watcher = lab.crashing(env, 2, seed=3)
    lab.finish(env, on_start=watcher, checkpoint__interval="50ms", restart__delay="1ms")
    assert len(watcher.stop()) == 2
    assert lab.rows(tmp_path / "out") == Counter((i,) for i in set(rows.column("id").to_pylist()))


@pytest.mark.parametrize(("method", "ttl"), [("exact", "30s"), ("bitmap", None), ("bloom", "30s")])
def test_under_any_faults_the_same_rows_come_out(tmp_path: Path, method: Any, ttl: Any) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(table().slice(0, 600), path, row_group_size=200)
    env = rf.StreamEnvironment(parallelism=2, max_parallelism=8)
    rows = env.read_parquet(str(path), watermark=rf.Watermark("t", delay="2s"))
    # In order, as far as rows of one id are concerned: what is kept depends on nothing else.
    rows.with_parallelism(1).deduplicate("id", method=method, ttl=ttl, **options(method)).write_parquet(
        tmp_path / "out"
    )
    report = rf.testing.simulate(env, seeds=range(3))
    report.check()
    assert any(run.attempts > 1 for run in report.runs)


def test_by_event_time_a_key_comes_again_when_its_time_is_over(lab: Any) -> None:
    rows = pa.table(
        {"id": [1, 1, 1, 1, 2, 1], "t": pa.array([0, 9, 10, 19, 19, 20], pa.timestamp("s")), "n": range(6)}
    )
    for rows_per_batch in (1, 100):
        env = rf.StreamEnvironment(parallelism=1, config={"batch.rows": rows_per_batch})
        made = env.from_arrow(rows, watermark=rf.Watermark("t", delay="5s")).deduplicate("id", ttl="10s")
        assert made.execute_and_collect(local=True).column("n").to_pylist() == [0, 2, 4, 5]


@pytest.mark.parametrize("method", METHODS)
def test_within_a_key_at_any_parallelism(method: Any) -> None:
    rows = table()
    columns = ["id"] if method == "bitmap" else ["of", "id"]
    pairs = rows.select(columns).group_by(columns).aggregate([]).num_rows
    for parallelism in (1, 3):
        env = rf.StreamEnvironment(parallelism=parallelism, max_parallelism=8)
        stream = env.from_arrow(rows).key_by(columns[0])
        made = stream.deduplicate(*columns[1:], method=method, **options(method))
        assert made.execute_and_collect(local=True).num_rows == pairs


@pytest.mark.parametrize("method", METHODS)
def test_state_can_be_read_by_people(tmp_path: Path, method: Any) -> None:
    env = rf.StreamEnvironment(parallelism=2, max_parallelism=8, config={"checkpoint.storage": str(tmp_path)})
    made = env.from_arrow(table()).deduplicate("id", method=method, **options(method)).uid("first")
    made.discard()
    env.execute(local=True)
    result = CliRunner().invoke(cli, ["state", "read", str(next(tmp_path.iterdir())), "--operator", "first"])
    assert result.exit_code == 0, result.output
    heading = {
        "exact": ["first / keys:", "id", "key_group"],
        "bitmap": ["first / ids:", "lowest", "highest", "container"],
        "bloom": ["first / filters:", "keys", "room", "fill", "rate"],
    }[method]
    assert all(word in result.output for word in heading), result.output
    assert max(map(len, result.output.splitlines())) < 250
