"""`rayobj://` on a Ray of one node: what it warns of, what becomes of it when its holder dies, and how it ends."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest
from ray.util import list_named_actors

import rayflow as rf
from rayflow.actors.holder_calls import Handles, wait_for
from rayflow.actors.holder_group import HolderGroup
from rayflow.actors.object_store import open_any_store
from rayflow.client.removing import remove
from rayflow.state.storage import LostObjects, MissingObject, storage_warning

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]


def holders_of(name: str) -> list[str]:
    prefix = f"rayflow-store:{name}:"
    return [a["name"] for a in list_named_actors(all_namespaces=True) if a["name"].startswith(prefix)]


def kill_holders(name: str) -> None:
    handles = Handles()
    for actor in map(handles.get, HolderGroup(name).read().members):
        os.kill(wait_for(actor.status.remote(), actor).pid, signal.SIGKILL)


def until(condition: Callable[[], Any], within_s: float = 120) -> Any:
    given_up_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < given_up_s
        time.sleep(0.1)
    return found


def test_a_store_on_one_node_says_what_it_does_not_survive_and_ends_with_its_last_object() -> None:
    store = open_any_store("rayobj://one/deep", {})
    assert "has one node" in str(storage_warning(store))
    assert store.list("") == []
    assert holders_of("one") == []
    store.write("a/x", b"1")
    assert not store.create("a/x", b"2")
    assert store.create("a/y", b"3")
    assert (store.read("a/x"), store.list("a")) == (b"1", ["a/x", "a/y"])
    assert len(holders_of("one")) == 1
    store.delete("a/x")
    with pytest.raises(MissingObject):
        store.read("a/x")
    store.delete_prefix("")
    until(lambda: holders_of("one") == [])
    assert store.list("") == []


def test_a_store_whose_holders_died_is_lost_until_the_user_removes_it_and_begins_anew_empty() -> None:
    store = open_any_store("rayobj://lost", {})
    store.write("old", b"1")
    kill_holders("lost")
    for act in (lambda: store.read("old"), lambda: store.list(""), lambda: store.write("new", b"2")):
        with pytest.raises(LostObjects, match="rayflow state rm"):
            act()
    assert remove("rayobj://lost", {}) == 0
    assert store.list("") == []
    store.write("new", b"2")
    assert (store.list(""), store.read("new")) == (["new"], b"2")
    store.delete_prefix("")
    until(lambda: holders_of("lost") == [])


class Endless(rf.Source):
    """Rows for ever."""

    schema = pa.schema({"n": pa.int64()})

    @property
    def bounded(self) -> bool:
        return False

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id="endless")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return Counting(position or 0)


class Counting(rf.SplitReader):
    def __init__(self, position: int) -> None:
        self._position = position

    def read(self, max_rows: int) -> pa.RecordBatch:
        time.sleep(0.05)
        self._position += 1
        return pa.record_batch({"n": [self._position]})

    def position(self) -> int:
        return self._position


@pytest.fixture
def job() -> Iterator[rf.JobHandle]:
    config = {
        "checkpoint.interval": "200ms",
        "checkpoint.failures_tolerated": 0,
        "checkpoint.storage": "rayobj://gone",
        "restart.spares": 0,
    }
    env = rf.StreamEnvironment(name="gone", config=config)
    env.from_source(Endless()).key_by("n").aggregate(seen=rf.count()).discard()
    submitted = env.submit()
    yield submitted
    if submitted.status() not in ("FAILED", "CANCELLED"):
        submitted.cancel()


def test_a_job_whose_checkpoints_are_all_lost_stops_loudly_instead_of_waiting_for_them(job: Any) -> None:
    until(lambda: job.describe()["checkpoints"]["completed"])
    warned = [event for event in job.events() if event["type"] == "storage_warning"]
    assert len(warned) == 1
    assert "has one node" in warned[0]["message"]
    kill_holders("gone")
    until(lambda: job.status() == "FAILED")
    assert "all holders are dead" in str(job.describe()["failure"]["cause"])
    assert not [event for event in job.events() if event["type"] == "storage_awaited"]
    assert remove("rayobj://gone", {}) == 0
