"""`TransactionalSink` under crashes, rescaling, lost answers and zombies, against a naive model of the target.

A job is played by hand: a real ledger and sink per subtask, checkpoints that complete or not, permits that arrive
late. What is checked after every step: the target has no row twice, and none but of completed checkpoints; in the
end exactly those, and nothing that waits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.operators.contracts import SinkContext
from rayflow.operators.transactions import Transaction, TransactionalSink, TransactionId, sink_name
from rayflow.protocol.commits import (
    CommitLedger,
    CommitPermit,
    PermitGranted,
    TransactionCommitted,
    TransactionPrepared,
    TransactionsRestored,
)


@dataclass
class Target:
    """A system with prepared transactions. `answers` says of coming commits whether their answer gets lost, before
    or after they were carried out."""

    prepared: dict[str, list[int]] = field(default_factory=dict)
    committed: dict[str, list[int]] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    answers: list[str] = field(default_factory=list)


class TargetSink(TransactionalSink):
    def __init__(self, target: Target, tells: bool = True) -> None:
        self.target, self.tells = target, tells

    def connect(self, ctx: SinkContext) -> None:
        self.rows: list[int] = []

    def begin(self, transaction: str) -> None:
        assert len(transaction) <= 64
        assert transaction not in {**self.target.prepared, **self.target.committed}
        self.rows = []

    def write_rows(self, transaction: str, batch: pa.RecordBatch) -> None:
        self.rows += batch.column("n").to_pylist()

    def pre_commit(self, transaction: str) -> Any:
        self.target.prepared[transaction] = self.rows
        return {"rows": len(self.rows)}

    def commit_transaction(self, transaction: Transaction) -> None:
        answer = self.target.answers.pop(0) if self.target.answers else ""
        if answer == "lost before":
            raise TimeoutError(answer)
        if transaction.id not in self.target.committed:
            assert transaction.data == {"rows": len(self.target.prepared[transaction.id])}
            self.target.committed[transaction.id] = self.target.prepared.pop(transaction.id)
        if answer == "lost after":
            raise TimeoutError(answer)

    def abort_transaction(self, transaction: Transaction) -> None:
        assert transaction.id not in self.target.committed
        self.target.prepared.pop(transaction.id, None)
        self.target.aborted.add(transaction.id)

    def outcome(self, transaction: Transaction) -> Any:
        if not self.tells:
            return "unknown"
        return "committed" if transaction.id in self.target.committed else "pending"

    def list_transactions(self, prefix: str) -> Iterable[str]:
        return [name for name in self.target.prepared if name.startswith(prefix)]


@dataclass
class Attempt:
    number: int
    sinks: list[TargetSink]
    ledgers: list[CommitLedger]
    permits: list[list[CommitPermit]]
    last_barrier: int


class PlayedJob:
    def __init__(self, tells: bool) -> None:
        self.target = Target()
        self.make = lambda: TargetSink(self.target, tells)
        self.next_row = 0
        self.next_checkpoint = 1
        self.pending: list[tuple[int, list[Any], list[int]]] = []
        self.completed: tuple[int, list[Any], list[int]] = (0, [], [])
        self.rows: list[int] = []
        self.zombies: list[Attempt] = []
        self.deploy(1, 2)

    def context(self, attempt: int, subtask: int, parallelism: int, **more: Any) -> SinkContext:
        return SinkContext(
            job_id="job-1",
            attempt=attempt,
            uid="my sink",
            subtask_index=subtask,
            parallelism=parallelism,
            max_parallelism=8,
            **more,
        )

    def deploy(self, number: int, parallelism: int) -> None:
        at, parts, rows = self.completed
        attempt = Attempt(number, [], [], [], at)
        permit = CommitPermit("job-1", number, at)  # type: ignore[arg-type]
        self.pending, self.rows, self.attempt = [], list(rows), attempt
        for i in range(parallelism):
            sink, ledger = self.make(), CommitLedger()
            attempt.sinks.append(sink)
            attempt.ledgers.append(ledger)
            attempt.permits.append([])
            sink.open(self.context(number, i, parallelism, restored_checkpoint=at or None))
            if at:
                mine = tuple(item for j, part in enumerate(parts) if j % parallelism == i for item in part)
                if not self.commit(sink, ledger, ledger.handle(TransactionsRestored(mine, permit))):
                    # It dies while it restores: the next attempt begins from the same checkpoint.
                    return self.crash(parallelism)
        return None

    def commit(self, sink: TargetSink, ledger: CommitLedger, commands: Any) -> bool:
        for command in commands:
            try:
                sink.commit(command.permit)
            except TimeoutError:
                return False
            ledger.handle(TransactionCommitted())
        return True

    # ------------------------------------------------------------------------------------------- steps

    def write(self, which: int, rows: int) -> None:
        made = list(range(self.next_row, self.next_row + rows))
        self.next_row += rows
        self.attempt.sinks[which % len(self.attempt.sinks)].write(pa.record_batch({"n": made}))
        self.rows += made

    def barrier(self) -> None:
        number, self.next_checkpoint = self.next_checkpoint, self.next_checkpoint + 1
        parts = []
        for sink, ledger in zip(self.attempt.sinks, self.attempt.ledgers):
            ledger.handle(TransactionPrepared(number, sink.prepare(number)))  # type: ignore[arg-type]
            parts.append(json.loads(json.dumps(ledger.open)))
        self.attempt.last_barrier = number
        self.pending.append((number, parts, list(self.rows)))

    def complete(self, which: int) -> None:
        if self.pending:
            at = which % len(self.pending)
            self.completed = self.pending[at]
            del self.pending[: at + 1]
            permit = CommitPermit("job-1", self.attempt.number, self.completed[0])  # type: ignore[arg-type]
            for queue in self.attempt.permits:
                queue.append(permit)

    def deliver(self, which: int) -> None:
        i = which % len(self.attempt.sinks)
        if self.attempt.permits[i] and not self.deliver_to(self.attempt, i):
            self.crash(len(self.attempt.sinks))

    def deliver_to(self, attempt: Attempt, i: int) -> bool:
        ledger = attempt.ledgers[i]
        return self.commit(attempt.sinks[i], ledger, ledger.handle(PermitGranted(attempt.permits[i].pop(0))))

    def crash(self, parallelism: int) -> None:
        self.zombies.append(self.attempt)
        self.deploy(self.attempt.number + 1, parallelism)

    def close_and_restart(self, parallelism: int) -> None:
        for sink in self.attempt.sinks:
            sink.close()
        self.deploy(self.attempt.number + 1, parallelism)

    def lose_answer(self, answer: str) -> None:
        self.target.answers.append(answer)

    def zombie(self, which: int) -> None:
        if not self.zombies:
            return
        zombie = self.zombies[which % len(self.zombies)]
        i = which % len(zombie.sinks)
        if zombie.permits[i]:
            self.deliver_to(zombie, i)
        else:
            zombie.sinks[i].write(pa.record_batch({"n": [-1]}))
            zombie.last_barrier += 1
            zombie.sinks[i].prepare(zombie.last_barrier)

    def first_checkpoint(self) -> None:
        if self.completed[0] and self.attempt.number > 1:
            number = self.attempt.number
            self.attempt.sinks[0].restored(self.context(number, 0, len(self.attempt.sinks)))
            left = map(TransactionId.parse, self.target.prepared)
            assert all(id is not None and id.attempt >= number for id in left)

    # ------------------------------------------------------------------------------------------ checks

    def visible(self) -> list[int]:
        return [row for rows in self.target.committed.values() for row in rows]

    def check(self) -> None:
        assert not Counter(self.visible()) - Counter(self.completed[2])
        assert not self.target.aborted & self.target.committed.keys()

    def finish(self) -> None:
        self.target.answers.clear()
        self.barrier()
        self.complete(len(self.pending) - 1)
        for i in range(len(self.attempt.sinks)):
            while self.attempt.permits[i]:
                assert self.deliver_to(self.attempt, i)
        assert sorted(self.visible()) == sorted(self.completed[2])
        self.make().finish_job(self.context(self.attempt.number, -1, 1, succeeded=True))
        assert self.target.prepared == {}


small = st.integers(0, 3)
usual = [
    st.tuples(st.just("write"), small, st.integers(1, 3)),
    st.tuples(st.just("barrier")),
    st.tuples(st.just("complete"), small),
]
failures = [
    st.tuples(st.just("deliver"), small),
    st.tuples(st.just("crash"), st.integers(1, 4)),
    st.tuples(st.just("close_and_restart"), st.integers(1, 4)),
    st.tuples(st.just("lose_answer"), st.sampled_from(["lost before", "lost after"])),
    st.tuples(st.just("zombie"), small),
    st.tuples(st.just("first_checkpoint")),
]
# The usual course of things more often than failures, or checkpoints would rarely complete.
steps = st.one_of(*usual * 3, *failures)


@pytest.mark.parametrize("tells", [True, False])
@given(plan=st.lists(steps, min_size=10, max_size=60))
@settings(max_examples=150, deadline=None)
def test_every_order_of_failures_commits_each_row_once(tells: bool, plan: list[tuple[Any, ...]]) -> None:
    job = PlayedJob(tells)
    for name, *arguments in plan:
        getattr(job, name)(*arguments)
        job.check()
    job.finish()


def opened(target: Target, **more: Any) -> TargetSink:
    sink = TargetSink(target)
    values = {
        "job_id": "job-1",
        "attempt": 1,
        "uid": "s",
        "subtask_index": 0,
        "parallelism": 1,
        "max_parallelism": 8,
    }
    sink.open(SinkContext(**{**values, **more}))
    return sink


ROW = pa.record_batch({"n": [1]})


def prepared(sink: TargetSink, checkpoint: int) -> str:
    sink.write(ROW)
    return str(sink.prepare(checkpoint)["transaction"])  # type: ignore[index]


def test_ids_say_whose_they_are_and_nobody_elses_parse() -> None:
    id = TransactionId(job_id="job-a-1", sink=sink_name("a/b ü" * 50), subtask=3, attempt=2, checkpoint=17)
    assert TransactionId.parse(str(id)) == id
    assert len(str(id)) <= 64
    for foreign in ("", "rf", "rf-1-2-3", "other-job-1-abc-0-1-2", "rf-job-1-abc-0-x-2", "gid 1"):
        assert TransactionId.parse(foreign) is None


def test_the_next_attempt_aborts_what_no_checkpoint_has_whoever_began_it_and_leaves_what_one_has() -> None:
    target = Target()
    first, second = (opened(target, subtask_index=i, parallelism=3) for i in (1, 2))
    first.prepare(4)
    second.prepare(4)
    kept = prepared(second, 5)  # in checkpoint 5, which completes
    first.prepare(5)
    gone = [prepared(first, 6), prepared(second, 6)]
    others = ["rf-job-12-abc-0-1-9", "somebody else's"]
    target.prepared.update({name: [7] for name in others})
    opened(target, attempt=2, restored_checkpoint=5)
    assert sorted(target.prepared) == sorted([kept, *others])
    assert target.aborted == set(gone)


def test_a_job_that_ends_early_keeps_what_its_newest_checkpoint_has() -> None:
    target = Target()
    sink = opened(target)
    kept, _ = prepared(sink, 1), prepared(sink, 2)
    ctx = SinkContext(
        job_id="job-1",
        attempt=1,
        uid="s",
        subtask_index=-1,
        parallelism=1,
        max_parallelism=8,
        completed_checkpoint=1,
    )
    TargetSink(target).finish_job(ctx)
    assert list(target.prepared) == [kept]


def test_a_manager_that_ends_the_job_leaves_alone_what_a_later_one_has_begun() -> None:
    target = Target()
    gone, later = prepared(opened(target), 1), prepared(opened(target, attempt=2), 1)
    ctx = SinkContext(
        job_id="job-1", attempt=1, uid="s", subtask_index=-1, parallelism=1, max_parallelism=8, succeeded=True
    )
    TargetSink(target).finish_job(ctx)
    assert (list(target.prepared), target.aborted) == ([later], {gone})


def test_without_rows_there_is_no_transaction() -> None:
    sink = opened(Target())
    assert sink.prepare(1) is None
    sink.write(ROW)
    assert TransactionId.parse(sink.prepare(2)["transaction"]).checkpoint == 2  # type: ignore[index, union-attr]


def test_a_commit_that_is_known_to_be_pending_is_tried_again_a_few_times() -> None:
    target = Target(answers=["lost before"] * 2)
    sink = opened(target)
    sink.write(ROW)
    permit = CommitPermit("job-1", 1, 1, sink.prepare(1))  # type: ignore[arg-type]
    sink.commit(permit)
    assert list(target.committed.values()) == [[1]]
    sink.write(ROW)
    target.answers = ["lost before"] * 3
    with pytest.raises(TimeoutError):
        sink.commit(CommitPermit("job-1", 1, 2, sink.prepare(2)))  # type: ignore[arg-type]


def test_closing_drops_what_is_not_prepared_and_what_that_raises_hides_nothing() -> None:
    class Broken(TargetSink):
        closed = False

        def abort_transaction(self, transaction: Transaction) -> None:
            raise OSError("gone")

        def disconnect(self) -> None:
            self.closed = True

    sink = Broken(Target())
    sink.open(
        SinkContext(job_id="job-1", attempt=1, uid="s", subtask_index=0, parallelism=1, max_parallelism=8)
    )
    sink.write(ROW)
    sink.close()
    assert sink.closed
