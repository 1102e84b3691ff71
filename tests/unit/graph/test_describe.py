from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyarrow as pa

from rayflow.batch.changelog import changelog_schema
from rayflow.graph.describe import plan_json, plan_tree
from rayflow.graph.plan import Resources, TimeSpec, Traits


def job(g: Any, via: Any) -> Any:
    source = g.source(uid="in", time=TimeSpec(column="t", delay=7_200 * 10**9), rate_limit=1000.0)
    agg = g.add("aggregate", via(source, "hash", "k"), detail="count by k", warnings=("mind the gap",))
    g.sink(agg, uid="out")
    return g.plan(2)


def test_the_json_has_what_the_contract_names(g: Any, via: Any) -> None:
    plan = plan_json(job(g, via))
    assert [(o["uid"], o["name"], o["parallelism"], o["chained"]) for o in plan["operators"]] == [
        ("in", "read", 2, []),
        ("aggregate-1", "aggregate → write", 2, ["out"]),
    ]
    assert [(e["from"], e["to"], e["exchange"]) for e in plan["edges"]] == [("in", "aggregate-1", "hash")]
    assert plan["warnings"] == ["mind the gap"]
    assert plan["operators"][0]["key_groups"] is None
    assert plan["operators"][1]["key_groups"] == [(0, 64), (64, 128)]
    assert plan["operators"][0]["steps"][0]["time_column"] == "t"
    json.dumps(plan)


def test_the_tree_shows_operators_exchanges_time_and_warnings(g: Any, via: Any) -> None:
    assert plan_tree(job(g, via)).splitlines() == [
        "job test: 2 chains, 4 subtasks, 4 channels, 128 key groups",
        "in  × 2",
        "  ▷ read [in]",
        "      event time t, delay 2h",
        "      at most 1000 rows/s",
        "aggregate-1  × 2",
        "  ⇐ hash(k) from in, 2 → 2",
        "    key groups 0–63 64–127",
        "  • aggregate [aggregate-1]: count by k",
        "  ▶ write [out]",
        "warnings",
        "  ! mind the gap",
    ]


def test_resources_are_shown(g: Any) -> None:
    g.sink(g.add("model", g.source(), resources=Resources(num_cpus=2, num_gpus=0.5, memory=1 << 30)))
    assert "model-1  × 1  (2 CPU, 0.5 GPU, 1024 MiB each)" in plan_tree(g.plan(1))


def test_schemas_are_shown_without_the_hidden_column(g: Any) -> None:
    counts = g.add("counts", g.source())
    schema = changelog_schema(pa.schema({"a": pa.int64()}))
    g.nodes[counts].spec = replace(g.nodes[counts].spec, schema=schema)
    g.sink(counts)
    step = plan_json(g.plan())["operators"][0]["steps"][1]
    assert (step["schema"], step["upserts"]) == ({"a": "int64"}, True)
    assert "upserts: rows replace earlier ones of their key" in plan_tree(g.plan())


def test_what_dealing_rows_out_gives_up_is_told(g: Any, via: Any) -> None:
    g.sink(g.add("model", via(g.source(), "rebalance")))
    (edge,) = plan_json(g.plan(2))["edges"]
    assert (edge["exchange"], edge["gives_up"], edge["why"]) == (
        "rebalance",
        "the order of a key's rows",
        None,
    )
    assert "rebalance from read-1, 2 → 2; gives up the order of a key's rows" in plan_tree(g.plan(2))


def test_to_a_single_subtask_nothing_is_given_up(g: Any) -> None:
    g.sink(g.add("model", g.source(), parallelism=1), parallelism=1)
    (edge,) = plan_json(g.plan(2))["edges"]
    assert (edge["exchange"], edge["gives_up"]) == ("rebalance", None)


def test_the_planner_says_why_it_deals_out_rows_of_uneven_splits(g: Any) -> None:
    g.sink(g.add("model", g.source(traits=Traits(splits=3), rebalance=True)))
    assert "rebalance from read-1, 2 → 2 (3 splits for 2 subtasks); gives up" in plan_tree(g.plan(2))
