"""The benchmark of state beyond its memory, scaled down: equal results, and what is uploaded after 1 % changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.benchmarks import state_show

MIB = state_show.MIB
KEYS = 4 * MIB // state_show.ROW_BYTES


def run(backend: str, storage: Path, monkeypatch: Any) -> dict[str, Any]:
    monkeypatch.setattr(state_show.Digest, "seen", {})
    monkeypatch.setattr(state_show.TextReader, "released_by", {})
    return state_show.run(KEYS, KEYS, backend, 400 << 10, str(storage), interval="200ms")


def test_state_ten_times_its_memory(tmp_path: Path, monkeypatch: Any) -> None:
    memory = run("memory", tmp_path, monkeypatch)
    disk = run("disk", tmp_path, monkeypatch)
    assert disk["rows"] == KEYS + KEYS // 100
    assert (disk["rows"], disk["digest"]) == (memory["rows"], memory["digest"])
    # Nearly all keys that came again were on disk.
    assert disk["metrics"]["state_fetched_keys"] > 0.9 * (KEYS // 100)
    assert disk["full_bytes"] > 56 * KEYS
    assert 0 < disk["changed_bytes"] < 0.02 * disk["full_bytes"]
