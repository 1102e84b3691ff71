"""Skewed keys on whole jobs: crashes, a hot key that changes, checkpoints of one setting restored into another."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.skew.salting import SaltOperator

BASE_MS = 1_700_000_000_000

LOCAL, SALTED, AUTO = rf.Skew(), rf.Skew(salt=2), rf.Skew(local_aggregation=False, salt="auto")


def numbers(rows: int) -> Any:
    """Return a generator function: most rows of the first half have key 1, of the second key 2."""

    def batch(start: int, count: int) -> pa.RecordBatch:
        n = np.arange(start, start + count)
        hot = np.where(n < rows // 2, 1, 2)
        keys = np.where(n % 5 == 0, n % 97, hot)
        return pa.record_batch(
            {
                "k": pa.array(keys, pa.int64(), mask=n % 35 == 0),
                "t": pa.array(BASE_MS + n * 10 - n % 7 * 100).cast(pa.timestamp("ms")),
                "v": pa.array(n % 1000),
            }
        )

    return batch


def environment(
    skew: rf.Skew | None, out: Path | str, rows: int, rate: float | None, parallelism: int = 2, **config: Any
) -> Any:
    env = rf.StreamEnvironment(
        parallelism=parallelism, max_parallelism=16, config={"batch.rows": 64, **config}
    )
    stream = env.generate(numbers(rows), rows=rows, rate_limit=rate, watermark=rf.Watermark("t", delay="1s"))
    keyed = stream.key_by("k", skew=skew)
    sums = keyed.window(rf.Tumbling("5s")).aggregate(n=rf.count(), total=col("v").sum(), most=col("v").max())
    sums.uid("windows").write_parquet(f"{out}/windows")
    running = keyed.aggregate(n=rf.count(), distinct=col("v").count_distinct()).uid("running")
    running.write_parquet(f"{out}/running", mode="upsert")
    return env


def expected(lab: Any, out: Path, rows: int) -> tuple[Counter[Any], Counter[Any]]:
    lab.finish(environment(None, out, rows, None))
    return lab.rows(out / "windows"), lab.rows(out / "running")


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sets by which senders have salted rows."""
    seen: list[tuple[int, ...]] = []
    process = SaltOperator.process

    def noted(self: SaltOperator, batch: pa.RecordBatch, port: int) -> None:
        process(self, batch, port)
        seen.append(tuple(self._salted.keys.tolist()))

    monkeypatch.setattr(SaltOperator, "process", noted)
    return seen


@pytest.mark.parametrize("skew", [LOCAL, SALTED, AUTO], ids=str)
def test_crashes_lose_and_double_nothing(
    lab: Any, tmp_path: Path, skew: rf.Skew, switches: list[tuple[int, ...]]
) -> None:
    rows = 4_000
    env = environment(
        skew, tmp_path / "out", rows, 3_000,
        **{"checkpoint.interval": "50ms", "heartbeat.interval": "50ms", "skew.linger": "20ms"},
    )  # fmt: skip
    watcher = lab.crashing(env, 2, seed=5, every=3)
    lab.finish(env, on_start=watcher)
    assert len(watcher.stop()) == 2
    windows, running = expected(lab, tmp_path / "plain", rows)
    assert lab.rows(tmp_path / "out" / "windows") == windows
    assert lab.rows(tmp_path / "out" / "running") == running
    assert any(switches) == (skew is AUTO)


def test_a_checkpoint_of_one_setting_restores_into_another(lab: Any, tmp_path: Path) -> None:
    rows = 4_000
    settings = {
        "checkpoint.interval": "30ms", "heartbeat.interval": "50ms", "checkpoint.storage": str(tmp_path / "chk"),
    }  # fmt: skip
    windows, running = expected(lab, tmp_path / "plain", rows)
    newest = None
    for number, skew in enumerate([None, LOCAL, AUTO, LOCAL, None]):
        last = number == 4
        env = environment(skew, tmp_path / "out", rows, None if last else 4_000, **settings)
        watcher = lab.watch(lambda job, so_far=number: _stop_after(lab, job, 2 + so_far))
        result = lab.run(env, on_start=None if last else watcher, restore_from=newest)
        if last:
            assert result.failure is None
            break
        watcher.stop()
        newest = [c["path"] for c in result.checkpoints if c["status"] == "completed"][-1]
    assert lab.rows(tmp_path / "out" / "windows") == windows
    assert lab.rows(tmp_path / "out" / "running") == running


def _stop_after(lab: Any, job: Any, checkpoints: int) -> Any:
    if lab.completed(job) < checkpoints:
        return None
    job.master.cancel()
    return True


@pytest.mark.parametrize("skew", [LOCAL, SALTED, AUTO], ids=str)
def test_simulated_faults_change_nothing(skew: rf.Skew, switches: list[tuple[int, ...]]) -> None:
    env = environment(skew, "nowhere", 3_000, 3_000, **{"heartbeat.interval": "200ms", "batch.rows": 100})
    # Seed 2 has no faults at all.
    report = rf.testing.simulate(env, seeds=(0, 1, 3))
    report.check()
    assert all(run.faults for run in report.runs)
    # The hot key of the first half, then that of the second beside it.
    assert (len({keys for keys in switches if keys}) > 1) == (skew is AUTO)
