"""Runs a `BatchedSink`: the shell around `protocol.batching`.

Theory of operation
-------------------
Rows that come in are dealt to lanes by the hash of the sink's keys, and kept there until the machine cuts a request of
them. A request is written by a *writer*, a copy of the sink that is opened when first needed, off the task thread; its
outcome comes back through `_outcomes` and is told to the machine on the task thread, in `on_timer`. Nothing blocks.

Watermarks wait until the rows before them are settled, since a row that is set aside may still come out behind them. A
snapshot has the rows that are not settled, keyed where the sink has keys, so that they find their subtask at any
parallelism. The operator counts as committing until what was before the barrier of a complete checkpoint is settled.
"""

from __future__ import annotations

import copy
import logging
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.hashing import hash_columns
from rayflow.batch.tables import concat, nbytes, render_sample, take
from rayflow.model.durations import format_duration_ns
from rayflow.model.errors import DataError, ProtocolViolation, RayflowError, TransientError, UserFunctionError
from rayflow.model.passing import may_pass
from rayflow.model.tracebacks import describe_error
from rayflow.operators.batched_sink import BatchedSink
from rayflow.operators.contracts import Operator, OperatorContext, Output, SinkContext, sink_context
from rayflow.operators.keyed_parts import restored_rows, rows_part
from rayflow.operators.poison import PoisonRows
from rayflow.protocol.batching import BatchLimits, WriteBatcher
from rayflow.protocol.batching_messages import (
    BatchingEvent,
    CutRequest,
    FlushAsked,
    GiveUp,
    HalveRequest,
    RequestFailed,
    RequestWritten,
    RowsCame,
    SendRequest,
    SetRowAside,
    TimePassed,
)
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.unhandled import unhandled
from rayflow.state.parts import RestoredPart, StatePart

_ROWS = "rows"
_NANOS_PER_MS = 1_000_000
_LATENCY_WEIGHT = 0.1

_log = logging.getLogger(__name__)


class BatchedSinkOperator(Operator):
    """Runs `sink` at the end of a chain; `rows_per_second` is the subtask's share of its rate, None without one.

    State: the part `rows` (what is not settled; `keyed` where the sink has keys, else `list`). Metrics: `rows_written`,
    `batches`, `retries`, `in_flight` (requests under way), `rows_held`, `latency_ms` (of a request, weighted mean).
    """

    def __init__(self, sink: BatchedSink, rows_per_second: float | None = None) -> None:
        self._sink = sink
        batching, keyed = sink.batching, bool(sink.keys)
        self._limits = BatchLimits(
            batch_rows=batching.rows,
            batch_bytes=batching.nbytes,
            linger_ms=batching.linger_ms,
            lanes=batching.in_flight if keyed else 1,
            places=1 if keyed else batching.in_flight,
            timeout_ms=batching.timeout_ms,
            retry_for_ms=batching.retry_for_ms,
            rows_per_second=rows_per_second,
        )
        self._batcher = WriteBatcher(self._limits)
        self._lanes: list[deque[pa.RecordBatch]] = [deque() for _ in range(self._limits.lanes)]
        self._requests: dict[int, pa.RecordBatch] = {}
        self._errors: dict[int, Exception] = {}
        self._running: dict[int, tuple[_Writer, int]] = {}
        self._writers: list[_Writer] = []
        # Appended to on the threads of writers; read on the task thread.
        self._outcomes: deque[_Outcome] = deque()
        self._watermarks: deque[tuple[int, int]] = deque()
        self._marks: dict[int, int] = {}
        self._owed = 0

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`. Writers connect when they are first needed."""
        super().open(ctx, out, restored)
        self._context = sink_context(ctx)
        self._random = random.Random(f"{ctx.uid}/{ctx.subtask_index}/{ctx.attempt}")
        self._poison = PoisonRows(ctx, out, restored)
        self._written = ctx.metrics.counter("rows_written")
        self._batches = ctx.metrics.counter("batches")
        self._retries = ctx.metrics.counter("retries")
        self._in_flight = ctx.metrics.gauge("in_flight")
        self._held = ctx.metrics.gauge("rows_held")
        self._latency = ctx.metrics.gauge("latency_ms")
        for batch in restored_rows(restored, _ROWS):
            self.process(batch, 0)

    # ------------------------------------------------------------------------------------- input

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        for lane, rows in self._dealt(batch):
            self._lanes[lane].append(rows)
            self._tell(RowsCame(lane, rows.num_rows, nbytes(rows), self.ctx.now_ms()))

    def _dealt(self, batch: pa.RecordBatch) -> list[tuple[int, pa.RecordBatch]]:
        lanes = self._limits.lanes
        if lanes == 1:
            return [(0, batch)]
        # Not the bits that key groups are made of: a subtask has only some of those.
        chosen = (hash_columns(batch, self._sink.keys) >> np.uint64(32)) % np.uint64(lanes)
        found = [(lane, np.flatnonzero(chosen == lane)) for lane in range(lanes)]
        return [(lane, take(batch, indices)) for lane, indices in found if len(indices)]

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`. A watermark stays behind the rows before it."""
        if not self._batcher.rows and not self._watermarks:
            return watermark
        if self._watermarks and self._watermarks[-1][0] == self._batcher.mark:
            self._watermarks.pop()
        self._watermarks.append((self._batcher.mark, watermark))
        return None

    def blocked(self) -> bool:
        """See `Operator`."""
        return self._batcher.full

    def drained(self) -> bool:
        """See `Operator`."""
        return not self._batcher.rows and not self._watermarks

    def end(self) -> None:
        """See `Operator`."""
        self._tell(FlushAsked(self.ctx.now_ms()))

    # -------------------------------------------------------------------------------------- work

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return 0 if self._outcomes else self._batcher.due_ms(self.ctx.now_ms())

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        while self._outcomes:
            self._ended(self._outcomes.popleft(), now_ms)
        self._tell(TimePassed(now_ms))
        self._poison.flush()
        while self._watermarks and self._watermarks[0][0] <= self._batcher.settled:
            self.out.emit_watermark(self._watermarks.popleft()[1])

    def _tell(self, event: BatchingEvent) -> None:
        for command in self._batcher.handle(event):
            match command:
                case CutRequest(number, lane, rows):
                    self._requests[number] = _cut(self._lanes[lane], rows)
                case SendRequest(number):
                    self._send(number, event.now_ms)
                case HalveRequest(number, rows, first, second):
                    whole = self._requests.pop(number)
                    self._requests[first] = whole.slice(0, rows)
                    self._requests[second] = whole.slice(rows)
                    del self._errors[number]
                case SetRowAside(number):
                    self._poison.add(visible(self._requests.pop(number)), self._errors.pop(number))
                case GiveUp():
                    raise self._given_up(command)
                case _:
                    unhandled(command)
        self._in_flight.set(self._batcher.in_flight)
        self._held.set(self._batcher.rows)

    def _send(self, number: int, now_ms: int) -> None:
        if self._errors.pop(number, None) is not None:
            self._retries.inc()
        writer = self._writers.pop() if self._writers else _Writer(self._sink, self._context)
        self._running[number] = (writer, now_ms)
        name = f"{self.ctx.job_id}-{self.ctx.uid}-{self.ctx.subtask_index}-{self.ctx.attempt}-{number}"
        outcomes = self._outcomes
        self.ctx.run_in_background(
            partial(writer.write, self._requests[number], name),
            lambda _, error: outcomes.append(_Outcome(number, error)),
        )

    def _ended(self, outcome: _Outcome, now_ms: int) -> None:
        number, error = outcome.request, outcome.error
        writer, since_ms = self._running.pop(number)
        self._writers.append(writer)
        if error is None:
            rows = self._requests.pop(number)
            self._written.inc(rows.num_rows)
            self._batches.inc()
            weight = _LATENCY_WEIGHT if self._batches.value > 1 else 1.0
            self._latency.set(self._latency.value + weight * (now_ms - since_ms - self._latency.value))
            self._tell(RequestWritten(number, now_ms))
            return
        if not isinstance(error, Exception):
            raise error
        verdict = self._sink.classify(error)
        writer.stale = verdict != "refused"
        self._errors[number] = error
        self._tell(
            RequestFailed(
                number,
                verdict,
                now_ms,
                chance=self._random.random(),
                after_ms=getattr(error, "after_ms", 0),
                halve=self._poison.tolerant,
            )
        )

    def _given_up(self, gave_up: GiveUp) -> Exception:
        error = self._errors.get(gave_up.request)
        rows = visible(self._requests[gave_up.request])
        if gave_up.reason == "hung":
            limit = format_duration_ns(self._limits.timeout_ms * _NANOS_PER_MS)
            error = TimeoutError(limit)
            cause = (
                f"a write of {rows.num_rows} rows has not returned within timeout={limit}, so nobody knows what became "
                "of it; give the sink's client a timeout of its own that is shorter, or rf.Batching a longer one"
            )
        elif error is None:
            raise ProtocolViolation(f"request {gave_up.request} failed without an error")
        elif gave_up.reason == "retried":
            tried = format_duration_ns(gave_up.tried_ms * _NANOS_PER_MS)
            cause = (
                f"{rows.num_rows} rows could not be written in {gave_up.tries} tries within {tried}; the last: "
                f"{describe_error(error)}"
            )
        elif isinstance(error, RayflowError) and not isinstance(error, DataError):
            return error
        else:
            cause = describe_error(error)
        made = UserFunctionError(self.ctx.name, cause, self.ctx.location, render_sample(rows))
        made.__cause__ = error if may_pass(error) or gave_up.reason != "retried" else _passing(error)
        return made

    # ------------------------------------------------------------------------------- checkpoints

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """See `Operator`. What waits is sent."""
        self._tell(FlushAsked(self.ctx.now_ms()))
        self._marks[checkpoint_id] = self._batcher.mark
        rows = [
            batch
            for lane, waiting in enumerate(self._lanes)
            for batch in [*(self._requests[n] for n in self._batcher.requests(lane)), *waiting]
        ]
        parts = self._poison.snapshot()
        if rows:
            parts.append(rows_part(_ROWS, rows, self._sink.keys, self.ctx.max_parallelism))
        return parts

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        covered = [number for number in self._marks if number <= permit.checkpoint_id]
        self._owed = max([self._owed, *(self._marks.pop(number) for number in covered)])

    def committing(self) -> bool:
        """See `Operator`."""
        return self._batcher.settled < self._owed

    def close(self) -> None:
        """See `Operator`."""
        errors = [
            error
            for writer in [*self._writers, *(writer for writer, _ in self._running.values())]
            if (error := writer.close()) is not None
        ]
        self._writers.clear()
        self._running.clear()
        if errors:
            raise errors[0]


@dataclass(frozen=True, slots=True)
class _Outcome:
    request: int
    error: BaseException | None


class _Writer:
    """A copy of the sink. `write` runs on one thread at a time; `stale`, set in between: its connection is to be made
    anew. `close` may come at any time; after it nothing is written."""

    def __init__(self, sink: BatchedSink, ctx: SinkContext) -> None:
        self._sink = copy.copy(sink)
        self._ctx = ctx
        self._begun = False
        self._opened = False
        self._closed = False
        self.stale = False

    def write(self, batch: pa.RecordBatch, name: str) -> None:
        """Write the rows of the request `name`, connecting before where need be."""
        if self.stale and self._begun:
            self._reset()
        self.stale = False
        if not self._opened and not self._closed:
            self._begun = True
            self._sink.open(self._ctx)
            self._opened = True
        if self._closed:
            # Meanwhile; what `open` made has to go.
            self._sink.close()
            raise InterruptedError("the attempt is over")
        self._sink.request_id = name
        self._sink.write_batch(batch)

    def close(self) -> Exception | None:
        """Let go of the connection; return what that raised."""
        self._closed = True
        try:
            if self._begun:
                self._sink.close()
        except Exception as error:
            return error
        return None

    def _reset(self) -> None:
        self._begun = self._opened = False
        try:
            self._sink.close()
        except Exception as error:
            # What was to be left behind is broken: that is why.
            _log.info("closing a connection that failed: %s", error)


def _passing(error: Exception) -> TransientError:
    """Return what says of `error`, in the words of nobody's driver, that it may pass: the sink has judged so."""
    made = TransientError(describe_error(error))
    made.__cause__ = error
    return made


def _cut(lane: deque[pa.RecordBatch], rows: int) -> pa.RecordBatch:
    """Take the first `rows` rows out of the lane."""
    taken: list[pa.RecordBatch] = []
    while rows:
        head = lane.popleft()
        if head.num_rows > rows:
            lane.appendleft(head.slice(rows))
            head = head.slice(0, rows)
        taken.append(head)
        rows -= head.num_rows
    return concat(taken)
