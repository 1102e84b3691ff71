"""The storage fails, fills up, is slow, or keeps what nobody wants: the job goes on, and leaves what it should."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.state.storage import open_store
from tests.faulty_proxy import faulty_proxy

ROWS = 3_000


def numbers(start: int, count: int) -> pa.RecordBatch:
    n = range(start, start + count)
    return pa.record_batch({"n": n, "k": [i % 5 for i in n], "pad": [f"{i:0200}" for i in n]})


def a_job(out: Path) -> rf.StreamEnvironment:
    """Keep the last row of each of many keys, and write all rows."""
    env = rf.StreamEnvironment(name="faults", parallelism=2)
    rows = env.generate(numbers, rows=ROWS, rate_limit=10_000)
    rows.select("n").write_parquet(str(out))
    rows.key_by("n").aggregate(last=rf.col("pad").last()).discard()
    return env


def all_rows(lab: Any, out: Path) -> bool:
    return sorted(lab.read(out)["n"].to_pylist()) == list(range(ROWS))


def of_type(job: Any, kind: str) -> list[dict[str, Any]]:
    return [event for event in job.master.events() if event["type"] == kind]


# ------------------------------------------------------------------------------------------- left behind


def test_a_job_leaves_its_metadata_and_retained_checkpoints_whatever_came_late(lab, tmp_path) -> None:  # type: ignore[no-untyped-def]
    root = tmp_path / "checkpoints"
    store = open_store(str(root), {})
    env = a_job(tmp_path / "out")
    crashing, planted = lab.crashing(env, times=1, seed=3), []

    def plant(job: Any) -> None:
        # A dead attempt's upload for a checkpoint that was given up, and what a crashed writer leaves.
        if not planted and lab.completed(job) >= 2:
            folder = f"{job.master._ctx.job.job_id}/chk-1"
            store.delete_prefix(folder)
            store.write(f"{folder}/late-0-keys-a1.arrow", b"late")
            (root / folder / ".rayflow-tmp-00").write_bytes(b"torn")
            (root / folder).with_name(".rayflow-tmp-11").write_bytes(b"torn")
            planted.append(folder)

    watching = lab.watch(plant)
    result = lab.finish(
        env,
        on_start=lambda job: (crashing(job), watching(job)),
        checkpoint__interval="50ms",
        checkpoint__storage=str(root),
        checkpoint__retained=2,
        restart__delay="10ms",
    )
    assert planted
    kept = sorted(f"chk-{c['id']}" for c in result.checkpoints if c["retained"])
    (job_folder,) = root.iterdir()
    there = {path.name for path in job_folder.iterdir()}
    assert there == {"attempts", "graph.pkl", "job.json", "events.jsonl", *kept}
    assert len(kept) == 2
    assert not [path for path in root.rglob("*") if path.name.startswith(".rayflow-tmp-")]
    assert all_rows(lab, tmp_path / "out")


# ------------------------------------------------------------------------------------------- full


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """Write until the disk is full."""
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


@pytest.mark.parametrize("tolerated", [1_000, 1])
def test_a_full_disk_costs_checkpoints_and_the_job_ends_well_once_there_is_room(  # type: ignore[no-untyped-def]
    lab, tmp_path, small_disk: Path, tolerated: int
) -> None:
    env = a_job(tmp_path / "out")
    over = lab.held_open(env)
    ballast, seen = small_disk / "ballast", []

    def look(job: Any) -> None:
        failed = of_type(job, "checkpoint_failed")
        if not ballast.exists() and not seen and lab.completed(job) >= 1:
            fill(ballast)
        elif ballast.exists() and len(failed) > min(tolerated, 2):
            # Where fewer are tolerated the attempt has failed, and cannot even be followed by another yet.
            seen.extend(failed)
            ballast.unlink()
            over.set()

    watcher = lab.watch(look)
    result = lab.finish(
        env,
        on_start=watcher,
        checkpoint__interval="50ms",
        checkpoint__storage=str(small_disk / "checkpoints"),
        checkpoint__failures_tolerated=tolerated,
        restart__strategy="fixed",
        restart__delay="50ms",
        restart__max_attempts=1,
    )
    watcher.stop()
    assert seen
    full = [event["message"] for event in seen if "No space left on device" in event["message"]]
    assert full
    assert f"file://{small_disk}/checkpoints/" in full[0]
    assert "free space there, or keep checkpoints elsewhere (checkpoint.storage)" in full[0]
    attempts = [event for event in result.events if event["type"] == "attempt_started"]
    assert (len(attempts) > 1) == (tolerated == 1)
    assert all_rows(lab, tmp_path / "out")


# ------------------------------------------------------------------------------------------- slow, and away


@pytest.mark.s3
def test_an_upload_that_hangs_stops_no_rows_and_its_checkpoint_times_out(lab, tmp_path, s3_server) -> None:  # type: ignore[no-untyped-def]
    env = a_job(tmp_path / "out")
    over = lab.held_open(env)
    with faulty_proxy(s3_server.endpoint) as proxy:
        hanging: list[int] = []

        def rows_read(job: Any) -> int:
            return sum(s["rows_in"] for s in job.master.describe()["subtasks"])

        def look(job: Any) -> None:
            if not hanging and lab.completed(job) >= 1:
                proxy.fail("hold", "PUT", ".arrow")
                hanging.append(rows_read(job))
            elif hanging and not over.is_set() and of_type(job, "checkpoint_failed"):
                hanging.append(rows_read(job))
                proxy.heal()
                over.set()

        result = lab.finish(
            env,
            on_start=lab.watch(look),
            checkpoint__interval="50ms",
            checkpoint__timeout="2s",
            checkpoint__failures_tolerated=1000,
            checkpoint__storage=f"s3://{s3_server.new_bucket()}/c",
            **{
                k.replace(".", "__"): v
                for k, v in {**s3_server.options, "s3.endpoint": proxy.endpoint}.items()
            },
        )
    (failed, *_) = [e["message"] for e in result.events if e["type"] == "checkpoint_failed"]
    assert "timed out after 2000 ms" in failed
    assert "had not acknowledged" in failed
    assert hanging[1] > hanging[0] or hanging[0] >= ROWS
    assert all_rows(lab, tmp_path / "out")


@pytest.mark.s3
def test_storage_that_answers_with_errors_is_named_and_survived(lab, tmp_path, s3_server) -> None:  # type: ignore[no-untyped-def]
    env = a_job(tmp_path / "out")
    over = lab.held_open(env)
    with faulty_proxy(s3_server.endpoint) as proxy:

        def look(job: Any) -> None:
            failed = of_type(job, "checkpoint_failed")
            if len(failed) >= 2:
                proxy.heal()
                over.set()
            elif lab.completed(job) >= 1 and not proxy.faults:
                proxy.fail("refuse", "PUT", "chk-")

        result = lab.finish(
            env,
            on_start=lab.watch(look),
            checkpoint__interval="50ms",
            checkpoint__failures_tolerated=1000,
            checkpoint__storage=f"s3://{(bucket := s3_server.new_bucket())}/c",
            **{
                k.replace(".", "__"): v
                for k, v in {**s3_server.options, "s3.endpoint": proxy.endpoint}.items()
            },
        )
    failures = [e["message"] for e in result.events if e["type"] == "checkpoint_failed"]
    assert any(f"cannot write s3://{bucket}/c/" in message for message in failures), failures
    assert all_rows(lab, tmp_path / "out")


@pytest.mark.s3
def test_an_outage_outlasts_the_budget_of_restarts_and_the_job_outlasts_it(lab, tmp_path, s3_server) -> None:  # type: ignore[no-untyped-def]
    env = a_job(tmp_path / "out")
    over = lab.held_open(env)
    with faulty_proxy(s3_server.endpoint) as proxy:
        tries: list[int] = []

        def look(job: Any) -> None:
            if not proxy.faults and not over.is_set() and lab.completed(job) >= 1:
                for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
                    proxy.fail("refuse", method, "")
            elif of_type(job, "storage_awaited"):
                tries.append(len(proxy.requests))
                if len(set(tries)) > 6:
                    proxy.heal()
                    over.set()

        result = lab.finish(
            env,
            on_start=lab.watch(look),
            checkpoint__interval="50ms",
            checkpoint__failures_tolerated=0,
            restart__max_attempts=1,
            checkpoint__storage=f"s3://{s3_server.new_bucket()}/c",
            **{
                k.replace(".", "__"): v
                for k, v in {**s3_server.options, "s3.endpoint": proxy.endpoint}.items()
            },
        )
    assert len(set(tries)) > 6
    assert len(result.describe["restarts"]) == 1
    assert all_rows(lab, tmp_path / "out")
