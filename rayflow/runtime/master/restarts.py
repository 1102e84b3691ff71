"""After a failure: whether another attempt follows and when, and the list of restarts for `describe`.

The decision is `protocol.failover`'s. The record of a restart is made when the new attempt is deployed, for only
then is it known what it restored; until then the cause of the last failure waits here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any, cast

from rayflow.protocol.failover import (
    AttemptFailed,
    CheckpointsRefused,
    GiveUp,
    ProgressMade,
    RestartAt,
    RestartPolicy,
    RestartStrategy,
    StorageAway,
)
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.events import iso_utc

FIRST_KEPT = 10
LAST_KEPT = 90


class Restarts:
    """The restarts of one job. `described` is what a dead master said of the job last, `cause` why this one begins."""

    def __init__(self, ctx: Context, described: Mapping[str, Any], cause: str | None) -> None:
        config = ctx.job.config
        self._ctx = ctx
        self._cause = cause
        earlier = described.get("restarts", ())
        self._first: list[dict[str, Any]] = list(earlier[:FIRST_KEPT])
        self._last: deque[dict[str, Any]] = deque(earlier[FIRST_KEPT:], LAST_KEPT)
        self.total: int = described.get("restarts_total", len(earlier))
        self._policy = RestartPolicy(
            cast(RestartStrategy, config.restart_strategy),
            config.restart_max_attempts,
            config.restart_window_ms,
            config.restart_delay_ms,
            storage_timeout_ms=config.restart_storage_timeout_ms,
        )
        self._awaiting_storage = False
        self.at_ms = ctx.now_ms

    def decide(
        self, cause: str, *, retryable: bool = True, fault: str | None = None, storage: bool = False
    ) -> RestartAt | GiveUp:
        """The attempt failed: return what follows. `fault`: see `TaskFailed`; `storage`: see `FailTheAttempt`."""
        ctx = self._ctx
        ctx.note("attempt_failed", f"attempt {ctx.attempt} failed: {cause}", attempt=ctx.attempt, cause=cause)
        failed = AttemptFailed(cause, retryable, ctx.now_ms, fault)
        (decision,) = self._policy.handle(CheckpointsRefused(cause, ctx.now_ms) if storage else failed)
        if isinstance(decision, GiveUp):
            ctx.note("no_restart", f"no further attempt: {decision.reason}")
        return decision

    def await_storage(self, cause: str) -> GiveUp | None:
        """The next attempt cannot begin since storage does not answer: it is tried again `at_ms`, or never."""
        ctx = self._ctx
        if not self._awaiting_storage:
            self._awaiting_storage = True
            ctx.note("storage_awaited", f"the next attempt waits for storage: {cause}", cause=cause)
        (decision,) = self._policy.handle(StorageAway(cause, ctx.now_ms))
        if isinstance(decision, GiveUp):
            ctx.note("no_restart", f"no further attempt: {decision.reason}")
            return decision
        self.at_ms = decision.at_ms
        return None

    def plan(self, cause: str, at_ms: int) -> None:
        """Another attempt follows at `at_ms`."""
        self._cause = cause
        self.at_ms = at_ms

    def progressed(self) -> None:
        """A checkpoint completed."""
        self._policy.handle(ProgressMade())

    def deployed(self, restored_from: str | None) -> None:
        """The attempt that follows is deployed, from that checkpoint."""
        self._awaiting_storage = False
        if self._cause is not None:
            kept = self._first if self.total < FIRST_KEPT else self._last
            kept.append(
                {
                    "attempt": self._ctx.attempt,
                    "at": iso_utc(self._ctx.now_ms),
                    "cause": self._cause,
                    "restored_from": restored_from,
                    "recovery": None,
                }
            )
            self.total += 1
            self._cause = None

    def recovered(self, times: dict[str, Any]) -> None:
        """The last restart has brought the job back to work: how long that took (see `recovery`)."""
        kept = self._last or self._first
        if kept:
            kept[-1] = {**kept[-1], "recovery": times}

    def records(self) -> list[dict[str, Any]]:
        """Return the restarts that are kept, oldest first: up to `FIRST_KEPT` and `LAST_KEPT` of `total`."""
        return [dict(record) for record in (*self._first, *self._last)]
