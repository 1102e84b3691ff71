"""How far each subtask has come in the attempt that was deployed last.

Invariants:

1. `open` holds the subtasks that were sent a Deploy and are not known to have closed since: whatever may
   still act for the job.
2. Answers count only for the attempt that `begin` began; the caller drops those of others.
"""

from __future__ import annotations

from collections.abc import Sequence

from rayflow.model.ids import Attempt, SubtaskId
from rayflow.protocol.lifecycle import (
    SubtaskCancelled,
    SubtaskDeployed,
    SubtaskEvent,
    SubtaskFailed,
    SubtaskFinished,
    SubtaskLifecycle,
    SubtaskLost,
    SubtaskStarted,
    SubtaskState,
)

_ACTIVE = (SubtaskState.DEPLOYING, SubtaskState.RUNNING, SubtaskState.FINISHED)


class Board:
    """States of all subtasks. Order is the graph's."""

    def __init__(self, subtasks: Sequence[SubtaskId]) -> None:
        self._states = {subtask: SubtaskLifecycle() for subtask in subtasks}
        self.attempt = Attempt(0)
        self._restoring: set[SubtaskId] = set()
        self._catching_up: set[SubtaskId] = set()
        self._reading: set[SubtaskId] = set()
        self._committing: set[SubtaskId] = set()
        self._open: set[SubtaskId] = set()

    def begin(self, attempt: Attempt) -> None:
        """All subtasks are sent a Deploy."""
        self.attempt = attempt
        everyone = set(self._states)
        self._catching_up = set()
        self._restoring, self._reading, self._committing, self._open = (set(everyone) for _ in range(4))
        for subtask in self._states:
            self._states[subtask].handle(SubtaskDeployed())

    def restored(self, subtask: SubtaskId, *, catches_up: bool) -> None:
        """It answered Deployed."""
        self._restoring.discard(subtask)
        if catches_up:
            self._catching_up.add(subtask)

    def caught_up(self, subtask: SubtaskId) -> None:
        """It is through with what was in flight in what it restored."""
        self._catching_up.discard(subtask)

    def started(self) -> None:
        """All were sent Start."""
        for subtask in self._states:
            self._states[subtask].handle(SubtaskStarted())

    def inputs_ended(self, subtask: SubtaskId) -> None:
        """Only barriers are left for it to do."""
        if subtask in self._reading:
            self._reading.discard(subtask)
            self._while_active(subtask, SubtaskFinished())

    def committed(self, subtask: SubtaskId) -> None:
        """Its sinks committed the final checkpoint."""
        self._committing.discard(subtask)

    def closed(self, subtask: SubtaskId, *, finished: bool) -> None:
        """It closed the attempt."""
        self._open.discard(subtask)
        if not finished:
            self._while_active(subtask, SubtaskCancelled())

    def failed(self, subtask: SubtaskId) -> None:
        """It reported a failure, and has closed with it."""
        self._open.discard(subtask)
        self._while_active(subtask, SubtaskFailed())

    def lost(self, subtask: SubtaskId) -> None:
        """Its worker is gone."""
        self._open.discard(subtask)
        self._states[subtask].handle(SubtaskLost())

    @property
    def restoring(self) -> list[SubtaskId]:
        """Those that have not answered Deployed."""
        return self._ordered(self._restoring)

    @property
    def catching_up(self) -> list[SubtaskId]:
        """Those that have yet to process rows that were in flight in what they restored."""
        return self._ordered(self._catching_up)

    @property
    def reading(self) -> list[SubtaskId]:
        """Those whose inputs have not ended."""
        return self._ordered(self._reading)

    @property
    def committing(self) -> list[SubtaskId]:
        """Those that have not committed the final checkpoint."""
        return self._ordered(self._committing)

    @property
    def open(self) -> list[SubtaskId]:
        """Those that may still act."""
        return self._ordered(self._open)

    def state(self, subtask: SubtaskId) -> SubtaskState:
        """Return the state of one subtask."""
        return self._states[subtask].state

    def _ordered(self, subtasks: set[SubtaskId]) -> list[SubtaskId]:
        return [subtask for subtask in self._states if subtask in subtasks]

    def _while_active(self, subtask: SubtaskId, event: SubtaskEvent) -> None:
        # A message may have been under way when its sender was given up.
        if self._states[subtask].state in _ACTIVE:
            self._states[subtask].handle(event)
