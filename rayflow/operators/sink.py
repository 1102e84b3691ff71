"""Sinks as operators: two-phase commit around the `Sink` contract.

At a barrier the sink stages what it wrote since the last one (`prepare`); what it returns is kept in a
`CommitLedger` and, as JSON, in the checkpoint. When the checkpoint completes the ledger hands out what may be
published. After a restore, everything that was open in the checkpoint is committed before anything is written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayflow.model.errors import RayflowError, UserFunctionError
from rayflow.model.ids import CheckpointId
from rayflow.operators.contracts import Operator, OperatorContext, Output, Sink, SinkContext
from rayflow.protocol.commits import (
    CommitLedger,
    CommitPermit,
    CommitTransaction,
    PermitGranted,
    TransactionPrepared,
    TransactionsRestored,
)
from rayflow.state.parts import RestoredPart, StatePart

_PART = "transactions"


class SinkOperator(Operator):
    """Runs `sink` at the end of a chain.

    Its state is the list part `transactions`: `checkpoint_id` int64, `pending` string (JSON).
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._ledger = CommitLedger()
        self._opened = False
        self._tell_restored = False

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """Open the sink and commit what the restored checkpoint left pending."""
        super().open(ctx, out, restored)
        self._context = SinkContext(
            job_id=ctx.job_id,
            attempt=ctx.attempt,
            uid=ctx.uid,
            subtask_index=ctx.subtask_index,
            parallelism=ctx.parallelism,
            max_parallelism=ctx.max_parallelism,
            metrics=ctx.metrics,
            options=ctx.options,
        )
        self._opened = True
        self._sink.open(self._context)
        begun_before = ctx.attempt > 1 or ctx.restored_from is not None
        self._tell_restored = ctx.subtask_index == 0 and begun_before
        if ctx.restored_permit is not None:
            items = tuple(item for part in restored if part.name == _PART for item in _items(part.table))
            self._commit(self._ledger.handle(TransactionsRestored(items, ctx.restored_permit)))

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self._sink.write(batch)

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return self._sink.next_flush_ms()

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        self._sink.flush(now_ms)

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
        self._commit(self._ledger.handle(PermitGranted(permit)))
        if self._tell_restored:
            self._tell_restored = False
            self._sink.restored(self._context)

    def _commit(self, commands: Sequence[CommitTransaction]) -> None:
        for command in commands:
            try:
                self._sink.commit(command.permit)
            except RayflowError:
                raise
            except Exception as error:
                raise UserFunctionError(
                    self.ctx.name,
                    f"commit of checkpoint {command.permit.checkpoint_id} failed: {type(error).__name__}: {error}",
                    self.ctx.location,
                ) from error

    def close(self) -> None:
        """See `Operator`."""
        if self._opened:
            self._opened = False
            self._sink.close()


def _items(table: pa.Table) -> list[tuple[CheckpointId, Any]]:
    numbers, texts = table.column("checkpoint_id").to_pylist(), table.column("pending").to_pylist()
    return [(CheckpointId(number), json.loads(text)) for number, text in zip(numbers, texts)]
