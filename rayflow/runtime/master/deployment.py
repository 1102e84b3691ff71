"""Brings every subtask into the attempt: survivors by a reset in place, new workers as they come.

A survivor that shows no sign of having taken note of the reset within `restart.reset_timeout` is stuck, in a
user's function or for good: it has to be replaced. One that did, and is still restoring, is left to it.
"""

from __future__ import annotations

from rayflow.model.ids import SubtaskId
from rayflow.runtime.master.board import Board
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.opening import Opening

_WAIT_NOTED_MS = 10_000


class Deployment:
    """The deployment of each attempt."""

    def __init__(self, ctx: Context, board: Board, opening: Opening) -> None:
        self._ctx = ctx
        self._board = board
        self._opening = opening
        self._survivors: list[SubtaskId] = []
        self._note_wait_ms: int | None = None
        self.deadline_ms: int | None = None

    def may_begin(self) -> bool:
        """Ask for missing workers; return whether all are there. A long wait is noted once."""
        ctx = self._ctx
        ctx.fleet.ensure()
        missing = ctx.fleet.missing
        if not missing:
            self._note_wait_ms = self.deadline_ms = None
            return True
        if self._note_wait_ms is None:
            self._note_wait_ms = self.deadline_ms = ctx.now_ms + _WAIT_NOTED_MS
        elif self.deadline_ms is not None and ctx.now_ms >= self.deadline_ms:
            self.deadline_ms = None
            names = ", ".join(map(str, missing[:4])) + (", …" if len(missing) > 4 else "")
            ctx.note("workers_awaited", f"still waiting for {len(missing)} workers: {names}")
        return False

    def begin(self) -> None:
        """Send every subtask its part."""
        ctx = self._ctx
        self._board.begin(ctx.attempt)
        self._survivors = ctx.fleet.take_survivors()
        timeout_ms = ctx.job.config.restart_reset_timeout_ms
        self.deadline_ms = ctx.now_ms + timeout_ms if self._survivors else None
        for deploy in self._opening.deploys():
            ctx.fleet.send(deploy.subtask, deploy)

    def leave(self) -> None:
        """The attempt is given up."""
        self._note_wait_ms = self.deadline_ms = None

    def end_silent(self) -> str | None:
        """Kill the survivors that ignore the reset, once it is time; return what happened, None if nothing."""
        ctx = self._ctx
        if self.deadline_ms is None or ctx.now_ms < self.deadline_ms:
            return None
        self.deadline_ms = None
        late = [s for s in self._board.restoring if s in self._survivors]
        silent = [s for s in late if ctx.fleet.is_silent(s, ctx.attempt)]
        if not silent:
            return None
        timeout_ms = ctx.job.config.restart_reset_timeout_ms
        cause = f"{', '.join(map(str, silent))} did not answer the reset in {timeout_ms} ms and was replaced"
        for subtask in silent:
            ctx.fleet.end(subtask)
            self._board.lost(subtask)
            ctx.note("subtask_killed", cause, operator=subtask.vertex, index=subtask.index)
        return cause
