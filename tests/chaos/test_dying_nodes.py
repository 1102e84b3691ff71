"""A real cluster of three nodes, where everything dies once: subtasks, the job manager, nodes. No row is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest

from rayflow.client import local_cluster
from tests.chaos.exactness import check_counts, check_rows
from tests.chaos.soak_job import tell_end

# A minute and a half on a machine that has nothing else to do.
pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
RATE = 1_000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data folder with a cluster of three nodes."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFLOW_HOME", str(folder))
        local_cluster.up(3)
        yield folder
        local_cluster.down()


def rayflow(*arguments: str) -> str:
    """Run a command in a process of its own, as users do; return what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", "from rayflow.cli.main import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=400,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def described(job: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(rayflow("describe", job, "--json"))
    return found


def await_checkpoint(job: str, after: int = 0) -> int:
    """Wait for a checkpoint later than `after`; return its number."""
    deadline_s = time.monotonic() + 240
    while (latest := described(job)["checkpoints"]["latest"] or 0) <= after:
        assert time.monotonic() < deadline_s, "no checkpoint completed"
        time.sleep(0.5)
    return latest


def node_number(manager_on: bool, job: str) -> int:
    """Return the draw of the node to kill, as schedules count them: with the job manager on it, or without."""
    where = described(job)["job_manager"]["node_id"]
    script = (
        "import rayflow as rf; from rayflow.client.chaos.effects import RayEffects; from rayflow.client.chaos.victims "
        "import processes; h = rf.connect().job({job!r}); e = RayEffects(); k = e.killable_nodes(); "
        "u = {{p.node_id for p in processes(h.describe())}}; print(*[n for n in k if n in u]); e.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", script.format(job=job)], capture_output=True, text=True, cwd=ROOT, timeout=100
    )
    assert done.returncode == 0, done.stderr
    nodes = done.stdout.split()
    chosen = [i for i, node in enumerate(nodes) if (node == where) is manager_on]
    return chosen[0] if chosen else -1


def fault(tmp_path: Path, *targets: str) -> None:
    """Inject kills of these targets, 4 s from each other, from a schedule."""
    faults = [{"at_ms": 4_000 * i, "action": "kill", "target": target} for i, target in enumerate(targets)]
    schedule = tmp_path / "schedule.json"
    schedule.write_text(json.dumps({"version": 1, "faults": faults}))
    report = json.loads(
        rayflow("chaos", "soak_job", "--schedule", str(schedule), "--replace-nodes", "--json")
    )
    assert report["injected"] == len(targets), report


def test_subtasks_the_manager_and_nodes_with_and_without_it_die_and_no_row_is_lost(
    home: Path, tmp_path: Path
) -> None:
    out, until = tmp_path / "out", tmp_path / "until"
    settings = {
        "checkpoint.interval": "1s",
        "restart.max_attempts": "100",
        "heartbeat.timeout": "15s",
        "source.rate_limit": str(RATE),
    }
    options = [f"--set={key}={value}" for key, value in settings.items()]
    rayflow(
        "run",
        "tests/chaos/soak_job.py",
        *("--parallelism=1", "--detach", f"--output={out}", f"--until={until}", *options),
    )
    seen = await_checkpoint("soak_job")
    fault(tmp_path, "subtask:numbers-1[0]", "subtask:ledger-1[0]")
    seen = await_checkpoint("soak_job", seen)
    for manager_on in (False, True):
        number = node_number(manager_on, "soak_job")
        # Where the manager is on the head, which cannot be killed, its process alone is.
        fault(tmp_path, f"node:{number}" if number >= 0 else "jobmanager")
        seen = await_checkpoint("soak_job", seen)
    last = tell_end(out, until, RATE)
    finish()
    rows, counts = (ds.dataset(out / name, format="parquet").to_table() for name in ("rows", "counts"))
    assert check_rows(rows, last).exact, check_rows(rows, last)
    assert check_counts(counts, last).exact, check_counts(counts, last)


def finish() -> None:
    deadline_s = time.monotonic() + 200
    while (state := described("soak_job")["state"]) != "FINISHED":
        assert state not in ("FAILED", "CANCELLED"), rayflow("events", "soak_job")
        assert time.monotonic() < deadline_s, rayflow("events", "soak_job")
        time.sleep(1)
