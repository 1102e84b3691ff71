"""File sinks in whole jobs: commits that hang, are late, or fail half-way; a disk that is full."""

from __future__ import annotations

import random
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.connectors.targets import LocalTarget
from rayflow.model.errors import StorageError
from rayflow.operators.sink import MAX_UNCOMMITTED
from rayflow.runtime.local import LocalJob


def numbers(rows: int | None, rate: float = 6_000) -> Any:
    env = rf.StreamEnvironment(
        config={"batch.rows": 50, "restart.delay": "1ms", "checkpoint.interval": "20ms"}
    )
    return env, env.generate(
        lambda start, count: pa.record_batch({"n": range(start, start + count)}), rows, rate_limit=rate
    )


class NumbersUntil:
    """Counts on, a batch at a time, until shortly after `stop` exists; iterated again, the same numbers, to the same
    end. Shipped by pickle, so it talks through files."""

    def __init__(self, folder: Path) -> None:
        self.stop, self._end = folder / "stop", folder / "end"

    def __call__(self) -> Iterator[pa.RecordBatch]:
        number = 0
        while not self._end.exists() or number < int(self._end.read_text()):
            if not self._end.exists() and self.stop.exists():
                self._end.write_text(f"{number + 20}")
            yield pa.record_batch({"n": range(number * 10, number * 10 + 10)})
            number += 1
            time.sleep(0.002)  # so that checkpoints keep up with it; nothing depends on it

    def stream(self) -> Any:
        settings = {"restart.delay": "1ms", "checkpoint.interval": "20ms"}
        env = rf.StreamEnvironment(config=settings)
        return env, env.from_batches(self, schema={"n": pa.int64()})

    @property
    def rows(self) -> int:
        return int(self._end.read_text()) * 10


def written(lab: Any, path: Path) -> list[int]:
    return sorted(lab.read(path)["n"].to_pylist())


class Publishing:
    """`LocalTarget.publish`, in the test's hands: `script` says of each call "hang" (until `released`), "after" (it is
    done, and then fails), "before" (it fails); None, and when the script is at its end, it just works."""

    def __init__(self, patch: pytest.MonkeyPatch, script: list[str | None]) -> None:
        self.script = script
        self.calls = 0
        self.hanging = threading.Event()
        self.released = threading.Event()
        publish = LocalTarget.publish

        def scripted(target: LocalTarget, staged: str, final: str) -> bool:
            what = self.script.pop(0) if self.script else None
            self.calls += 1
            if what == "hang":
                self.hanging.set()
                assert self.released.wait(200)
            if what == "before":
                raise StorageError("no answer")
            done = publish(target, staged, final)
            if what == "after":
                raise StorageError("no answer")
            return done

        patch.setattr(LocalTarget, "publish", scripted)


@pytest.mark.parametrize("mode", ["append", "upsert"])
def test_rows_and_checkpoints_go_on_behind_a_commit_that_hangs(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    publishing = Publishing(monkeypatch, ["hang"])
    source = NumbersUntil(tmp_path)
    env, rows = source.stream()
    if mode == "upsert":
        rows = rows.with_columns(k=rf.col("n") % 7).key_by("k").aggregate(n=rf.col("n").max())
    rows.write_parquet(tmp_path / "out", mode=mode)
    seen: list[int] = []

    def look(job: LocalJob) -> None:
        if publishing.hanging.is_set() and not publishing.released.is_set():
            seen.append(lab.completed(job))
            if seen[-1] >= seen[0] + 4:
                assert lab.files(tmp_path / "out") == []
                publishing.released.set()
                source.stop.touch()

    result = lab.finish(env, on_start=lab.watch(look))
    assert seen[-1] >= seen[0] + 4
    assert len(result.describe["restarts"]) == 0
    first = 0 if mode == "append" else source.rows - 7
    assert written(lab, tmp_path / "out") == list(range(first, source.rows))
    assert lab.leftovers(tmp_path / "out") == []


def test_commits_of_many_subtasks_that_hang_leave_threads_for_checkpoints(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(monkeypatch, ["hang"] * 10)
    source = NumbersUntil(tmp_path)
    env, rows = source.stream()
    rows.rebalance().map(lambda n: n, returns={"n": int}).with_parallelism(10).write_parquet(
        tmp_path / "out"
    ).with_parallelism(10)
    hanging_at: list[int] = []

    def look(job: LocalJob) -> None:
        if publishing.calls >= 10 and not hanging_at:
            hanging_at.append(lab.completed(job))
        if hanging_at and lab.completed(job) >= hanging_at[0] + 3:
            publishing.released.set()
            source.stop.touch()

    lab.finish(env, on_start=lab.watch(look))
    assert written(lab, tmp_path / "out") == list(range(source.rows))


def test_a_crash_while_a_commit_hangs_and_the_zombie_that_commits_late(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(monkeypatch, ["hang"])
    source = NumbersUntil(tmp_path)
    env, rows = source.stream()
    rows.write_parquet(tmp_path / "out")
    crashed: list[int] = []

    def look(job: LocalJob) -> None:
        done = lab.completed(job)
        if not crashed and publishing.hanging.is_set() and done >= 3:
            crashed.append(done)
            lab.crash(job, random.Random(1))
        if crashed and done >= crashed[0] + 2:
            publishing.released.set()
            source.stop.touch()

    result = lab.finish(env, on_start=lab.watch(look))
    assert crashed
    assert len(result.describe["restarts"]) == 1
    assert written(lab, tmp_path / "out") == list(range(source.rows))
    assert lab.leftovers(tmp_path / "out") == []


def test_commits_that_hang_for_ever_stop_the_rows_in_the_end_and_a_cancel_works(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publishing = Publishing(monkeypatch, ["hang"])
    env, rows = numbers(None)
    rows.write_parquet(tmp_path / "out")
    waiting: list[int] = []

    def look(job: LocalJob) -> None:
        pending = len(list((tmp_path / "out").rglob("*.pending")))
        if publishing.hanging.is_set():
            waiting.append(pending)
            # Checkpoints go on, but there is nothing more in them.
            if pending >= MAX_UNCOMMITTED and lab.completed(job) > 2 * MAX_UNCOMMITTED + 5:
                job.master.cancel()

    result = lab.run(env, on_start=lab.watch(look))
    publishing.released.set()
    assert result.state.value == "CANCELLED"
    assert max(waiting) <= 2 * MAX_UNCOMMITTED


@pytest.mark.parametrize(
    "script", [["after"], ["before"], ["before", "after"], [None, "after", "before", "before"]]
)
def test_a_publication_whose_outcome_is_unknown_costs_no_restart(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: list[str | None]
) -> None:
    Publishing(monkeypatch, script)
    env, rows = numbers(1_000)
    rows.write_parquet(tmp_path / "out")
    result = lab.finish(env)
    assert result.describe["restarts"] == []
    assert written(lab, tmp_path / "out") == list(range(1_000))


@pytest.mark.parametrize("script", [["before"] * 3, ["after", "before", "before"] * 2])
def test_a_commit_that_fails_between_two_files_is_finished_by_the_next_attempt(
    lab: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: list[str | None]
) -> None:
    # Two files a checkpoint; of one that was published "after" the answer got lost, and then it is found published.
    Publishing(monkeypatch, [None, *script])
    env, rows = numbers(1_000)
    rows.with_columns(p=rf.col("n") % 2).write_parquet(tmp_path / "out", partition_by="p")
    result = lab.finish(env)
    assert len(result.describe["restarts"]) == (1 if script[0] == "before" else 0)
    assert written(lab, tmp_path / "out") == list(range(1_000))
    assert lab.leftovers(tmp_path / "out") == []


# ------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "rayflow-test", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs leave to mount a small tmpfs: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def noise(start: int, count: int) -> pa.RecordBatch:
    values = np.random.default_rng(start).integers(0, 1 << 62, count)
    return pa.record_batch({"n": np.arange(start, start + count), "noise": values})


@pytest.mark.parametrize("format", ["parquet", "csv"])
def test_a_job_goes_on_where_it_was_when_a_full_disk_has_room_again(
    lab: Any, tmp_path: Path, small_disk: Path, format: str
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_700_000))
    env = rf.StreamEnvironment(
        config={
            "batch.rows": 500,
            "checkpoint.interval": "30ms",
            "restart.delay": "50ms",
            "restart.max_attempts": 1000,
        }
    )
    rows = env.generate(noise, 40_000, rate_limit=60_000)
    getattr(rows, f"write_{format}")(small_disk / "out")
    restarts: list[Any] = []

    def look(job: LocalJob) -> None:
        restarts[:] = job.master.describe()["restarts"]
        if len(restarts) >= 2 and ballast.exists():
            # Whatever is visible while the disk is full can be read, and is no part of a row group or line.
            for file in lab.files(small_disk / "out", format):
                assert lab.read(file.parent, format).num_rows > 0
            ballast.unlink()

    lab.finish(env, on_start=lab.watch(look))
    assert "No space left on device" in restarts[0]["cause"]
    assert str(small_disk / "out") in restarts[0]["cause"]
    assert sorted(lab.read(small_disk / "out", format)["n"].to_pylist()) == list(range(40_000))
    assert lab.leftovers(small_disk / "out") == []


def test_a_disk_that_stays_full_fails_the_job_with_the_path_and_leaves_nothing_staged(
    lab: Any, tmp_path: Path, small_disk: Path
) -> None:
    env = rf.StreamEnvironment(
        config={
            "batch.rows": 500,
            "checkpoint.interval": "30ms",
            "restart.delay": "1ms",
            "restart.max_attempts": 2,
        }
    )
    env.generate(noise, None, rate_limit=200_000).write_parquet(small_disk / "out")
    error = lab.fail(env)
    assert "No space left on device; free space there" in str(error)
    assert str(small_disk / "out") in str(error)
    got = lab.read(small_disk / "out")["n"].to_pylist()
    assert len(set(got)) == len(got) > 0
    assert [path for path in lab.leftovers(small_disk / "out") if path.is_file()] == []
