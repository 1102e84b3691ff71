"""`state.backend=disk` on real Ray: the process that held the state is killed, and what it left is swept away."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.victim import NOTHING_WRONG, Victim

# Out of CI for its length.
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.usefixtures("local_ray")]


@pytest.mark.parametrize("storage", ["files", "rayobj"])
def test_state_on_disk_survives_a_kill_of_its_process(tmp_path: Path, storage: str) -> None:
    scratch = tmp_path / "scratch"
    victim = Victim(
        tmp_path,
        f"on-disk-{storage}",
        rows_per_second=1_000,
        keys=4_000,
        **{
            "state.backend": "disk",
            "state.dir": str(scratch),
            # Some hundred KiB for state: less than the keys of a subtask take.
            "memory.process": "1g",
            "memory.managed": "0.0004",
            "checkpoint.storage": str(tmp_path / "chk") if storage == "files" else "rayobj://on-disk",
        },
    )
    try:
        victim.until(lambda: victim.settled(0) and evicted(victim) > 0)
        killed = victim.keyed(0)
        assert list(scratch.glob(f"*/{killed}-*"))
        victim.survives(lambda: victim.kill(killed))
        victim.until(lambda: not list(scratch.glob(f"*/{killed}-*")))
        victim.survives(lambda: victim.kill(victim.keyed(1)))
        victim.until(lambda: evicted(victim) > 0)
        rows = victim.finish()
    finally:
        with suppress(Exception):
            victim.job.cancel()
    assert victim.verdict(rows) == NOTHING_WRONG
    done = [c for c in victim.job.checkpoints() if c["status"] == "completed"]
    assert any(0 < c["bytes"] < 0.5 * c["state_bytes"] for c in done), "increments"


def evicted(victim: Victim) -> int:
    """How many keys the attempt that runs has put on disk."""
    found = victim.job.metrics()["operators"].values()
    return sum(int(metrics.get("state_evicted_keys", 0)) for metrics in found)
