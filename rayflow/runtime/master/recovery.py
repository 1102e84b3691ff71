"""How long a recovery took, and where: from the last sign of life to the first rows at a sink.

::

    last sign of life ─ detect ─▶ attempt given up ─ reset ─▶ deployed ─ restore ─▶ running ─ replay ─▶ recovered

*Detect* begins with the first sign of trouble: a broken stream, else the last answer of whoever is lost (so it can
be too long by a heartbeat's interval), or what the workers a dead manager left say about when they last heard of it;
a failure that a subtask reports itself is detected at once. *Reset*: survivors stop, the restart delay passes, the
attempt is claimed, missing workers come. *Restore*: all subtasks read their state. *Replay*: until rows come to a
sink again, or a checkpoint completes, whichever is first.

A failure before the attempt runs belongs to the recovery that is under way; one after it begins another.
Only measures: nothing is decided here.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from rayflow.runtime.master.context import Context

_QUICK_MS = 10_000
"""For how long heartbeats are quick while rows are awaited: they tell of the first ones."""


class _Stage(Enum):
    QUIET = "quiet"
    RESETTING = "resetting"
    RESTORING = "restoring"
    REPLAYING = "replaying"


class Recovery:
    """The recovery under way, if one is. `recovered`: a dead manager's job is just being taken over."""

    def __init__(self, ctx: Context, *, recovered: bool) -> None:
        self._ctx = ctx
        self._sink_uids = {sink.uid for _, sink in ctx.job.sinks}
        self._trouble_ms: int | None = None
        self._stage = _Stage.RESETTING if recovered else _Stage.QUIET
        self._fault_ms = self._decided_ms = self._deployed_ms = self._running_ms = ctx.now_ms

    def trouble(self, since_ms: int) -> None:
        """Something is wrong since then; whether it costs the attempt will be seen."""
        if self._trouble_ms is None or since_ms < self._trouble_ms:
            self._trouble_ms = since_ms

    def manager_silent(self, silent_ms: int) -> None:
        """A worker had not heard of any manager for so long when this one took it over."""
        if self._stage is _Stage.RESETTING and silent_ms:
            self._fault_ms = min(self._fault_ms, self._ctx.now_ms - silent_ms)

    def failed(self) -> None:
        """The attempt is given up; another will follow."""
        now_ms = self._ctx.now_ms
        if self._stage in (_Stage.QUIET, _Stage.REPLAYING):
            self._fault_ms = now_ms if self._trouble_ms is None else min(self._trouble_ms, now_ms)
            self._decided_ms = now_ms
        self._stage = _Stage.RESETTING

    def deployed(self) -> None:
        """Every subtask was sent its part."""
        self._trouble_ms = None
        if self._stage is _Stage.RESETTING:
            self._stage = _Stage.RESTORING
            self._deployed_ms = self._ctx.now_ms

    def running(self) -> None:
        """All subtasks run."""
        if self._stage is _Stage.RESTORING:
            self._stage = _Stage.REPLAYING
            self._running_ms = self._ctx.now_ms
            self._ctx.fleet.hurry(self._running_ms + _QUICK_MS)

    def heard(self, statistics: dict[str, Any]) -> dict[str, Any] | None:
        """A subtask told how it stands. Return what `recovered` does if rows have come to a sink in it."""
        if self._stage is not _Stage.REPLAYING or statistics.get("attempt") != self._ctx.attempt:
            return None
        operators = statistics.get("operators", {})
        if any(operators[uid].get("rows_in") for uid in self._sink_uids & operators.keys()):
            return self.recovered()
        return None

    def recovered(self) -> dict[str, Any] | None:
        """Rows have come out again. Note it, and return the times; None if no recovery was under way."""
        if self._stage is not _Stage.REPLAYING:
            return None
        self._stage = _Stage.QUIET
        ctx = self._ctx
        ctx.fleet.hurry(ctx.now_ms)
        times = {
            "detect_ms": self._decided_ms - self._fault_ms,
            "reset_ms": self._deployed_ms - self._decided_ms,
            "restore_ms": self._running_ms - self._deployed_ms,
            "replay_ms": ctx.now_ms - self._running_ms,
            "total_ms": ctx.now_ms - self._fault_ms,
        }
        parts = ", ".join(f"{name[:-3]} {ms}" for name, ms in times.items() if name != "total_ms")
        ctx.note(
            "recovered",
            f"attempt {ctx.attempt} makes progress, {times['total_ms']} ms after the fault ({parts})",
            attempt=ctx.attempt,
            **times,
        )
        return times
