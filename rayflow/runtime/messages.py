"""Control messages between the job master and its subtasks, and frames on the channels between subtasks.

All are values; all that cross a process carry the attempt, so that a receiver can drop what is stale. Calls can fail
although they were executed, and be lost although both ends live on: control messages are therefore numbered and sent
again (`protocol.delivery`), save heartbeats and their answers, which carry the books of that.

Channel frames, producer → consumer, in order: `OpenFrame`, then `DataFrame`, `WatermarkFrame`, `IdleFrame`,
`BarrierFrame`, `EndFrame`. Back: `CreditFrame`, the first in answer to the `OpenFrame`, so that a transport need not
keep credits for a stream that is not open yet. Only `DataFrame`s cost credit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rayflow.graph.plan import JobGraph
from rayflow.model.ids import Attempt, ChannelId, CheckpointId, JobId, SubtaskId
from rayflow.protocol.alignment import BarrierKind
from rayflow.state.manifest import SplitState, StateFile

# ------------------------------------------------------------------------------------ channel frames


@dataclass(frozen=True, slots=True)
class OpenFrame:
    """The first frame of every channel: the producer is there, and asks for its first credit."""


@dataclass(frozen=True, slots=True)
class DataFrame:
    """Rows. `seq` counts the data frames of the channel and attempt from 0; `backlog` is how many more
    batches wait at the producer; `nbytes` is what the frame costs in credit, counted by the producer."""

    seq: int
    batch: pa.RecordBatch
    nbytes: int
    backlog: int


@dataclass(frozen=True, slots=True)
class WatermarkFrame:
    """No row with an event time ≤ `watermark` (ns) follows, save late ones."""

    watermark: int


@dataclass(frozen=True, slots=True)
class IdleFrame:
    """The producer has nothing to say about event time until its next data or watermark frame."""


@dataclass(frozen=True, slots=True)
class BarrierFrame:
    """Separates what belongs to checkpoint `checkpoint_id` from what comes after; an URGENT one may have overtaken
    frames, which its producer has recorded as part of the checkpoint."""

    checkpoint_id: CheckpointId
    kind: BarrierKind = BarrierKind.ALIGNED


@dataclass(frozen=True, slots=True)
class EndFrame:
    """No more data or watermarks; barriers may still follow."""


@dataclass(frozen=True, slots=True)
class CreditFrame:
    """Consumer → producer: room for so many more batches and bytes."""

    batches: int
    nbytes: int


Frame = OpenFrame | DataFrame | WatermarkFrame | IdleFrame | BarrierFrame | EndFrame

# ------------------------------------------------------------------------------------ state references


@dataclass(frozen=True, slots=True, kw_only=True)
class RestoreInfo:
    """What a subtask restores from: `directory` is the checkpoint's URL, `files` those that concern it; `rescaled`: the
    parallelism was another one then; `fallen_back`: newer checkpoints are damaged."""

    directory: str
    checkpoint_id: CheckpointId
    files: tuple[StateFile, ...]
    rescaled: bool = False
    fallen_back: bool = False
    foreign_job: str | None = None
    watermark: int | None = None

    @property
    def goes_on(self) -> bool:
        """Whether later checkpoints may build on this one: it is the job's own, the newest (an older one an earlier job
        manager may just be deleting: see `master.storage`), and each subtask has its keys still."""
        return self.foreign_job is None and not (self.rescaled or self.fallen_back)


# ------------------------------------------------------------------------------------ both ways


@dataclass(frozen=True, slots=True)
class Numbered:
    """A control message. `number` counts those of one sender to one receiver in an attempt, from 1; 0: not counted. It
    says nothing about what the message means, so it is no part of what makes two of them equal."""

    number: int = field(default=0, compare=False, kw_only=True)


# ------------------------------------------------------------------------------------ master → subtask


@dataclass(frozen=True, slots=True, kw_only=True)
class Deploy(Numbered):
    """Drop whatever ran before and become `subtask` of attempt `attempt`; restore, then wait for Start.

    `peers` maps every consumer of this subtask's channels to the endpoint address it listens on. `salted`: by uid,
    the hashes of the keys that operators salt from the first row on."""

    job_id: JobId
    attempt: Attempt
    subtask: SubtaskId
    graph: JobGraph
    config: dict[str, Any]
    peers: dict[SubtaskId, str]
    restore: RestoreInfo | None = None
    salted: dict[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Start(Numbered):
    """All subtasks of the attempt are deployed: connect and run."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class TriggerCheckpoint(Numbered):
    """To sources only: snapshot and broadcast a barrier. `aligned`: whatever the job's mode, nothing may overtake."""

    attempt: Attempt
    checkpoint_id: CheckpointId
    aligned: bool = False


@dataclass(frozen=True, slots=True)
class CheckpointCompleted(Numbered):
    """The manifest of the checkpoint is published; effects up to it may be committed."""

    attempt: Attempt
    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class CheckpointAborted(Numbered):
    """The checkpoint will not complete; forget it."""

    attempt: Attempt
    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True, kw_only=True)
class AssignSplits(Numbered):
    """To a source subtask: read these splits too. `cap`: no unassigned split holds rows at or before this
    event time (ns); `no_more`: nothing will follow, so the source ends when its splits have; `others`: see
    `protocol.split_watermarks.OthersMoved`."""

    attempt: Attempt
    uid: str
    splits: tuple[SplitState, ...]
    cap: int
    no_more: bool
    others: int | None = None


@dataclass(frozen=True, slots=True)
class SaltKeys(Numbered):
    """To a subtask with an operator that salts hot keys: salt those of these hashes from the next barrier on."""

    attempt: Attempt
    uid: str
    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Cancel(Numbered):
    """Stop now; commit nothing new. Ends the attempt in this subtask."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Finish(Numbered):
    """The job is finished (its last checkpoint is committed): close and release everything."""

    attempt: Attempt


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The master lives. Answered with `HeartbeatAnswered`; a process that hears nothing of any master for long ends
    itself (its lease has lapsed). `sent`, `arrived` and `lacks` are of the attempt: how many messages were sent to the
    subtask before this one, how many of its own have come, and whether some of these are lost."""

    attempt: Attempt
    sequence: int
    sent: int = 0
    arrived: int = 0
    lacks: bool = False


ToSubtask = (
    Deploy
    | Start
    | TriggerCheckpoint
    | CheckpointCompleted
    | CheckpointAborted
    | AssignSplits
    | SaltKeys
    | Cancel
    | Finish
    | Heartbeat
)

# ------------------------------------------------------------------------------------ subtask → master


@dataclass(frozen=True, slots=True)
class Deployed(Numbered):
    """The subtask restored its state and waits for Start. `catches_up`: it has rows to process that were in flight in
    what it restored, and will say `CaughtUp`."""

    subtask: SubtaskId
    attempt: Attempt
    catches_up: bool = False


@dataclass(frozen=True, slots=True)
class CaughtUp(Numbered):
    """The subtask is through with the rows that were in flight in what it restored."""

    subtask: SubtaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True)
class SplitsRequested(Numbered):
    """A source subtask has nothing left to read. `uid` is the source's (the vertex's id)."""

    subtask: SubtaskId
    attempt: Attempt
    uid: str


@dataclass(frozen=True, slots=True)
class SplitsProgressed(Numbered):
    """The slowest split of source `uid` that the subtask reads has come to `watermark` (ns; None: it has none that
    others should wait for). Only from sources with `max_drift`."""

    subtask: SubtaskId
    attempt: Attempt
    uid: str
    watermark: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointAcked(Numbered):
    """The subtask's snapshot is durable. `splits` is the source's state, by uid; `builds_on` the complete checkpoint
    whose files are among `files`."""

    subtask: SubtaskId
    attempt: Attempt
    checkpoint_id: CheckpointId
    files: tuple[StateFile, ...]
    splits: dict[str, tuple[SplitState, ...]] = field(default_factory=dict)
    alignment_ms: float = 0
    duration_ms: float = 0
    watermark: int | None = None
    builds_on: CheckpointId | None = None


@dataclass(frozen=True, slots=True)
class CheckpointDeclined(Numbered):
    """The subtask could not make or store its snapshot. `storage`: the storage did not take it."""

    subtask: SubtaskId
    attempt: Attempt
    checkpoint_id: CheckpointId
    reason: str
    storage: bool = False


@dataclass(frozen=True, slots=True)
class Committed(Numbered):
    """The subtask's sinks committed everything up to the checkpoint (sent also when there was nothing)."""

    subtask: SubtaskId
    attempt: Attempt
    checkpoint_id: CheckpointId


@dataclass(frozen=True, slots=True)
class InputsEnded(Numbered):
    """All inputs of the subtask ended and `end` was called; only barriers are left to do."""

    subtask: SubtaskId
    attempt: Attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed(Numbered):
    """The attempt failed in this subtask. `retryable` is False where a restart cannot help; `fault` identifies
    what is likely to happen again (see `protocol.failover`); `corrupt_checkpoint` says that the checkpoint to
    restore is what could not be used, `process_ends` that the worker's process ends now."""

    subtask: SubtaskId
    attempt: Attempt
    cause: str
    operator: str | None = None
    location: str | None = None
    retryable: bool = True
    fault: str | None = None
    corrupt_checkpoint: bool = False
    process_ends: bool = False


@dataclass(frozen=True, slots=True)
class PeerLost(Numbered):
    """The stream of `channel` broke: its other end may be dead."""

    subtask: SubtaskId
    attempt: Attempt
    channel: ChannelId
    reason: str


@dataclass(frozen=True, slots=True)
class Warned(Numbered):
    """Something in the subtask that people should know of; it becomes an event of this type."""

    subtask: SubtaskId
    attempt: Attempt
    type: str
    message: str


@dataclass(frozen=True, slots=True)
class Stopped(Numbered):
    """The subtask has closed the attempt after Cancel or Finish; its last statistics."""

    subtask: SubtaskId
    attempt: Attempt
    statistics: dict[str, Any]


@dataclass(frozen=True, slots=True)
class HeartbeatAnswered:
    """Answer to `Heartbeat`, with the subtask's statistics (see `runtime.statistics`), and the same books, of the
    heartbeat's attempt, from the other end."""

    subtask: SubtaskId
    attempt: Attempt
    sequence: int
    statistics: dict[str, Any]
    sent: int = 0
    arrived: int = 0
    lacks: bool = False


FromSubtask = (
    Deployed
    | CaughtUp
    | SplitsRequested
    | SplitsProgressed
    | CheckpointAcked
    | CheckpointDeclined
    | Committed
    | InputsEnded
    | TaskFailed
    | PeerLost
    | Warned
    | Stopped
    | HeartbeatAnswered
)
