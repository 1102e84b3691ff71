"""Four NEXMark queries on a real local Ray, while one of their processes is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import rayflow as rf
from tests.nexmark.data import write_awkward, write_shuffled, write_side_table
from tests.nexmark.oracles import difference, oracle
from tests.nexmark.running import nexmark, read

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

EVENTS, RATE = 16_000, 500.0
SECONDS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nexmark")
    write_awkward(folder / "ordered", EVENTS, RATE)
    write_shuffled(folder / "ordered", folder / "shuffled")
    write_side_table(folder / "side.csv")
    return folder


@pytest.mark.parametrize(
    "query",
    ["q4", "q5", *(pytest.param(q, marks=pytest.mark.chaos) for q in ("q9", "q15"))],  # CI's time
)
def test_a_query_equals_its_oracle_though_a_process_dies(query: str, data: Path, tmp_path: Path) -> None:
    config = {
        "checkpoint.interval": "200ms",
        "checkpoint.storage": f"file://{tmp_path}/checkpoints",
        "source.rate_limit": EVENTS / SECONDS,
    }
    env = rf.StreamEnvironment(name=query, parallelism=2, config=config)
    output = tmp_path / "out"
    nexmark.build(env, query=query, input=str(data / "shuffled"), output=str(output), delay="10s")
    job = env.submit()
    while not job.describe()["checkpoints"]["completed"]:
        assert job.status() in ("CREATED", "RUNNING")
    subtasks = job.describe()["subtasks"]
    os.kill(subtasks[-1]["pid"], signal.SIGKILL)
    assert job.wait(timeout=120).state == "FINISHED"
    assert difference(oracle(query, data / "ordered"), read(query, output)) is None
    restarts = job.describe()["restarts"]
    assert len(restarts) == 1
    assert "/chk-" in restarts[0]["restored_from"]
