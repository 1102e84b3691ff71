"""Small jobs through the whole of rayflow, on a real local Ray."""

from __future__ import annotations

import pytest

import rayflow as rf

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

WORDS = ["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"]


@pytest.fixture
def environment():
    return rf.StreamEnvironment(name="words", parallelism=2, config={"checkpoint.interval": "200ms"})


def counts(environment, times=20):
    rows = [{"word": w} for w in WORDS * times]
    return environment.from_rows(rows).key_by("word").aggregate(n=rf.count())


def test_running_counts_of_two_subtasks_are_collected(environment):
    table = counts(environment).execute_and_collect()
    assert dict(zip(table["word"].to_pylist(), table["n"].to_pylist())) == {
        w: 20 * WORDS.count(w) for w in WORDS
    }


def test_what_subtasks_print_appears_here_complete_and_bare(environment, capfd):
    counts(environment).print()
    result = environment.execute()
    assert result.state == "FINISHED"
    printed = capfd.readouterr().out.splitlines()
    assert '+I {"word":"question","n":20}' in printed
    assert all(line.startswith(("+I", "-U", "+U")) for line in printed)


def test_an_ended_job_is_found_again_from_its_stored_metadata(environment):
    counts(environment).print()
    job = environment.submit()
    assert job.wait(timeout=60).state == "FINISHED"
    client = rf.connect()
    assert job.id in [j["job_id"] for j in client.jobs()]
    again = client.job("words")
    assert again.id == job.id
    assert again.status() == "FINISHED"
    assert [c["status"] for c in again.checkpoints()][-1] == "completed"
    assert again.events()[0]["type"] == "job_started"
    assert any("question" in text for text in again.logs().values())
    with pytest.raises(rf.ConfigError, match="did you mean 'words'"):
        client.job("wrods")


def test_a_job_whose_function_raises_fails_with_operator_and_line(environment):
    def explode(n):
        return 1 // n

    environment.config["restart.strategy"] = "none"
    environment.from_rows([{"n": 1}, {"n": 0}]).map(explode).name("exploding").print()
    with pytest.raises(rf.JobFailed) as failed:
        environment.execute()
    assert failed.value.operator == "exploding"
    assert "ZeroDivisionError" in failed.value.cause
    assert "test_first_job.py" in failed.value.location


def test_a_running_job_answers_and_is_cancelled(environment):
    def batch(start, count):
        import numpy as np
        import pyarrow as pa

        return pa.record_batch({"n": np.arange(start, start + count)})

    environment.generate(batch, rate_limit=1000).key_by("n").aggregate(c=rf.count()).discard()
    job = environment.submit()
    while job.status() != "RUNNING" or not any(s["rows_in"] for s in job.describe()["subtasks"]):
        job.events()
    described = job.describe()
    assert described["job_manager"]["pid"] is not None
    assert len({s["pid"] for s in described["subtasks"]}) == len(described["subtasks"])
    job.cancel()
    assert job.wait(timeout=60).state == "CANCELLED"
