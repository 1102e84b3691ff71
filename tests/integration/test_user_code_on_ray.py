"""Functions that are slow, leave, or crash: the job goes on, or fails and says whose fault it was."""

from __future__ import annotations

import time

import pytest

import rayflow as rf

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def leaves(batch):
    import os

    os._exit(3)


def exits(batch):
    import sys

    sys.exit("enough")


def crashes(batch):
    import ctypes

    ctypes.string_at(0)


def is_killed(batch):
    import os
    import signal

    os.kill(os.getpid(), signal.SIGKILL)


def slow(batch):
    time.sleep(4)
    return batch


def job(function, **config):
    settings = {"restart.max_attempts": "1", "heartbeat.interval": "250ms", "heartbeat.timeout": "2s"}
    env = rf.StreamEnvironment(name=function.__name__, parallelism=1, config={**settings, **config})
    stream = env.from_rows([{"a": 1}]).map_batches(function, returns={"a": "int64"}).name("culprit")
    stream.discard()
    return env.submit()


def test_each_way_to_end_a_process_fails_the_job_in_the_end_and_is_named():
    # All at once: each starts processes of its own, which takes its time.
    jobs = {function: job(function) for function in (leaves, exits, crashes, is_killed)}
    failures = {}
    for function, handle in jobs.items():
        with pytest.raises(rf.JobFailed) as failed:
            handle.wait(timeout=120)
        failures[function] = failed.value
        assert "culprit" in failed.value.operator
        assert len(handle.describe()["restarts"]) == 1
    assert "os._exit(3)" in failures[leaves].cause
    assert "SystemExit: enough" in failures[exits].cause
    assert "Segmentation fault, at File" in failures[crashes].cause
    assert "in crashes" in failures[crashes].cause
    assert "died without a word: killed" in failures[is_killed].cause
    for function in (leaves, exits):
        assert "test_user_code_on_ray.py" in failures[function].location


def test_a_function_that_takes_longer_than_the_heartbeats_may_is_not_taken_for_dead():
    handle = job(slow)
    assert handle.wait(timeout=120).state == "FINISHED"
    assert handle.describe()["restarts"] == []
