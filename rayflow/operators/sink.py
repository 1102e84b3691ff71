"""Sinks as operators: two-phase commit around the `Sink` contract.

At a barrier the sink stages what it wrote since the last one (`prepare`); what it returns is kept in a
`CommitLedger` and, as JSON, in the checkpoint. When the checkpoint completes the ledger hands out what may be
published. After a restore, everything that was open in the checkpoint is committed before anything is written.

A sink that says so has its commits run in the background, one at a time: rows and barriers flow on behind one that
is slow, or hangs. What waits for it stays in the ledger, and so in every checkpoint. There is a bound on it, at which
no more rows are taken.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayflow.model.errors import RayflowError, UserFunctionError
from rayflow.model.ids import CheckpointId
from rayflow.operators.contracts import Operator, OperatorContext, Output, Sink, sink_context
from rayflow.protocol.commits import (
    CommitLedger,
    CommitPermit,
    PermitGranted,
    TransactionCommitted,
    TransactionPrepared,
    TransactionsRestored,
)
from rayflow.state.parts import RestoredPart, StatePart

MAX_UNCOMMITTED = 16
"""Transactions that may wait for a commit in the background before the sink takes no more rows."""

_PART = "transactions"


class SinkOperator(Operator):
    """Runs `sink` at the end of a chain.

    Its state is the list part `transactions`: `checkpoint_id` int64, `pending` string (JSON).
    """

    state_place = "little"

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ledger = CommitLedger()
        self._opened = False
        self._tell_restored = False
        self._queue: deque[CommitPermit] = deque()
        self._running: CommitPermit | None = None
        # Appended to on the thread of a commit, its outcome; read on the task thread.
        self._outcomes: deque[BaseException | None] = deque()

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """Open the sink and commit what the restored checkpoint left pending."""
        super().open(ctx, out, restored)
        self._context = sink_context(ctx)
        self._opened = True
        self._sink.open(self._context)
        begun_before = ctx.attempt > 1 or ctx.restored_from is not None
        self._tell_restored = ctx.subtask_index == 0 and begun_before
        if ctx.restored_permit is not None:
            items = tuple(item for part in restored if part.name == _PART for item in _items(part.table))
            for command in self._ledger.handle(TransactionsRestored(items, ctx.restored_permit)):
                self._commit(command.permit)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self._sink.write(batch)

    def blocked(self) -> bool:
        """See `Operator`."""
        return self._ledger.committing >= MAX_UNCOMMITTED

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return 0 if self._outcomes else self._sink.next_flush_ms()

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        while self._outcomes:
            self._commit_ended(self._outcomes.popleft())
        due = self._sink.next_flush_ms()
        if due is not None and due <= now_ms:
            self._sink.flush(now_ms)

    def release_memory(self) -> None:
        """Have a sink that flushes by time do so now."""
        if self._sink.next_flush_ms() is not None:
            self._sink.flush(self.ctx.now_ms())

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Stage what was written, and return all transactions not yet committed."""
        number = CheckpointId(checkpoint_id)
        pending = self._sink.prepare(number)
        self._ledger.handle(TransactionPrepared(number, pending))
        table = pa.table(
            {
                "checkpoint_id": pa.array([number for number, _ in self._ledger.open], pa.int64()),
                "pending": pa.array([self._json(item) for _, item in self._ledger.open], pa.string()),
            }
        )
        return (StatePart(name=_PART, kind="list", build=lambda: table),)

    def _json(self, pending: Any) -> str:
        try:
            return json.dumps(pending)
        except (TypeError, ValueError) as error:
            raise UserFunctionError(
                self.ctx.name, f"prepare() returned what is not JSON data: {error}", self.ctx.location
            ) from error

    def notify_complete(self, permit: CommitPermit) -> None:
        """Commit what the permit covers."""
        for command in self._ledger.handle(PermitGranted(permit)):
            if self._sink.commit_in_background:
                self._queue.append(command.permit)
            else:
                self._commit(command.permit)
        self._commit_next()
        if self._tell_restored:
            self._tell_restored = False
            self._sink.restored(self._context)

    def committing(self) -> bool:
        """See `Operator`."""
        return self._ledger.committing > 0

    def _commit(self, permit: CommitPermit) -> None:
        """Commit here and now."""
        try:
            self._sink.commit(permit)
        except Exception as error:
            raise self._blame(permit, error) from error
        self._note_committed(permit)

    def _commit_next(self) -> None:
        """Begin the next commit in the background, unless one runs."""
        if self._running is None and self._queue:
            permit = self._running = self._queue.popleft()
            outcomes = self._outcomes
            self.ctx.run_in_background(
                lambda: self._sink.commit(permit), lambda _, error: outcomes.append(error)
            )

    def _commit_ended(self, error: BaseException | None) -> None:
        permit, self._running = self._running, None
        assert permit is not None, "only a commit that runs can end"
        if error is not None:
            raise self._blame(permit, error) from error
        self._note_committed(permit)
        self._commit_next()

    def _note_committed(self, permit: CommitPermit) -> None:
        self._ledger.handle(TransactionCommitted())
        self._sink.committed(permit)

    def _blame(self, permit: CommitPermit, error: BaseException) -> BaseException:
        if isinstance(error, RayflowError) or not isinstance(error, Exception):
            return error
        cause = f"commit of checkpoint {permit.checkpoint_id} failed: {type(error).__name__}: {error}"
        return UserFunctionError(self.ctx.name, cause, self.ctx.location)

    def close(self) -> None:
        """See `Operator`."""
        if self._opened:
            self._opened = False
            self._sink.close()


def _items(table: pa.Table) -> list[tuple[CheckpointId, Any]]:
    numbers, texts = table.column("checkpoint_id").to_pylist(), table.column("pending").to_pylist()
    return [(CheckpointId(number), json.loads(text)) for number, text in zip(numbers, texts)]
