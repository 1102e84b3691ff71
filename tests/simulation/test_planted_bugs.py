"""The simulation bites: each of these bugs, planted into the runtime, is caught within a few seeds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from rayflow.operators.sink import SinkOperator
from rayflow.runtime import subtask
from rayflow.runtime.gate import InputGate
from rayflow.runtime.messages import CheckpointAcked
from rayflow.runtime.outputs import OutputEdge
from rayflow.runtime.task import Task
from tests.simulation.jobs import SimReader
from tests.simulation.simulate import simulate

SEEDS = 80


def no_alignment(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InputGate, "block", lambda self, channel: None)


def offset_off_by_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(SimReader, "position", lambda self: max(0, self.at - 1))


def commit_before_completion(patch: pytest.MonkeyPatch) -> None:
    snapshot = SinkOperator.snapshot

    def eager(self: Any, checkpoint_id: Any) -> Any:
        parts = snapshot(self, checkpoint_id)
        for item in list(self._ledger.open):
            self._sink.commit(subtask.CommitPermit(self.ctx.job_id, self.ctx.attempt, checkpoint_id, item[1]))
        return parts

    patch.setattr(SinkOperator, "snapshot", eager)


def leaked_credit(patch: pytest.MonkeyPatch) -> None:
    send = InputGate._send_grants
    patch.setattr(InputGate, "_send_grants", lambda self, grants: send(self, grants[1:] or grants[:0]))


def barrier_overtakes_gathered_rows(patch: pytest.MonkeyPatch) -> None:
    def broadcast(self: Any, frame: Any) -> None:
        for channel in self.channels:
            channel.push(frame)

    patch.setattr(OutputEdge, "broadcast", broadcast)


def snapshot_without_operator_state(patch: pytest.MonkeyPatch) -> None:
    on_snapshot = subtask.SubtaskEngine._on_snapshot

    def lossy(self: Any, snapshot: Any) -> None:
        snapshot.parts[:] = [p for p in snapshot.parts if p[0] != "work"]
        on_snapshot(self, snapshot)

    patch.setattr(subtask.SubtaskEngine, "_on_snapshot", lossy)


def no_attempt_check(patch: pytest.MonkeyPatch) -> None:
    def take_in(self: Any, attempt: Any, channel: Any, item: Any) -> None:
        if self._task is not None:
            (self._task.on_credit if isinstance(item, subtask.CreditFrame) else self._task.on_frame)(
                channel, item
            )

    close = Task.close
    patch.setattr(subtask.SubtaskEngine, "_take_in", take_in)
    patch.setattr(Task, "close", lambda self: close(self))
    patch.setattr("rayflow.testing.cluster.SimNetwork.close", lambda self, worker, up_to: None)


def acknowledged_before_upload(patch: pytest.MonkeyPatch) -> None:
    on_snapshot = subtask.SubtaskEngine._on_snapshot

    def eager(self: Any, snapshot: Any) -> None:
        self._link.report(
            CheckpointAcked(
                subtask=self._subtask,
                attempt=self._fence.attempt,
                checkpoint_id=snapshot.checkpoint_id,
                files=(),
                splits=snapshot.splits,
            )
        )
        on_snapshot(self, snapshot)

    patch.setattr(subtask.SubtaskEngine, "_on_snapshot", eager)


BUGS: list[Callable[[pytest.MonkeyPatch], None]] = [
    no_alignment,
    offset_off_by_one,
    commit_before_completion,
    leaked_credit,
    barrier_overtakes_gathered_rows,
    snapshot_without_operator_state,
    no_attempt_check,
    acknowledged_before_upload,
]


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
def test_a_planted_bug_is_caught(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    with pytest.raises(BaseException, match="seed"):  # a checker's assertion, or the job's own failure
        _run_all()


def _run_all() -> None:
    for seed in range(SEEDS):
        simulate(seed)
