"""Keyed state on disk over increments, attempts that go on with the chain restored, and rescaling: as in memory."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import rayflow as rf
from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.aggregate import RunningAggregateOperator
from rayflow.operators.process import Port, ProcessOperator
from rayflow.windows.count import CountWindowOperator
from rayflow.windows.global_window import GlobalWindowOperator
from tests.unit.stored import Checkpoints

SCHEMA = pa.schema([("k", pa.int64()), ("v", pa.int64()), ("t", pa.timestamp("ms"))])
AGGREGATES = [("n", count()), ("total", col("v").sum()), ("last", col("v").last())]

RETURNS = pa.schema([("k", pa.int64()), ("seen", pa.string())])


class Changing(rf.KeyedProcessFunction):
    """What a row changes goes by its value: nothing, one of the states, a timer. Yields all that there is."""

    value = rf.ValueState(pa.int64())
    listed = rf.ListState(pa.int64())
    mapped = rf.MapState(pa.int64(), pa.int64())

    def process(self, row: Any, ctx: Any) -> Any:
        v, later = row["v"], datetime(1970, 1, 2)
        seen = (self.value.get(), self.listed.get(), sorted(self.mapped.to_dict().items()))
        yield {"k": row["k"], "seen": repr(seen)}
        match v:
            case 1:
                self.value.set(v)
            case 2:
                self.listed.append(v)
            case 3:
                self.listed.set([v, v])
            case 4:
                self.mapped.put(v % 2, v)
            case 5:
                self.mapped.remove(0)
            case 6:
                self.value.clear()
            case 7:
                self.listed.clear()
            case 8:
                self.mapped.clear()
            case 9:
                ctx.register_processing_timer(later)
            case 10:
                ctx.delete_processing_timer(later)

    def on_timer(self, ts: Any, ctx: Any) -> Any:
        yield {"k": ctx.current_key, "seen": f"fired {self.value.get()}"}


MAKERS: dict[str, Any] = {
    "aggregate": lambda: RunningAggregateOperator(("k",), AGGREGATES, SCHEMA, False),
    # Keys go when their window is full.
    "count": lambda: CountWindowOperator(("k",), 3, AGGREGATES, SCHEMA),
    "global": lambda: GlobalWindowOperator(("k",), AGGREGATES, SCHEMA),
    "global, timed": lambda: GlobalWindowOperator(("k",), AGGREGATES, SCHEMA, "t"),
    "process": lambda: ProcessOperator(
        Changing, [Port(method="process", keys=("k",))], pa.schema([SCHEMA.field("k")]), RETURNS
    ),
}
DAY_MS = 86_400_000
TINY, LARGE = 1, 1 << 30


def rows(pairs: Any) -> pa.RecordBatch:
    keys, values = [k for k, _ in pairs], [v for _, v in pairs]
    return pa.record_batch([keys, values, pa.array(values, pa.timestamp("ms"))], schema=SCHEMA)


def batch(keys: Any, value: int = 0) -> pa.RecordBatch:
    return rows([(key, value) for key in keys])


def shown(driven: Any) -> Counter[Any]:
    return Counter(tuple(row.values()) for row in driven.rows)


@pytest.mark.parametrize("kind", list(MAKERS))
@given(
    steps=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(0, 4), st.integers(0, 10)), max_size=8),
            st.sampled_from([None, (), (0,), (1,)]),
            st.sampled_from([None, None, 1, 2, 2, 3]),
            st.sampled_from([TINY, TINY, LARGE, None]),
        ),
        max_size=8,
    )
)
@example(  # All that changes of a key that is on disk is a timer.
    steps=[([(0, 1)], None, None, TINY), ([(0, 9)], None, None, TINY), ([(1, 1)], None, 2, TINY)]
)
@settings(max_examples=50, deadline=None)
def test_what_increments_over_several_attempts_restore_is_what_memory_has(
    subtasks: Any, kind: str, steps: list[Any]
) -> None:
    # After each step a checkpoint, of whose end not all subtasks hear; after some of them a restart.
    plain = subtasks(MAKERS[kind], ["k"], 1)
    driven = subtasks(MAKERS[kind], ["k"], 2, disk_bytes=TINY)
    checkpoints = Checkpoints(driven)
    for number, (pairs, heard, parallelism, disk_bytes) in enumerate(steps, 1):
        if pairs:
            plain.feed(rows(pairs))
            driven.feed(rows(pairs))
        checkpoints.take(number, completes=heard)
        if parallelism is not None:
            checkpoints.restart(number, parallelism, disk_bytes=disk_bytes)
    for each in (plain, driven):
        each.feed(batch(range(10)))
        for subtask in each.subtasks:
            subtask.operator.on_timer(2 * DAY_MS)
        each.watermark(WATERMARK_MAX)
    assert shown(driven) == shown(plain)


def test_the_first_checkpoint_after_a_restart_has_what_changed_since(subtasks: Any) -> None:
    driven = subtasks(MAKERS["aggregate"], ["k"], 2, disk_bytes=20_000)
    checkpoints = Checkpoints(driven)
    driven.feed(batch(range(5_000)))
    checkpoints.take(1)
    checkpoints.restart(1, 2)
    driven.feed(batch(range(50)))
    checkpoints.take(2)
    assert checkpoints.written[2] < 0.1 * checkpoints.written[1]
    checkpoints.restart(2, 2)
    driven.feed(batch(range(4_950, 5_000)))
    checkpoints.take(3)
    assert {file.origin for file in checkpoints.files[3]} == {1, 2, None}
    # At another parallelism other subtasks have the keys: each begins with all of its own.
    checkpoints.restart(3, 3)
    checkpoints.take(4)
    assert {file.origin for file in checkpoints.files[4]} == {None}
    checkpoints.restart(4, 1)
    driven.feed(batch(range(5_000)))
    newest = {row["k"]: row["n"] for row in driven.subtasks[0].rows}
    assert newest == {k: 2 + (k < 50 or k >= 4_950) for k in range(5_000)}


def test_keys_whose_state_was_only_read_are_in_no_increment(subtasks: Any) -> None:
    driven = subtasks(MAKERS["process"], ["k"], 1, disk_bytes=20_000)
    checkpoints = Checkpoints(driven)
    # Set, then read: by rows whose values say so.
    driven.feed(batch(range(2_000), 1))
    checkpoints.take(1)
    driven.feed(batch(range(2_000), 0))
    checkpoints.take(2)
    assert {file.origin for file in checkpoints.files[2]} == {1}
    driven.feed(batch(range(20), 2))
    checkpoints.take(3)
    assert [file.rows for file in checkpoints.files[3] if file.origin is None] == [20]
    checkpoints.restart(3, 1, disk_bytes=None)
    driven.feed(batch([3, 30], 0))
    assert [row["seen"] for row in driven.subtasks[0].rows] == ["(1, [2], [])", "(1, [], [])"]


class Reminding(rf.KeyedProcessFunction):
    """Each timer sets one of the other kind."""

    value = rf.ValueState(pa.int64())

    def process(self, row: Any, ctx: Any) -> None:
        self.value.set(row["v"])
        ctx.register_processing_timer(datetime(1970, 1, 2))

    def on_timer(self, ts: Any, ctx: Any) -> Any:
        yield {"k": ctx.current_key, "seen": ctx.time_domain}
        if ctx.time_domain == "processing":
            ctx.register_event_timer(ts)
        else:
            ctx.register_processing_timer(ts)


@pytest.mark.parametrize("disk_bytes", [None, TINY])
def test_timers_that_are_dropped_at_the_end_are_not_in_the_last_checkpoint(
    subtasks: Any, disk_bytes: int | None
) -> None:
    make = lambda: ProcessOperator(  # noqa: E731
        Reminding,
        [Port(method="process", keys=("k",), time_column="t", time_type=pa.timestamp("ms"))],
        pa.schema([SCHEMA.field("k")]),
        RETURNS,
    )
    # A few keys at a time: those that set timers go to disk before all have.
    driven = subtasks(make, ["k"], 1, disk_bytes=disk_bytes, batch_rows=5)
    checkpoints = Checkpoints(driven)
    for begin in range(0, 100, 10):
        driven.feed(batch(range(begin, begin + 10)))
    checkpoints.take(1)
    driven.watermark(WATERMARK_MAX)
    driven.subtasks[0].operator.end()
    assert driven.count("timers_after_end") == 100
    checkpoints.take(2)
    checkpoints.restart(2, 1)
    driven.subtasks[0].operator.on_timer(9 * DAY_MS)
    assert driven.subtasks[0].rows == []
