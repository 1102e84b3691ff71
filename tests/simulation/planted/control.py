"""Bugs of the control plane: when checkpoints begin and end, what is kept of them, what an attempt begins from, whom a
manager gives up, and how a job ends.

Most leave every row right: the job gets over them with a restart, an old file or a few seconds more. They are found by
what `rayflow.testing` checks of coordination, patience and tidiness, and not by the end of the run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from rayflow.protocol.coordinator import CheckpointCoordinator, DiscardCheckpoint
from rayflow.protocol.retention import CheckpointOver
from rayflow.runtime.master import beginning, closing, opening
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.fleet import Fleet
from rayflow.runtime.master.opening import Opening
from rayflow.runtime.master.run import JobRun
from rayflow.runtime.master.storage import JobStorage
from rayflow.runtime.messages import CheckpointAborted
from tests.simulation.planted.registry import Patch, around, bug

# ------------------------------------------------------------------------------------------ when checkpoints begin, end


@bug
def one_checkpoint_too_many_at_a_time(patch: Patch) -> None:
    def may_trigger(original: Any, self: Any) -> bool:
        config = self._config
        self._config = replace(config, max_concurrent=config.max_concurrent + 1)
        try:
            return bool(original(self))
        finally:
            self._config = config

    around(patch, CheckpointCoordinator, "_may_trigger", may_trigger)


@bug
def older_checkpoint_goes_on_behind_a_newer_one(patch: Patch) -> None:
    def complete(original: Any, self: Any, pending: Any, now_ms: int) -> Any:
        older = {c: p for c, p in self._pending.items() if c < pending.id}
        self._pending = {c: p for c, p in self._pending.items() if c not in older}
        commands = original(self, pending, now_ms)
        self._pending = {**older, **self._pending}
        return commands

    around(patch, CheckpointCoordinator, "_complete", complete)


@bug
def checkpoints_never_time_out(patch: Patch) -> None:
    patch.setattr(CheckpointCoordinator, "_on_ticked", lambda self, now_ms: ())
    patch.setattr(CheckpointCoordinator, "next_deadline_ms", lambda self: None)


@bug
def one_failure_more_is_tolerated(patch: Patch) -> None:
    def fail(original: Any, self: Any, *args: Any, **kwargs: Any) -> Any:
        config = self._config
        self._config = replace(config, failures_tolerated=config.failures_tolerated + 1)
        try:
            return original(self, *args, **kwargs)
        finally:
            self._config = config

    around(patch, CheckpointCoordinator, "_fail", fail)


@bug
def workers_not_told_of_an_aborted_checkpoint(patch: Patch) -> None:
    def broadcast(original: Any, self: Any, message: Any, *args: Any) -> None:
        if not isinstance(message, CheckpointAborted):
            original(self, message, *args)

    around(patch, Fleet, "broadcast", broadcast)


# ------------------------------------------------------------------------------------------ what is kept


@bug
def files_of_an_aborted_checkpoint_left(patch: Patch) -> None:
    def abort(original: Any, self: Any, command: Any) -> None:
        self._delete = lambda checkpoint_id: None
        original(self, command)
        del self._delete

    around(patch, Checkpoints, "_abort", abort)


@bug
def incomplete_checkpoints_left_by_the_next_attempt(patch: Patch) -> None:
    def begin_attempt(original: Any, self: Any, begun: Any, *rest: Any) -> None:
        original(self, replace(begun, incomplete=()), *rest)

    around(patch, Checkpoints, "begin_attempt", begin_attempt)


@bug
def checkpoint_published_too_late_left(patch: Patch) -> None:
    """What was aborted while its manifest was written, and appears in a running attempt, is not discarded."""

    def on_published(original: Any, self: Any, event: Any) -> Any:
        late = event.checkpoint_id in self._orphans
        commands = original(self, event)
        return tuple(c for c in commands if not (late and c == DiscardCheckpoint(event.checkpoint_id)))

    around(patch, CheckpointCoordinator, "_on_published", on_published)


@bug
def files_that_are_built_on_never_let_go(patch: Patch) -> None:
    """It is not told when the checkpoints have ended that a discarded one is held for."""

    def retained(original: Any, self: Any, event: Any) -> None:
        if not isinstance(event, CheckpointOver):
            original(self, event)

    around(patch, Checkpoints, "_retained", retained)


# ------------------------------------------------------------------------------------------ what an attempt begins from


@bug
def targets_prepared_in_every_attempt(patch: Patch) -> None:
    def begin(job: Any, storage: Any, request: Any) -> Any:
        begun = original(job, storage, request)
        beginning._start_sinks(job, begun.attempt)
        return begun

    original = beginning.begin
    patch.setattr(opening, "begin", begin)


@bug
def damage_noted_under_another_name(patch: Patch) -> None:
    """The checkpoint that cannot be read is chosen again by every attempt."""

    def note_damage(original: Any, self: Any, cause: str) -> bool:
        worth = bool(original(self, cause))
        self._damaged = {path.rpartition("/")[2]: why for path, why in self._damaged.items()}
        return worth

    around(patch, Opening, "note_damage", note_damage)


@bug
def looks_for_a_successor_and_then_publishes(patch: Patch) -> None:
    def publish(original: Any, self: Any, manifest: Any, attempt: Any) -> bool:
        current = not self.is_superseded(attempt)
        original(self, manifest, attempt)
        return current

    around(patch, JobStorage, "publish", publish)


@bug
def looks_for_checkpoints_and_then_claims(patch: Patch) -> None:
    def claim_attempt(original: Any, self: Any, *args: Any) -> Any:
        self.looked = JobStorage.list_checkpoints(self)
        claimed = original(self, *args)
        self.list_checkpoints = lambda: self.__dict__.pop("looked", None) or JobStorage.list_checkpoints(self)
        return claimed

    around(patch, JobStorage, "claim_attempt", claim_attempt)


# ------------------------------------------------------------------------------------------ whom a manager gives up


@bug
def manager_that_stood_still_blames_its_workers(patch: Patch) -> None:
    def beat(original: Any, self: Any, attempt: Any, now_ms: int) -> Any:
        if self._next_beat_ms is not None and now_ms > self._next_beat_ms:
            self._next_beat_ms = now_ms
        return original(self, attempt, now_ms)

    around(patch, Fleet, "beat", beat)


@bug
def silent_worker_waited_for(patch: Patch) -> None:
    patch.setattr(Fleet, "_is_overdue", lambda self, worker, now_ms: False)


# ------------------------------------------------------------------------------------------ how a job ends


@bug
def cancellation_told_to_nobody(patch: Patch) -> None:
    def end(original: Any, self: Any, *args: Any) -> None:
        with pytest.MonkeyPatch.context() as quiet:
            quiet.setattr(self._ctx.fleet, "broadcast", lambda *args: None)
            original(self, *args)

    around(patch, JobRun, "_end", end)


@bug
def announced_after_the_cancellation(patch: Patch) -> None:
    def stop(original: Any, self: Any, *args: Any) -> None:
        with pytest.MonkeyPatch.context() as going_on:
            going_on.setattr(self._running, "end", lambda: None)
            original(self, *args)

    around(patch, JobRun, "_stop", stop)


@bug
def staged_dropped_with_a_cancelled_job(patch: Patch) -> None:
    """What the newest checkpoint left pending goes, as if the job had finished."""
    original = closing.clean_up_sinks

    def clean_up_sinks(job: Any, attempt: Any, **kwargs: Any) -> Any:
        return original(job, attempt, **{**kwargs, "succeeded": True})

    patch.setattr(closing, "clean_up_sinks", clean_up_sinks)
