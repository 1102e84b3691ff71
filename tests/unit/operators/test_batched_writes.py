"""A batched sink whose writes end when the test says, on a clock that the test moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.batch.changelog import DELETE, INSERT, OP_COLUMN, with_op
from rayflow.model.errors import ConfigError, TransientError, UserFunctionError
from rayflow.operators.batched_writes import BatchedSinkOperator
from rayflow.protocol.key_groups import key_group_range
from rayflow.runtime.faults import fault_of
from rayflow.state.parts import KEY_GROUP_COLUMN


def rows(*values: int, k: int | None = None) -> pa.RecordBatch:
    keys = [v % 10 for v in values] if k is None else [k] * len(values)
    return pa.record_batch({"k": pa.array(keys, pa.int64()), "n": pa.array(values, pa.int64())})


LOG: list[tuple[str, Any]] = []


class Recording(rf.BatchedSink):
    """Keeps what was done to it. `refuse`: numbers it will not have; `fail`: raised by so many writes to come."""

    def __init__(self, keys: tuple[str, ...] = (), refuse: tuple[int, ...] = (), **batching: Any) -> None:
        self.batching = rf.Batching(**{"rows": 3, "linger": "100ms", **batching})
        self.keys = keys
        self.refuse = refuse
        self.fail: list[Exception] = []
        self.written: list[list[int]] = []
        self.names: list[str] = []

    def open(self, ctx: rf.SinkContext) -> None:
        LOG.append(("open", id(self)))

    def write_batch(self, batch: pa.RecordBatch) -> None:
        self.names.append(self.request_id)
        if self.fail:
            raise self.fail.pop(0)
        values = batch["n"].to_pylist()
        if refused := [n for n in values if n in self.refuse]:
            raise ValueError(f"{refused[0]} is refused")
        self.written.append(values)

    def close(self) -> None:
        LOG.append(("close", id(self)))


def flat(sink: Any) -> list[int]:
    return [n for batch in sink.written for n in batch]


class Driven:
    """An operator, its background work, and a clock: timers fire as they would in a task."""

    def __init__(self, harness: Any, sink: rf.BatchedSink, rate: float | None = None, **options: Any) -> None:
        LOG.clear()
        self.sink = sink
        self.now_ms = 1_000
        self.waiting: list[tuple[Callable[[], Any], Callable[[Any, Any], None]]] = []
        self.harness = harness(
            lambda: BatchedSinkOperator(sink, rate),
            now_ms=lambda: self.now_ms,
            run_in_background=lambda work, done: self.waiting.append((work, done)),
            **options,
        )
        self.operator = self.harness.operator

    def settle(self) -> Driven:
        for _ in range(1_000):
            due = self.operator.next_timer_ms()
            if due is None or due > self.now_ms:
                return self
            self.operator.on_timer(self.now_ms)
        raise AssertionError("timers never come to rest")

    def feed(self, *values: int, k: int | None = None) -> Driven:
        self.harness.feed(rows(*values, k=k))
        return self.settle()

    def run(self, index: int = 0) -> Driven:
        """Let a write that waits happen, and be known."""
        work, done = self.waiting.pop(index)
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        done(result, error)
        return self.settle()

    def run_all(self) -> Driven:
        while self.waiting:
            self.run()
        return self

    def sleep(self, ms: int) -> Driven:
        self.now_ms += ms
        return self.settle()

    def keep_trying(self) -> None:
        for _ in range(100):
            self.run_all().sleep(100)

    @property
    def written(self) -> list[list[int]]:
        return self.sink.written  # type: ignore[attr-defined]

    @property
    def flat(self) -> list[int]:
        return flat(self.sink)

    def count(self, name: str) -> float:
        return self.harness.metrics.snapshot().get(name, 0)


# ------------------------------------------------------------------------------------------ batches


def test_rows_are_written_in_batches_off_the_task_thread(harness: Any) -> None:
    driven = Driven(harness, Recording()).feed(1, 2).feed(3, 4)
    assert driven.written == []
    assert len(driven.waiting) == 1
    assert driven.run().written == [[1, 2, 3]]
    assert driven.sleep(99).waiting == []
    assert driven.sleep(1).run().written == [[1, 2, 3], [4]]
    assert (driven.count("rows_written"), driven.count("batches"), driven.count("rows_held")) == (4, 2, 0)


def test_at_the_end_everything_is_written_at_once_and_only_then_is_it_drained(harness: Any) -> None:
    driven = Driven(harness, Recording()).feed(1)
    driven.operator.end()
    assert not driven.settle().operator.drained()
    assert driven.run().operator.drained()
    assert driven.written == [[1]]


def test_a_large_batch_comes_in_requests_of_the_right_size_and_blocks_what_follows(harness: Any) -> None:
    driven = Driven(harness, Recording(in_flight=2)).feed(*range(20))
    assert len(driven.waiting) == 2
    assert driven.operator.blocked()
    assert driven.count("in_flight") == 2
    driven.run(1).run(0)
    # Ended in any order, replaced at once.
    assert driven.written[:2] == [[3, 4, 5], [0, 1, 2]]
    assert len(driven.waiting) == 2
    driven.run().run()
    assert not driven.operator.blocked()
    driven.operator.end()
    assert sorted(driven.settle().run_all().flat) == list(range(20))


def test_a_rate_is_of_rows_sent(harness: Any) -> None:
    driven = Driven(harness, Recording(), rate=2.0).feed(1, 2, 3, 4)
    assert driven.run().written == [[1, 2]]
    assert driven.waiting == []
    assert driven.sleep(500).run().written == [[1, 2], [3, 4]]


# -------------------------------------------------------------------------------------------- order


def test_writes_for_one_key_never_overtake_each_other(harness: Any) -> None:
    sink = Recording(keys=("k",), in_flight=4, rows=2)
    driven = Driven(harness, sink)
    for n in range(40):
        driven.feed(n)
    while driven.waiting:
        driven.run(-1)  # the youngest first
    driven.operator.end()
    driven.settle().run_all()
    assert sorted(flat(sink)) == list(range(40))
    for key in range(10):
        assert [n for n in flat(sink) if n % 10 == key] == list(range(key, 40, 10))


def test_while_a_write_is_tried_again_its_keys_wait_and_others_go_on(harness: Any) -> None:
    sink = Recording(keys=("k",), in_flight=2, rows=1)
    # Keys of different lanes, found by trying.
    driven = Driven(harness, sink).feed(1, k=0)
    other = next(k for k in range(1, 50) if len(driven.feed(100 + k, k=k).waiting) == 2)
    sink.fail.append(TransientError("busy"))
    driven.feed(2, k=0).feed(200 + other, k=other)
    driven.run(0)  # 1 fails
    driven.run(0)
    driven.run_all()
    assert [n for n in flat(sink) if n in (1, 2)] == []
    assert 200 + other in flat(sink)
    driven.sleep(100).run_all()
    assert [n for n in flat(sink) if n in (1, 2)] == [1, 2]


# ----------------------------------------------------------------------------------------- failures


def test_what_may_pass_is_tried_again_on_a_new_connection_by_the_same_name(harness: Any) -> None:
    sink = Recording()
    sink.fail = [ConnectionResetError("gone"), TransientError("busy")]
    driven = Driven(harness, sink).feed(1, 2, 3).run()
    assert driven.written == []
    assert driven.waiting == []
    driven.sleep(100).run().sleep(200).run()
    assert driven.written == [[1, 2, 3]]
    assert [what for what, _ in LOG] == ["open", "close", "open", "close", "open"]
    assert len(set(sink.names)) == 1
    assert driven.count("retries") == 2


def test_a_system_that_says_when_to_come_back_is_left_alone_until_then(harness: Any) -> None:
    sink = Recording()
    sink.fail = [rf.RetryLater("slow down", after_ms=5_000)]
    driven = Driven(harness, sink).feed(1, 2, 3).run()
    assert driven.sleep(4_999).waiting == []
    assert driven.sleep(1).run().written == [[1, 2, 3]]


def test_a_failure_that_lasts_ends_the_attempt_with_the_operator_line_and_cause(harness: Any) -> None:
    sink = Recording(retry_for="1s")
    sink.fail = [ConnectionRefusedError("nobody there")] * 100
    driven = Driven(harness, sink).feed(1, 2, 3)
    with pytest.raises(UserFunctionError, match=r"3 rows could not be written in \d+ tries") as failed:
        driven.keep_trying()
    assert "nobody there" in failed.value.cause
    assert failed.value.location == "job.py:7: stream.map(f)"
    assert isinstance(failed.value.__cause__, ConnectionRefusedError)


class Driver(Exception):
    """What a database's driver raises: no error of the system, though it is about a connection."""


class Judging(Recording):
    def classify(self, error: Exception) -> Any:
        return "retry" if isinstance(error, Driver) else super().classify(error)


@pytest.mark.parametrize(
    "error", [Driver("server closed the connection"), ConnectionRefusedError("nobody there")]
)
def test_a_system_that_stays_away_is_no_fault_of_the_job_that_a_restart_would_only_meet_again(
    harness: Any, error: Exception
) -> None:
    sink = Judging(retry_for="1s")
    sink.fail = [error] * 100
    driven = Driven(harness, sink).feed(1, 2, 3)
    with pytest.raises(UserFunctionError) as failed:
        driven.keep_trying()
    assert fault_of(failed.value) is None


def test_a_write_that_hangs_ends_the_attempt(harness: Any) -> None:
    driven = Driven(harness, Recording(timeout="2s")).feed(1, 2, 3)
    driven.sleep(1_999)
    with pytest.raises(UserFunctionError, match=r"has not returned within timeout=2s"):
        driven.sleep(1)
    driven.operator.close()
    # It comes back after all: nothing is written any more, and nothing stays open.
    work, _ = driven.waiting.pop()
    with pytest.raises(InterruptedError):
        work()
    assert driven.written == []


def test_a_writer_that_is_closed_while_it_connects_closes_what_it_opened(harness: Any) -> None:
    driven = Driven(harness, Recording())

    class Slow(Recording):
        def open(self, ctx: rf.SinkContext) -> None:
            super().open(ctx)
            driven.operator.close()

    driven = Driven(harness, Slow()).feed(1, 2, 3)
    work, _ = driven.waiting.pop()
    with pytest.raises(InterruptedError):
        work()
    assert [what for what, _ in LOG] == ["open", "close", "close"]


def test_rows_that_are_refused_fail_the_job_by_default(harness: Any) -> None:
    driven = Driven(harness, Recording(refuse=(2,))).feed(1, 2, 3)
    with pytest.raises(UserFunctionError, match="2 is refused"):
        driven.run()


def test_what_rayflow_says_of_something_else_than_rows_is_raised_as_it_is(harness: Any) -> None:
    sink = Recording()
    sink.fail = [ConfigError("no such table")]
    driven = Driven(harness, sink, errors=rf.SideOutput("bad"), side_outputs={"bad": None}).feed(1, 2, 3)
    with pytest.raises(ConfigError, match="no such table"):
        driven.run()


def test_refused_rows_come_out_at_the_side_and_all_others_are_written_in_order(harness: Any) -> None:
    sink = Recording(keys=("k",), refuse=(13, 17), rows=8)
    driven = Driven(harness, sink, errors=rf.SideOutput("bad"), side_outputs={"bad": None})
    driven.feed(*range(10, 20)).sleep(100).run_all().sleep(100).run_all()
    assert flat(sink) == [n for n in range(10, 20) if n not in (13, 17)]
    tags, batches = zip(*driven.harness.side)
    assert set(tags) == {"bad"}
    found = pa.Table.from_batches(batches).to_pylist()
    assert [(row["n"], row["operator"]) for row in found] == [(13, "my operator"), (17, "my operator")]
    assert "13 is refused" in found[0]["error"]
    assert driven.count("rows_poisoned") == 2


def test_a_watermark_waits_for_the_rows_before_it_since_they_may_come_out_at_the_side(harness: Any) -> None:
    sink = Recording(refuse=(2,), rows=1)
    driven = Driven(harness, sink, errors=rf.SideOutput("bad"), side_outputs={"bad": None})
    driven.harness.watermark(5)
    driven.feed(1, 2).harness.watermark(7)
    driven.harness.watermark(8)
    driven.feed(3).harness.watermark(9)
    assert driven.harness.watermarks == [5]
    driven.run()
    assert driven.harness.watermarks == [5]
    driven.run()
    assert [event[0] for event in driven.harness.events] == ["watermark", "side", "watermark"]
    assert driven.harness.watermarks == [5, 8]
    assert not driven.operator.drained()
    driven.run()
    assert driven.harness.watermarks == [5, 8, 9]
    assert driven.operator.drained()


# -------------------------------------------------------------------------------------- checkpoints


def test_a_barrier_sends_what_waits_and_keeps_what_is_not_written(harness: Any) -> None:
    driven = Driven(harness, Recording()).feed(1, 2, 3).run().feed(4)
    assert driven.waiting == []
    (part,) = driven.harness.snapshot(1)
    assert part.kind == "list"
    assert part.table.to_pylist() == [{"k": 4, "n": 4}]
    assert len(driven.waiting) == 1
    restored = Driven(harness, Recording(), restored=[part], restored_from=1)
    assert restored.sleep(100).run().written == [[4]]


def test_a_checkpoint_is_committed_when_all_rows_before_it_are_written(harness: Any) -> None:
    driven = Driven(harness, Recording(in_flight=2)).feed(1, 2, 3)
    driven.harness.snapshot(1)
    driven.feed(4, 5, 6)
    assert not driven.operator.committing()
    driven.harness.complete(1)
    assert driven.operator.committing()
    driven.run(1)  # what came behind the barrier
    assert driven.operator.committing()
    driven.run(0)
    assert not driven.operator.committing()
    assert driven.harness.snapshot(2) == []


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_rows_find_their_key_at_any_parallelism_in_order(harness: Any, parallelism: int) -> None:
    made = lambda: Recording(keys=("k",), in_flight=3, rows=2)  # noqa: E731
    driven = Driven(harness, made()).feed(*range(30))
    driven.run(0)
    before = driven.flat
    parts = driven.harness.snapshot(4)
    assert [part.kind for part in parts] == ["keyed"]
    after = []
    for index in range(parallelism):
        own = key_group_range(8, parallelism, index)
        (part,) = parts
        groups = part.table.column(KEY_GROUP_COLUMN).to_pylist()
        mine = [replace(part, table=part.table.filter(pa.array([group in own for group in groups])))]
        restored = Driven(
            harness, made(), restored=mine, restored_from=4, index=index, parallelism=parallelism
        )
        restored.operator.end()
        after += restored.settle().run_all().flat
    assert sorted(before + after) == list(range(30))
    for key in range(10):
        assert [n for n in after if n % 10 == key] == sorted(n for n in after if n % 10 == key)


def test_changes_keep_their_operation_over_a_restore(harness: Any) -> None:
    class Changes(Recording):
        def write_batch(self, batch: pa.RecordBatch) -> None:
            self.written.append(batch.column(OP_COLUMN).to_pylist())

    driven = Driven(harness, Changes(keys=("k",)))
    driven.harness.feed(with_op(rows(1), INSERT)).feed(with_op(rows(1), DELETE))
    restored = Driven(harness, Changes(keys=("k",)), restored=driven.harness.snapshot(1), restored_from=1)
    assert restored.sleep(100).run().written == [[INSERT, DELETE]]


# -------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"rows": 0}, "rows is 0"),
        ({"in_flight": 17}, "in_flight is 17: expected 1 to 16"),
        ({"bytes": 0}, "bytes is 0"),
        ({"timeout": "0s"}, "timeout, in ms, is 0"),
        ({"linger": "2d"}, "at most a day"),
        ({"linger": "soon"}, "soon"),
    ],
)
def test_impossible_limits_are_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        rf.Batching(**given)
