"""A union is no task: its consumers read its inputs."""

from __future__ import annotations

from typing import Any

import rayflow as rf


def test_a_consumer_reads_every_input_with_the_exchange_it_asked_for(g: Any, via: Any, shape_of: Any) -> None:
    union = g.add("union", g.source(), g.source(), virtual=True)
    g.sink(g.add("count", via(union, "hash", "k")))
    assert shape_of(g.plan()) == [("read-1", "hash", "count-1"), ("read-2", "hash", "count-1")]


def test_what_was_asked_for_before_stays_where_any_distribution_will_do(
    g: Any, via: Any, shape_of: Any
) -> None:
    union = g.add("union", g.source(), via(g.source(), "rebalance"), virtual=True)
    g.sink(union)
    assert shape_of(g.plan()) == [("read-1", "forward", "write-1"), ("read-2", "rebalance", "write-1")]


def test_unions_of_unions_and_several_consumers(g: Any, via: Any, shape_of: Any) -> None:
    inner = g.add("union", g.source("a"), g.source("b"), virtual=True)
    outer = g.add("union", inner, g.source("c"), virtual=True)
    g.sink(via(outer, "hash", "k", port=1), name="x")
    g.sink(inner, name="y")
    graph = g.plan()
    assert shape_of(graph) == [
        ("a-1", "hash", "x-1"),
        ("b-1", "hash", "x-1"),
        ("c-1", "hash", "x-1"),
        ("a-1", "forward", "y-1"),
        ("b-1", "forward", "y-1"),
    ]
    assert {e.port for e in graph.edges if e.target == "x-1"} == {1}


def test_a_stream_may_be_united_with_itself() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    rows = env.from_rows([{"k": 1}, {"k": 2}])
    counts = rows.union(rows).key_by("k").aggregate(n=rf.count())
    assert counts.execute_and_collect(local=True).sort_by("k").to_pylist() == [
        {"k": 1, "n": 2},
        {"k": 2, "n": 2},
    ]


def test_a_union_that_is_named_is_a_task(g: Any) -> None:
    env = rf.StreamEnvironment()
    rows = env.from_rows([{"k": 1}])
    rows.union(rows).discard()
    assert [v.name for v in env.plan().vertices] == ["from_rows", "discard"]
    rows.union(rows).name("both").discard()
    assert "both → discard" in [v.name for v in env.plan().vertices]
