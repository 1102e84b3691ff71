"""Unaligned checkpoints of whole jobs: under full back-pressure, restored at another parallelism, with crashes."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.model.config import JobConfig
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.local import LocalJob
from rayflow.state.finding import resolve_checkpoint
from tests.integration.local import test_crashing_joins as joins
from tests.integration.local import test_upserts as upserts

ROWS = 30_000
UNALIGNED = {"checkpoint__mode": "unaligned"}
TIMED = {"checkpoint__alignment_timeout": "20ms"}
MOST_BATCHES = 12
"""So many batches go through while a checkpoint is under way, at most: far fewer than are queued."""


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration may not ask for so little: back-pressure with few rows."""
    monkeypatch.setattr(JobConfig, "network_bytes", property(lambda self: 1 << 16))


class Turnstile:
    """Lets batches through one by one, as the test says."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.given = 0
        self.passed = 0
        self.open = False

    def give(self) -> None:
        self.given += 1
        self.allowed.release()

    def let_go(self) -> None:
        self.open = True
        for _ in range(100):
            self.allowed.release()

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        if not self.open:
            self.allowed.acquire()
            self.passed += 1
        return batch


TURNSTILE: dict[str, Turnstile] = {}


class HeldUp:
    """Found by name, since functions travel by pickle."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        return TURNSTILE[self._name](batch)


def numbers(start: int, count: int) -> pa.RecordBatch:
    n = np.arange(start, start + count)
    return pa.record_batch({"n": n, "text": [f"row {i}" for i in n]})


def job(path: Path, parallelism: int, exchange: str) -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(
        name="held-up",
        config={
            "checkpoint.storage": f"file://{path}/state",
            "checkpoint.interval": "10ms",
            "checkpoint.timeout": "120s",
            "batch.rows": 100,
            "batch.linger": "0ms",
        },
    )
    source = env.generate(numbers, rows=ROWS).uid("numbers")
    stream: Any = source.rebalance() if exchange == "rebalance" else source.key_by("n")
    held = stream.map_batches(HeldUp(str(path)), returns={"n": "int64", "text": "string"})
    held.with_parallelism(parallelism).uid("held").write_parquet(path / "out").uid("out")
    return env


class Director:
    """Waits for back-pressure, then for a checkpoint that is triggered under it. From then on it lets a batch
    through now and then, `MOST_BATCHES` at most, and calls `end` when the checkpoint has completed, or has not with
    all of them."""

    def __init__(self, turnstile: Turnstile, end: Any) -> None:
        self._turnstile, self._end = turnstile, end
        self.completes: bool | None = None
        self.checkpoint: dict[str, Any] = {}
        self._rows_in: list[int] = []
        self._newest: int | None = None
        self._given_before = 0
        self._looks = 0

    def __call__(self, job: LocalJob) -> bool | None:
        turnstile = self._turnstile
        if self.completes is not None or turnstile.passed < turnstile.given:
            return None
        checkpoints = job.master.checkpoints()
        self._rows_in.append(job.master.describe()["subtasks"][0]["rows_in"])
        if self._newest is None:
            last = self._rows_in[-20:]
            if len(last) == 20 and last[0] == last[-1] > 0 and checkpoints:
                self._newest = checkpoints[-1]["id"]
            return None
        current = next((c for c in checkpoints if c["id"] > self._newest), None)
        if current is None:
            turnstile.give()
            self._given_before = turnstile.given
            return None
        self._looks += 1
        given = turnstile.given - self._given_before
        if current["status"] == "pending" and given < MOST_BATCHES:
            if self._looks % 5 == 0:
                turnstile.give()
            return None
        self.completes = current["status"] == "completed"
        self.checkpoint = current
        self._end(job)
        turnstile.let_go()
        return True


def direct(lab: Any, path: Path, mode: dict[str, str], exchange: str, end: Any) -> tuple[Director, Any]:
    TURNSTILE[str(path)] = Turnstile()
    director = Director(TURNSTILE[str(path)], end)
    watcher = lab.watch(director)
    result = lab.run(job(path, 2, exchange), on_start=watcher, **mode)
    assert watcher.stop(), result.failure
    return director, result


def expected() -> Counter[Any]:
    return Counter((n, f"row {n}") for n in range(ROWS))


def test_under_full_back_pressure_an_aligned_checkpoint_does_not_complete(lab: Any, tmp_path: Path) -> None:
    director, result = direct(lab, tmp_path, {}, "rebalance", lambda job: None)
    assert director.completes is False
    assert result.state is JobState.FINISHED
    assert lab.rows(tmp_path / "out") == expected()


@pytest.mark.parametrize(
    ("mode", "exchange", "parallelism"),
    [(UNALIGNED, "hash", 3), (UNALIGNED, "rebalance", 1), (TIMED, "hash", 1)],
    ids=["unaligned", "unaligned-rebalance", "timed"],
)
def test_under_full_back_pressure_an_unaligned_checkpoint_completes_and_restores_at_another_parallelism(
    lab: Any, tmp_path: Path, mode: dict[str, str], exchange: str, parallelism: int
) -> None:
    director, result = direct(lab, tmp_path, mode, exchange, lambda job: job.master.cancel())
    assert director.completes
    assert director.checkpoint["in_flight_bytes"] > 0
    assert result.state is JobState.CANCELLED
    newest = [c["path"] for c in result.checkpoints if c["status"] == "completed"][-1]
    manifest = resolve_checkpoint(newest, {}).manifest
    assert sum(f.rows for f in manifest.files if f.kind == "in-flight") > 100
    TURNSTILE[str(tmp_path)].open = True
    lab.finish(job(tmp_path, parallelism, exchange), restore_from=newest, **mode)
    assert lab.rows(tmp_path / "out") == expected()


# ------------------------------------------------------------------------------------------------- crashes


class UnalignedLab:
    """A lab whose jobs take unaligned checkpoints."""

    def __init__(self, lab: Any, mode: dict[str, str]) -> None:
        self._lab, self._mode = lab, mode

    def finish(self, env: rf.StreamEnvironment, **options: Any) -> Any:
        return self._lab.finish(env, **options, **self._mode)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lab, name)


CRASHING = {
    "join": lambda lab, path: joins.test_a_join_survives_crashes(lab, path, "full"),
    "interval join": lambda lab, path: joins.test_joins_by_event_time_survive_crashes(lab, path, "interval"),
    "broadcast join": joins.test_a_broadcast_join_survives_crashes_while_the_table_comes_and_after,
    "upserts": lambda lab, path: upserts.test_aggregates_of_aggregates_survive_subtasks_that_die(
        lab, path, 1
    ),
}


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("join", UNALIGNED), ("interval join", TIMED), ("broadcast join", UNALIGNED), ("upserts", TIMED)],
)
def test_jobs_survive_crashes_with_rows_in_flight(
    lab: Any, tmp_path: Path, kind: str, mode: dict[str, str]
) -> None:
    CRASHING[kind](UnalignedLab(lab, mode), tmp_path)
