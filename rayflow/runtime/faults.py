"""Which failures of users' code and data a restart is likely to meet again.

A function that raises for a certain row raises again for it. What it asked of the outside world, a service that
did not answer or a disk that was full, may go well next time; so may what it calls a `TransientError` itself.
"""

from __future__ import annotations

from collections.abc import Iterator

from rayflow.model.errors import UserFunctionError
from rayflow.model.passing import may_pass


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
