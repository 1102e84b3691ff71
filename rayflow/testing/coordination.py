"""What is checked, in any simulated job, of how a manager coordinates checkpoints, by what it tells its workers.

I5   checkpoints are triggered, and complete, in the order of their ids. What is older than one that completes is
     aborted by then; and once the end of the job is decided nothing is announced any more.
I8   not more are under way at a time, nor sooner after one another, than the configuration says; what is under way is
     over by its timeout. An attempt is given up for checkpoints that failed when more have failed in a row than are
     tolerated, and then only. (A job gets by without all that: with restarts that it did not need, without checkpoints
     that it did. So the end of a run does not show it.)

Each manager is judged by its own messages, the one that was superseded like the others. What it sends again is passed
over.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from rayflow.model.config import JobConfig
from rayflow.model.ids import Attempt, CheckpointId, SubtaskId
from rayflow.runtime.master.phases import Phase
from rayflow.runtime.messages import (
    CheckpointAborted,
    CheckpointCompleted,
    Deploy,
    Numbered,
    Start,
    ToSubtask,
    TriggerCheckpoint,
)

if TYPE_CHECKING:
    from rayflow.runtime.master.run import JobRun
    from rayflow.testing.world import World

_FAILED_IN_A_ROW = re.compile(r"\d+ checkpoints failed in a row")


class Coordination:
    """Watches one manager. `sent` is told each message, `stepped` the end of each of its steps."""

    def __init__(self, world: World, said: str, config: JobConfig) -> None:
        self._world = world
        self._said = said
        self.config = config
        self._numbers: dict[SubtaskId, tuple[Attempt, int]] = {}
        # When each that is under way was triggered.
        self._pending: dict[CheckpointId, int] = {}
        self._triggered = self.completed = CheckpointId(0)
        # When each was told to be aborted.
        self._aborted_ms: dict[CheckpointId, int] = {}
        # When the newest attempt that runs was claimed, and when the end of the job was decided.
        self._claimed_ms = self._runs_since_ms = self._ended_ms = -1
        self._triggered_ms: int | None = None
        self._over_ms: int | None = None
        self._failures = 0

    def sent(self, subtask: SubtaskId, message: ToSubtask, run: JobRun) -> None:
        """The manager sends a message; the same goes to many."""
        if not isinstance(message, Numbered):
            return
        number = message.attempt, message.number
        if number <= self._numbers.get(subtask, (Attempt(0), 0)):
            return
        self._numbers[subtask] = number
        match message:
            case Deploy():
                if self._world.now < run.restarts.at_ms:
                    self._wrong(
                        f"I8: attempt {message.attempt} is deployed before the delay of restarts is over"
                    )
                self._pending.clear()
                self._triggered_ms = self._over_ms = None
                self._failures = 0
            case TriggerCheckpoint(_, checkpoint_id, aligned):
                if checkpoint_id not in self._pending:
                    self._begun(checkpoint_id, run, ordinary=not aligned)
            case CheckpointCompleted(_, checkpoint_id):
                if checkpoint_id != self.completed:
                    self._complete(checkpoint_id, run)
            case CheckpointAborted(_, checkpoint_id):
                if self._pending.pop(checkpoint_id, None) is not None:
                    self._over_ms = self._aborted_ms[checkpoint_id] = self._world.now
                    self._failures += 1
            case Start():
                self._runs_since_ms = self._claimed_ms

    def claimed(self) -> None:
        """The manager's claim of an attempt is on storage."""
        self._claimed_ms = self._world.now

    def useless_ms(self, checkpoint_id: int) -> int:
        """Return since when a checkpoint that is not complete can be known never to be, -1 where it cannot."""
        number = CheckpointId(checkpoint_id)
        ended_ms = self._ended_ms if number in self._pending else -1
        over_ms = self._aborted_ms.get(number, ended_ms)
        # What is written in that millisecond may come behind the deletion, which waits for nothing.
        return max(over_ms - 1, self._runs_since_ms)

    def stepped(self, run: JobRun) -> None:
        """The manager has done what was to be done now."""
        now, limit_ms = self._world.now, self.config.checkpoint_timeout_ms
        if not run.phase.going_on and self._ended_ms < 0:
            self._ended_ms = now
        if run.phase is not Phase.RUNNING:
            # The attempt is over, and with it what was under way; nobody need be told.
            for checkpoint_id in self._pending:
                self._aborted_ms.setdefault(checkpoint_id, now)
        else:
            for checkpoint_id, since_ms in self._pending.items():
                if now - since_ms >= limit_ms:
                    self._wrong(f"I8: checkpoint {checkpoint_id} is under way for {now - since_ms} ms")
        tolerated = self.config.checkpoint_failures_tolerated
        cause = run.restarts._cause
        if cause is not None and _FAILED_IN_A_ROW.match(cause) and self._failures <= tolerated:
            self._wrong(
                f"I8: {self._failures} checkpoints failed, {tolerated} are tolerated, and yet: {cause}"
            )

    def _begun(self, checkpoint_id: CheckpointId, run: JobRun, *, ordinary: bool) -> None:
        now, config = self._world.now, self.config
        if checkpoint_id <= self._triggered:
            self._wrong(f"I5: checkpoint {checkpoint_id} is triggered after {self._triggered}")
        if len(self._pending) >= config.checkpoint_max_concurrent:
            self._wrong(
                f"I8: checkpoint {checkpoint_id} is triggered while {sorted(self._pending)} are under way"
            )
        if run.checkpoints.final_completed is not None:
            self._wrong(f"I8: checkpoint {checkpoint_id} is triggered after the final one is complete")
        if self._failures > config.checkpoint_failures_tolerated:
            self._wrong(f"I8: checkpoint {checkpoint_id} is triggered after {self._failures} failed in a row")
        if ordinary:
            self._check_pace(checkpoint_id)
        self._pending[checkpoint_id] = self._triggered_ms = now
        self._triggered = checkpoint_id

    def _check_pace(self, checkpoint_id: CheckpointId) -> None:
        now, interval_ms = self._world.now, self.config.checkpoint_interval_ms
        if (
            self._triggered_ms is not None
            and interval_ms is not None
            and now - self._triggered_ms < interval_ms
        ):
            self._wrong(
                f"I8: checkpoint {checkpoint_id} is triggered {now - self._triggered_ms} ms after the last"
            )
        if self._over_ms is not None and now - self._over_ms < self.config.checkpoint_min_pause_ms:
            self._wrong(
                f"I8: checkpoint {checkpoint_id} is triggered {now - self._over_ms} ms after one ended"
            )

    def _complete(self, checkpoint_id: CheckpointId, run: JobRun) -> None:
        if self._pending.pop(checkpoint_id, None) is None:
            self._wrong(f"I5: checkpoint {checkpoint_id} completes, which is not under way")
        older = [c for c in self._pending if c < checkpoint_id]
        if older or checkpoint_id < self.completed:
            self._wrong(
                f"I5: checkpoint {checkpoint_id} completes: {older} under way, {self.completed} completed"
            )
        if not run.phase.going_on:
            self._wrong(f"I5: checkpoint {checkpoint_id} completes when the job's end is decided")
        self.completed, self._over_ms, self._failures = checkpoint_id, self._world.now, 0

    def _wrong(self, what: str) -> None:
        self._world.violated(f"{what}, by {self._said}")
