"""`state.backend=disk`: state that does not fit memory, in jobs that die, are rescaled, and change their backend."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import col

DISK = {"state.backend": "disk", "memory.managed": 0.0005}
"""Some hundred KiB for state: a few thousand keys."""


def rows(count: int, keys: int, seed: int = 1) -> pa.Table:
    rng = random.Random(seed)
    return pa.table(
        {
            "k": [f"key {rng.randrange(keys)}" for _ in range(count)],
            "v": [rng.randrange(100) for _ in range(count)],
        }
    )


def totals(table: pa.Table) -> dict[str, tuple[int, int]]:
    n, total = Counter[str](), Counter[str]()
    for k, v in zip(table["k"].to_pylist(), table["v"].to_pylist()):
        n[k] += 1
        total[k] += v
    return {k: (n[k], total[k]) for k in n}


class Totals(rf.KeyedProcessFunction):
    """The same as the aggregate, by hand."""

    n = rf.ValueState("int64", default=0)
    values = rf.ListState("int64")
    sums = rf.MapState(str, "int64")

    def process(self, row: Any, ctx: Any) -> Any:
        self.n.value += 1
        self.values.append(row["v"])
        self.sums["all"] = self.sums.get("all", 0) + row["v"]
        assert sum(self.values) == self.sums["all"]
        yield {"k": row["k"], "n": self.n.value, "total": self.sums["all"]}


def counting(input_: Any, how: str, out: Path, parallelism: int = 2, **config: Any) -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(parallelism=parallelism, max_parallelism=8, config={**config})
    stream = env.from_arrow(input_) if isinstance(input_, pa.Table) else env.read_parquet(str(input_))
    keyed = stream.key_by("k")
    if how == "aggregate":
        made = keyed.aggregate(n=rf.count(), total=col("v").sum()).uid("totals")
        made.write_parquet(out, mode="upsert")
    else:
        returns = {"k": str, "n": int, "total": int}
        keyed.process(Totals, returns=returns).uid("totals").write_parquet(out)
    return env


def newest(lab: Any, out: Path) -> dict[str, tuple[int, int]]:
    """The row with the most rows counted, of each key."""
    found: dict[str, tuple[int, int]] = {}
    for row in lab.read(out).to_pylist():
        found[row["k"]] = max(found.get(row["k"], (0, 0)), (row["n"], row["total"]))
    return found


@pytest.mark.parametrize("how", ["aggregate", "process"])
def test_state_beyond_memory_survives_subtasks_that_die(lab: Any, tmp_path: Path, how: str) -> None:
    table = rows(12_000, 5_000)
    env = counting(table, how, tmp_path / "out", **DISK, **{"state.dir": str(tmp_path / "scratch")})
    watcher = lab.crashing(env, 2, seed=3, every=2)
    result = lab.finish(
        env,
        on_start=watcher,
        source__rate_limit=10_000,
        checkpoint__interval="60ms",
        batch__rows=500,
        restart__delay="1ms",
    )
    assert newest(lab, tmp_path / "out") == totals(table)
    assert len(watcher.stop()) == 2
    metrics = result.metrics["operators"]["totals"]
    assert metrics["state_evicted_keys"] > 0
    assert metrics["state_fetched_keys"] > 0
    assert metrics["state_disk_bytes"] > 0
    # Scratch is gone with its attempts.
    assert list((tmp_path / "scratch").rglob("*.sst")) == []


@pytest.mark.parametrize(("before", "after"), [({}, DISK), (DISK, {}), (DISK, DISK)])
@pytest.mark.parametrize("how", ["aggregate", "process"])
def test_a_checkpoint_of_either_backend_restores_into_either_at_any_parallelism(
    lab: Any, tmp_path: Path, how: str, before: Any, after: Any
) -> None:
    first, second, files = rows(6_000, 3_000, 1), rows(6_000, 3_000, 2), tmp_path / "in"
    files.mkdir()
    pq.write_table(first, files / "1.parquet")
    storage = {"checkpoint.storage": str(tmp_path / "checkpoints")}
    lab.finish(counting(files, how, tmp_path / "first", 2, **storage, **before), checkpoint__interval="100ms")
    (checkpoint,) = (tmp_path / "checkpoints").glob("*")
    pq.write_table(second, files / "2.parquet")
    again = counting(files, how, tmp_path / "second", 3, **after)
    result = lab.finish(again, restore_from=checkpoint, batch__rows=700)
    assert result.metrics["operators"]["totals"]["rows_in"] == second.num_rows
    wanted = totals(pa.concat_tables([first, second]))
    changed = set(second["k"].to_pylist())
    assert newest(lab, tmp_path / "second") == {k: v for k, v in wanted.items() if k in changed}


def test_a_plan_names_what_stays_in_memory() -> None:
    env = rf.StreamEnvironment(config={"state.backend": "disk"})
    stream = env.from_rows([{"k": 1, "v": 2}]).key_by("k")
    stream.top_n(1, "v").discard()
    stream.aggregate(n=rf.count()).discard()
    (warning,) = [text for text in env.plan().warnings if "memory" in text]
    assert warning.startswith("operator 'top_n' keeps its state in memory, whatever state.backend says (")
    assert "test_state_on_disk.py" in warning
    env.config["state.backend"] = "memory"
    assert not [text for text in env.plan().warnings if "memory" in text]
