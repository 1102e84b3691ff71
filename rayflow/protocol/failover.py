"""Whether and when a failed attempt is followed by another.

Theory of operation. An attempt that failed in a way that a restart may cure is followed by the next one
after a delay, as long as the budget lasts: at most `max_attempts` restarts within any `window_ms`. With the
`fixed` strategy the delay is always the same. With `exponential` it doubles from failure to failure up to
`max_delay_ms`, so that a lasting fault does not make the job spin, and begins anew once the job has got
somewhere: a checkpoint completed since the restart, or it ran for `max_delay_ms`. There is no jitter: one
job restarts here, not a thousand clients.

A fault that a restart only repeats, such as a user's function that raises for a certain row, need not use up the
budget: the same `fault` `SAME_FAULTS` times in a row, with no checkpoint completed in between, is given up.

An attempt that cannot even *begin*, since storage does not answer, is no restart: nothing runs that could fail again.
It is tried anew after a delay of its own, from `delay_ms` up to `MAX_WAIT_MS`, which takes nothing from the budget,
until `storage_timeout_ms` have passed without an attempt that began. An attempt that had to end since storage took none
of its checkpoints (a disk that is nearly full takes what little is needed to begin) has the same delay, budget and
patience: it is storage that is waited for, and here the patience begins anew only with a checkpoint, or a failure of
another kind.

Invariants:

1. Within any `window_ms` there are at most `max_attempts` restarts.
2. A delay lies between `delay_ms` and `max_delay_ms` (or is `delay_ms`, should that be larger).
3. A failure that is not retryable, and the strategy `none`, give up at once.
4. After giving up nothing restarts.
5. A fault is met at most `SAME_FAULTS` times in a row without progress in between.
6. Waiting for storage changes nothing about what follows the next failure.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.unhandled import unhandled

RestartStrategy = Literal["exponential", "fixed", "none"]

MAX_WAIT_MS = 5_000
"""The longest delay between two looks for storage that is away: they are cheap, and nothing runs meanwhile."""

SAME_FAULTS = 3
"""How often the same fault must be met in a row for a restart to be seen as useless."""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt failed, running or not yet. `retryable` False: a restart cannot help. `fault` identifies what
    will happen again if it lies in the job or its data; None for what may pass by itself."""

    cause: str
    retryable: bool
    now_ms: int
    fault: str | None = None


@dataclass(frozen=True, slots=True)
class StorageAway:
    """The next attempt could not begin: storage did not answer. `cause` says how."""

    cause: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class CheckpointsRefused:
    """An attempt was ended since storage took none of its checkpoints, more than are tolerated."""

    cause: str
    now_ms: int


@dataclass(frozen=True, slots=True)
class ProgressMade:
    """A checkpoint of the current attempt completed."""


@dataclass(frozen=True, slots=True)
class RestartAt:
    """Start the next attempt at this time (ms since the epoch), or try to."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The job has failed: `cause` is the last failure's, `reason` says why there is no restart."""

    cause: str
    reason: str = ""


FailoverEvent = AttemptFailed | StorageAway | CheckpointsRefused | ProgressMade
FailoverCommand = RestartAt | GiveUp


class RestartPolicy:
    """Decides about the restarts of one job. `max_attempts` ≥ 0 restarts within `window_ms`."""

    def __init__(
        self,
        strategy: RestartStrategy,
        max_attempts: int,
        window_ms: int,
        delay_ms: int,
        max_delay_ms: int = 30_000,
        storage_timeout_ms: int = 3_600_000,
    ) -> None:
        self._strategy = strategy
        self._max_attempts = max_attempts
        self._window_ms = window_ms
        self._delay_ms = delay_ms
        self._max_delay_ms = max(delay_ms, max_delay_ms)
        self._storage_timeout_ms = storage_timeout_ms
        # Since when storage has been away, and for how long to wait next.
        self._away_ms: int | None = None
        self._wait_ms = 0
        # When the restarts of the window were to happen: at most `max_attempts` of them.
        self._restarts: deque[int] = deque()
        self._next_delay_ms = delay_ms
        self._fault: str | None = None
        self._same_faults = 0
        self._given_up = False

    def handle(self, event: FailoverEvent) -> tuple[FailoverCommand, ...]:
        """Take note of `event`; for a failure, return what follows."""
        if self._given_up:
            raise ProtocolViolation(f"{event} after the job was given up (invariant 4)")
        match event:
            case StorageAway():
                return (self._on_away(event),)
            case CheckpointsRefused():
                return (self._on_refused(event),)
            case AttemptFailed():
                self._away_ms = None
                return (self._on_failed(event),)
            case ProgressMade():
                self._away_ms = None
                self._next_delay_ms = self._delay_ms
                self._fault = None
                return ()
            case _:
                unhandled(event)

    def _on_failed(self, event: AttemptFailed) -> FailoverCommand:
        if not event.retryable:
            return self._give_up(event.cause, "a restart cannot help")
        if self._strategy == "none":
            return self._give_up(event.cause, "restart.strategy is 'none'")
        self._same_faults = self._same_faults + 1 if event.fault == self._fault else 1
        self._fault = event.fault
        if event.fault is not None and self._same_faults >= SAME_FAULTS:
            return self._give_up(event.cause, f"{SAME_FAULTS} times the same without a checkpoint in between")
        at_ms = event.now_ms + self._delay(event.now_ms)
        while self._restarts and self._restarts[0] <= at_ms - self._window_ms:
            self._restarts.popleft()
        if len(self._restarts) >= self._max_attempts:
            reason = f"restart.max_attempts: {self._max_attempts} restarts within {self._window_ms} ms"
            return self._give_up(event.cause, reason)
        self._restarts.append(at_ms)
        return RestartAt(at_ms)

    def _on_refused(self, event: CheckpointsRefused) -> FailoverCommand:
        if self._strategy == "none" or not self._max_attempts:
            return self._on_failed(AttemptFailed(event.cause, True, event.now_ms))
        return self._on_away(event)

    def _on_away(self, event: StorageAway | CheckpointsRefused) -> FailoverCommand:
        if self._away_ms is None:
            self._away_ms = event.now_ms
            self._wait_ms = max(1, min(self._delay_ms, MAX_WAIT_MS))
        if event.now_ms - self._away_ms >= self._storage_timeout_ms:
            what = "out of reach" if isinstance(event, StorageAway) else "taking no checkpoint"
            reason = f"restart.storage_timeout: storage has been {what} for {self._storage_timeout_ms} ms"
            return self._give_up(event.cause, reason)
        wait_ms, self._wait_ms = self._wait_ms, min(2 * self._wait_ms, MAX_WAIT_MS)
        return RestartAt(event.now_ms + wait_ms)

    def _delay(self, now_ms: int) -> int:
        if self._strategy == "fixed":
            return self._delay_ms
        if self._restarts and now_ms - self._restarts[-1] >= self._max_delay_ms:
            self._next_delay_ms = self._delay_ms
        delay_ms = self._next_delay_ms
        self._next_delay_ms = min(2 * delay_ms, self._max_delay_ms)
        return delay_ms

    def _give_up(self, cause: str, reason: str) -> GiveUp:
        self._given_up = True
        return GiveUp(cause, reason)
