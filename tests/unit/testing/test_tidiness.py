"""What is checked of the files that a manager leaves while its job runs."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from rayflow.model.config import JobConfig
from rayflow.state.storage import MemoryStore
from rayflow.testing.tidiness import check_tidied
from rayflow.testing.world import World

URL = "memory://tidiness"
JOB = f"{URL}/job"


class Lab:
    """Checkpoint 4 is complete, and one is retained; 3 has been of no use since 100."""

    def __init__(self) -> None:
        self.world = World(1)
        self.store = MemoryStore(URL)
        self.storage = SimpleNamespace(
            tidying_failed=False,
            is_current=lambda process: True,
            undeleted=set(),
            damaged=set(),
            by_outsiders=set(),
            published={f"{JOB}/chk-4": 1},
            written_ms={},
        )
        self.background = SimpleNamespace(critical=0)
        self.coordination: Any = SimpleNamespace(
            config=JobConfig.from_flat({"checkpoint.retained": 1}),
            completed=4,
            useless_ms=lambda number: 100 if number == 3 else -1,
        )
        self.write(4, "manifest.json", 90)

    def write(self, number: int, name: str, at_ms: int) -> Lab:
        self.store.write(f"job/chk-{number}/{name}", b"x")
        self.storage.written_ms[f"{JOB}/chk-{number}"] = at_ms
        return self

    def look(self) -> list[str]:
        sim = SimpleNamespace(
            storage=self.storage, storage_url=URL, world=self.world, store=lambda: MemoryStore(URL)
        )
        master = SimpleNamespace(_ctx=SimpleNamespace(background=self.background))
        manager: Any = SimpleNamespace(sim=sim, job=SimpleNamespace(id="job"), master=master, process=None)
        check_tidied(manager, self.coordination)
        return self.world.violations


@pytest.fixture
def lab() -> Iterator[Lab]:
    yield Lab()
    MemoryStore(URL).delete_prefix("")


def test_one_complete_checkpoint_is_fine(lab: Lab) -> None:
    assert lab.look() == []


def test_what_newer_ones_replace_must_be_gone(lab: Lab) -> None:
    assert lab.write(2, "manifest.json", 10).look() == [
        "I10: [2, 4] are there as job ends, where 1 are retained"
    ]


def test_files_of_one_that_can_never_be_complete_must_be_gone(lab: Lab) -> None:
    said = "I10: files of checkpoint 3 of job, which never completed, are left"
    assert lab.write(3, "part.arrow", 100).look() == [said]


def test_what_came_later_or_of_one_that_may_still_complete_is_for_the_sweep(lab: Lab) -> None:
    assert lab.write(3, "part.arrow", 101).write(5, "part.arrow", 50).look() == []


@pytest.mark.parametrize(
    "why", ["request failed", "under way", "given up", "damaged", "foreign", "none completed"]
)
def test_what_could_not_be_deleted_is_passed_over(lab: Lab, why: str) -> None:
    lab.write(2, "manifest.json", 10)
    match why:
        case "request failed":
            lab.storage.tidying_failed = True
        case "under way":
            lab.background.critical = 1
        case "given up":
            lab.storage.is_current = lambda process: False
        case "damaged":
            lab.storage.damaged.add(f"{JOB}/chk-2/part.arrow")
        case "foreign":
            lab.storage.by_outsiders.add(f"{JOB}/chk-2/manifest.json")
        case "none completed":
            lab.coordination.completed = 0
    assert lab.look() == []
