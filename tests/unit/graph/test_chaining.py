from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.graph.chaining import plan_job
from rayflow.graph.plan import Exchange, OperatorSpec, Resources, StreamEdge, StreamNode
from rayflow.model.errors import PlanError


def chains(graph: Any) -> list[list[str]]:
    return [[spec.name for spec in vertex.operators] for vertex in graph.vertices]


def test_operators_of_one_parallelism_become_one_chain(g: Any) -> None:
    g.sink(g.add("filter", g.add("map", g.source())))
    graph = g.plan()
    assert chains(graph) == [["read", "map", "filter", "write"]]
    assert graph.edges == ()
    assert graph.vertices[0].is_source


def test_a_keyed_operator_begins_a_chain_behind_a_hash_exchange(g: Any, via: Any, shape_of: Any) -> None:
    agg = g.add("aggregate", via(g.source(), "hash", "k"), partitioned_by=("k",))
    g.sink(agg)
    graph = g.plan()
    assert chains(graph) == [["read"], ["aggregate", "write"]]
    assert shape_of(graph) == [("read-1", "hash", "aggregate-1")]
    assert graph.edges[0].exchange.keys == ("k",)


def test_a_keyed_exchange_is_kept_at_parallelism_one(g: Any, via: Any, shape_of: Any) -> None:
    g.sink(g.add("aggregate", via(g.source(), "hash", "k")))
    assert shape_of(g.plan(parallelism=1)) == [("read-1", "hash", "aggregate-1")]


def test_different_parallelism_is_rebalanced(g: Any, shape_of: Any) -> None:
    g.sink(g.add("map", g.source()), parallelism=1)
    assert shape_of(g.plan(4)) == [("read-1", "rebalance", "write-1")]


@pytest.mark.parametrize("kind", ["rebalance", "rescale", "broadcast"])
def test_an_exchange_that_was_asked_for_stays(g: Any, via: Any, shape_of: Any, kind: str) -> None:
    g.sink(via(g.source(), kind))
    assert shape_of(g.plan()) == [("read-1", kind, "write-1")]


def test_two_consumers_break_the_chain_but_stay_forward(g: Any, shape_of: Any) -> None:
    source = g.source()
    g.sink(source)
    g.sink(source)
    assert shape_of(g.plan()) == [("read-1", "forward", "write-1"), ("read-1", "forward", "write-2")]


def test_two_inputs_break_the_chain(g: Any, shape_of: Any) -> None:
    g.sink(g.add("union", g.source(), g.source()))
    graph = g.plan()
    assert chains(graph) == [["read"], ["read"], ["union", "write"]]
    assert shape_of(graph) == [("read-1", "forward", "union-1"), ("read-2", "forward", "union-1")]


def test_other_resources_break_the_chain(g: Any) -> None:
    g.sink(g.add("model", g.source(), resources=Resources(num_gpus=1)))
    assert chains(g.plan()) == [["read"], ["model"], ["write"]]


def test_a_node_may_refuse_to_be_chained(g: Any) -> None:
    g.sink(g.add("map", g.source(), chainable=False))
    assert chains(g.plan()) == [["read"], ["map"], ["write"]]


def test_a_side_output_is_never_chained(g: Any, via: Any) -> None:
    g.sink(via(g.source(), "forward", tag="late"))
    graph = g.plan()
    assert [(e.tag, e.exchange.kind) for e in graph.edges] == [("late", "forward")]


# ------------------------------------------------------------------------------ partitioning that is kept


def keyed(g: Any, via: Any, **more: Any) -> int:
    node: int = g.add("aggregate", via(g.source(), "hash", "k"), partitioned_by=("k",), **more)
    return node


def test_a_hash_by_the_same_keys_is_dropped(g: Any, via: Any) -> None:
    renamed = g.add("rename", keyed(g, via), partitioned_by=("key",))
    g.sink(via(renamed, "hash", "key"))
    assert chains(g.plan()) == [["read"], ["aggregate", "rename", "write"]]


@pytest.mark.parametrize("keys", [("other",), ("k", "other"), ()])
def test_a_hash_by_other_keys_is_kept(g: Any, via: Any, shape_of: Any, keys: tuple[str, ...]) -> None:
    g.sink(via(keyed(g, via), "hash", *keys))
    assert shape_of(g.plan())[1] == ("aggregate-1", "hash", "write-1")


def test_a_hash_at_another_parallelism_is_kept(g: Any, via: Any, shape_of: Any) -> None:
    g.sink(via(keyed(g, via), "hash", "k"), parallelism=1)
    assert shape_of(g.plan())[1] == ("aggregate-1", "hash", "write-1")


def test_a_rebalance_forgets_the_partitioning(g: Any, via: Any, shape_of: Any) -> None:
    moved = g.add("filter", via(keyed(g, via), "rebalance"), partitioned_by=("k",))
    g.sink(via(moved, "hash", "k"))
    assert shape_of(g.plan())[-1] == ("filter-1", "hash", "write-1")


def test_a_source_lies_by_nothing_whatever_it_says(g: Any, via: Any, shape_of: Any) -> None:
    g.sink(via(g.source(partitioned_by=("k",)), "hash", "k"))
    assert shape_of(g.plan()) == [("read-1", "hash", "write-1")]


# ------------------------------------------------------------------------------------- uids and numbers


def test_generated_uids_are_the_same_on_every_plan(g: Any) -> None:
    g.sink(g.add("Map it!", g.add("Map it!", g.source(uid="in"))))
    uids = [[spec.uid for spec in vertex.operators] for vertex in g.plan().vertices]
    assert uids == [["in", "map-it-1", "map-it-2", "write-1"]]
    assert g.plan() == g.plan()


def test_a_generated_uid_steps_aside_for_a_given_one(g: Any) -> None:
    g.sink(g.add("map", g.source()), uid="map-1")
    assert [s.uid for s in g.plan().vertices[0].operators] == ["read-1", "map-2", "map-1"]


def test_duplicate_uids_are_refused_with_both_lines(g: Any) -> None:
    g.sink(g.source(uid="x", location="a.py:1"), uid="x", location="a.py:2")
    with pytest.raises(PlanError) as caught:
        g.plan()
    assert "a.py:1" in str(caught.value)
    assert "a.py:2" in str(caught.value)


def test_a_source_that_cannot_split_further_takes_fewer_subtasks(g: Any, shape_of: Any) -> None:
    g.sink(g.source(max_parallelism=1))
    assert shape_of(g.plan(4)) == [("read-1", "rebalance", "write-1")]


@pytest.mark.parametrize("parallelism", [0, -1, 129])
def test_parallelism_out_of_range_is_refused(g: Any, parallelism: int) -> None:
    g.sink(g.source(), parallelism=parallelism)
    with pytest.raises(PlanError, match="parallelism of 'write': expected 1 to 128"):
        g.plan()


@pytest.mark.parametrize(("parallelism", "most"), [(0, 128), (3, 2), (1, 0), (1, 40_000)])
def test_job_parallelism_out_of_range_is_refused(g: Any, parallelism: int, most: int) -> None:
    g.sink(g.source())
    with pytest.raises(PlanError, match="parallelism"):
        g.plan(parallelism, most)


def test_a_job_without_a_sink_is_refused(g: Any) -> None:
    g.source()
    with pytest.raises(PlanError, match="writes nowhere"):
        g.plan()


# ---------------------------------------------------------------------------------------- properties


@st.composite
def stream_graphs(draw: st.DrawFn) -> list[StreamNode]:
    """Random graphs: every node reads some earlier ones through any exchange."""
    kinds = st.sampled_from(["forward", "forward", "hash", "rebalance", "rescale", "broadcast"])
    nodes: list[StreamNode] = []
    for index in range(draw(st.integers(2, 12))):
        sources = [n.id for n in nodes if n.spec.kind != "sink"]
        inputs = draw(st.lists(st.sampled_from(sources), max_size=3, unique=True)) if sources else []
        kind = "source" if not inputs else draw(st.sampled_from(["operator", "operator", "sink"]))
        edges = [StreamEdge(source=i, exchange=Exchange(draw(kinds), ("k",))) for i in inputs]
        nodes.append(
            StreamNode(
                id=index,
                spec=OperatorSpec(uid="", name=f"n{index}", kind=kind, payload=None),  # type: ignore[arg-type]
                inputs=edges,
                parallelism=draw(st.sampled_from([None, 1, 2, 3])),
                partitioned_by=draw(st.sampled_from([None, ("k",)])),
            )
        )
    source = draw(st.sampled_from([n.id for n in nodes if n.spec.kind != "sink"]))
    sink = OperatorSpec(uid="", name="last", kind="sink", payload=None)
    nodes.append(
        StreamNode(id=len(nodes), spec=sink, inputs=[StreamEdge(source=source, exchange=Exchange("forward"))])
    )
    return nodes


def test_a_forward_edge_knows_by_which_keys_its_rows_lie(g: Any, via: Any) -> None:
    # Else nobody could deal out rows in flight on it at another parallelism.
    g.sink(g.add("map", keyed(g, via, chainable=False), partitioned_by=("k",)))
    g.sink(via(0, "forward", tag="late"))
    exchanges = {e.tag or e.source: e.exchange for e in g.plan().edges}
    assert exchanges["aggregate-1"] == Exchange("forward", ("k",))
    assert exchanges["late"] == Exchange("forward")


@given(stream_graphs())
def test_every_plan_is_well_formed(nodes: list[StreamNode]) -> None:
    graph = plan_job(nodes, name="p", parallelism=2, max_parallelism=8)
    # Every operator is in exactly one chain.
    names = [spec.name for vertex in graph.vertices for spec in vertex.operators]
    assert sorted(names) == sorted(node.spec.name for node in nodes)
    # Vertices are in topological order, edges numbered by position.
    position = {vertex.id: index for index, vertex in enumerate(graph.vertices)}
    for index, edge in enumerate(graph.edges):
        assert edge.id == index
        assert position[edge.source] < position[edge.target]
        if edge.exchange.kind == "forward":
            assert graph.vertex(edge.source).parallelism == graph.vertex(edge.target).parallelism
    # Sources only lead and sinks only end chains; edges between nodes are kept or fused, never lost.
    fused = sum(len(vertex.operators) - 1 for vertex in graph.vertices)
    assert fused + len(graph.edges) == sum(len(node.inputs) for node in nodes)
    for vertex in graph.vertices:
        assert all(spec.kind != "source" for spec in vertex.operators[1:])
        assert all(spec.kind != "sink" for spec in vertex.operators[:-1])
