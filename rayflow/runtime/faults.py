"""What the master is told of a failure; and which of users' code and data a restart is likely to meet again.

A function that raises for a certain row raises again for it. What it asked of the outside world, a service that
did not answer or a disk that was full, may go well next time; so may what it calls a `TransientError` itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from rayflow.model.errors import (
    ConfigError,
    CorruptCheckpointError,
    PlanError,
    ProtocolViolation,
    StorageError,
    UserFunctionError,
)
from rayflow.model.ids import Attempt, SubtaskId
from rayflow.model.passing import may_pass
from rayflow.runtime.messages import TaskFailed

_NOT_RETRYABLE = (PlanError, ConfigError, CorruptCheckpointError, ProtocolViolation)


def failure_of(error: Exception, subtask: SubtaskId, attempt: Attempt) -> TaskFailed:
    """Return the report of an exception that ended an attempt on a subtask."""
    user = error if isinstance(error, UserFunctionError) else None
    return TaskFailed(
        subtask=subtask,
        attempt=attempt,
        cause=str(error) if user else f"{type(error).__name__}: {error}",
        operator=user.operator if user else None,
        location=user.location if user else getattr(error, "location", None),
        retryable=not isinstance(error, _NOT_RETRYABLE),
        fault=fault_of(error),
        corrupt_checkpoint=isinstance(error, CorruptCheckpointError),
    )


def is_storage_away(error: BaseException) -> bool:
    """Return whether storage did not take or give something now, and may later."""
    return isinstance(error, StorageError) and not isinstance(error, CorruptCheckpointError)


def fault_of(error: Exception) -> str | None:
    """Return what identifies the failure among others (see `protocol.failover`), None where it may pass."""
    if not isinstance(error, UserFunctionError) or any(map(may_pass, _causes(error))):
        return None
    return f"{error.operator}: {error.cause}"


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__
