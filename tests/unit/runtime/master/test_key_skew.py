"""What the master makes of what senders tell about their keys."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import rayflow as rf
from rayflow.batch.heavy_hitters import HeavyHitters
from rayflow.model.ids import Attempt, JobId, SubtaskId, VertexId
from rayflow.runtime.master.events import EventLog
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.key_skew import EVENT, KeySkew

SOURCE, KEYED = VertexId("from_rows-1"), VertexId("aggregate-1")
MANY = 100_000


class World(SimpleNamespace):
    """The context of a master of `from_rows → key_by → aggregate` at parallelism 2, and its `KeySkew`."""

    def __init__(self) -> None:
        env = rf.StreamEnvironment(parallelism=2)
        env.from_rows([{"a": 1}]).key_by("a").aggregate(n=rf.count()).discard()
        job = Job.of(JobId("job"), env.plan(), {"checkpoint.storage": "memory://skew"})
        super().__init__(job=job, log=EventLog(), now_ms=0, attempt=Attempt(1))
        self.skew = KeySkew(self)

    def note(self, type: str, message: str, **fields: Any) -> None:
        self.log.add(self.now_ms, type, message, **fields)

    def tell(self, rows: list[int], sender: int = 0, attempt: int = 1, **more: Any) -> None:
        told = {"edge": 0, "rows": rows, **more}
        self.skew.heard(SubtaskId(SOURCE, sender), {"attempt": attempt, "keyed_traffic": [told]})

    @property
    def found(self) -> list[dict[str, Any]]:
        return [event for event in self.log.since(0) if event["type"] == EVENT]


@pytest.fixture
def world() -> World:
    return World()


def sketch(**rows: int) -> dict[str, Any]:
    """A sketch with these rows of each key, and of 1,000 more keys a row each."""
    made = HeavyHitters()
    for number, (key, count) in enumerate(rows.items()):
        made.update(np.full(count, 5_000 + number, np.uint64))
        made.name(5_000 + number, key)
    made.update(np.arange(1_000, dtype=np.uint64))
    return made.to_data(32)


def test_rows_of_all_senders_add_up(world: World) -> None:
    world.now_ms = 3_000
    world.tell([30, 10], sender=0)
    world.tell([10, 30], sender=1)
    report = world.skew.report(KEYED)
    assert report is not None
    assert report["rows"] == [40, 40]
    assert (report["busiest_to_mean"], report["busiest_to_least"]) == (1.0, 1.0)
    assert world.skew.report(SOURCE) is None


def test_sketches_and_key_groups_of_all_senders_are_merged(world: World) -> None:
    world.now_ms = 3_000
    world.tell([30, 10], sender=0, hot_keys=sketch(a=600, b=400), key_groups=[[3, 900.0], [100, 100.0]])
    world.tell([10, 30], sender=1, hot_keys=sketch(a=0, b=2_000), key_groups=[[100, 1_000.0]])
    report = world.skew.report(KEYED, groups=1)
    assert report is not None
    keys = [(key["key"], round(key["share"], 2)) for key in report["hot_keys"][:2]]
    assert keys == [("b", 0.48), ("a", 0.12)]
    assert report["key_groups"] == [{"key_group": 100, "subtask": 1, "rows": 1100, "share": 0.55}]


def test_a_skewed_operator_gets_one_event_with_the_evidence(world: World) -> None:
    for second in range(1, 30):
        world.now_ms = second * 1_000
        world.tell([second * 9 * MANY, second * MANY], hot_keys=sketch(a=4_000))
    (event,) = world.found
    assert (event["operator"], event["subtask"], event["busiest_to_mean"]) == (KEYED, 0, 1.8)
    assert event["hottest_key"]["key"] == "a"
    assert event["hottest_key"]["share_least"] == pytest.approx(0.8, abs=0.01)
    for words in (
        "subtask 0 of 2",
        "90% of the rows",
        "1.8 times the mean",
        "9.0 times the least",
        "rf.Skew(",
    ):
        assert words in event["message"]
    assert world.skew.warnings() == [event["message"]]


def test_without_a_hot_key_the_advice_is_another(world: World) -> None:
    world.now_ms = 3_000
    world.tell([9 * MANY, MANY], hot_keys=sketch(a=40))
    (event,) = world.found
    assert "rf.Skew" not in event["message"]
    assert "128 key groups" in event["message"]


def test_a_hot_key_without_text_is_called_by_its_hash(world: World) -> None:
    world.now_ms = 3_000
    made = HeavyHitters()
    made.update(np.full(10, 0xABC, np.uint64))
    world.tell([9 * MANY, MANY], hot_keys=made.to_data())
    assert "#0000000000000abc" in world.found[0]["message"]


def test_where_keys_are_not_watched_the_imbalance_still_is(world: World) -> None:
    world.now_ms = 3_000
    world.tell([9 * MANY, MANY])
    assert "hottest" not in world.found[0]["message"]


def test_few_rows_and_even_rows_are_no_event(world: World) -> None:
    for second in range(1, 30):
        world.now_ms = second * 1_000
        world.tell([second * MANY, second * MANY], sender=0)
    assert world.found == []
    few = World()
    few.now_ms = 3_000
    few.tell([5_000, 1])
    few.skew.end_attempt()
    assert few.found == []


def test_a_short_job_is_judged_at_its_end(world: World) -> None:
    world.now_ms = 300
    world.tell([9 * MANY, MANY])
    assert world.found == []
    world.skew.end_attempt()
    assert len(world.found) == 1


def test_a_new_attempt_counts_from_zero_and_does_not_warn_again(world: World) -> None:
    world.now_ms = 3_000
    world.tell([9 * MANY, MANY])
    world.now_ms, world.attempt = 4_000, Attempt(2)
    world.skew.begin_attempt()
    assert world.skew.report(KEYED) is None
    world.tell([70, 70], attempt=1)  # late word of the first
    assert world.skew.report(KEYED) is None
    world.now_ms = 7_000
    world.tell([2 * MANY, MANY], attempt=2)
    report = world.skew.report(KEYED)
    assert report is not None
    assert report["rows"] == [2 * MANY, MANY]
    assert len(world.found) == 1


def test_a_master_that_takes_over_does_not_warn_again(world: World) -> None:
    world.now_ms = 3_000
    world.tell([9 * MANY, MANY])
    successor = World()
    successor.log.restore(world.log.since(0))
    successor.now_ms = 3_000
    successor.tell([9 * MANY, MANY])
    assert len(successor.found) == 1


def test_where_hot_keys_are_salted_time_is_given_to_find_them() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    env.from_rows([{"a": 1}]).key_by("a", skew=rf.Skew(salt="auto")).aggregate(n=rf.count()).discard()
    job = Job.of(JobId("job"), env.plan(), {"checkpoint.storage": "memory://skew"})
    world = World()
    world.job = job
    world.skew = KeySkew(world)  # type: ignore[arg-type]
    edge = next(e for e in job.graph.edges if e.target == KEYED and e.source == SOURCE)
    for second in (3, 10, 19, 21):
        world.now_ms = second * 1_000
        told = {"edge": edge.id, "rows": [second * 9 * MANY, second * MANY]}
        world.skew.heard(SubtaskId(SOURCE, 0), {"attempt": 1, "keyed_traffic": [told]})
        assert len(world.found) == (second > 20)
