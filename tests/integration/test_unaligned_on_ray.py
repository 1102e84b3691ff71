"""A slow function under full back-pressure: aligned checkpoints do not get through within 10 s, unaligned ones do, and
a process that is killed then costs no row."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import rayflow as rf
from tests.integration.test_backpressure_on_ray import await_that, subtasks

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROWS = 120_000
LIMIT_S = 10


def wide(start: int, count: int) -> pa.RecordBatch:
    """About a kilobyte a row."""
    return pa.record_batch({"n": np.arange(start, start + count), "text": ["x" * 1000] * count})


class Slow:
    """Takes its time over each batch until the file `go` exists."""

    def __init__(self, go: Path) -> None:
        self._go = go

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self._go.exists():
            time.sleep(2)
        return batch.select(["n"])


def submit(path: Path, mode: str) -> rf.JobHandle:
    config = {
        "checkpoint.interval": "1s",
        "checkpoint.timeout": "120s",
        "checkpoint.mode": mode,
        "batch.rows": 1000,
    }
    env = rf.StreamEnvironment(name=mode, config=config)
    source = env.generate(wide, rows=ROWS).name("numbers")
    slow = source.rebalance().map_batches(Slow(path / "go"), returns={"n": "int64"})
    slow.name("slow").write_parquet(path / mode)
    return env.submit()


def back_pressured(job: rf.JobHandle) -> None:
    def full() -> bool:
        (source,) = subtasks(job, "numbers")
        return bool(source["rows_in"] and source["backpressured"] > 0.9)

    await_that("back-pressure at the source", full, 240)


def begun(job: rf.JobHandle, checkpoint_id: int) -> bool:
    """Wait until the checkpoint has been triggered."""
    return bool(
        await_that("a checkpoint", lambda: any(c["id"] == checkpoint_id for c in job.checkpoints()), 120)
    )


def completes_in_time(job: rf.JobHandle, checkpoint_id: int) -> bool:
    """Wait for the checkpoint, `LIMIT_S` at most."""
    deadline_s = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline_s:
        report = next(c for c in job.checkpoints() if c["id"] == checkpoint_id)
        if report["status"] == "completed":
            return True
        time.sleep(0.2)
    return False


def check_rows(path: Path) -> None:
    rows = ds.dataset(path, format="parquet").to_table()["n"].to_numpy()
    assert np.array_equal(np.sort(rows), np.arange(ROWS))


def test_an_unaligned_checkpoint_gets_through_full_back_pressure_and_an_aligned_one_does_not(
    tmp_path: Path,
) -> None:
    job = submit(tmp_path, "aligned")
    back_pressured(job)
    # The one under way may have begun when little was queued before it; those that follow have all of that.
    newest = max(c["id"] for c in await_that("checkpoints", job.checkpoints))
    assert not all(completes_in_time(job, newest + i) for i in range(3) if begun(job, newest + i))
    job.cancel()

    job = submit(tmp_path, "unaligned")
    back_pressured(job)
    newest = max(c["id"] for c in await_that("checkpoints", job.checkpoints))
    assert begun(job, newest + 1)

    def completed() -> dict[str, Any] | None:
        return next(
            (c for c in job.checkpoints() if c["id"] == newest + 1 and c["status"] == "completed"), None
        )

    done = await_that("an unaligned checkpoint", completed)
    assert done["duration_ms"] < LIMIT_S * 1000, done
    assert done["in_flight_bytes"] > 0
    (slow,) = subtasks(job, "slow")
    os.kill(slow["pid"], signal.SIGKILL)
    (tmp_path / "go").touch()
    assert job.wait(timeout=120).state == "FINISHED"
    restarts = job.describe()["restarts"]
    assert restarts
    assert restarts[0]["restored_from"]
    check_rows(tmp_path / "unaligned")
