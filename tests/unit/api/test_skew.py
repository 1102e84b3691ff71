"""`key_by(..., skew=)`: what the plan shows, what it refuses, and results that equal those without and DuckDB's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.graph.describe import plan_json

ROWS = 4_000

PLAIN = None
LOCAL = rf.Skew()

SALTED = rf.Skew(local_aggregation=False, salt=3)
BOTH = rf.Skew(salt=2)

AUTO = rf.Skew(local_aggregation=False, salt="auto")

SKEWS = [LOCAL, SALTED, BOTH, AUTO]


def table() -> pa.Table:
    """Zipf-like keys with nulls, and times out of order by less than 2 s."""
    random = np.random.default_rng(7)
    keys = np.minimum(random.zipf(1.5, ROWS), 50)
    millis = np.arange(ROWS) * 10 + random.integers(0, 1_500, ROWS)
    values = random.integers(-1_000, 1_000, ROWS)
    return pa.table(
        {
            "k": pa.array(keys, pa.int64(), mask=keys == 3),
            "name": pa.array([None if k == 2 else f"name {k % 7}" for k in keys.tolist()]),
            "t": pa.array(millis).cast(pa.timestamp("ms")),
            "v": pa.array(values, mask=values % 10 == 0),
            "f": pa.array(values / 8),
        }
    )


TABLE = table()


def stream(env: rf.StreamEnvironment) -> Any:
    batches = TABLE.to_batches(max_chunksize=97)
    source = env.from_batches(lambda: iter(batches), schema=TABLE.schema)
    return source.assign_watermarks(rf.Watermark("t", delay="2s")).filter(col("f") > -1000).rebalance()


def collected(
    build: Callable[[Any], Any], skew: rf.Skew | None, parallelism: int = 2
) -> list[dict[str, Any]]:
    env = rf.StreamEnvironment(parallelism=parallelism, config={"skew.rows": 40, "batch.rows": 64})
    rows = build(stream(env).key_by("k", "name", skew=skew)).execute_and_collect(local=True).to_pylist()
    return sorted(rows, key=lambda row: str([row["k"], row["name"], row.get("window_start")]))


def test_running_aggregates_equal_duckdb() -> None:
    expected = duckdb.sql(
        """SELECT k, name, count(*) AS n, sum(v)::BIGINT AS total, count(DISTINCT v) AS different, avg(f) AS mean,
        max(f) AS most, count(*) FILTER (v > 0) AS positive FROM (SELECT * FROM rows) GROUP BY ALL""",
        connection=_connected(),
    ).to_arrow_table()
    wanted = {(row["k"], row["name"]): row for row in expected.to_pylist()}
    for skew in SKEWS:
        found = collected(
            lambda keyed: keyed.aggregate(
                n=rf.count(),
                total=col("v").sum(),
                different=col("v").count_distinct(),
                mean=col("f").mean(),
                most=col("f").max(),
                positive=rf.count().filter(col("v") > 0),
            ),
            skew,
        )
        assert {(row["k"], row["name"]): row for row in found} == wanted


def _connected() -> Any:
    connection = duckdb.connect()
    connection.register("rows", TABLE)
    return connection


def lists(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {"most": max(old["most"], new["most"]), "rows": old["rows"] + new["rows"]}


@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_reduced_rows_equal_those_without(skew: rf.Skew) -> None:
    def reduced(given: rf.Skew | None) -> list[Any]:
        env = rf.StreamEnvironment(parallelism=2, config={"skew.rows": 40, "batch.rows": 64})
        rows = stream(env).select("k", most=col("f"), rows=rf.lit(1)).key_by("k", skew=given).reduce(lists)
        found = rows.execute_and_collect(local=True).to_pylist()
        return sorted(found, key=lambda row: str(row["k"]))

    assert reduced(skew) == reduced(PLAIN)


def test_the_plan_shows_where_rows_are_reduced() -> None:
    def plan(skew: rf.Skew) -> Any:
        env = rf.StreamEnvironment(parallelism=2)
        stream(env).key_by("k", skew=skew).reduce(lambda old, new: new).discard()
        return plan_json(env.plan())

    names = [step["name"] for operator in plan(BOTH)["operators"] for step in operator["steps"]]
    assert names[-4:] == ["combine", "combine salted", "reduce", "discard"]
    auto = plan(rf.Skew(salt="auto"))
    assert "combine salted" not in str(auto["operators"])
    assert any("reduce go by the order" in warning for warning in auto["warnings"])


WINDOWS = {
    "tumbling": rf.Tumbling("3s", offset="500ms"),
    "sliding": rf.Sliding("4s", "1s"),
    "with gaps": rf.Sliding("1s", "3s"),
    "global": rf.GlobalWindow(),
}


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_windows_equal_those_without(window: str, skew: rf.Skew) -> None:
    def build(keyed: Any) -> Any:
        return keyed.window(WINDOWS[window]).aggregate(
            n=rf.count(), total=col("v").sum(), mean=col("f").mean(), distinct=col("v").count_distinct()
        )

    assert collected(build, skew) == collected(build, PLAIN)


@pytest.mark.parametrize("skew", SKEWS, ids=str)
def test_kept_and_late_rows_are_the_input(skew: rf.Skew) -> None:
    env = rf.StreamEnvironment(parallelism=2, config={"skew.rows": 40, "batch.rows": 64})
    batches = TABLE.to_batches(max_chunksize=97)
    source = env.from_batches(lambda: iter(batches), schema=TABLE.schema)
    rows = source.assign_watermarks(rf.Watermark("t", delay="300ms")).rebalance()
    windowed = rows.key_by("k", skew=skew).window(rf.Tumbling("1s")).allowed_lateness("0s", late_to="late")
    kept = windowed.aggregate(n=rf.count(), values=col("f").collect_list())
    late = kept.side_output("late").select("k", "t", "v", "f").with_columns(n=1)
    assert late.schema is not None
    both = kept.explode("values").select(f=col("values")).union(late.select("f"))
    found = both.execute_and_collect(local=True)
    assert sorted(found["f"].to_pylist()) == sorted(TABLE["f"].to_pylist())


def test_the_plan_shows_what_is_combined_and_the_aggregate_keeps_its_uid() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    rows = env.generate(lambda start, count: pa.record_batch({"k": np.arange(count)}), rows=10)
    rows = rows.map_batches(lambda batch: batch, returns=pa.schema([("k", pa.int64())])).with_parallelism(2)
    rows.key_by("k", skew=LOCAL).aggregate(n=rf.count()).discard()
    plan = plan_json(env.plan())
    assert [operator["uid"] for operator in plan["operators"]] == ["generate-1", "aggregate-1"]
    assert plan["operators"][0]["chained"] == ["map_batches-1", "combine-1"]
    assert [(e["from"], e["to"], e["exchange"], e["keys"]) for e in plan["edges"]] == [
        ("generate-1", "aggregate-1", "hash", ["k"])
    ]
    assert plan["warnings"] == []


def test_the_plan_shows_the_ways_that_salted_rows_take() -> None:
    def edges(skew: rf.Skew) -> Any:
        env = rf.StreamEnvironment(parallelism=2)
        rows = env.generate(lambda start, count: pa.record_batch({"k": np.arange(count)}), rows=10)
        rows = rows.map_batches(lambda batch: batch, returns=pa.schema([("k", pa.int64())]))
        rows.key_by("k", skew=skew).aggregate(n=rf.count()).uid("counts").discard()
        plan = plan_json(env.plan())
        names = [step["name"] for operator in plan["operators"] for step in operator["steps"]]
        shown = [(e["from"], e["to"], e["keys"], e["salts"], e["tag"], e["port"]) for e in plan["edges"]]
        return names, shown

    assert edges(BOTH) == (
        ["generate", "map_batches", "combine", "combine salted", "aggregate", "discard"],
        [
            ("generate-1", "combine-salted-1", ["k"], 2, None, 0),
            ("combine-salted-1", "counts", ["k"], 0, None, 0),
        ],
    )
    assert edges(AUTO) == (
        ["generate", "map_batches", "salt", "combine salted", "aggregate", "discard"],
        [
            ("generate-1", "combine-salted-1", ["k"], 4096, "salted", 0),
            ("generate-1", "counts", ["k"], 0, None, 0),
            ("combine-salted-1", "counts", ["k"], 0, None, 1),
        ],
    )


def test_keys_whose_rows_have_an_order_are_not_salted_by_themselves() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    stream(env).key_by("k", skew=AUTO).aggregate(first=col("v").first()).discard()
    plan = plan_json(env.plan())
    assert not any("salt" in str(operator) for operator in plan["operators"])
    assert any("salts no keys" in warning for warning in plan["warnings"])


def test_the_combiner_runs_beside_its_input_whatever_the_parallelism() -> None:
    env = rf.StreamEnvironment(parallelism=3)
    rows = env.from_batches(lambda: iter([]), schema=pa.schema([("k", pa.int64())]))
    mapped = rows.filter(col("k") > 1).with_parallelism(1)
    mapped.key_by("k", skew=LOCAL).aggregate(n=rf.count()).discard()
    plan = plan_json(env.plan())
    assert [(o["uid"], o["parallelism"]) for o in plan["operators"]] == [
        ("from_batches-1", 1),
        ("aggregate-1", 3),
    ]


def _refused(use: Callable[[Any], Any]) -> str:
    with pytest.raises(rf.PlanError) as caught:
        use(stream(rf.StreamEnvironment()))
    return str(caught.value)


def test_what_does_not_merge_is_refused_with_what_to_do_instead() -> None:
    class Nothing(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Any:
            return []

    uses: list[Callable[[Any], Any]] = [
        lambda rows: rows.key_by("k", skew=LOCAL).process(Nothing),
        lambda rows: rows.key_by("k", skew=LOCAL).top_n(1, order_by="v"),
        lambda rows: rows.key_by("k", skew=LOCAL).map_batches(lambda batch: batch),
        lambda rows: rows.key_by("k", skew=LOCAL).window(rf.CountWindow(3)).aggregate(n=rf.count()),
        lambda rows: rows.key_by("k", skew=LOCAL).window(rf.Tumbling("1s")).process(lambda rows, ctx: None),
        lambda rows: rows.key_by("k", skew=LOCAL).interval_join(rows.key_by("k"), "0s", "1s"),
    ]
    for use in uses:
        message = _refused(use)
        assert "aggregate(" in message
        assert "rebalance()" in message
        assert "test_skew.py" in message


def test_what_is_not_combined_is_told_in_the_plan() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    rows = stream(env)
    counts = rows.key_by("k").aggregate(n=rf.count())
    counts.key_by("n", skew=LOCAL).aggregate(keys=rf.count()).discard()
    rows.key_by("k", skew=LOCAL).window(rf.Session("1s")).aggregate(n=rf.count()).discard()
    rows.key_by("k", skew=LOCAL).window(rf.Tumbling("1s", time="processing")).aggregate(
        n=rf.count()
    ).discard()
    windows = rows.key_by("k").window(rf.Tumbling("1s")).aggregate(n=rf.count())
    windows.key_by("k", skew=LOCAL).aggregate(n=col("n").sum()).discard()
    plan = plan_json(env.plan())
    assert not any("combine" in str(operator) for operator in plan["operators"])
    told = [warning for warning in plan["warnings"] if "has no effect" in warning]
    assert len(told) == 4
    for part in ("upsert stream", "sessions", "processing time", "lie by these keys"):
        assert sum(part in warning for warning in told) == 1


@pytest.mark.parametrize(
    "arguments", [{"salt": -1}, {"salt": "some"}, {"salt": True}, {"salt": 10**9}, {"local_aggregation": 1}]
)
def test_a_skew_is_checked_where_it_is_made(arguments: dict[str, Any]) -> None:
    with pytest.raises(rf.PlanError, match=r"rf.Skew\((salt|local_aggregation)="):
        rf.Skew(**arguments)
    with pytest.raises(rf.PlanError, match=r"key_by\(skew=\): expected rf.Skew"):
        stream(rf.StreamEnvironment()).key_by("k", skew=3)


def test_own_column_names_are_refused() -> None:
    env = rf.StreamEnvironment()
    rows = env.from_rows([{"n.count": 1, "k": 1}])
    with pytest.raises(rf.PlanError, match="name of a part of a result"):
        rows.key_by("n.count", skew=LOCAL).aggregate(n=rf.count())
    with pytest.raises(rf.PlanError, match="reserved"):
        env.from_rows([{"__slice": 1, "k": 1}]).key_by("k", skew=LOCAL).aggregate(n=rf.count())
