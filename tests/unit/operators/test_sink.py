from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from rayflow.model.errors import UserFunctionError
from rayflow.operators.contracts import Sink, SinkContext
from rayflow.operators.sink import MAX_UNCOMMITTED, SinkOperator
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


class Background:
    """Runs nothing until told to: `run_in_background` of a host whose threads are in the test's hands."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Any, Any]] = []

    def __call__(self, work: Any, done: Any) -> None:
        self.waiting.append((work, done))

    def run(self, error: BaseException | None = None) -> None:
        work, done = self.waiting.pop(0)
        done(None if error else work(), error)


class BackgroundSink(ListSink):
    commit_in_background = True

    def committed(self, permit: CommitPermit) -> None:
        self.log.append(("committed", permit.checkpoint_id))


def test_rows_and_barriers_flow_on_behind_a_commit_that_hangs(harness: Any) -> None:
    log: list[Any] = []
    background = Background()
    driven = harness(lambda: SinkOperator(BackgroundSink(log)), run_in_background=background)
    for checkpoint in (1, 2, 3):
        (part,) = driven.feed(BATCH).snapshot(checkpoint)
        driven.complete(checkpoint)
        # What waits for its commit is in every snapshot.
        assert part.table["checkpoint_id"].to_pylist() == list(range(1, checkpoint + 1))
    assert log[1:] == []
    assert driven.operator.committing()
    assert driven.operator.next_timer_ms() is None
    for checkpoint in (1, 2, 3):
        (_,) = background.waiting  # one at a time
        background.run()
        assert driven.operator.next_timer_ms() == 0
        driven.operator.on_timer(5)
        assert log[-2:] == [("commit", checkpoint, [1, 2]), ("committed", checkpoint)]
    assert not driven.operator.committing()
    assert driven.snapshot(4)[0].table.num_rows == 0


def test_too_many_that_wait_hold_the_rows_up(harness: Any) -> None:
    background = Background()
    driven = harness(lambda: SinkOperator(BackgroundSink([])), run_in_background=background)
    for checkpoint in range(1, MAX_UNCOMMITTED + 1):
        assert not driven.operator.blocked()
        driven.feed(BATCH).snapshot(checkpoint)
        driven.complete(checkpoint)
    assert driven.operator.blocked()
    background.run()
    driven.operator.on_timer(0)
    assert not driven.operator.blocked()


def test_a_commit_that_fails_in_the_background_ends_the_attempt_and_the_next_one_commits_again(
    harness: Any,
) -> None:
    background = Background()
    driven = harness(lambda: SinkOperator(BackgroundSink([])), run_in_background=background).feed(BATCH)
    driven.snapshot(1)
    driven.complete(1)
    parts = driven.snapshot(2)
    background.run(OSError("no answer"))
    with pytest.raises(UserFunctionError, match="commit of checkpoint 1 failed: OSError: no answer"):
        driven.operator.on_timer(0)
    log: list[Any] = []
    harness(lambda: SinkOperator(BackgroundSink(log)), attempt=2, restored=parts, restored_from=2)
    assert log == [("open", 0, 2), ("commit", 2, [1, 2]), ("committed", 2)]
