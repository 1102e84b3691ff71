"""The lab's own habits: what a test's watcher does wrong ends the job, instead of leaving it to run for ever."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.local import LocalJob


def test_a_watcher_that_raises_ends_the_job_that_waits_for_it(lab: Any) -> None:
    def look(job: LocalJob) -> None:
        raise FileNotFoundError("a folder has just gone")

    made = rf.StreamEnvironment()
    made.generate(
        lambda start, count: pa.record_batch({"n": range(start, start + count)}), rate_limit=100
    ).discard()
    watcher = lab.watch(look)
    assert lab.run(made, on_start=watcher).state is JobState.CANCELLED
    with pytest.raises(FileNotFoundError, match="just gone"):
        watcher.stop()
    lab._watchers.clear()


def test_subtasks_die_as_often_as_asked_however_short_the_job(lab: Any) -> None:
    made = rf.StreamEnvironment(parallelism=2, config={"restart.delay": "1ms"})
    made.from_rows([{"n": 1}]).discard()
    watcher = lab.crashing(made, 3, seed=1)
    result = lab.finish(made, on_start=watcher, checkpoint__interval="10ms")
    assert len(watcher.stop()) == 3
    assert result.describe["restarts"]
