"""A sink that stalls: memory stays flat, the source stops, everyone answers, siblings flow on, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import rayflow as rf
from rayflow.batch.hashing import key_groups
from rayflow.protocol.key_groups import subtask_of_key_group

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

STALL_S = 30
MAX_PARALLELISM = 128


def numbers(start: int, count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": np.arange(start, start + count)})


class Tally:
    """Replaces batches by their count and sum; after `stall_after` rows it blocks until the file `go` exists."""

    def __init__(self, go: Path, stall_after: int) -> None:
        self._go, self._left = go, stall_after

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        self._left -= batch.num_rows
        while self._left < 0 and not self._go.exists():
            time.sleep(0.05)
        values = batch.column("n").to_numpy()
        return pa.record_batch({"rows": [len(values)], "total": [int(values.sum())]})


def await_that(what: str, condition: Callable[[], Any], within_s: float = 60) -> Any:
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        time.sleep(0.1)
    return found


def subtasks(job: rf.JobHandle, name: str) -> list[dict[str, Any]]:
    """Return what `describe` says of the subtasks of the chain with an operator called `name`."""
    description = job.describe()
    uids = {op["uid"] for op in description["operators"] if name in op["name"].split(" → ")}
    return [s for s in description["subtasks"] if s["operator"] in uids]


def test_memory_stays_flat_while_a_sink_stalls_and_nothing_is_lost(tmp_path: Path) -> None:
    rows, go = 60_000_000, tmp_path / "go"
    env = rf.StreamEnvironment(
        name="stalled", config={"checkpoint.interval": "1s", "checkpoint.timeout": "120s"}
    )
    source = env.generate(numbers, rows=rows).name("numbers")
    tallied = source.rebalance().map_batches(
        Tally(go, 20_000_000), returns={"rows": "int64", "total": "int64"}
    )
    tallied.name("tally").write_parquet(tmp_path / "out")
    job = env.submit()

    def is_back_pressured() -> bool:
        (stopped,) = subtasks(job, "numbers")
        return bool(stopped["rows_in"] > 20_000_000 and stopped["backpressured"] > 0.9)

    await_that("back-pressure at the source", is_back_pressured, 120)
    description = job.describe()
    pids = {s["pid"] for s in description["subtasks"]} | {description["job_manager"]["pid"]}
    processes = [psutil.Process(pid) for pid in pids]
    (before,) = subtasks(job, "numbers")
    sizes = []
    for _ in range(STALL_S * 2):
        sizes.append([process.memory_info().rss for process in processes])
        time.sleep(0.5)

    (after,) = subtasks(job, "numbers")
    assert after["rows_in"] == before["rows_in"], "the source went on"
    assert after["backpressured"] > 0.9
    for samples in zip(*sizes):
        assert max(samples) <= 1.1 * min(samples), samples
    (pending,) = [c for c in job.checkpoints() if c["status"] not in ("completed", "failed")]
    # The source has acknowledged; its barrier waits behind the rows that the sink does not take.
    assert (pending["acknowledged"], pending["subtasks"]) == (1, 2), pending

    go.touch()
    assert job.wait(timeout=120).state == "FINISHED"
    table = ds.dataset(tmp_path / "out", format="parquet").to_table()
    assert sum(table["rows"].to_pylist()) == rows
    assert sum(table["total"].to_pylist()) == rows * (rows - 1) // 2


def keys_of(subtask: int, parallelism: int) -> list[int]:
    """Return some keys that a subtask owns."""
    keys = np.arange(1000)
    groups = key_groups(pa.record_batch({"k": keys}), ["k"], MAX_PARALLELISM)
    owners = [subtask_of_key_group(int(g), MAX_PARALLELISM, parallelism) for g in groups]
    return [int(k) for k, owner in zip(keys, owners) if owner == subtask][:50]


class StallOn:
    """Counts keys; blocks on the first batch that has one of `keys` until the file `go` exists."""

    def __init__(self, keys: list[int], go: Path) -> None:
        self._keys, self._go = keys, go

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        while not self._go.exists() and np.isin(batch.column("k").to_numpy(), self._keys).any():
            time.sleep(0.05)
        return batch


@pytest.mark.chaos  # out of CI for its length
def test_what_does_not_feed_a_stalled_subtask_runs_on(tmp_path: Path) -> None:
    stalled, free = keys_of(0, 2), keys_of(1, 2)

    def cycle(keys: list[int]) -> Callable[[int, int], pa.RecordBatch]:
        return lambda start, count: pa.record_batch(
            {"k": np.array(keys)[np.arange(start, start + count) % len(keys)]}
        )

    env = rf.StreamEnvironment(name="siblings", config={"checkpoint.interval": "off"})
    both = env.generate(cycle([*stalled, *free])).name("both")
    one = env.generate(cycle(free), rate_limit=200_000).name("one")
    keyed = both.union(one).key_by("k")
    keyed.map_batches(StallOn(stalled, tmp_path / "go"), returns={"k": "int64"}).name(
        "stalling"
    ).with_parallelism(2).discard()
    job = env.submit()

    def is_stopped() -> bool:
        (feeding_both,) = subtasks(job, "both")
        return bool(feeding_both["rows_in"] and feeding_both["backpressured"] > 0.9)

    await_that("back-pressure at the source that feeds both", is_stopped)
    blocked, flowing = subtasks(job, "stalling")
    (feeding_both,) = subtasks(job, "both")
    (feeding_one,) = subtasks(job, "one")
    await_that(
        "rows of the other source at the other subtask",
        lambda: (
            subtasks(job, "stalling")[1]["rows_in"] > flowing["rows_in"] + 200_000
            and subtasks(job, "one")[0]["rows_in"] > feeding_one["rows_in"] + 200_000
        ),
    )
    assert subtasks(job, "stalling")[0]["rows_in"] == blocked["rows_in"]
    assert subtasks(job, "both")[0]["rows_in"] == feeding_both["rows_in"]
    job.cancel()
    assert job.wait(timeout=60).state == "CANCELLED"
