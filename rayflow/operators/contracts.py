"""The contracts between the engine and what runs inside a task: operators and sinks (sources': `source_contract`).

Theory of operation
-------------------
A task runs one *chain*: optionally a source, then operators, each fed by the one before through its
`Output`, by plain function calls. Everything in this module is called on the one task thread of a subtask,
never concurrently, and should not block for long, unless a method says so.

Life of an operator::

    open(ctx, out, restored) ─▶ { process · on_watermark · on_timer }* ─▶ snapshot ─▶ … ─▶ end ─▶ … ─▶ close

`snapshot` is called between batches, at a barrier; `notify_complete` after the whole checkpoint is complete.
`end` is called once when all inputs have ended (after the watermark became WATERMARK_MAX); snapshots go on
being taken after it. `close` is called once, also after failures.

An operator whose results take time (`map_async`) says with `blocked` that it wants no more rows now, and with
`drained` whether it still owes results: the end of the stream waits for these, operator by operator. It gets on
with its work in `on_timer`, due at once when something has completed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from rayflow.model.config import JobConfig
from rayflow.model.error_policy import ErrorPolicy
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.async_calls import OpenAsyncCalls, no_async_calls
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.state.disk.share import DiskShare
from rayflow.state.measuring import held_bytes
from rayflow.state.parts import RestoredPart, StatePart


class Output(Protocol):
    """Where an operator's results go: the next operator of the chain, or the task's output edges."""

    def emit(self, batch: pa.RecordBatch) -> None:
        """Pass on rows. Empty batches are dropped. Order is kept."""

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None:
        """Pass rows to the side output `tag`; dropped, and counted in `unread_side_rows`, when nobody
        reads it."""

    def emit_watermark(self, watermark: int) -> None:
        """Announce a watermark (nanoseconds) that this operator makes itself."""

    def emit_idle(self) -> None:
        """Say that this operator, which makes watermarks itself, has nothing to say about event time until
        its next rows or watermark, so that others need not wait for it."""


def _at_once(work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
    """The `run_in_background` of a host without threads."""
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    done(result, error)


def _nobody_hears(type: str, message: str) -> None:
    """The `warn` of a host without events."""


@dataclass(frozen=True, kw_only=True)
class OperatorContext:
    """What an operator may know about where it runs. Never changes within an attempt."""

    job_id: str
    job_name: str
    attempt: int
    uid: str
    name: str
    subtask_index: int
    parallelism: int
    max_parallelism: int
    key_groups: KeyGroupRange
    metrics: MetricGroup
    now_ms: Callable[[], int]
    """The processing time (ms since the epoch), as of the engine's step: it stands still within a call."""
    location: str | None = None
    restored_from: int | None = None
    """Number of the checkpoint this attempt restored, None for a fresh start."""
    foreign_job: str | None = None
    """Id of the other job whose checkpoint was restored (`--from`), else None."""
    restored_permit: CommitPermit | None = None
    """Leave to commit what was pending in the restored checkpoint; None for a fresh start."""
    batch_rows: int = 65_536
    config: JobConfig = field(default_factory=JobConfig)
    """The job's settings."""
    consumers: int = 1
    """How many subtasks the rows go to that leave the chain, but for side outputs."""
    salted: Sequence[int] = ()
    """Hashes of the keys that this operator salted when it was told so last (see `Operator.salt`)."""
    side_outputs: Mapping[str, pa.Schema | None] = field(default_factory=dict)
    """Tags of the side outputs that somebody reads, with their columns where the plan knows them."""
    options: dict[str, Any] = field(default_factory=dict)
    """The job's flat configuration (`storage` credentials included), for connectors."""
    errors: ErrorPolicy = "fail"
    """What becomes of rows on which the operator raises (see `operators.poison`)."""
    warn: Callable[[str, str], None] = _nobody_hears
    """`warn(type, message)` puts a warning into the job's events. For what is rare."""
    run_in_background: Callable[[Callable[[], Any], Callable[[Any, BaseException | None], None]], None] = (
        _at_once
    )
    """`run_in_background(work, done)` runs `work()` on another thread, then `done(result, error)` there; then the
    task thread is woken, which calls `on_timer` where `next_timer_ms` says so."""
    open_async_calls: OpenAsyncCalls = no_async_calls
    """Gives an operator a way to run coroutines off the task thread, which is woken when they complete."""
    disk: DiskShare | None = None
    """Where keyed state lies that does not fit memory, with `state.backend=disk`; None: state is in memory."""


class Operator(ABC):
    """One step of a chain. Subclasses override what they need; `process` always."""

    state_place: Literal["memory", "disk", "little"] = "memory"
    """Where state lies that grows with the data, if there is a `snapshot`, with `state.backend=disk`. "disk": it takes
    `OperatorContext.disk`. "memory": it does not, and the plan warns of it. "little": there is none that grows."""

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """Take the context and the restored state (empty on a fresh start). Called once, first."""
        self.ctx = ctx
        self.out = out

    @abstractmethod
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Process rows (at least one) that came in on input `port` (0 unless two-input)."""

    def on_watermark(self, watermark: int) -> int | None:
        """Event time of the inputs advanced to `watermark` (ns). Return the watermark to pass on,
        usually the same; None passes on nothing now."""
        return watermark

    def blocked(self) -> bool:
        """Whether no more rows should come in now. Rows that come nevertheless (an operator before it
        emits several batches at a time) must be taken and kept. Watermarks and barriers come all the same."""
        return False

    def drained(self) -> bool:
        """Whether everything that came in has been emitted. False while rows or a watermark wait for more
        than the next call: what must not overtake them (the end of the stream, word of being idle) waits. Not owed
        is what only further rows or a watermark of the inputs will bring out, nor what has no event time (windows by
        the clock), nor the timers of a user, who may set the next one in each."""
        return True

    def next_timer_ms(self) -> int | None:
        """Earliest processing time (ms since the epoch) at which `on_timer` wants to be called."""
        return None

    def on_timer(self, now_ms: int) -> None:
        """Processing time reached `next_timer_ms`. Called between batches."""

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the state as of now. Must be quick: slow work belongs into `StatePart.build`."""
        return ()

    def state_bytes(self) -> int:
        """Return about how much memory the state takes. Called every few seconds, of operators that override
        `snapshot`."""
        return held_bytes(value for name, value in vars(self).items() if name not in ("ctx", "out"))

    def release_memory(self) -> None:
        """The process is near its limit: emit or write now what is buffered for efficiency only. May emit."""

    def notify_complete(self, permit: CommitPermit) -> None:
        """Checkpoint `permit.checkpoint_id` is complete: effects prepared up to it may be published."""

    def committing(self) -> bool:
        """Whether effects that `notify_complete` allowed are still being published. Until they are, the job does not
        count the checkpoint as committed here, and does not end."""
        return False

    def hot_keys(self) -> dict[str, Any] | None:
        """What the job master should know of the keys of the last rows, with every heartbeat, as plain data: rows by
        the consumer they belong to (`consumers`), the most frequent `keys` as [hash, consumer, rows], and the hashes
        that are `salted`. None: nothing. On any thread."""
        return None

    def salt(self, keys: Sequence[int]) -> None:
        """The job master answered `hot_keys`: have the keys of these hashes salted, and no others."""

    def end_input(self, port: int) -> None:
        """Input `port` has ended: no more rows come in on it. Called once an attempt, before the watermark moves
        for it; of the operators of a chain, the first only."""

    def end(self) -> None:
        """All inputs have ended; emit what is left, at once or, until `drained`, from `on_timer`."""

    def close(self) -> None:
        """Release resources. Must not emit. Called also when the attempt failed."""


OperatorFactory = Callable[[], Operator]
"""Makes a fresh operator in the subtask; shipped by cloudpickle."""


# ---------------------------------------------------------------------------------------------- sinks


@dataclass(frozen=True, kw_only=True)
class SinkContext:
    """Where a sink runs. `subtask_index` is -1 in the job-level hooks, which run on the JobManager."""

    job_id: str
    attempt: int
    uid: str
    subtask_index: int
    parallelism: int
    max_parallelism: int
    metrics: MetricGroup | None = None
    options: dict[str, Any] = field(default_factory=dict)
    restored_checkpoint: int | None = None
    """Number of the checkpoint that the attempt restored, None for a fresh start. What attempts before staged behind
    its barriers will never be committed."""
    restored_job: str | None = None
    """Id of the other job whose checkpoint that is (`--from`), None where it is this job's."""
    succeeded: bool = False
    """In `finish_job`: the job's state is FINISHED."""
    completed_checkpoint: int | None = None
    """In `finish_job`: number of the newest complete checkpoint. Unless the job succeeded, what it left
    pending may not be committed yet, and restoring from it commits that."""


def sink_context(ctx: OperatorContext) -> SinkContext:
    """Return the context of a sink that runs as an operator."""
    return SinkContext(
        job_id=ctx.job_id,
        attempt=ctx.attempt,
        uid=ctx.uid,
        subtask_index=ctx.subtask_index,
        parallelism=ctx.parallelism,
        max_parallelism=ctx.max_parallelism,
        metrics=ctx.metrics,
        options=ctx.options,
        restored_checkpoint=ctx.restored_from,
        restored_job=ctx.foreign_job,
    )


class Sink(ABC):
    """A public contract: where records go.

    Without overriding `prepare` a sink is at-least-once: rows are written as they come. An exactly-once
    sink stages what it wrote since the last barrier in `prepare` and returns JSON data that describes the
    staged transaction; that becomes part of the checkpoint. After the checkpoint is complete, and again
    after every restore from it, `commit` is called with a permit for that transaction: it must be idempotent.

    Per subtask, on the task thread (but see `commit_in_background`)::

        open ─▶ { write* ─▶ prepare ─▶ (later) commit }* ─▶ close
    """

    accepts_upserts: bool = False
    """Whether `sink_to` may give it an upsert stream, whose batches have the hidden column that says what
    happened to each row (`rayflow.batch.changelog`)."""

    commit_in_background: bool = False
    """Whether `commit` may run on another thread, while the task thread goes on with `write` and `prepare`: then a
    commit that is slow, or hangs, holds up nothing but the commits after it, until 16 of them wait. Never
    two at a time, and in order; those of a restore run on the task thread, before the first `write`. `close` may come
    while one runs."""

    wants_old_rows: bool = False
    """Whether it wants each update as two rows, the one replaced and the new one, and deletions with all
    columns; without, an update may be the new row only, and a deletion no more than the key."""

    def validate(self, schema: pa.Schema | None) -> None:
        """Raise PlanError where this sink cannot take rows of `schema`. Called when the plan is built."""

    def start_job(self, ctx: SinkContext) -> None:
        """Prepare the target before a fresh job's first attempt (check that it is empty, create or
        overwrite). Runs once on the JobManager; not called when a job is restored with `--from`."""

    def finish_job(self, ctx: SinkContext) -> str | None:
        """Clean up after the job ended, whatever its state: staged leftovers of this job that no restore can
        need (see `ctx.completed_checkpoint`). May return a sentence for people: what it leaves, and what that is in
        the way of."""
        return None

    def open(self, ctx: SinkContext) -> None:
        """Get ready to write. `ctx.attempt` fences what is staged from other attempts'."""

    @abstractmethod
    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows (at least one). May block for as long as the target needs."""

    def prepare(self, checkpoint_id: int) -> Any | None:
        """Flush, and return JSON data describing what awaits commit; None if nothing does."""
        return None

    def commit(self, permit: CommitPermit) -> None:
        """Publish the transaction `permit.pending`, which is what `prepare` returned. Idempotent. What it raises
        ends the attempt, and the next one commits again; so it may raise where it cannot tell what has happened."""

    def committed(self, permit: CommitPermit) -> None:
        """`commit(permit)` has returned. On the task thread, also where the commit was not."""

    def abort(self, pending: Any) -> None:
        """Discard a transaction that will never be committed."""

    def restored(self, ctx: SinkContext) -> None:
        """All transactions of the restored checkpoint are committed: leftovers of attempts before
        `ctx.attempt` may be removed. Called on subtask 0 when the first checkpoint of the attempt completes."""

    def next_flush_ms(self) -> int | None:
        """Processing time at which `flush` wants to be called, None for never."""
        return None

    def flush(self, now_ms: int) -> None:
        """Called when `next_flush_ms` is reached."""

    def close(self) -> None:
        """Release resources. Not a commit: staged rows stay staged."""
