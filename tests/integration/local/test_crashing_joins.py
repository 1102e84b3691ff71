"""Joins whose subtasks die: nothing is lost or doubled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rayflow as rf
from tests.integration.local.join_inputs import JOINED, env, random_table, sql_rows, timed


@pytest.mark.parametrize("how", ["inner", "full"])
def test_a_join_survives_crashes(lab: Any, tmp_path: Path, how: Any) -> None:
    a, b = random_table(2000, 3), random_table(300, 4, "efghijkl")
    made = env(3, 50, **{"source.rate_limit": 2000})
    joined = made.from_arrow(a).join(made.from_arrow(b), on=["k", "j"], how=how)
    joined.write_parquet(tmp_path / "out", mode="append" if how == "inner" else "upsert")
    watcher = lab.crashing(made, 2, seed=5)
    lab.finish(made, on_start=watcher, checkpoint__interval="50ms", restart__delay="1ms")
    assert len(watcher.stop()) == 2
    expected = sql_rows(f"select {JOINED} from a {how} join b on a.k = b.k and a.j = b.j", a=a, b=b)
    assert lab.rows(tmp_path / "out") == expected


BY_EVENT_TIME = {
    "window": lambda a, b: a.join(b, on="k", window=rf.Tumbling("10s"), how="left"),
    "interval": lambda a, b: a.key_by("k").interval_join(b.key_by("k"), "-1s", "1s"),
    "temporal": lambda a, b: a.temporal_join(b, on="k"),
}


@pytest.mark.parametrize("kind", list(BY_EVENT_TIME))
def test_joins_by_event_time_survive_crashes(lab: Any, tmp_path: Path, kind: str) -> None:
    a, b = random_table(1500, 27), random_table(1000, 28).select(["k", "v", "t"])
    results = []
    for crashes in (0, 2):
        made = env(3 if crashes else 1, 50, **({"source.rate_limit": 2000} if crashes else {}))
        left, right = timed(made, a), timed(made, b)
        BY_EVENT_TIME[kind](left, right).write_parquet(tmp_path / str(crashes))
        watcher = lab.crashing(made, crashes, seed=5)
        lab.finish(made, on_start=watcher, checkpoint__interval="50ms", restart__delay="1ms")
        assert len(watcher.stop()) == crashes
        results.append(lab.rows(tmp_path / str(crashes)))
    assert results[0] == results[1]
    assert results[0]


def test_a_broadcast_join_survives_crashes_while_the_table_comes_and_after(lab: Any, tmp_path: Path) -> None:
    a, b = random_table(2000, 34), random_table(1000, 35)
    made = env(3, 50)
    left = made.from_batches(a.to_batches(50), schema=a.schema, rate_limit=2000).rebalance()
    right = made.from_batches(b.to_batches(50), schema=b.schema, rate_limit=2000)
    left.broadcast_join(right, on=["k", "j"], how="left").write_parquet(tmp_path / "out")
    watcher = lab.crashing(made, 3, seed=6)
    lab.finish(made, on_start=watcher, checkpoint__interval="50ms", restart__delay="1ms")
    assert len(watcher.stop()) == 3
    expected = sql_rows(
        "select a.k, a.j, a.v, a.f, a.t, b.v, b.f, b.t from a left join b on a.k = b.k and a.j = b.j",
        a=a,
        b=b,
    )
    assert lab.rows(tmp_path / "out") == expected
