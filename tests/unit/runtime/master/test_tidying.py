"""Checkpoints are deleted one after the other: what goes is told by the manifests of what stays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rayflow.model.errors import StorageError
from rayflow.model.ids import CheckpointId
from rayflow.runtime.master.background import InTurn
from rayflow.runtime.master.beginning import Beginning
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.state.storage import open_store


def test_work_in_turn_waits_for_the_one_before_whatever_became_of_it(pool: Any) -> None:
    turns, answers = InTurn(pool.background), []

    def fail() -> None:
        raise StorageError("away")

    for work in (fail, lambda: "second"):
        turns.run(work, lambda result, error: answers.append(result or str(error)))
    assert (len(pool.work), pool.background.critical) == (1, 2)
    pool.do_one()
    assert (answers, len(pool.work), pool.background.critical) == (["away"], 1, 1)
    pool.do_one()
    assert (answers, len(pool.work), pool.background.critical) == (["away", "second"], 0, 0)


def test_two_checkpoints_are_never_deleted_at_a_time(pool: Any, make_context: Any, tmp_path: Path) -> None:
    store, ctx = open_store(str(tmp_path), {}), make_context()
    for number in (1, 2, 3):
        store.write(f"job/chk-{number}/x-a1.arrow", b"state")
    checkpoints = Checkpoints(
        ctx,
        {},
        past={},
        fail_attempt=pytest.fail,
        superseded=pytest.fail,
        progressed=pytest.fail,
        salted=dict,
    )
    left = tuple(CheckpointId(number) for number in (1, 2, 3))
    checkpoints.begin_attempt(
        Beginning(
            attempt=ctx.attempt, restore=None, highest=left[-1], complete=(), incomplete=left, passed_over=()
        )
    )
    for number in (1, 2, 3):
        assert len(pool.work) == 1
        # The next attempt waits for all of them.
        assert pool.background.critical == 4 - number
        pool.do_one()
    assert (store.list("job"), pool.background.critical) == ([], 0)
