from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from rayflow.model.errors import UserFunctionError
from rayflow.operators.contracts import Sink, SinkContext
from rayflow.operators.sink import SinkOperator
from rayflow.protocol.commits import CommitPermit

BATCH = pa.record_batch({"n": [1, 2]})


class ListSink(Sink):
    """Stages rows in memory; `log` says what the operator asked for."""

    def __init__(self, log: list[Any]) -> None:
        self.log = log
        self.staged: list[int] = []
        self.flush_ms: int | None = None

    def open(self, ctx: SinkContext) -> None:
        self.log.append(("open", ctx.subtask_index, ctx.attempt))

    def write(self, batch: pa.RecordBatch) -> None:
        self.staged += batch.column("n").to_pylist()

    def prepare(self, checkpoint_id: int) -> Any | None:
        staged, self.staged = self.staged, []
        return {"rows": staged} if staged else None

    def commit(self, permit: CommitPermit) -> None:
        self.log.append(("commit", permit.checkpoint_id, permit.pending["rows"]))

    def restored(self, ctx: SinkContext) -> None:
        self.log.append("restored")

    def next_flush_ms(self) -> int | None:
        return self.flush_ms

    def flush(self, now_ms: int) -> None:
        self.log.append(("flush", now_ms))

    def close(self) -> None:
        self.log.append("close")


def test_rows_are_committed_when_their_checkpoint_completes(harness: Any) -> None:
    log: list[Any] = []
    driven = harness(lambda: SinkOperator(ListSink(log)))
    driven.feed(BATCH).snapshot(1)
    driven.feed(BATCH)
    assert log == [("open", 0, 1)]
    driven.complete(1)
    assert log[1:] == [("commit", 1, [1, 2])]
    driven.complete(1)
    driven.operator.close()
    driven.operator.close()
    assert log[2:] == ["close"]


def test_what_an_aborted_checkpoint_staged_commits_with_the_next(harness: Any) -> None:
    log: list[Any] = []
    driven = harness(lambda: SinkOperator(ListSink(log)))
    driven.feed(BATCH).snapshot(1)  # aborted
    (part,) = driven.feed(BATCH).snapshot(2)
    assert part.table.to_pydict() == {
        "checkpoint_id": [1, 2],
        "pending": ['{"rows": [1, 2]}', '{"rows": [1, 2]}'],
    }
    driven.complete(2)
    assert log[1:] == [("commit", 2, [1, 2]), ("commit", 2, [1, 2])]
    (part,) = driven.snapshot(3)
    assert part.table.num_rows == 0


def test_restored_transactions_are_committed_before_anything_else(harness: Any) -> None:
    parts = harness(lambda: SinkOperator(ListSink([]))).feed(BATCH).snapshot(4)
    log: list[Any] = []
    driven = harness(lambda: SinkOperator(ListSink(log)), attempt=2, restored=parts, restored_from=4)
    assert log == [("open", 0, 2), ("commit", 4, [1, 2])]
    driven.feed(BATCH).snapshot(5)
    driven.complete(5)
    driven.snapshot(6)
    driven.complete(6)
    assert log[2:] == [("commit", 5, [1, 2]), "restored"]


def test_only_subtask_0_of_a_later_attempt_hears_of_the_restore(harness: Any) -> None:
    for attempt, index, heard in [(1, 0, False), (2, 0, True), (2, 1, False)]:
        log: list[Any] = []
        driven = harness(
            lambda log=log: SinkOperator(ListSink(log)), index=index, parallelism=2, attempt=attempt
        )
        driven.snapshot(1)
        driven.complete(1)
        assert ("restored" in log) == heard


def test_flush_timers_reach_the_sink(harness: Any) -> None:
    log: list[Any] = []
    sink = ListSink(log)
    driven = harness(lambda: SinkOperator(sink))
    assert driven.operator.next_timer_ms() is None
    sink.flush_ms = 77
    assert driven.operator.next_timer_ms() == 77
    driven.operator.on_timer(80)
    assert log[-1] == ("flush", 80)


def test_a_failed_commit_says_which_checkpoint(harness: Any) -> None:
    class Broken(ListSink):
        def commit(self, permit: CommitPermit) -> None:
            raise OSError("disk full")

    driven = harness(lambda: SinkOperator(Broken([]))).feed(BATCH)
    driven.snapshot(3)
    with pytest.raises(UserFunctionError, match="commit of checkpoint 3 failed: OSError: disk full"):
        driven.complete(3)


def test_pending_data_must_be_json(harness: Any) -> None:
    class Odd(ListSink):
        def prepare(self, checkpoint_id: int) -> Any:
            return object()

    driven = harness(lambda: SinkOperator(Odd([])))
    with pytest.raises(UserFunctionError, match="not JSON data"):
        driven.snapshot(1)
