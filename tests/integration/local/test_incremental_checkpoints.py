"""Checkpoints of state on disk hold what changed; restores read what they are built on, and find what is damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner

import rayflow as rf
from rayflow import col
from rayflow.state.manifest import Manifest

KEYS, HOT, ROWS = 8_000, 80, 14_000


def numbers(start: int, count: int) -> pa.RecordBatch:
    """All keys once, then the hot ones again and again."""
    n = range(start, start + count)
    return pa.record_batch({"k": [i if i < KEYS else i % HOT for i in n], "v": [1] * count})


def job(tmp_path: Path, rows: int = ROWS, rate: int | None = 10_000, **config: Any) -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(
        name="incremental",
        parallelism=2,
        max_parallelism=8,
        config={
            "state.backend": "disk",
            "memory.managed": 0.0005,
            "checkpoint.storage": str(tmp_path / "checkpoints"),
            **config,
        },
    )
    counts = env.generate(numbers, rows=rows, rate_limit=rate).uid("read").key_by("k")
    counted = counts.aggregate(n=rf.count(), total=col("v").sum()).uid("count")
    counted.write_parquet(tmp_path / "out", mode="upsert", if_exists="append")
    return env


def directory(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "checkpoints").glob("incremental-*")
    return found


def manifests(tmp_path: Path) -> dict[int, Manifest]:
    found = [
        Manifest.from_json(path.read_bytes()) for path in directory(tmp_path).glob("chk-*/manifest.json")
    ]
    return {manifest.checkpoint_id: manifest for manifest in found}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a job ran to its end."""
    from rayflow.runtime.local import run_local

    tmp_path = tmp_path_factory.mktemp("ended")
    env = job(tmp_path, **{"checkpoint.interval": "100ms", "checkpoint.retained": 12, "batch.rows": 500})
    result = run_local(env.plan(), env.config)
    assert result.failure is None
    (tmp_path / "checkpoints.json").write_text(json.dumps(result.checkpoints))
    return tmp_path


def test_a_checkpoint_after_few_keys_changed_uploads_little_and_is_whole(ended: Path) -> None:
    reports = json.loads((ended / "checkpoints.json").read_text())
    # Some of all keys, and now and then one that is a new base.
    assert any(r["status"] == "completed" and r["bytes"] < 0.1 * r["state_bytes"] for r in reports)
    from rayflow.cli.state_commands import state_group

    path = str(directory(ended) / f"chk-{max(manifests(ended))}")
    shown = CliRunner().invoke(state_group, ["read", path, "--operator", "count", "--json"])
    rows = json.loads(shown.output)["operators"]["count"]["aggregates"]
    assert len(rows) == KEYS
    assert sum(row["n.count"] for row in rows) == ROWS


def test_files_are_there_as_long_as_a_checkpoint_needs_them_and_no_longer(ended: Path) -> None:
    found = manifests(ended)
    assert len(found) <= 12
    assert any(manifest.shared() for manifest in found.values())
    needed = {
        f"chk-{number if file.origin is None else file.origin}/{file.path}"
        for number, manifest in found.items()
        for file in manifest.files
    }
    there = {
        str(path.relative_to(directory(ended)))
        for path in directory(ended).glob("chk-*/*")
        if path.name != "manifest.json"
    }
    assert there == needed


def test_it_is_restored_at_another_parallelism(lab: Any, ended: Path, tmp_path: Path) -> None:
    env = job(tmp_path, rate=None)
    env.parallelism = 3
    before_the_end = min(number for number, manifest in manifests(ended).items() if manifest.shared())
    checkpoint = directory(ended) / f"chk-{before_the_end}"
    result = lab.finish(env, restore_from=checkpoint, allow_duplicates=True, batch__rows=500)
    assert 0 < result.metrics["operators"]["count"]["rows_in"] < ROWS
    final = {row["k"]: row["n"] for row in lab.read(tmp_path / "out").to_pylist()}
    again, rest = divmod(ROWS - KEYS, HOT)
    assert final.keys() >= set(range(HOT))
    # Where the checkpoint is from before all keys had come, the rest of these come now, once.
    assert final == {k: 1 + again + (k < rest) if k < HOT else 1 for k in final}


@pytest.mark.parametrize("link", [0, 1])
def test_a_damaged_file_of_an_earlier_checkpoint_is_found_before_anything_runs(
    lab: Any, ended: Path, tmp_path: Path, link: int
) -> None:
    newest = next(found for found in manifests(ended).values() if {f.link for f in found.files} >= {0, 1, 2})
    file = next(f for f in newest.files if f.link == link and f.origin is not None)
    path = directory(ended) / f"chk-{file.origin}" / file.path
    data = path.read_bytes()
    path.write_bytes(data[:-9])
    try:
        checkpoint = directory(ended) / f"chk-{newest.checkpoint_id}"
        error = lab.fail(job(tmp_path, rate=None), restore_from=checkpoint, allow_duplicates=True)
        assert f"chk-{file.origin}/{file.path} is corrupt" in str(error)
        assert not (tmp_path / "out").exists() or not lab.files(tmp_path / "out")
    finally:
        path.write_bytes(data)
