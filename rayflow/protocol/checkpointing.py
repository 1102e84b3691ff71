"""What the checkpoint coordinator is told and what it answers; see `rayflow.protocol.coordinator`.

Values only, so they have no invariants of their own. Import them from `rayflow.protocol.coordinator`.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayflow.model.ids import Attempt, CheckpointId, SubtaskId
from rayflow.protocol.commits import CommitPermit


@dataclass(frozen=True, slots=True, kw_only=True)
class CoordinatorConfig:
    """`interval_ms` None: no periodic checkpoints. `failures_tolerated`: so many in a row do not fail the attempt."""

    interval_ms: int | None
    timeout_ms: int
    min_pause_ms: int
    max_concurrent: int
    retained: int
    failures_tolerated: int


# ---------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class AttemptStarted:
    """All of the attempt's subtasks run. `catching_up` are those that have yet to process rows that were in flight in
    the checkpoint that was restored."""

    attempt: Attempt
    subtasks: frozenset[SubtaskId]
    now_ms: int
    catching_up: frozenset[SubtaskId] = frozenset()


@dataclass(frozen=True, slots=True)
class SubtaskCaughtUp:
    """The subtask has processed what was in flight to it. Harmless when told twice."""

    attempt: Attempt
    subtask: SubtaskId
    now_ms: int


@dataclass(frozen=True, slots=True)
class AttemptEnded:
    """The attempt runs no more, for whatever reason. Harmless when told twice."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time passed. Due at `next_deadline_ms()`."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class SubtaskAcked:
    """The subtask's snapshot is durable."""

    attempt: Attempt
    checkpoint_id: CheckpointId
    subtask: SubtaskId
    now_ms: int


@dataclass(frozen=True, slots=True)
class SubtaskDeclined:
    """The subtask could not make or store its snapshot. `storage`: the storage did not take it."""

    attempt: Attempt
    checkpoint_id: CheckpointId
    subtask: SubtaskId
    reason: str
    now_ms: int
    storage: bool = False


@dataclass(frozen=True, slots=True)
class ManifestPublished:
    """The manifest is durable and visible."""

    checkpoint_id: CheckpointId
    now_ms: int


@dataclass(frozen=True, slots=True)
class ManifestFailed:
    """The manifest could not be published; whether something of it is visible is not known. `storage`: the storage did
    not take it."""

    checkpoint_id: CheckpointId
    reason: str
    now_ms: int
    storage: bool = False


@dataclass(frozen=True, slots=True)
class SavepointRequested:
    """The user wants a savepoint. Without a running attempt it waits for the next one."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class FinalRequested:
    """All inputs of the attempt have ended. Harmless when told twice."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class Restored:
    """The job's own checkpoint `checkpoint_id` is complete, and the next attempt restores it or a newer one that is
    told of too. Told between attempts; the first one told forgets what was completed after it."""

    checkpoint_id: CheckpointId
    savepoint: bool = False


Event = (
    AttemptStarted
    | SubtaskCaughtUp
    | AttemptEnded
    | Ticked
    | SubtaskAcked
    | SubtaskDeclined
    | ManifestPublished
    | ManifestFailed
    | SavepointRequested
    | FinalRequested
    | Restored
)

# -------------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class TriggerSources:
    """Tell every source subtask of the running attempt, and nobody else, to begin the checkpoint."""

    checkpoint_id: CheckpointId
    final: bool
    savepoint: bool


@dataclass(frozen=True, slots=True)
class PublishManifest:
    """Write the manifest; answer with `ManifestPublished` or `ManifestFailed`."""

    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class AnnounceCompleted:
    """Tell every subtask that the checkpoint is complete."""

    checkpoint_id: CheckpointId
    permit: CommitPermit


@dataclass(frozen=True, slots=True)
class AbortCheckpoint:
    """Tell every subtask to forget the checkpoint. Its files go, unless its manifest is being published: then
    `DiscardCheckpoint` follows, or it turns out complete."""

    checkpoint_id: CheckpointId
    reason: str


@dataclass(frozen=True, slots=True)
class DiscardCheckpoint:
    """Delete the checkpoint, manifest first."""

    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class FailAttempt:
    """Too many checkpoints failed in a row: end the attempt. `storage`: all of them since storage did not take them."""

    reason: str
    storage: bool = False


Command = (
    TriggerSources | PublishManifest | AnnounceCompleted | AbortCheckpoint | DiscardCheckpoint | FailAttempt
)
Commands = tuple[Command, ...]
