"""Memory on Ray: what outgrows a limit that was set fails with an error that blames who has it; buffers are
bounded."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.model.config import JobConfig
from tests.chaos.victim import WAIT_S

pytestmark = [
    pytest.mark.ray,
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.timeout(2_400),
]

# A process of a job has 140 to 170 MiB of its own before it has any state.
LIMIT = {
    "memory.process": "448MiB",
    "memory.managed": "0.2",
    "restart.max_attempts": "0",
    "restart.spares": "0",
    "checkpoint.interval": "off",
}


def texts(start, count):
    return pa.record_batch({"text": [f"{row:0200}" for row in np.arange(start, start + count)]})


def eats_all(batch):
    held = []
    while True:
        held.append(np.ones(1 << 20))


@pytest.mark.chaos  # out of CI for its length
def test_state_that_takes_too_much_memory_fails_with_numbers_names_and_advice():
    env = rf.StreamEnvironment(name="hoards", config=LIMIT)
    keyed = env.generate(texts, rate_limit=100_000).key_by("text")
    keyed.aggregate(n=rf.count()).name("hoard").discard()
    job = env.submit()
    with pytest.raises(rf.JobFailed) as failed:
        job.wait(timeout=WAIT_S)
    assert failed.value.operator == "hoard"
    assert "more than its memory.process of 448 MiB" in failed.value.cause
    assert "raise memory.process" in failed.value.cause
    events = [(event["type"], event.get("subtask", "")) for event in job.events()]
    assert ("state_nears_budget", "hoard-1[0]") in events
    # Nor does its source, which waits for it, take this for its own fault.
    assert {subtask for type, subtask in events if type == "memory_pressure"} == {"hoard-1[0]"}


def test_a_function_that_eats_all_memory_is_named_and_the_source_that_waits_for_it_is_not():
    env = rf.StreamEnvironment(name="eats", config=LIMIT)
    source = env.generate(texts, rate_limit=100_000).rebalance()
    source.map_batches(eats_all, returns={"a": "int64"}).name("glutton").discard()
    job = env.submit()
    with pytest.raises(rf.JobFailed) as failed:
        job.wait(timeout=WAIT_S)
    assert failed.value.operator == "glutton"
    assert "more than its memory.process of 448 MiB" in failed.value.cause
    assert "have the function hold less at a time" in failed.value.cause
    assert "test_memory_on_ray.py" in (failed.value.location or "")
    pressed = {event["subtask"] for event in job.events() if event["type"] == "memory_pressure"}
    assert all("glutton" in subtask for subtask in pressed), pressed


@pytest.mark.chaos  # out of CI for its length
def test_while_a_sink_stalls_what_waits_between_subtasks_stays_within_the_network_share(tmp_path: Path):
    go = tmp_path / "go"
    config = {"checkpoint.interval": "off", "restart.spares": "0", "memory.process": "1GiB"}
    env = rf.StreamEnvironment(name="stalls", parallelism=2, config=config)

    def stall(batch):
        while not go.exists():
            time.sleep(0.05)
        return batch

    rows = env.generate(texts).rebalance()
    rows.map_batches(stall, returns={"text": "string"}).name("stalled").discard()
    job = env.submit()
    share = JobConfig.from_flat(config).network_bytes
    given_up_s = time.monotonic() + WAIT_S

    def sources():
        return [s["rows_in"] for s in job.describe()["subtasks"] if s["operator"] == "generate-1"]

    before = []
    while not before or sources() != before or min(before) == 0:
        assert time.monotonic() < given_up_s
        before = sources()
        time.sleep(3)

    for _ in range(10):
        waiting = [s["buffered_bytes"] for s in job.describe()["subtasks"]]
        print("buffered bytes", waiting, "of", share)
        # Full, so that the bound is what holds; and bounded, where an endless source would fill any memory.
        assert max(waiting) <= share, waiting
        time.sleep(0.5)
    assert sum(waiting) > share // 8, waiting
    job.cancel()
    go.touch()
    assert job.wait(timeout=WAIT_S).state == "CANCELLED"
