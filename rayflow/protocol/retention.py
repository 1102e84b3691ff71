"""When the files of a discarded checkpoint may be deleted, where checkpoints are built on others' files.

Theory of operation. A checkpoint that is under way may build on any that was kept when it began, or became complete
since: which one its subtasks take is not known before they acknowledge. So what is discarded meanwhile is *held* by all
that are under way then, and let go when the last of them has ended. Which of its files stay even then, because the
manifest of a checkpoint that is kept names them, is for whoever deletes to see (`JobStorage.discard`).

A subtask may hear late of what was completed, and build on a checkpoint that was discarded before this one began. Its
files may be gone: `may_build` says no, and the checkpoint fails rather than name what is not there.

Invariants:

1. Nothing is deleted that a checkpoint under way may build on.
2. All that is discarded is deleted, once, when nothing holds it; with the end of the attempt at the latest.
3. `may_build(c, p)` only if p is kept, or held by c.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

from rayflow.model.ids import CheckpointId
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True)
class CheckpointBegun:
    """The checkpoint was triggered."""

    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class CheckpointOver:
    """It is complete, or can never be. Harmless when told twice."""

    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class CheckpointDiscarded:
    """It is not kept any more."""

    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class DeleteCheckpoint:
    """Delete it, but for files that others are built on."""

    checkpoint_id: CheckpointId


Event = CheckpointBegun | CheckpointOver | CheckpointDiscarded
Commands = tuple[DeleteCheckpoint, ...]


class Retention:
    """Decides for one job. `pending` are under way, `held` wait to be deleted, and for whom."""

    def __init__(self) -> None:
        self.pending: set[CheckpointId] = set()
        self.held: dict[CheckpointId, frozenset[CheckpointId]] = {}

    def handle(self, event: Event) -> Commands:
        """Take note of `event`; return what to delete."""
        match event:
            case CheckpointBegun(checkpoint_id):
                self.pending.add(checkpoint_id)
                return ()
            case CheckpointOver(checkpoint_id):
                self.pending.discard(checkpoint_id)
                self.held = {c: by - {checkpoint_id} for c, by in self.held.items()}
                return self._let_go()
            case CheckpointDiscarded(checkpoint_id):
                self.held.setdefault(checkpoint_id, frozenset(self.pending))
                return self._let_go()
            case _:
                unhandled(event)

    def may_build(
        self, checkpoint_id: CheckpointId, on: CheckpointId | None, kept: Container[CheckpointId]
    ) -> bool:
        """Return whether the files that `checkpoint_id` was built on are there; `kept` are the checkpoints that are."""
        return on is None or on in kept or checkpoint_id in self.held.get(on, ())

    def _let_go(self) -> Commands:
        free = sorted(c for c, by in self.held.items() if not by)
        for checkpoint_id in free:
            del self.held[checkpoint_id]
        return tuple(DeleteCheckpoint(c) for c in free)
