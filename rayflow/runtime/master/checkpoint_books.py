"""The books of a job's checkpoints: what became of each, newest last, for `rayflow checkpoints`.

Theory of operation. A checkpoint is entered when it is triggered, acks are added as they come, and it is settled once:
completed, failed (under the attempt that triggered it) or aborted (with that attempt). The newest `MAX_REPORTS` are
kept. What a job manager before this one had in its books stays as it left it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rayflow.model.ids import CheckpointId, SubtaskId
from rayflow.runtime.master.events import iso_utc
from rayflow.runtime.messages import CheckpointAcked

MAX_REPORTS = 100


@dataclass(slots=True)
class Report:
    """What is known of one checkpoint. `status` is pending, completed, failed or aborted; `nbytes` what was written for
    it, `state_bytes` what it consists of, files of earlier ones included."""

    id: CheckpointId
    path: str
    triggered_ms: int
    subtasks: int
    status: str = "pending"
    final: bool = False
    ended_ms: int | None = None
    failure: str | None = None
    retained: bool = False
    acks: dict[SubtaskId, CheckpointAcked] = field(default_factory=dict)
    alignment_ms_max: float = 0
    nbytes: int = 0
    state_bytes: int = 0
    acknowledged: int = 0
    in_flight_bytes: int = 0

    def acked(self, ack: CheckpointAcked) -> None:
        """Add a subtask's ack."""
        self.acks[ack.subtask] = ack
        self.acknowledged = len(self.acks)
        self.nbytes += sum(file.nbytes for file in ack.files if file.origin is None)
        self.state_bytes += sum(file.nbytes for file in ack.files)
        self.in_flight_bytes += sum(file.nbytes for file in ack.files if file.kind == "in-flight")
        self.alignment_ms_max = max(self.alignment_ms_max, ack.alignment_ms)

    def to_json(self, now_ms: int) -> dict[str, Any]:
        """Return it as `rayflow checkpoints` prints it."""
        return {
            "id": self.id,
            "status": self.status,
            "path": self.path,
            "triggered_at": iso_utc(self.triggered_ms),
            "duration_ms": (now_ms if self.ended_ms is None else self.ended_ms) - self.triggered_ms,
            "alignment_ms_max": self.alignment_ms_max,
            "bytes": self.nbytes,
            "in_flight_bytes": self.in_flight_bytes,
            "state_bytes": self.state_bytes,
            "acknowledged": self.acknowledged,
            "subtasks": self.subtasks,
            "failure": self.failure,
            "final": self.final,
            "retained": self.retained,
        }


class CheckpointBooks:
    """What is known of the checkpoints of one job, by one master.

    `earlier`: the reports of the masters before, who had counted `counted`. `phase(subtask, checkpoint_id)` returns
    what a subtask does about a checkpoint that it has not acknowledged. `completed` and `failed` count since the job
    began.
    """

    def __init__(
        self,
        earlier: Iterable[dict[str, Any]],
        subtasks: Sequence[SubtaskId],
        phase: Callable[[SubtaskId, CheckpointId], str],
        counted: Mapping[str, Any],
    ) -> None:
        self._earlier = deque(earlier, MAX_REPORTS)
        self._subtasks = subtasks
        self._phase = phase
        self._reports: dict[CheckpointId, Report] = {}
        self.completed: int = counted.get("completed", 0)
        self.failed: int = counted.get("failed", 0)

    def enter(self, checkpoint_id: CheckpointId, path: str, triggered_ms: int, *, final: bool) -> None:
        """A checkpoint was triggered."""
        self._reports[checkpoint_id] = Report(
            id=checkpoint_id,
            path=path,
            triggered_ms=triggered_ms,
            subtasks=len(self._subtasks),
            final=final,
        )
        self._forget_old()

    def report(self, checkpoint_id: CheckpointId) -> Report:
        """Return what is known of a checkpoint that this master triggered."""
        return self._reports[checkpoint_id]

    def acked(self, ack: CheckpointAcked) -> None:
        """A subtask's snapshot is durable. Harmless twice, or late."""
        report = self._reports.get(ack.checkpoint_id)
        if report is not None and report.status == "pending" and ack.subtask not in report.acks:
            report.acked(ack)

    def settle(self, report: Report, status: str, failure: str | None, now_ms: int) -> None:
        """A checkpoint has ended: completed, failed or aborted."""
        report.status, report.failure, report.ended_ms = status, failure, now_ms
        report.retained = status == "completed"
        report.acks = {}
        self.completed += status == "completed"
        self.failed += status == "failed"

    def discarded(self, checkpoint_id: CheckpointId) -> None:
        """A complete checkpoint goes, since newer ones are kept."""
        report = self._reports.get(checkpoint_id)
        if report is not None:
            report.retained = False

    def to_json(self, now_ms: int) -> list[dict[str, Any]]:
        """Return what happened to each checkpoint, newest last, as `rayflow checkpoints` prints it."""
        return [*self._earlier, *(self._report_json(report, now_ms) for report in self._reports.values())]

    @property
    def newest_ever(self) -> CheckpointId | None:
        """The newest checkpoint that was ever completed, by whichever job manager."""
        return max((checkpoint_id for checkpoint_id, _ in self._completed()), default=None)

    @property
    def newest_kept(self) -> CheckpointId | None:
        """The newest complete checkpoint that nobody discarded: it should be there."""
        return max((checkpoint_id for checkpoint_id, kept in self._completed() if kept), default=None)

    def _completed(self) -> Iterator[tuple[CheckpointId, bool]]:
        """Yield the complete checkpoints, and whether each was kept."""
        for old in self._earlier:
            if old["status"] == "completed":
                yield CheckpointId(old["id"]), bool(old["retained"])
        for report in self._reports.values():
            if report.status == "completed":
                yield report.id, report.retained

    def _report_json(self, report: Report, now_ms: int) -> dict[str, Any]:
        document = report.to_json(now_ms)
        if report.status == "pending":
            document["waiting_for"] = [
                {"operator": s.vertex, "index": s.index, "phase": self._phase(s, report.id)}
                for s in self._subtasks
                if s not in report.acks
            ]
        return document

    def _forget_old(self) -> None:
        while len(self._reports) > MAX_REPORTS:
            oldest = next(iter(self._reports))
            if self._reports[oldest].status == "pending":
                return
            del self._reports[oldest]
