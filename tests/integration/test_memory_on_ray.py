"""Jobs that take more memory than they may end with an error that says so; others never notice the watch."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

LIMIT = {"memory.process": "448MiB", "restart.max_attempts": "1", "restart.spares": "0"}


def eats_all(batch):
    held = []
    while True:
        held.append(np.ones(1 << 20))


def texts(start, count):
    rows = np.arange(start, start + count)
    return pa.record_batch({"k": rows % 1000, "text": [f"{row:0200}" for row in rows]})


def eating():
    env = rf.StreamEnvironment(name="eats", config=LIMIT)
    env.from_rows([{"a": 1}]).map_batches(eats_all, returns={"a": "int64"}).name("glutton").discard()
    return env.submit()


def hoarding():
    env = rf.StreamEnvironment(name="hoards", config={**LIMIT, "checkpoint.interval": "off"})
    keyed = env.generate(texts, rate_limit=300_000).key_by("k")
    keyed.aggregate(texts=col("text").collect_list()).name("hoard").discard()
    return env.submit()


def test_what_takes_too_much_memory_fails_with_numbers_names_and_advice():
    # Both at once: each starts processes of its own, which takes its time.
    jobs = {"glutton": eating(), "hoard": hoarding()}
    for operator, job in jobs.items():
        with pytest.raises(rf.JobFailed) as failed:
            job.wait(timeout=180)
        error = failed.value
        assert error.operator == operator
        assert "more than its memory.process of 448 MiB" in error.cause, error.cause
        assert "raise memory.process" in error.cause
        restarts = job.describe()["restarts"]
        assert all("memory.process" in restart["cause"] for restart in restarts), restarts
    hoard = str(jobs["hoard"].events())
    assert "memory_pressure" in hoard
    assert "state_nears_budget" in hoard
    assert "'hoard'" in error.cause
    assert "state.backend=disk" in error.cause
