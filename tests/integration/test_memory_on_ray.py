"""Memory on Ray: what outgrows a limit that was set fails with an error that blames who has it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
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
