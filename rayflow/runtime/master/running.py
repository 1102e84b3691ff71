"""A running attempt: splits out, acks in, checkpoints, until every sink has committed the final one.

A broken stream is a symptom. Whoever is behind it will be noticed in a moment, by its own words or by the pool,
which finds out when it sends; either makes the better cause. So a report of one starts a short grace, and fails
the attempt only when nothing else has by its end. Meanwhile its other end is asked whether it lives (`Fleet.suspect`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rayflow.runtime.master.beginning import Beginning
from rayflow.runtime.master.board import Board
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.discovery import Discovery
from rayflow.runtime.master.phases import FailTheAttempt
from rayflow.runtime.master.sources import Assignments, SourceSplits
from rayflow.runtime.messages import (
    CaughtUp,
    CheckpointAcked,
    CheckpointDeclined,
    Committed,
    FromSubtask,
    InputsEnded,
    PeerLost,
    SplitsProgressed,
    SplitsRequested,
    Start,
    Warned,
)

PEER_LOST_GRACE_MS = 200


class Running:
    """What goes on while an attempt runs. `fail_attempt`, `give_up(cause, operator, location)`,
    `superseded()` and `progressed()` (a checkpoint completed) tell the master; `salted()` returns what each operator
    salts. `past`: see `JobRun`."""

    def __init__(
        self,
        ctx: Context,
        board: Board,
        *,
        past: Mapping[str, Any],
        fail_attempt: FailTheAttempt,
        give_up: Callable[[str, str | None, str | None], None],
        superseded: Callable[[], None],
        progressed: Callable[[], None],
        salted: Callable[[], dict[str, tuple[int, ...]]],
    ) -> None:
        self._ctx = ctx
        self._board = board
        self._fail_attempt = fail_attempt
        self._give_up = give_up
        self._live = False
        self._peer_lost: PeerLost | None = None
        self._deadline_ms: int | None = None
        self._sources = {v.operators[0].uid: SourceSplits(v) for v in ctx.job.sources}
        self._discovery = Discovery(ctx, self._sources, self._deliver, self._discovery_failed)
        self.checkpoints = Checkpoints(
            ctx,
            self._sources,
            past=past,
            fail_attempt=fail_attempt,
            superseded=superseded,
            progressed=progressed,
            salted=salted,
        )

    def discover(self) -> None:
        """List the sources' splits, if it is time. Begins before the first attempt runs."""
        self._discovery.tick()

    def begin(self, beginning: Beginning) -> None:
        """All subtasks are deployed: let them run."""
        ctx, restore = self._ctx, beginning.restore
        self._live = True
        self._peer_lost = self._deadline_ms = None
        ctx.note("attempt_running", f"attempt {ctx.attempt} runs", attempt=ctx.attempt)
        ctx.fleet.broadcast(Start(ctx.attempt))
        self.checkpoints.begin_attempt(beginning, self._board.catching_up)
        for uid, source in self._sources.items():
            self._deliver(source.begin(ctx.attempt, () if restore is None else restore.splits(uid)))

    def end(self) -> None:
        """The attempt is over."""
        self._live = False
        self._deadline_ms = None
        self.checkpoints.end_attempt()

    def stop(self) -> None:
        """No attempt follows."""
        self._discovery.stop()

    def message(self, message: FromSubtask) -> None:
        """A subtask of this attempt reported."""
        checkpoints = self.checkpoints
        match message:
            case SplitsRequested():
                self._deliver(self._sources[message.uid].requested(message.subtask))
            case SplitsProgressed(subtask, _, uid, watermark):
                self._deliver(self._sources[uid].progressed(subtask, watermark))
            case CaughtUp():
                self._caught_up(message)
            case CheckpointAcked():
                checkpoints.acked(message)
            case CheckpointDeclined():
                checkpoints.declined(message)
            case InputsEnded():
                self._board.inputs_ended(message.subtask)
                if not self._board.reading:
                    checkpoints.request_final()
            case Committed():
                if message.checkpoint_id == checkpoints.final_completed:
                    self._board.committed(message.subtask)
            case PeerLost():
                self._suspect(message)
            case Warned():
                self._ctx.note(message.type, message.message, subtask=str(message.subtask))

    def advance(self) -> None:
        """Do what is due. May end in a call of `fail_attempt`."""
        lost, deadline_ms = self._peer_lost, self._deadline_ms
        if lost is not None and deadline_ms is not None and self._ctx.now_ms >= deadline_ms:
            self._fail_attempt(f"the stream {lost.channel} broke: {lost.reason}")
        else:
            self.checkpoints.tick()

    @property
    def finished(self) -> bool:
        """Whether every sink has committed the final checkpoint."""
        return self.checkpoints.final_completed is not None and not self._board.committing

    @property
    def deadlines_ms(self) -> list[int | None]:
        """When there is something to do."""
        return [self._deadline_ms, self._discovery.next_deadline_ms, self.checkpoints.next_deadline_ms]

    def _caught_up(self, message: CaughtUp) -> None:
        self._board.caught_up(message.subtask)
        self.checkpoints.caught_up(message)
        if not self._board.catching_up:
            ctx = self._ctx
            text = (
                f"attempt {ctx.attempt} is through with the rows that were in flight: checkpoints may begin"
            )
            ctx.note("attempt_caught_up", text, attempt=ctx.attempt)

    def _suspect(self, message: PeerLost) -> None:
        ctx, channel = self._ctx, message.channel
        if self._peer_lost is None:
            self._peer_lost = message
            self._deadline_ms = ctx.now_ms + PEER_LOST_GRACE_MS
        other = channel.consumer if message.subtask == channel.producer else channel.producer
        ctx.fleet.suspect(other, ctx.attempt, ctx.now_ms)

    def _deliver(self, assignments: Assignments) -> None:
        if self._live:
            for subtask, message in assignments:
                self._ctx.fleet.send(subtask, message)

    def _discovery_failed(self, cause: str, source: SourceSplits) -> None:
        self._give_up(cause, source.spec.name, source.spec.location)
