"""Rows on which operators raise, in whole jobs: policies at the operator and by the configuration, plans, faults."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.runtime.local import LocalJob


def numbers(n: int = 20, **config: Any) -> Any:
    env = rf.StreamEnvironment(config={"restart.strategy": "none", **config})
    return env, env.from_arrow(pa.table({"n": range(n), "s": [str(i) for i in range(n)]}))


def no_sevens(row: dict[str, Any]) -> dict[str, Any]:
    if row["n"] % 7 == 0:
        raise ValueError("a seven")
    return {"m": row["n"]}


async def no_sevens_later(row: dict[str, Any]) -> dict[str, Any]:
    return no_sevens(row)


SEVENS, OTHERS = [0, 7, 14], [n for n in range(20) if n % 7]


@pytest.mark.parametrize("ordered", [True, False])
def test_map_async_puts_rows_aside_whose_last_try_raised(ordered: bool) -> None:
    _, rows = numbers()
    tag = rf.SideOutput("bad")
    good = rows.map_async(
        no_sevens_later, returns={"m": int}, retries=1, retry_delay="1ms", ordered=ordered, on_error=tag
    )
    assert sorted(good.execute_and_collect(local=True)["m"].to_pylist()) == OTHERS
    bad = good.side_output("bad").execute_and_collect(local=True)
    assert sorted(bad["n"].to_pylist()) == SEVENS
    assert "in the last of 2 tries" in bad["error"][0].as_py()


def test_the_columns_of_a_side_output_are_known_in_the_plan() -> None:
    _, rows = numbers()
    good = rows.map(no_sevens, returns={"m": int}, on_error=rf.SideOutput("bad"))
    bad = good.side_output("bad")
    assert bad.schema == pa.schema([*rows.schema, ("error", pa.string()), ("operator", pa.string())])
    got = (
        bad.filter(col("error").match_substring("seven"))
        .select("n", "operator")
        .execute_and_collect(local=True)
    )
    assert got.to_pylist() == [{"n": n, "operator": "map"} for n in SEVENS]


def test_a_projection_puts_whole_rows_aside_also_columns_that_nobody_else_reads(
    lab: Any, tmp_path: Path
) -> None:
    env, rows = numbers()
    cast = rows.with_columns(t=rf.lit("x")).select(
        k=rf.when(col("n") == 3).then(rf.lit("x")).otherwise(col("s")).cast(pa.int64())
    )
    cast = cast.name("cast").on_error(rf.SideOutput("bad"))
    cast.write_parquet(tmp_path / "good")
    cast.side_output("bad").write_parquet(tmp_path / "bad")
    lab.finish(env)
    assert lab.read(tmp_path / "good")["k"].to_pylist() == [n for n in range(20) if n != 3]
    (bad,) = lab.read(tmp_path / "bad").to_pylist()
    assert {**bad, "error": ""} == {"n": 3, "s": "3", "t": "x", "error": "", "operator": "cast"}


def test_the_configuration_gives_a_policy_to_operators_that_have_none(lab: Any, tmp_path: Path) -> None:
    env, rows = numbers(**{"errors.policy": "skip"})
    made = rows.map(no_sevens, returns={"m": int}).filter(lambda m: 1 // (m - 1) < 2)
    made.write_parquet(tmp_path / "out")
    lab.finish(env)
    assert lab.read(tmp_path / "out")["m"].to_pylist() == [n for n in OTHERS if n != 1]


def test_an_operator_that_is_to_fail_does_so_whatever_the_configuration_says(lab: Any) -> None:
    env, rows = numbers(**{"errors.policy": "skip"})
    rows.map(no_sevens, on_error="fail").discard()
    assert "a seven" in str(lab.fail(env))


def test_without_any_policy_the_job_fails(lab: Any) -> None:
    env, rows = numbers()
    rows.map(no_sevens).discard()
    assert "a seven" in str(lab.fail(env))


def test_the_count_and_a_warning_are_seen_from_outside(lab: Any, tmp_path: Path) -> None:
    env, rows = numbers()
    rows.map(no_sevens, on_error="skip").uid("m").discard()
    result = lab.finish(env)
    found = result.describe["operators"]
    assert sum(operator["rows_poisoned"] for operator in found) == len(SEVENS)
    assert result.metrics["operators"]["m"]["rows_poisoned"] == len(SEVENS)
    (warning,) = [event for event in result.events if event["type"] == "rows_poisoned"]
    assert "{n: 0, s: '0'}, raised ValueError: a seven" in warning["message"]


def test_crashes_neither_lose_nor_repeat_rows_of_either_output_nor_of_the_count(
    lab: Any, tmp_path: Path
) -> None:
    rng = random.Random(5)
    env = rf.StreamEnvironment(
        parallelism=2, config={"batch.rows": 50, "restart.delay": "1ms", "restart.max_attempts": 50}
    )
    rows = env.generate(
        lambda start, count: pa.record_batch({"n": range(start, start + count)}), 4000, rate_limit=4000
    )
    good = (
        rows.rebalance()
        .map(lambda n: {"m": no_sevens({"n": n})["m"]}, returns={"m": int}, on_error=rf.SideOutput("bad"))
        .uid("m")
    )
    good.write_parquet(tmp_path / "good")
    good.side_output("bad").write_parquet(tmp_path / "bad")
    crashed: list[int] = []

    def look(job: LocalJob) -> None:
        done = lab.completed(job)
        if len(crashed) < 3 and done > (crashed[-1] if crashed else 0):
            crashed.append(done)
            lab.crash(job, rng)

    result = lab.finish(env, on_start=lab.watch(look), checkpoint__interval="20ms")
    assert len(crashed) == 3
    assert sorted(lab.read(tmp_path / "good")["m"].to_pylist()) == [n for n in range(4000) if n % 7]
    assert sorted(lab.read(tmp_path / "bad")["n"].to_pylist()) == list(range(0, 4000, 7))
    assert result.metrics["operators"]["m"]["rows_poisoned"] == len(range(0, 4000, 7))


@pytest.mark.parametrize("ordered", [True, False])
def test_rows_put_aside_by_map_async_are_exactly_once_over_crashes(
    lab: Any, tmp_path: Path, ordered: bool
) -> None:
    rng = random.Random(6)
    env = rf.StreamEnvironment(config={"batch.rows": 20, "restart.delay": "1ms", "restart.max_attempts": 50})
    rows = env.generate(
        lambda start, count: pa.record_batch({"n": range(start, start + count)}), 1500, rate_limit=2000
    )

    async def later(n: int) -> dict[str, Any]:
        return no_sevens({"n": n})

    good = rows.map_async(
        later, returns={"m": int}, capacity=30, ordered=ordered, on_error=rf.SideOutput("bad")
    )
    good.write_parquet(tmp_path / "good")
    good.side_output("bad").write_parquet(tmp_path / "bad")
    crashed: list[int] = []

    def look(job: LocalJob) -> None:
        done = lab.completed(job)
        if len(crashed) < 2 and done > (crashed[-1] if crashed else 0):
            crashed.append(done)
            lab.crash(job, rng)

    lab.finish(env, on_start=lab.watch(look), checkpoint__interval="20ms")
    assert len(crashed) == 2
    assert sorted(lab.read(tmp_path / "good")["m"].to_pylist()) == [n for n in range(1500) if n % 7]
    assert sorted(lab.read(tmp_path / "bad")["n"].to_pylist()) == list(range(0, 1500, 7))


def test_what_cannot_leave_rows_out_says_so() -> None:
    env, rows = numbers()
    for make, expected in (
        (lambda: rows.on_error("skip"), "only read_csv, read_json and read_text can skip"),
        (
            lambda: rows.explode("n") if False else rows.key_by("n").aggregate(c=rf.count()).on_error("skip"),
            "cannot leave rows out",
        ),
        (
            lambda: rows.key_by("n").aggregate(c=rf.count()).filter(col("c") > 1).on_error("skip"),
            "cannot leave rows out",
        ),
        (lambda: rows.map(no_sevens, on_error="drop"), "on_error='drop': expected 'fail', 'skip' or"),
        (lambda: rows.map(no_sevens, on_error=rf.SideOutput("")), "expected a tag"),
        (lambda: rows.rename(n="error").map(no_sevens, on_error=rf.SideOutput("bad")), "rename it before"),
        (lambda: rows.map(no_sevens, on_error="skip").side_output("bad"), "puts nothing aside"),
        (lambda: env.read_text(__file__, on_error=rf.SideOutput("bad")), "a source has no side output"),
    ):
        with pytest.raises(rf.PlanError, match=expected):
            make()


LINES = ['{"a": 1, "b": "x"}', "{not json", '{"a": "text", "b": "y"}', "", "[1]", '{"a": 4, "b": "z"}']


@pytest.mark.parametrize("by", ["call", "config"])
def test_json_lines_that_do_not_parse_are_skipped_and_counted(lab: Any, tmp_path: Path, by: str) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES * 50) + "\n")
    env = rf.StreamEnvironment(config={"errors.policy": "skip"} if by == "config" else {})
    schema = {"a": int, "b": str}
    rows = env.read_json(tmp_path / "in.jsonl", schema=schema, on_error="skip" if by == "call" else None).uid(
        "in"
    )
    rows.write_parquet(tmp_path / "out")
    result = lab.finish(env, batch__rows=7)
    assert lab.read(tmp_path / "out").to_pylist() == [{"a": 1, "b": "x"}, {"a": 4, "b": "z"}] * 50
    assert result.metrics["operators"]["in"]["rows_poisoned"] == 150
    warnings = [event["message"] for event in result.events if event["type"] == "rows_poisoned"]
    assert "in.jsonl, line at byte" in warnings[0]


def test_csv_records_of_the_wrong_shape_or_type_are_skipped_and_counted(lab: Any, tmp_path: Path) -> None:
    good = [
        '1,"x, y",2024-01-02 03:04:05',
        "2,,",
        '3,"two\nlines",2024-01-02 03:04:06',
        '4,"",2024-01-02 03:04:07',
    ]
    bad = ["5,too few", "five,x,2024-01-02 03:04:05", "6,x,never", "7,too,many,values"]
    text = "n,s,t\n" + "\n".join((good + bad) * 30) + "\n"
    (tmp_path / "in.csv").write_text(text)
    env = rf.StreamEnvironment()
    schema = {"n": pa.int64(), "s": pa.string(), "t": pa.timestamp("s")}
    env.read_csv(tmp_path / "in.csv", schema=schema, on_error="skip").uid("in").write_parquet(
        tmp_path / "out"
    )
    result = lab.finish(env, batch__rows=11)
    rows = lab.read(tmp_path / "out")
    assert rows["n"].to_pylist() == [1, 2, 3, 4] * 30
    assert rows["s"].to_pylist() == ["x, y", None, "two\nlines", ""] * 30
    assert rows["t"].null_count == 30
    assert result.metrics["operators"]["in"]["rows_poisoned"] == 120


def test_text_that_is_not_utf8_is_skipped(lab: Any, tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(
        "fine\nno \xff\nüber\n".encode("latin-1").replace(b"\xfcber", "über".encode())
    )
    env = rf.StreamEnvironment()
    got = env.read_text(tmp_path / "in.txt", on_error="skip").execute_and_collect(local=True)
    assert got["line"].to_pylist() == ["fine", "über"]


def test_the_way_to_keep_lines_that_do_not_parse(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("\n".join(LINES) + "\n")
    lines = rf.StreamEnvironment().read_text(tmp_path / "in.jsonl")
    rows = lines.map(json.loads, returns={"a": int, "b": str}, on_error=rf.SideOutput("bad"))
    assert rows.execute_and_collect(local=True)["a"].to_pylist() == [1, 4]
    assert rows.side_output("bad").execute_and_collect(local=True)["line"].to_pylist() == [
        LINES[i] for i in (1, 2, 3, 4)
    ]
