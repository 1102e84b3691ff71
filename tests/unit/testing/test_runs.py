"""`rf.testing.simulate`: right jobs pass under any faults, and jobs that are not exactly-once are found out."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col

ROWS = 400


def numbers(start: int, count: int) -> pa.RecordBatch:
    ids = list(range(start, start + count))
    return pa.RecordBatch.from_pydict(
        {"k": [i % 5 for i in ids], "v": ids, "t": pa.array([i * 100 for i in ids], pa.timestamp("ms"))}
    )


def environment(fn: Callable[[dict[str, Any]], dict[str, Any]] | None = None) -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(name="numbers", parallelism=2, max_parallelism=8)
    stream = env.generate(numbers, rows=ROWS).assign_watermarks(rf.Watermark("t"))
    if fn is not None:
        stream = stream.map(
            fn, returns=pa.schema([("k", pa.int64()), ("v", pa.int64()), ("t", pa.timestamp("ms"))])
        )
    sums = stream.key_by("k").window(rf.Tumbling("10s")).aggregate(total=col("v").sum(), n=rf.count())
    sums.write_parquet("nowhere/sums")
    stream.filter(col("k") == 1).write_parquet("nowhere/ones")
    return env


def test_a_job_passes_under_faults_that_really_struck() -> None:
    report = rf.testing.simulate(environment(), seeds=range(12))
    report.check()
    assert any(run.attempts > 1 for run in report.runs)
    assert any(run.faults for run in report.runs)
    finished = [run for run in report.runs if run.state == "FINISHED"]
    assert finished
    assert all(v.found == v.expected > 0 for run in finished for v in run.outputs.values())
    assert "12 seeds, 0 failed" in str(report)


def test_a_function_that_is_not_the_same_each_time_is_found_out_and_the_seed_told() -> None:
    def drawn(row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "v": random.randrange(1_000_000)}

    report = rf.testing.simulate(environment(drawn), seeds=range(3))
    assert report.failed
    with pytest.raises(AssertionError, match=r"seed \d+: output of .*differing[\s\S]*seeds=\[\d+\]"):
        report.check()


def test_a_seed_always_gives_the_same_run() -> None:
    first, second = (rf.testing.simulate(environment(), seeds=[5]).runs for _ in range(2))
    assert first == second


def test_chosen_faults_strike_where_they_are_aimed() -> None:
    strike = rf.testing.Strike(moment="after ack", nth=1, action="crash")
    report = rf.testing.simulate(
        environment(), seeds=[1], faults=rf.testing.Faults(strikes=1, aimed=(strike,))
    )
    report.check()
    assert len(report.runs[0].faults) == 1
    assert report.runs[0].attempts == 2


@pytest.mark.parametrize("lost_call", [0.02, 0.3])
def test_control_calls_that_get_lost_are_made_good_and_hang_no_job(lost_call: float) -> None:
    report = rf.testing.simulate(
        environment(), seeds=range(6), faults=rf.testing.Faults(lost_call=lost_call, active_ms=60_000)
    )
    report.check()
    assert all(run.state == "FINISHED" for run in report.runs)


def test_a_job_that_fails_by_itself_is_not_blamed_on_faults() -> None:
    def broken(row: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("no")

    with pytest.raises(AssertionError, match=r"failed without any faults.*no"):
        rf.testing.simulate(environment(broken), seeds=[1])


def test_a_source_without_an_end_is_refused_at_its_line() -> None:
    env = rf.StreamEnvironment()
    env.generate(numbers).discard()
    with pytest.raises(rf.PlanError, match=r"never ends[\s\S]*test_runs"):
        rf.testing.simulate(env, seeds=[1])
