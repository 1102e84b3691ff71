"""Two-phase commit of transactional sinks: which staged transaction may be published, and when.

Theory of operation. At a barrier a sink stages what it wrote since the last one and describes it in a value,
the *pending transaction*, which becomes part of the checkpoint. Only when the whole checkpoint is complete
may it be published. Proof of that is a `CommitPermit`: the checkpoint coordinator makes one when the manifest
is durable, and the sink's `commit` cannot be called without one. A ledger, one per sink subtask and attempt,
holds the pending transactions until a permit covers them.

If a checkpoint is aborted its transaction stays open, is part of the next checkpoint's snapshot, and commits
with the next one that completes: its rows come before that one's barrier. After a restore everything that was
open in the restored checkpoint is committed again, since nobody knows whether the dead attempt came to it;
hence `commit` must be idempotent.

A commit may take long, and checkpoints go on meanwhile. A transaction that was handed out stays open, and part of
every snapshot, until it is known to be committed: else a restore of a later checkpoint would forget one whose commit
had not come through. A commit that fails ends the attempt.

Invariants:

1. A transaction is handed out only under a permit of its own or a later checkpoint.
2. In one attempt it is handed out at most once.
3. Transactions are handed out in the order of their checkpoints, and committed in that order.
4. Checkpoints of prepared transactions strictly grow, and each is above every one already permitted.
5. All permits granted to a ledger are of one job and attempt.
6. Restored transactions come first, once, and none is of a later checkpoint than the restored one.
7. A transaction is in every snapshot from the one that prepared it until it is committed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True)
class CommitPermit:
    """Proof that checkpoint `checkpoint_id` is complete, and, in `pending`, the transaction to publish.

    `attempt` is the attempt that commits. Only the checkpoint coordinator makes permits; what crosses to a
    subtask as a message is made into one again there, after the attempt was checked.
    """

    job_id: JobId
    attempt: Attempt
    checkpoint_id: CheckpointId
    pending: Any = None


@dataclass(frozen=True, slots=True)
class TransactionPrepared:
    """The sink staged a transaction at the barrier of `checkpoint_id`. `pending` None: nothing to publish."""

    checkpoint_id: CheckpointId
    pending: Any


@dataclass(frozen=True, slots=True)
class PermitGranted:
    """The permit's checkpoint is complete. Harmless when told twice, or late."""

    permit: CommitPermit


@dataclass(frozen=True, slots=True)
class TransactionsRestored:
    """These transactions, (checkpoint, pending) each, were open in the checkpoint that `permit` names."""

    items: tuple[tuple[CheckpointId, Any], ...]
    permit: CommitPermit


@dataclass(frozen=True, slots=True)
class CommitTransaction:
    """Publish `permit.pending` now."""

    permit: CommitPermit


@dataclass(frozen=True, slots=True)
class TransactionCommitted:
    """The transaction that was handed out first, of those not yet told about, is published."""


LedgerEvent = TransactionPrepared | PermitGranted | TransactionsRestored | TransactionCommitted


class CommitLedger:
    """Pending transactions of one sink subtask in one attempt."""

    def __init__(self) -> None:
        # Handed out and not known to be committed, in that order.
        self._committing: deque[tuple[CheckpointId, Any]] = deque()
        # Ascending by checkpoint (invariant 4), hence handed out in order (invariant 3).
        self._open: list[tuple[CheckpointId, Any]] = []
        self._last_prepared = CheckpointId(0)
        self._last_permitted = CheckpointId(0)
        self._owner: tuple[JobId, Attempt] | None = None
        self._untouched = True

    @property
    def open(self) -> tuple[tuple[CheckpointId, Any], ...]:
        """(checkpoint, pending) of what is not yet committed, oldest first: what a snapshot must hold."""
        return (*self._committing, *self._open)

    @property
    def committing(self) -> int:
        """How many transactions are handed out and not yet committed."""
        return len(self._committing)

    def handle(self, event: LedgerEvent) -> tuple[CommitTransaction, ...]:
        """Take note of `event`; return what is to be published now, in order."""
        match event:
            case TransactionPrepared():
                self._prepare(event)
                return ()
            case PermitGranted():
                return self._grant(event.permit)
            case TransactionsRestored():
                return self._restore(event)
            case TransactionCommitted():
                self._committed()
                return ()
            case _:
                unhandled(event)

    def _prepare(self, event: TransactionPrepared) -> None:
        floor = max(self._last_prepared, self._last_permitted)
        if event.checkpoint_id <= floor:
            raise ProtocolViolation(
                f"transaction prepared for checkpoint {event.checkpoint_id}: expected one above {floor}, "
                "the last prepared or permitted (invariant 4)"
            )
        self._untouched = False
        self._last_prepared = event.checkpoint_id
        if event.pending is not None:
            self._open.append((event.checkpoint_id, event.pending))

    def _grant(self, permit: CommitPermit) -> tuple[CommitTransaction, ...]:
        owner = (permit.job_id, permit.attempt)
        if self._owner not in (None, owner):
            raise ProtocolViolation(
                f"permit of job {permit.job_id} attempt {permit.attempt}: expected {self._owner}; "
                "stale messages must be dropped before they get here (invariant 5)"
            )
        self._untouched = False
        self._owner = owner
        self._last_permitted = max(self._last_permitted, permit.checkpoint_id)
        covered = [item for item in self._open if item[0] <= permit.checkpoint_id]
        del self._open[: len(covered)]
        self._committing.extend(covered)
        return _commits(permit, covered)

    def _committed(self) -> None:
        if not self._committing:
            raise ProtocolViolation("a transaction is told to be committed, but none was handed out")
        self._committing.popleft()

    def _restore(self, event: TransactionsRestored) -> tuple[CommitTransaction, ...]:
        if not self._untouched:
            raise ProtocolViolation(
                "transactions restored into a ledger that is already in use (invariant 6)"
            )
        newest = max((checkpoint for checkpoint, _ in event.items), default=CheckpointId(0))
        if newest > event.permit.checkpoint_id:
            raise ProtocolViolation(
                f"restored transaction of checkpoint {newest}: expected at most "
                f"{event.permit.checkpoint_id}, the restored checkpoint (invariant 6)"
            )
        self._untouched = False
        # Several writers' transactions of one checkpoint may meet here after rescaling: a stable sort.
        items = sorted(event.items, key=lambda item: item[0])
        self._committing.extend(items)
        return _commits(event.permit, items)


def _commits(
    permit: CommitPermit, items: Iterable[tuple[CheckpointId, Any]]
) -> tuple[CommitTransaction, ...]:
    return tuple(CommitTransaction(replace(permit, pending=pending)) for _, pending in items)
