"""The rules of a plan, each where it speaks and where it must be silent."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.graph.plan import Traits
from rayflow.graph.warnings import ENOUGH_SPLITS, UNEVEN, are_uneven, config_warnings, unevenness

HOUR = 3_600 * 10**9
SECOND = 10**9


def warnings(g: Any, traits: Traits, *, endless: bool = True, parallelism: int = 2, **more: Any) -> list[str]:
    """Return what is said of an operator with these traits between a source and a sink."""
    source = g.source(traits=Traits(endless=endless))
    g.sink(g.add("step", source, traits=traits, location="job.py:7", **more))
    return list(g.plan(parallelism).warnings)


def source_warnings(g: Any, splits: int | None, parallelism: int, **more: Any) -> list[str]:
    g.sink(g.source(traits=Traits(splits=splits), location="job.py:3", **more))
    return list(g.plan(parallelism).warnings)


@pytest.mark.parametrize(
    ("splits", "parallelism", "says"),
    [
        (1, 4, "1 split for 4 subtasks: 3 of them have nothing to read"),
        (3, 4, "3 splits for 4 subtasks: 1 of them has nothing to read"),
        (3, 2, "1 of them reads 2 and the others 1, so reading takes 33% longer"),
        (10, 4, "2 of them read 3 and the others 2, so reading takes 20% longer"),
    ],
)
def test_splits_that_do_not_go_into_the_parallelism_are_told(
    g: Any, splits: int, parallelism: int, says: str
) -> None:
    (warning,) = source_warnings(g, splits, parallelism)
    assert warning.startswith("read (job.py:3): ")
    assert says in warning
    assert 'rebalance="auto"' in warning


@pytest.mark.parametrize(
    ("splits", "parallelism"), [(4, 2), (2, 2), (1, 1), (7, 1), (None, 3), (0, 3), (11, 2), (64, 3)]
)
def test_even_enough_splits_and_unknown_ones_are_not(g: Any, splits: int | None, parallelism: int) -> None:
    assert source_warnings(g, splits, parallelism) == []


def test_the_parallelism_that_is_advised_reads_evenly(g: Any) -> None:
    (warning,) = source_warnings(g, 9, 4)
    assert ".with_parallelism(3)" in warning


def test_none_is_advised_that_would_leave_most_of_it_unused(g: Any) -> None:
    (warning,) = source_warnings(g, 7, 4)
    assert "with_parallelism" not in warning


@given(splits=st.integers(1, 500), subtasks=st.integers(1, 60))
def test_unevenness_is_that_of_dealing_splits_out_one_by_one(splits: int, subtasks: int) -> None:
    read = [0] * subtasks
    for number in range(splits):
        read[number % subtasks] += 1
    assert unevenness(splits, subtasks) == pytest.approx(max(read) / (splits / subtasks) - 1)
    if splits >= ENOUGH_SPLITS * subtasks:
        assert unevenness(splits, subtasks) <= UNEVEN
        assert not are_uneven(splits, subtasks)


def test_a_source_that_is_to_be_rebalanced_is_where_its_splits_are_uneven(g: Any, shape_of: Any) -> None:
    g.sink(g.add("filter", g.source(traits=Traits(splits=3), rebalance=True)))
    graph = g.plan(2)
    assert shape_of(graph) == [("read-1", "rebalance", "filter-1")]
    assert graph.edges[0].exchange.why == "3 splits for 2 subtasks"
    assert graph.warnings == ()


def test_and_only_there(g: Any, shape_of: Any) -> None:
    g.sink(g.add("filter", g.source(traits=Traits(splits=4), rebalance=True)))
    assert shape_of(g.plan(2)) == []


def test_where_rows_go_by_key_at_once_there_is_nothing_to_rebalance(g: Any, via: Any, shape_of: Any) -> None:
    source = g.source(traits=Traits(splits=3), rebalance=True)
    g.sink(g.add("count", via(source, "hash", "k")))
    graph = g.plan(2)
    assert shape_of(graph) == [("read-1", "hash", "count-1")]
    (warning,) = graph.warnings
    assert "3 splits for 2 subtasks" in warning
    assert "rebalance" not in warning


KEEPS = Traits(keeps="rows of every key", instead="give it ttl=")


def test_what_is_kept_for_ever_counts_where_the_input_never_ends(g: Any) -> None:
    (warning,) = warnings(g, KEEPS)
    assert warning.startswith("step (job.py:7): keeps rows of every key for ever")
    assert warning.endswith("give it ttl=")


def test_and_not_where_it_ends(g: Any) -> None:
    assert warnings(g, KEEPS, endless=False) == []


def test_one_endless_input_of_two_is_enough(g: Any, via: Any) -> None:
    ends, never = g.source(), g.source(traits=Traits(endless=True))
    far = g.add("map", never)
    g.sink(g.add("join", via(ends, "hash", "k"), via(far, "hash", "k", port=1), traits=KEEPS))
    assert len(g.plan(2).warnings) == 1


def test_small_slides_of_large_windows_are_told_with_their_number(g: Any) -> None:
    (warning,) = warnings(g, Traits(sliding_ns=(300 * SECOND, SECOND)), endless=False)
    assert "windows of 5m every 1s: each row belongs to 300 windows" in warning
    assert "a slide of 5s or more" in warning


@pytest.mark.parametrize("window", [(HOUR, HOUR), (HOUR, HOUR // 60), (10 * SECOND, 2 * SECOND)])
def test_other_windows_are_not(g: Any, window: tuple[int, int]) -> None:
    assert warnings(g, Traits(sliding_ns=window)) == []


@pytest.mark.parametrize("does", ["reads", "writes", "parses"])
def test_json_counts_on_streams_that_never_end(g: Any, does: str) -> None:
    (warning,) = warnings(g, Traits(json=does))
    assert f"{does} JSON on a stream that never ends" in warning
    assert "Parquet" in warning


def test_json_of_what_ends_does_not(g: Any) -> None:
    assert warnings(g, Traits(json="reads"), endless=False) == []


def test_a_sink_that_works_row_by_row_is_told(g: Any) -> None:
    (warning,) = warnings(g, Traits(per_row="calls execute for each row alone"), endless=False)
    assert warning == "step (job.py:7): calls execute for each row alone"


def test_printing_counts_only_where_it_never_ends_and_is_not_slow_by_wish(g: Any) -> None:
    prints = Traits(per_row="prints each row", per_row_if_endless=True)
    assert len(warnings(g, prints)) == 1


@pytest.mark.parametrize("more", [{"endless": False}, {"rate_limit": 10.0}])
def test_else_it_does_not(g: Any, more: dict[str, Any]) -> None:
    assert warnings(g, Traits(per_row="prints each row", per_row_if_endless=True), **more) == []


@pytest.mark.parametrize(
    ("settings", "about"),
    [
        ({}, []),
        ({"checkpoint.interval": "60s", "checkpoint.timeout": "30s"}, []),
        ({"checkpoint.interval": "off"}, []),
        ({"checkpoint.interval": "200ms"}, ["checkpoint.interval", "checkpoint.timeout"]),
        ({"checkpoint.interval": "10m"}, ["checkpoint.interval"]),
        ({"checkpoint.timeout": "5m"}, ["checkpoint.timeout"]),
        ({"batch.rows": 10}, []),
    ],
)
def test_unusual_checkpoint_settings_are_warned_about(settings: dict[str, Any], about: list[str]) -> None:
    assert [warning.split()[0] for warning in config_warnings(settings)] == about
