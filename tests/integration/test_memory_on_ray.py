"""A job whose state outgrows a limit that was set fails with an error that says so, and blames who has it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf

pytestmark = [pytest.mark.ray, pytest.mark.chaos, pytest.mark.usefixtures("local_ray")]

# A process of a job has 140 to 170 MiB of its own before it has any state.
LIMIT = {
    "memory.process": "448MiB",
    "memory.managed": "0.2",
    "restart.max_attempts": "0",
    "restart.spares": "0",
}


def texts(start, count):
    return pa.record_batch({"text": [f"{row:0200}" for row in np.arange(start, start + count)]})


def test_what_takes_too_much_memory_fails_with_numbers_names_and_advice():
    env = rf.StreamEnvironment(name="hoards", config={**LIMIT, "checkpoint.interval": "off"})
    keyed = env.generate(texts, rate_limit=100_000).key_by("text")
    keyed.aggregate(n=rf.count()).name("hoard").discard()
    job = env.submit()
    with pytest.raises(rf.JobFailed) as failed:
        job.wait(timeout=180)
    assert failed.value.operator == "hoard"
    assert "more than its memory.process of 448 MiB" in failed.value.cause
    assert "raise memory.process" in failed.value.cause
    events = [(event["type"], event.get("subtask", "")) for event in job.events()]
    assert ("state_nears_budget", "hoard-1[0]") in events
    # Nor does its source, which waits for it, take this for its own fault.
    assert {subtask for type, subtask in events if type == "memory_pressure"} == {"hoard-1[0]"}
