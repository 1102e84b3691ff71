"""The states of a job and of a subtask, and which may follow which.

Theory of operation. Both are tables: (state, event) → state. What is not in the table must not happen.

A job is RESTARTING from the failure of one attempt until all subtasks of the next one run. FINISHED (its
inputs ended and everything is committed), CANCELLED, FAILED and STOPPED (with a savepoint) are for ever.

A subtask's states are those of its part in the current attempt. FINISHED means that its inputs have ended and
only barriers are left to do; it can still fail, be lost or be cancelled then. A new attempt begins with
deploying, whatever was before: survivors are reset in place, dead ones replaced.

Invariants:

1. A state changes only as the tables say; any other event is refused.
2. An ended job never changes its state.
3. Only a running job finishes or stops.
4. A subtask that is lost, failed or cancelled does nothing until it is deployed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from rayflow.model.errors import ProtocolViolation


class JobState(str, Enum):
    """State of a job, as users see it."""

    CREATED = "CREATED"
    RUNNING = "RUNNING"
    RESTARTING = "RESTARTING"
    FINISHED = "FINISHED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    STOPPED = "STOPPED"

    @property
    def ended(self) -> bool:
        """Whether no other state follows."""
        return self in (JobState.FINISHED, JobState.CANCELLED, JobState.FAILED, JobState.STOPPED)


class SubtaskState(str, Enum):
    """State of a subtask in the current attempt."""

    CREATED = "CREATED"
    DEPLOYING = "DEPLOYING"
    RUNNING = "RUNNING"
    FINISHED = "FINISHED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"
    LOST = "LOST"


# ------------------------------------------------------------------------------------------ events of a job


@dataclass(frozen=True, slots=True)
class AttemptRunning:
    """All subtasks of an attempt run."""


@dataclass(frozen=True, slots=True)
class AttemptAbandoned:
    """An attempt failed, running or not yet, and another will follow."""


@dataclass(frozen=True, slots=True)
class JobCompleted:
    """All inputs ended and everything is committed."""


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """The user cancelled the job."""


@dataclass(frozen=True, slots=True)
class JobGivenUp:
    """An attempt failed and no other will follow."""


@dataclass(frozen=True, slots=True)
class JobStopped:
    """The user stopped the job; its savepoint is complete and committed."""


JobEvent = AttemptRunning | AttemptAbandoned | JobCompleted | JobCancelled | JobGivenUp | JobStopped

# -------------------------------------------------------------------------------------- events of a subtask


@dataclass(frozen=True, slots=True)
class SubtaskDeployed:
    """It was sent its part in a new attempt."""


@dataclass(frozen=True, slots=True)
class SubtaskStarted:
    """It restored its state and runs."""


@dataclass(frozen=True, slots=True)
class SubtaskFinished:
    """Its inputs ended; only barriers are left."""


@dataclass(frozen=True, slots=True)
class SubtaskCancelled:
    """It closed the attempt without finishing it."""


@dataclass(frozen=True, slots=True)
class SubtaskFailed:
    """It reported a failure."""


@dataclass(frozen=True, slots=True)
class SubtaskLost:
    """Its process died, or does not answer. May be noticed more than once."""


SubtaskEvent = (
    SubtaskDeployed | SubtaskStarted | SubtaskFinished | SubtaskCancelled | SubtaskFailed | SubtaskLost
)

# ------------------------------------------------------------------------------------------------ machines

_State = TypeVar("_State", bound=Enum)
_Event = TypeVar("_Event")


@dataclass(frozen=True, slots=True)
class EnterState(Generic[_State]):
    """The state changed to `state`; not told when it stays the same."""

    state: _State


class _Lifecycle(Generic[_State, _Event]):
    def __init__(self, initial: _State, table: Mapping[tuple[_State, type], _State]) -> None:
        self._state = initial
        self._table = table

    @property
    def state(self) -> _State:
        """The current state."""
        return self._state

    def handle(self, event: _Event) -> tuple[EnterState[_State], ...]:
        """Change the state as the table says; raise ProtocolViolation if it says nothing."""
        state = self._table.get((self._state, type(event)))
        if state is None:
            possible = [kind.__name__ for before, kind in self._table if before is self._state]
            raise ProtocolViolation(
                f"{type(event).__name__} in state {self._state.value}: expected "
                f"{', '.join(possible) or 'nothing any more'} (invariant 1)"
            )
        if state is self._state:
            return ()
        self._state = state
        return (EnterState(state),)


_JOB_GOING_ON = (JobState.CREATED, JobState.RUNNING, JobState.RESTARTING)

JOB_TRANSITIONS: dict[tuple[JobState, type], JobState] = {
    (JobState.CREATED, AttemptRunning): JobState.RUNNING,
    (JobState.RESTARTING, AttemptRunning): JobState.RUNNING,
    (JobState.RUNNING, JobCompleted): JobState.FINISHED,
    (JobState.RUNNING, JobStopped): JobState.STOPPED,
    **{(state, AttemptAbandoned): JobState.RESTARTING for state in _JOB_GOING_ON},
    **{(state, JobCancelled): JobState.CANCELLED for state in _JOB_GOING_ON},
    **{(state, JobGivenUp): JobState.FAILED for state in _JOB_GOING_ON},
}

_SUBTASK_ACTIVE = (SubtaskState.DEPLOYING, SubtaskState.RUNNING, SubtaskState.FINISHED)

SUBTASK_TRANSITIONS: dict[tuple[SubtaskState, type], SubtaskState] = {
    (SubtaskState.DEPLOYING, SubtaskStarted): SubtaskState.RUNNING,
    (SubtaskState.RUNNING, SubtaskFinished): SubtaskState.FINISHED,
    (SubtaskState.CREATED, SubtaskCancelled): SubtaskState.CANCELLED,
    **{(state, SubtaskDeployed): SubtaskState.DEPLOYING for state in SubtaskState},
    **{(state, SubtaskLost): SubtaskState.LOST for state in SubtaskState},
    **{(state, SubtaskCancelled): SubtaskState.CANCELLED for state in _SUBTASK_ACTIVE},
    **{(state, SubtaskFailed): SubtaskState.FAILED for state in _SUBTASK_ACTIVE},
}


class JobLifecycle(_Lifecycle[JobState, JobEvent]):
    """State of one job; begins CREATED."""

    def __init__(self) -> None:
        super().__init__(JobState.CREATED, JOB_TRANSITIONS)

    @property
    def ended(self) -> bool:
        """Whether the job is over."""
        return self._state.ended


class SubtaskLifecycle(_Lifecycle[SubtaskState, SubtaskEvent]):
    """State of one subtask; begins CREATED."""

    def __init__(self) -> None:
        super().__init__(SubtaskState.CREATED, SUBTASK_TRANSITIONS)
