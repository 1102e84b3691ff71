"""`TransactionalSink`: what databases and brokers need of two-phase commit, so that a sink for one is a few hooks.

Theory of operation
-------------------
Between two barriers a subtask writes into one *transaction* of the system outside. At the barrier it is made able to
commit whatever happens to this process (`pre_commit`: PREPARE TRANSACTION, or rows in a staging table); its id, and
what the sink adds, go into the checkpoint as JSON. When the checkpoint is complete it is committed; and again, after
a restore, by whoever restores it, since nobody knows whether the one before came to it.

Its id says to whom it belongs: `rf-<job>-<sink>-<subtask>-<attempt>-<checkpoint>`, the checkpoint being the first
that it can be part of: the last one whose barrier the subtask has seen (or restored), plus one. Each barrier ends the
transaction, so for those of one job and sink:

1. Ids are unique for ever: no attempt begins two transactions at one barrier, and attempts only grow (I6).
2. Where checkpoint c is restored, a transaction is in it, or was committed before it, exactly if its id's checkpoint
   is at most c. So the next attempt knows by name what can never be committed, at whatever parallelism it was begun,
   and aborts it, before it writes: what a dead subtask left prepared may hold locks.
3. A *zombie*, a process of an older attempt that does not know it, cannot commit what was not restored, since it gets
   no permit; nor disturb a later attempt's transaction, which has another id. What it prepares after that is aborted
   when the attempt's first checkpoint is complete, by every later attempt, and when the job ends. What one prepares
   after the job's end is aborted by a last look of the job manager, once its lease must have ended it. Only what one
   prepares that stood still for longer stays, until the user has the sinks look again: `rayflow clean JOB`. (PostgreSQL
   and MariaDB have no time limit for prepared transactions, as Kafka has for its own.)

A commit that raises has an unknown outcome, unless `outcome` can tell: committed, and all is well; pending, and it is
tried again; unknown, and the attempt ends, so that the next one, on fresh connections, finds out.
"""

from __future__ import annotations

import hashlib
import logging
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa

from rayflow.model.errors import RayflowError
from rayflow.operators.contracts import Sink, SinkContext
from rayflow.protocol.commits import CommitPermit

Outcome = Literal["committed", "pending", "unknown"]

COMMIT_TRIES = 3
"""How often a commit that is known to be pending is tried before the attempt ends."""

_SHOWN = 3

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Transaction:
    """A transaction of the system outside. `id` is text of at most 64 letters, digits and `-`; `data` is what
    `pre_commit` returned, None before and for transactions that were only found by their name."""

    id: str
    data: Any = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TransactionId:
    """What a transaction's id says. `checkpoint` is the first that it can be part of."""

    job_id: str
    sink: str
    subtask: int
    attempt: int
    checkpoint: int

    def __str__(self) -> str:
        return f"rf-{self.job_id}-{self.sink}-{self.subtask}-{self.attempt}-{self.checkpoint}"

    @staticmethod
    def parse(text: str) -> TransactionId | None:
        """Return what an id says; None where it is not one of ours."""
        head, *numbers = text.rsplit("-", 3)
        kind, _, rest = head.partition("-")
        job_id, _, sink = rest.rpartition("-")
        if kind != "rf" or not job_id or len(numbers) != 3 or not all(n.isdecimal() for n in numbers):
            return None
        subtask, attempt, checkpoint = map(int, numbers)
        return TransactionId(
            job_id=job_id, sink=sink, subtask=subtask, attempt=attempt, checkpoint=checkpoint
        )


class TransactionalSink(Sink):
    """A public contract: a sink whose target has transactions that can be prepared, or something like them.

    Subclasses override the hooks from `connect` to `disconnect`; all run on the task thread (`commit_transaction` and
    `outcome` on another one where `commit_in_background` is set), may block as long as the target needs, and raise what
    they like. The object is pickled to where it runs: connections belong into `connect`. Per subtask::

        connect ─▶ { begin ─▶ write_rows* ─▶ pre_commit ─▶ (later) commit_transaction }* ─▶ disconnect

    A transaction may be committed while the next one is written: a target whose connections can do one thing at a
    time needs two of them.
    """

    # ------------------------------------------------------------------------------------------ hooks

    @abstractmethod
    def connect(self, ctx: SinkContext) -> None:
        """Connect to the target, and make what it lacks (tables). Called once in each subtask and attempt, first; and
        on the JobManager when the job ends, with `ctx.subtask_index` -1. What it raises is taken for something that
        may pass: the job restarts as often as it may."""

    @abstractmethod
    def begin(self, transaction: str) -> None:
        """Begin the transaction of this id. Called before its first rows; without rows there is none."""

    @abstractmethod
    def write_rows(self, transaction: str, batch: pa.RecordBatch) -> None:
        """Write rows (at least one) into it. Nobody else may see them."""

    @abstractmethod
    def pre_commit(self, transaction: str) -> Any:
        """Make it durable, so that it can be committed from another process. Returns JSON data that committing
        needs besides the id, or None. From here on it is neither written to nor known to this process."""

    @abstractmethod
    def commit_transaction(self, transaction: Transaction) -> None:
        """Make its rows visible, all at once. Idempotent: does nothing where that is done. Raises where the
        transaction can be found neither pending nor committed: its rows are lost."""

    @abstractmethod
    def abort_transaction(self, transaction: Transaction) -> None:
        """Drop it, prepared or not. Harmless where it is gone. Never called for one that was committed."""

    def outcome(self, transaction: Transaction) -> Outcome:
        """Return what became of it, read from the target: committed, pending, or (cannot be told) unknown. Asked
        when a commit has raised, and after a restore."""
        return "unknown"

    def list_transactions(self, prefix: str) -> Iterable[str]:
        """Return the ids, of those that begin with `prefix`, of transactions that are neither committed nor aborted.
        Without this what failed attempts prepared stays in the target."""
        return ()

    def recover_and_commit(self, transaction: Transaction) -> None:
        """Commit a transaction of the restored checkpoint, which may have been committed before."""
        if self._outcome(transaction) != "committed":
            self.commit_transaction(transaction)

    def recover_and_abort(self, transaction: Transaction) -> None:
        """Abort a transaction that another attempt began, of a checkpoint that never completed."""
        self.abort_transaction(transaction)

    def disconnect(self) -> None:
        """Let go of what `connect` made. Called also where that failed half-way, or anything else did."""

    # ------------------------------------------------------------------------------------- the contract

    def open(self, ctx: SinkContext) -> None:
        """Connect; abort what earlier attempts began and can never commit (each subtask its share)."""
        self._ctx = ctx
        self._current: str | None = None
        self._checkpoint = ctx.restored_checkpoint or 0
        self._connected = True
        try:
            self.connect(ctx)
        except RayflowError:
            raise
        except Exception as error:
            # A target that is away comes back, whatever its driver calls that: no fault that repeats itself.
            raise ConnectionError(f"cannot connect: {type(error).__name__}: {error}") from error
        if ctx.attempt > 1:
            self._abort_all(
                ctx,
                lambda id: (
                    id.attempt < ctx.attempt
                    and id.checkpoint > self._checkpoint
                    and id.subtask % ctx.parallelism == ctx.subtask_index
                ),
            )

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows, into a new transaction if there is none."""
        if self._current is None:
            name = TransactionId(
                job_id=self._ctx.job_id,
                sink=sink_name(self._ctx.uid),
                subtask=self._ctx.subtask_index,
                attempt=self._ctx.attempt,
                checkpoint=self._checkpoint + 1,
            )
            self._current = str(name)
            self.begin(self._current)
        self.write_rows(self._current, batch)

    def prepare(self, checkpoint_id: int) -> Any | None:
        """End the transaction."""
        self._checkpoint = checkpoint_id
        if self._current is None:
            return None
        data = self.pre_commit(self._current)
        prepared, self._current = self._current, None
        return {"transaction": prepared, "data": data}

    def commit(self, permit: CommitPermit) -> None:
        """Commit; find out, where that raises, whether it did."""
        transaction = _transaction(permit.pending)
        if self._is_ours(transaction):
            self._commit_surely(transaction)
        else:
            self.recover_and_commit(transaction)

    def abort(self, pending: Any) -> None:
        """Drop a prepared transaction."""
        self.abort_transaction(_transaction(pending))

    def restored(self, ctx: SinkContext) -> None:
        """Abort what zombies of earlier attempts have prepared since: all that was to be committed is."""
        self._abort_all(ctx, lambda id: id.attempt < ctx.attempt)

    def finish_job(self, ctx: SinkContext) -> str | None:
        """Abort what no restore can commit; tell of what a restore can. Attempts after `ctx.attempt` have another job
        manager, who has taken over from the one that ends the job here."""
        keep = 0 if ctx.succeeded else ctx.completed_checkpoint or 0
        try:
            self.connect(ctx)
            self._abort_all(ctx, lambda id: id.checkpoint > keep and id.attempt <= ctx.attempt)
            left = [str(id) for id in self._neither(ctx) if id.checkpoint <= keep]
        finally:
            self.disconnect()
        if not left:
            return None
        some = ", ".join(left[:_SHOWN]) + (", …" if len(left) > _SHOWN else "")
        return (
            f"{len(left)} prepared and not committed ({some}): they belong to checkpoint {keep}, stay in the target, "
            "and may hold locks there, until a job that starts from that checkpoint commits them; if none will, drop "
            "them in the target, and their rows with them"
        )

    def close(self) -> None:
        """Drop what is not prepared, and disconnect."""
        if not getattr(self, "_connected", False):
            return
        self._connected = False
        try:
            if self._current is not None:
                self.abort_transaction(Transaction(self._current))
        except Exception as error:
            # The next attempt does it: it finds the transaction by its name.
            _log.warning("cannot abort %s: %s", self._current, error)
        finally:
            self._current = None
            self.disconnect()

    # ----------------------------------------------------------------------------------------- details

    def _commit_surely(self, transaction: Transaction) -> None:
        for tries_left in reversed(range(COMMIT_TRIES)):
            try:
                return self.commit_transaction(transaction)
            except Exception:
                outcome = self._outcome(transaction)
                if outcome == "committed":
                    return None
                if outcome == "unknown" or not tries_left:
                    raise

    def _outcome(self, transaction: Transaction) -> Outcome:
        try:
            return self.outcome(transaction)
        except RayflowError:
            raise
        except Exception as error:
            _log.warning("the outcome of %s cannot be told: %s", transaction.id, error)
            return "unknown"

    def _is_ours(self, transaction: Transaction) -> bool:
        """Whether this attempt began it."""
        id = TransactionId.parse(transaction.id)
        return id is not None and (id.job_id, id.attempt) == (self._ctx.job_id, self._ctx.attempt)

    def _abort_all(self, ctx: SinkContext, which: Callable[[TransactionId], bool]) -> None:
        for id in self._neither(ctx):
            if which(id):
                self.recover_and_abort(Transaction(str(id)))

    def _neither(self, ctx: SinkContext) -> list[TransactionId]:
        """Return those of the job and sink that are neither committed nor aborted."""
        # With the dash, so that one job's id can be the beginning of another's.
        names = sorted(self.list_transactions(f"rf-{ctx.job_id}-{sink_name(ctx.uid)}-"))
        return [
            id for name in names if (id := TransactionId.parse(name)) is not None and id.job_id == ctx.job_id
        ]


def sink_name(uid: str) -> str:
    """Return what stands for an operator in transactions' ids: a uid may be long, and hold anything."""
    return hashlib.sha256(uid.encode()).hexdigest()[:8]


def _transaction(pending: Any) -> Transaction:
    return Transaction(pending["transaction"], pending["data"])
