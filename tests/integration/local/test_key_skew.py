"""Skew as people see it on a running job: uniform and skewed streams, odd keys, restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import rayflow as rf

ROWS = 240_000
# Drawn once for all rows: how a source cuts its batches depends on the clock, and data must not.
CHANCE = np.random.default_rng(0).random(ROWS)
ZIPF = np.random.default_rng(1).zipf(1.5, ROWS) % 1_000_000


def keys_of(kind: str, start: int, count: int) -> pa.Array:
    numbers, chance = np.arange(start, start + count), CHANCE[start : start + count]
    match kind:
        case "uniform":
            return pa.array(numbers * 7919 % 100_003)
        case "zipf":
            return pa.array(ZIPF[start : start + count])
        case "one hot key":
            return pa.array(np.where(chance < 0.7, -1, numbers))
        case "null keys":
            return pa.array(numbers, mask=chance < 0.7)
        case "few rows":
            return pa.array(numbers * 0)
    raise AssertionError(kind)


def run(lab: Any, kind: str, rows: int = ROWS, by: tuple[str, ...] = ("key",), **settings: Any) -> Any:
    def make(start: int, count: int) -> pa.RecordBatch:
        keys = keys_of(kind, start, count)
        return pa.record_batch({"key": keys, "zone": pa.array(["x"] * count)})

    env = rf.StreamEnvironment(parallelism=4)
    env.generate(make, rows=rows).key_by(*by).aggregate(n=rf.count()).discard()
    return lab.finish(env, **settings)


def skew_of(result: Any) -> dict[str, Any]:
    found: dict[str, Any] = result.metrics["skew"]["aggregate-1"]
    return found


def found_in(result: Any) -> list[dict[str, Any]]:
    return [event for event in result.events if event["type"] == "skew_found"]


def test_uniform_keys_are_even_and_give_no_warning(lab: Any) -> None:
    result = run(lab, "uniform")
    assert found_in(result) == []
    skew = skew_of(result)
    assert sum(skew["rows"]) == ROWS
    assert skew["busiest_to_mean"] < 1.1
    assert all(key["share_least"] < 0.01 for key in skew["hot_keys"])


@pytest.mark.parametrize(
    ("kind", "key", "share"), [("zipf", "1", 0.383), ("one hot key", "-1", 0.7), ("null keys", "None", 0.7)]
)
def test_a_hot_key_is_found_named_and_warned_about(lab: Any, kind: str, key: str, share: float) -> None:
    result = run(lab, kind)
    (event,) = found_in(result)
    assert event["hottest_key"]["key"] == key
    assert event["hottest_key"]["share"] == pytest.approx(share, abs=0.03)
    described = result.describe["operators"][1]["skew"]
    received = [s["rows_in"] for s in result.describe["subtasks"] if s["operator"] == "aggregate-1"]
    assert described["rows"] == received
    assert described["busiest"] == event["subtask"] == received.index(max(received))
    assert described["key_groups"][0]["subtask"] == described["busiest"]
    assert result.describe["warnings"] == [event["message"]]


def test_keys_of_several_columns_are_told_together(lab: Any) -> None:
    (event,) = found_in(run(lab, "one hot key", by=("zone", "key")))
    assert event["hottest_key"]["key"] == "('x', -1)"


def test_a_small_stream_of_one_key_gives_no_warning(lab: Any) -> None:
    result = run(lab, "few rows", rows=5_000)
    assert found_in(result) == []
    assert skew_of(result)["hot_keys"][0]["share"] == 1


def test_keys_can_be_hidden_or_not_looked_for(lab: Any) -> None:
    hidden = skew_of(run(lab, "one hot key", metrics__keys="hidden"))
    assert hidden["hot_keys"][0]["key"] is None
    assert hidden["hot_keys"][0]["share"] == pytest.approx(0.7, abs=0.03)
    off = skew_of(run(lab, "one hot key", metrics__keys="off"))
    assert (off["hot_keys"], off["key_groups"]) == ([], [])
    assert off["rows"] == skew_of(run(lab, "one hot key"))["rows"]


def test_after_a_crash_counters_are_of_the_new_attempt(lab: Any) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    env.generate(
        lambda start, count: pa.record_batch({"key": np.arange(start, start + count) % 50}),
        rows=20_000,
        rate_limit=40_000,
    ).key_by("key").aggregate(n=rf.count()).discard()
    crash = lab.crashing(env, times=1, seed=3)
    result = lab.finish(
        env, on_start=crash, checkpoint__interval="50ms", heartbeat__interval="50ms", restart__delay="10ms"
    )
    assert len(crash.stop()) == 1
    assert result.describe["attempt"] == 2
    received = [s["rows_in"] for s in result.describe["subtasks"] if s["operator"] == "aggregate-1"]
    assert skew_of(result)["rows"] == received
    assert sum(received) < 20_000


def test_restored_at_another_parallelism_rows_are_told_of_the_new_subtasks(lab: Any, tmp_path: Path) -> None:
    def job(parallelism: int) -> rf.StreamEnvironment:
        env = rf.StreamEnvironment(parallelism=parallelism)
        rows = env.generate(
            lambda start, count: pa.record_batch({"key": keys_of("one hot key", start, count)}), rows=ROWS
        )
        rows.key_by("key").aggregate(n=rf.count()).discard()
        return env

    kept = {"checkpoint__storage": f"file://{tmp_path}", "checkpoint__interval": "20ms"}
    first = lab.finish(job(4), **kept)
    latest = next(c["path"] for c in first.checkpoints if c["status"] == "completed")
    again = lab.finish(job(2), restore_from=latest, **kept)
    skew = skew_of(again)
    received = [s["rows_in"] for s in again.describe["subtasks"] if s["operator"] == "aggregate-1"]
    assert skew["rows"] == received
    assert len(received) == 2
    assert {group["subtask"] for group in skew["key_groups"]} <= {0, 1}


class NewHigh(rf.KeyedProcessFunction):
    """Emits a row whenever it is the largest of its key so far."""

    high = rf.ValueState(pa.int64())

    def process(self, row: dict[str, Any], ctx: Any) -> Any:
        if self.high.value is None or row["value"] > self.high.value:
            self.high.value = row["value"]
            yield {"key": row["key"], "value": row["value"]}


def test_work_that_does_not_merge_spreads_a_hot_key_by_a_prefix_in_two_steps(
    lab: Any, tmp_path: Path
) -> None:
    """S2: the same keyed function by (key, prefix), then, over the few rows that leaves, by key."""
    rows = 40_000

    def make(start: int, count: int) -> pa.RecordBatch:
        numbers = np.arange(start, start + count)
        keys = np.where(numbers % 10 < 8, -1, numbers % 50)
        return pa.record_batch({"key": keys, "value": numbers * 7919 % 100_003, "prefix": numbers % 16})

    def run(name: str, by: tuple[str, ...]) -> tuple[dict[int, int], list[int]]:
        env = rf.StreamEnvironment(parallelism=4)
        highs = env.generate(make, rows=rows).key_by(*by).process(NewHigh, returns={"key": int, "value": int})
        highs.key_by("key").process(NewHigh, returns={"key": int, "value": int}).write_parquet(
            tmp_path / name
        )
        result = lab.finish(env)
        found: dict[int, int] = {}
        for row in ds.dataset(tmp_path / name).to_table().to_pylist():
            found[row["key"]] = max(row["value"], found.get(row["key"], -1))
        return found, result.metrics["skew"]["process-1"]["rows"]

    (plain, uneven), (prefixed, even) = run("plain", ("key",)), run("prefixed", ("key", "prefix"))
    assert prefixed == plain
    assert max(uneven) > 0.8 * rows
    assert max(even) < 0.4 * rows
