from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.batch.partition import make_partitioner
from rayflow.graph.execution import (
    behind_broadcasts,
    channels,
    consumer_indices,
    input_channels,
    output_channels,
    producer_indices,
    subtasks,
)
from rayflow.model.ids import SubtaskId, VertexId


def test_subtasks_are_listed_by_vertex_and_index(g: Any, via: Any) -> None:
    g.sink(via(g.source(), "hash", "k"), parallelism=1)
    assert [str(s) for s in subtasks(g.plan(2))] == ["read-1[0]", "read-1[1]", "write-1[0]"]


@pytest.mark.parametrize(
    ("kind", "producers", "consumers", "pairs"),
    [
        ("forward", 2, 2, [(0, 0), (1, 1)]),
        ("hash", 2, 3, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]),
        ("rescale", 2, 4, [(0, 0), (0, 1), (1, 2), (1, 3)]),
        ("rescale", 4, 2, [(0, 0), (1, 0), (2, 1), (3, 1)]),
        ("rescale", 2, 3, [(0, 0), (0, 1), (1, 2)]),
    ],
)
def test_who_is_connected_with_whom(kind: Any, producers: int, consumers: int, pairs: Any) -> None:
    connected = [(p, c) for p in range(producers) for c in consumer_indices(kind, producers, consumers, p)]
    assert connected == pairs


@given(st.sampled_from(["hash", "rebalance", "rescale", "broadcast"]), st.integers(1, 20), st.integers(1, 20))
def test_both_ends_agree_and_nobody_is_left_alone(kind: Any, producers: int, consumers: int) -> None:
    forth = {(p, c) for p in range(producers) for c in consumer_indices(kind, producers, consumers, p)}
    back = {(p, c) for c in range(consumers) for p in producer_indices(kind, producers, consumers, c)}
    assert forth == back
    assert {p for p, _ in forth} == set(range(producers))
    assert {c for _, c in forth} == set(range(consumers))
    for p in range(producers):
        partitioner = make_partitioner(kind, ["k"], 128, consumers, p, producers)
        assert partitioner.consumers == len(consumer_indices(kind, producers, consumers, p))
    if kind == "rescale":
        assert len(forth) == max(producers, consumers)


def test_channels_are_the_union_of_inputs_and_of_outputs(g: Any, via: Any) -> None:
    left = g.source()
    g.sink(g.add("union", left, via(g.source(parallelism=3), "rescale")))
    g.sink(via(left, "broadcast"), parallelism=1)
    graph = g.plan(2)
    everything = set(channels(graph))
    assert everything == {c for s in subtasks(graph) for c in output_channels(graph, s)}
    assert everything == {c for s in subtasks(graph) for c in input_channels(graph, s)}
    union0 = SubtaskId(VertexId("union-1"), 0)
    assert [str(c) for c in input_channels(graph, union0)] == [
        "read-1[0]→union-1[0]#0",
        "read-2[0]→union-1[0]#1",
        "read-2[1]→union-1[0]#1",
    ]


def test_who_a_broadcast_goes_to_and_who_comes_after_is_behind_it(g: Any, via: Any) -> None:
    rows, rules = g.source(), g.source(parallelism=1)
    first = g.add("connect", via(rows, "hash", "k"), via(rules, "broadcast"))
    g.sink(via(g.add("union", via(first, "hash", "k")), "rebalance"))
    g.sink(via(rows, "rebalance"))
    graph = g.plan(2)
    behind = behind_broadcasts(graph)
    broadcast = {e.target for e in graph.edges if e.exchange.kind == "broadcast"}
    assert len(broadcast) == 1
    assert broadcast < behind
    assert {v.id for v in graph.vertices if v.is_source}.isdisjoint(behind)
    assert behind == broadcast | {e.target for e in graph.edges if e.source in behind}
    assert len(behind) < len(graph.vertices) - 2
