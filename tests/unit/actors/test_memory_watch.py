"""The watch over a subtask's process and its node, with sizes that the test makes up."""

from __future__ import annotations

from queue import Queue

import pytest

from rayflow.actors import memory_watch
from rayflow.actors.memory_watch import MemoryWatch, is_to_blame, node_memory
from rayflow.protocol.memory_pressure import RelaxMemory, ShedMemory
from rayflow.runtime.process_memory import own_bytes

MIB = 1 << 20


class Host:
    """What the watch is told, and what it does about it."""

    def __init__(self, limit: int | None = None) -> None:
        self.used: int | None = 100
        self.limit = limit or 1000
        self.firm = True
        self.running = True
        self.commands: list[object] = []
        self.ended: Queue[tuple[int, int, bool]] = Queue()
        self.watch = MemoryWatch(
            lambda: (self.limit, self.firm),
            lambda: self.running,
            self.commands.append,
            lambda *why: self.ended.put(why),
            lambda: self.used,
        )

    def look(self, used: int) -> bool:
        self.used = used
        return self.watch.look()


@pytest.fixture
def seconds(monkeypatch):
    """A clock that stands still, until the test moves it."""
    now = [1000.0]
    monkeypatch.setattr(memory_watch.time, "monotonic", lambda: now[0])
    return now


def test_near_the_limit_the_engine_sheds_and_below_it_relaxes(seconds):
    host = Host()
    assert all([host.look(800), host.look(900)])
    seconds[0] += 10
    assert host.look(700)
    assert host.commands == [ShedMemory(900, first=True), RelaxMemory(700)]
    assert host.ended.empty()


def test_lastingly_over_the_limit_the_process_ends(seconds):
    host = Host()
    assert host.look(1100)
    seconds[0] += 2
    assert not host.look(1200)
    assert host.ended.get_nowait() == (1200, 1000, False)


def test_over_a_limit_that_nobody_set_the_process_sheds_and_goes_on(seconds):
    host = Host()
    host.firm = False
    for _ in range(4):
        assert host.look(2500)
        seconds[0] += 3
    assert host.commands == [ShedMemory(2500, first=True)]
    assert host.ended.empty()


def test_restoring_may_take_more_than_running(seconds):
    host = Host()
    host.running = False
    for _ in range(10):
        assert host.look(3000)
        seconds[0] += 1
    assert (host.commands, host.ended.empty()) == ([], True)


def test_a_new_limit_counts_from_when_it_is_known(seconds):
    host = Host(limit=1000)
    host.look(1100)
    host.limit = 4000
    seconds[0] += 5
    assert host.look(1100)
    assert host.ended.empty()


def test_the_nodes_last_memory_ends_whoever_takes_more_than_its_share_at_once(monkeypatch):
    monkeypatch.setattr(memory_watch, "node_memory", lambda: (1 * MIB, 1024 * MIB))
    modest, greedy = Host(), Host()
    assert modest.look(900)
    assert not greedy.look(1001)
    assert greedy.ended.get_nowait() == (1001, 1000, True)
    assert modest.ended.empty()


@pytest.mark.parametrize(
    ("own", "available", "blame"), [(90, 5, True), (90, 50, False), (20, 5, False), (20, 50, False)]
)
def test_only_a_process_over_its_share_is_to_blame_and_only_when_memory_runs_out(own, available, blame):
    assert is_to_blame(own, 30, available, 100) is blame


def test_the_nodes_memory_is_read():
    available, total = node_memory()
    assert 0 < available <= total


def test_the_watch_looks_by_itself_and_stops_at_the_end():
    host = Host()
    host.used = 5000
    assert host.watch.start()
    assert host.ended.get(timeout=20) == (5000, 1000, False)
    assert host.ended.empty()


def test_there_is_no_watch_where_the_platform_does_not_tell():
    host = Host()
    host.used = None
    assert not host.watch.start()


def test_a_process_of_its_own_takes_more_when_it_has_more():
    before = own_bytes()
    held = bytearray(64 * MIB)
    held[::4096] = b"x" * len(held[::4096])
    grown = own_bytes() - before
    assert 60 * MIB < grown < 80 * MIB
