"""Where new workers go."""

from __future__ import annotations

from rayflow.actors.placement import SUSPECT_S, Placement


def test_the_node_with_the_fewest_workers_is_chosen_and_those_there_already_count():
    placement = Placement()
    placement.add("a")
    assert [placement.choose(["a", "b"], 0) for _ in range(3)] == ["b", "a", "b"]


def test_a_node_that_lost_a_worker_is_avoided_for_a_while():
    placement = Placement()
    placement.choose(["a", "b"], 0)
    placement.remove("a", 0, lost=True)
    assert [placement.choose(["a", "b"], 1) for _ in range(3)] == ["b", "b", "b"]
    assert placement.choose(["a", "b"], SUSPECT_S) == "a"


def test_where_all_nodes_lost_workers_any_will_do():
    placement = Placement()
    placement.remove("a", 0, lost=True)
    assert placement.choose(["a"], 1) == "a"


def test_nodes_that_are_gone_are_forgotten():
    placement = Placement()
    for number in range(100):
        node = placement.choose([f"node-{number}"], number)
        placement.remove(node, number, lost=True)
    assert len(vars(placement)["_workers"]) + len(vars(placement)["_lost_s"]) <= 4
