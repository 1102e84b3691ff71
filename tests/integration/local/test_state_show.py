"""The benchmark of state beyond its memory, scaled down: equal results, what is uploaded after 1 % changed, and what
the process takes."""

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


def test_the_process_stays_within_the_budget_of_its_state(tmp_path: Path) -> None:
    # Half of the state fits, so the cache, the store and what is on its way to a checkpoint are as full as they get.
    # What does not go by the budget (some MiB) takes little of it.
    keys, managed = 64 * MIB // state_show.ROW_BYTES, 32 * MIB
    base = state_show.in_its_own_process(keys, 1_000, "disk", managed, tmp_path, "aggregate")
    disk = state_show.in_its_own_process(keys, keys, "disk", managed, tmp_path, "aggregate")
    assert disk["rows"] == keys + keys // 100
    assert disk["metrics"]["state_evicted_keys"] > keys // 4
    assert disk["peak_mib"] - base["peak_mib"] <= 1.2 * managed / MIB


def test_the_process_stays_within_the_budget_of_its_windows(tmp_path: Path) -> None:
    keys, managed = 64 * MIB // state_show.ROW_BYTES, 32 * MIB
    base = state_show.in_its_own_process(keys, 1_000, "disk", managed, tmp_path, "window", "1s")
    disk = state_show.in_its_own_process(keys, keys, "disk", managed, tmp_path, "window", "1s")
    assert disk["rows"] == keys
    # All came from disk, and the checkpoint after 1 % of the keys changed had little to write.
    assert disk["metrics"]["state_fetched_keys"] > keys
    assert 0 < disk["changed_bytes"] < 0.1 * disk["full_bytes"]
    assert disk["peak_mib"] - base["peak_mib"] <= 1.2 * managed / MIB
