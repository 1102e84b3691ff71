"""Errors say who must act, and survive pickling.

| error | who acts |
|---|---|
| `ConfigError` | whoever set the option |
| `PlanError` | the job's author; raised before any data flows |
| `UserFunctionError` | the job's author; raised by the author's function or data, with operator and source line |
| `DataError` | whoever supplies the data; connectors raise it |
| `TransientError` | nobody yet: the job restarts |
| `StorageError` | the operator of the storage; a checkpoint is aborted or the job restarts |
| `CorruptCheckpointError` | whoever restores: the checkpoint cannot be used |
| `ProtocolViolation` | rayflow's developers: a bug; stop |
| `JobFailed` | what a waiting caller gets; carries operator, location and cause |

A message names what, which, expected, got and the next step.
"""

from __future__ import annotations


class RayflowError(Exception):
    """Base of every error that rayflow raises on purpose. Its message is fit for a person to read."""


class ConfigError(RayflowError):
    """An option, key, duration or size is not valid."""


class PlanError(RayflowError):
    """The job as written cannot run. `location` is the user's source line, where known."""

    def __init__(self, message: str, location: str | None = None) -> None:
        super().__init__(message, location)
        self.message = message
        self.location = location

    def __str__(self) -> str:
        return f"{self.message}\n  at {self.location}" if self.location else self.message


class UserFunctionError(RayflowError):
    """The user's function or the user's data failed in an operator.

    `operator` is the operator's name, `location` the user's source line, `sample` a short rendering
    of the rows at hand. Built from strings only, so that it pickles whatever the cause was.
    """

    def __init__(
        self, operator: str, cause: str, location: str | None = None, sample: str | None = None
    ) -> None:
        super().__init__(operator, cause, location, sample)
        self.operator = operator
        self.cause = cause
        self.location = location
        self.sample = sample

    def __str__(self) -> str:
        lines = [f"operator {self.operator!r} failed: {self.cause}"]
        if self.location:
            lines.append(f"  at {self.location}")
        if self.sample:
            lines.append(f"  rows at hand: {self.sample}")
        return "\n".join(lines)


class DataError(RayflowError):
    """A file or record cannot be read as what it should be. The message names file, place and reason; the
    engine turns it into a `UserFunctionError` that names the operator too."""


class TransientError(RayflowError):
    """Something outside failed in a way that may pass; the job restarts from its last checkpoint."""


class StorageError(TransientError):
    """Checkpoint or output storage could not be read or written."""


class CorruptCheckpointError(RayflowError):
    """A checkpoint's manifest or state file is missing, foreign, or does not match its checksum."""


class ProtocolViolation(RayflowError):
    """A rule of rayflow's own protocols was broken: a bug in rayflow."""


class JobFailed(RayflowError):
    """The job ended in state FAILED. `operator`, `location` and `cause` say why, where known."""

    def __init__(
        self,
        job_id: str,
        cause: str,
        operator: str | None = None,
        location: str | None = None,
    ) -> None:
        super().__init__(job_id, cause, operator, location)
        self.job_id = job_id
        self.cause = cause
        self.operator = operator
        self.location = location

    def __str__(self) -> str:
        return f"job {self.job_id} failed: {self.cause}"
