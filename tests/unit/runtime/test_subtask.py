"""The subtask engine with its ports faked: one source subtask, or one consumer subtask, at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from rayflow.connectors.memory_sources import RowsSource
from rayflow.graph.plan import Exchange, JobEdge, JobGraph, JobVertex, OperatorSpec, Resources, TimeSpec
from rayflow.model.errors import StorageError
from rayflow.model.ids import Attempt, ChannelId, CheckpointId, EdgeId, JobId, SubtaskId, VertexId
from rayflow.operators.contracts import Operator
from rayflow.operators.source_contract import Source, Split
from rayflow.protocol.alignment import BarrierKind
from rayflow.protocol.memory_pressure import RelaxMemory, ShedMemory
from rayflow.runtime.memory import MemoryUse, why_it_ends
from rayflow.runtime.messages import (
    AssignSplits,
    BarrierFrame,
    Cancel,
    CaughtUp,
    CheckpointAborted,
    CheckpointAcked,
    CheckpointCompleted,
    CheckpointDeclined,
    Committed,
    CreditFrame,
    DataFrame,
    Deploy,
    Deployed,
    EndFrame,
    Frame,
    Heartbeat,
    HeartbeatAnswered,
    IdleFrame,
    InputsEnded,
    OpenFrame,
    PeerLost,
    RestoreInfo,
    SplitsRequested,
    SplitState,
    Start,
    Stopped,
    TaskFailed,
    TriggerCheckpoint,
    Warned,
    WatermarkFrame,
)
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.state.parts import StatePart
from rayflow.state.storage import open_store

SRC, DST = VertexId("src"), VertexId("dst")
TABLE = pa.table({"v": pa.array(range(100), pa.int64())})


class Doubling(Operator):
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        if batch.column("v")[0].as_py() == 666:
            raise ValueError("the number of the beast")
        self.out.emit(batch)


class Holding(Operator):
    """Keeps rows and watermarks until the test lets them go, as if it waited for answers."""

    made: list[Holding] = []  # noqa: RUF012

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.let_go = False
        self.made.append(self)

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.held.append(batch)

    def on_watermark(self, watermark: int) -> int | None:
        if not self.held:
            return watermark
        self.held.append(watermark)
        return None

    def blocked(self) -> bool:
        return bool(self.held)

    def drained(self) -> bool:
        return not self.held

    def next_timer_ms(self) -> int | None:
        return 0 if self.let_go and self.held else None

    def on_timer(self, now_ms: int) -> None:
        item = self.held.pop(0)
        if isinstance(item, int):
            self.out.emit_watermark(item)
        else:
            self.out.emit(item)

    def snapshot(self, checkpoint_id: int) -> Any:
        rows = pa.Table.from_batches([b for b in self.held if not isinstance(b, int)])
        return (StatePart(name="held", kind="list", build=lambda: rows),)


class Due(Doubling):
    """Has something to do at once, as if calls had been restored; but nothing is done before the start."""

    def next_timer_ms(self) -> int | None:
        return 0

    def on_timer(self, now_ms: int) -> None:
        raise AssertionError("a timer before the start")


class World:
    """Records what the engine sends; performs I/O at once, or with an error."""

    def __init__(self, subtask: SubtaskId) -> None:
        self.reports: list[Any] = []
        self.frames: list[tuple[ChannelId, Frame]] = []
        self.credits: list[tuple[ChannelId, CreditFrame]] = []
        self.io_error: Exception | None = None
        self.engine = SubtaskEngine(
            subtask=subtask, link=self, transport=self, io=self, open_store=open_store, wake=lambda: None
        )

    def report(self, message: Any) -> None:
        self.reports.append(message)

    def listen(self, receiver: Any, attempt: Attempt, inputs: list[ChannelId]) -> None:
        self.inputs = inputs

    def connect(self, attempt: Attempt, outputs: dict[ChannelId, str], receiver: Any) -> None:
        self.outputs = outputs

    def send(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        self.frames.append((channel, frame))

    def send_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        self.credits.append((channel, credit))

    def close_channels(self, attempt: Attempt) -> None:
        self.closed = attempt

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        if self.io_error is not None:
            done(None, self.io_error)
        else:
            done(work(), None)

    def run(self, now_ms: int = 1_000) -> None:
        for _ in range(1_000):
            if not self.engine.step(now_ms).progressed:
                return
        raise AssertionError("the engine never comes to rest")

    def of(self, kind: type) -> list[Any]:
        return [r for r in self.reports if isinstance(r, kind)]

    def rows(self) -> list[int]:
        return [v for _, f in self.frames if isinstance(f, DataFrame) for v in f.batch.column(0).to_pylist()]


def graph(source: Source, producers: int = 1, work: type[Operator] = Doubling) -> JobGraph:
    return JobGraph(
        name="test",
        max_parallelism=16,
        vertices=(
            JobVertex(
                id=SRC,
                parallelism=producers,
                operators=(
                    OperatorSpec(uid="src", name="source", kind="source", payload=source),
                    OperatorSpec(
                        uid="op", name="double", kind="operator", payload=work, location="job.py:7: x"
                    ),
                ),
            ),
            JobVertex(
                id=DST,
                parallelism=1,
                operators=(OperatorSpec(uid="dst", name="double", kind="operator", payload=work),),
            ),
        ),
        edges=(JobEdge(id=EdgeId(0), source=SRC, target=DST, exchange=Exchange("rebalance")),),
    )


def deploy(
    subtask: SubtaskId,
    attempt: int = 1,
    source: Source | None = None,
    producers: int = 1,
    work: type[Operator] = Doubling,
    config: dict[str, Any] | None = None,
    restore: RestoreInfo | None = None,
) -> Deploy:
    return Deploy(
        job_id=JobId("job"),
        attempt=Attempt(attempt),
        subtask=subtask,
        graph=graph(source or RowsSource(TABLE), producers, work),
        config={"checkpoint.storage": "memory://subtask-test", "batch.rows": 10, "batch.linger": "0ms"}
        | (config or {}),
        restore=restore,
        peers={SubtaskId(DST, 0): "address"},
    )


SOURCE = SubtaskId(SRC, 0)
CHANNEL = ChannelId(EdgeId(0), SOURCE, SubtaskId(DST, 0))
PLENTY = CreditFrame(1_000, 1 << 20)


def assign(attempt: int = 1) -> AssignSplits:
    splits = tuple(SplitState(split=s.to_json()) for s in RowsSource(TABLE).splits())
    return AssignSplits(attempt=Attempt(attempt), uid="src", splits=splits, cap=2**100, no_more=True)


def running_source(
    source: Source | None = None, work: type[Operator] = Doubling, config: dict[str, Any] | None = None
) -> World:
    world = World(SOURCE)
    world.engine.post(deploy(SOURCE, source=source, work=work, config=config))
    world.engine.post(Start(Attempt(1)))
    world.run()
    assert [type(r) for r in world.reports] == [Deployed, SplitsRequested]
    world.engine.post(assign())
    return world


def test_a_source_reads_its_splits_and_ends() -> None:
    world = running_source()
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    assert world.frames[0] == (CHANNEL, OpenFrame())
    assert world.rows() == list(range(100))
    assert isinstance(world.frames[-1][1], EndFrame)
    assert len(world.of(InputsEnded)) == 1


def test_without_credit_the_source_stops_and_a_barrier_waits_behind_the_rows() -> None:
    world = running_source()
    world.run()
    assert world.frames == [(CHANNEL, OpenFrame())]
    assert world.engine.statistics()["queued_out"] > 0
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1)))
    world.run()
    assert len(world.of(CheckpointAcked)) == 1, "a snapshot does not wait for the consumer"
    assert len(world.frames) == 1
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    kinds = [type(f) for _, f in world.frames]
    assert kinds.count(DataFrame) == 10
    assert DataFrame not in kinds[kinds.index(BarrierFrame) :]


def test_a_checkpoint_holds_exactly_the_rows_before_its_barrier() -> None:
    world = running_source()
    world.engine.on_credit(Attempt(1), CHANNEL, CreditFrame(3, 1 << 20))
    world.engine.step(1_000)
    world.engine.step(1_000)
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1)))
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    before = [f for _, f in world.frames]
    barrier = next(i for i, f in enumerate(before) if isinstance(f, BarrierFrame))
    rows = sum(f.batch.num_rows for f in before[:barrier] if isinstance(f, DataFrame))
    (ack,) = world.of(CheckpointAcked)
    (split,) = ack.splits["src"]
    assert json.loads(split.position) == rows
    assert 0 < rows < 100

    # A new attempt that gets the split back at that position reads the rest, and nothing else.
    world.frames.clear()
    world.engine.post(deploy(SOURCE, attempt=2))
    world.engine.post(Start(Attempt(2)))
    world.engine.post(AssignSplits(attempt=Attempt(2), uid="src", splits=(split,), cap=2**100, no_more=True))
    world.run()
    world.engine.on_credit(Attempt(2), CHANNEL, PLENTY)
    world.run()
    assert world.rows() == list(range(rows, 100))


def test_what_an_older_attempt_sent_has_no_effect() -> None:
    world = running_source()
    world.engine.post(deploy(SOURCE, attempt=3))
    world.engine.post(deploy(SOURCE, attempt=2))
    world.engine.post(Start(Attempt(2)))
    world.engine.post(TriggerCheckpoint(Attempt(2), CheckpointId(1)))
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    assert not world.of(CheckpointAcked)
    assert world.engine.stale_messages == 2
    assert world.engine.statistics()["state"] == "DEPLOYED"


def test_a_deploy_that_comes_again_is_done_and_answered_once() -> None:
    world = World(SOURCE)
    for _ in range(2):
        world.engine.post(deploy(SOURCE))
    world.run()
    assert world.reports == [Deployed(SOURCE, Attempt(1))]


def test_a_task_that_waits_for_its_start_sleeps_however_much_is_due() -> None:
    world = World(SOURCE)
    world.engine.post(deploy(SOURCE, work=Due))
    world.run()
    assert world.of(Deployed)
    result = world.engine.step(1_000)
    assert (result.progressed, result.wake_at_ms) == (False, None)


def test_an_exception_of_the_user_names_operator_line_and_rows_and_the_next_attempt_runs() -> None:
    world = running_source(RowsSource(pa.table({"v": [666]})))
    world.run()
    (failure,) = world.of(TaskFailed)
    assert failure.operator == "double"
    assert failure.location == "job.py:7: x"
    assert "the number of the beast" in failure.cause
    assert "{v: 666}" in failure.cause
    assert failure.retryable
    world.engine.post(deploy(SOURCE, attempt=2))
    world.run()
    assert world.of(Deployed)[-1] == Deployed(SOURCE, Attempt(2))


def test_a_failed_upload_declines_the_checkpoint_and_the_task_goes_on() -> None:
    world = running_source()
    world.io_error = StorageError("disk full")
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1)))
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    (declined,) = world.of(CheckpointDeclined)
    assert "disk full" in declined.reason
    assert world.rows() == list(range(100))


def test_a_heartbeat_is_answered_without_a_step() -> None:
    world = World(SOURCE)
    world.engine.post(Heartbeat(Attempt(0), 7))
    (answer,) = world.of(HeartbeatAnswered)
    assert (answer.sequence, answer.statistics["state"]) == (7, "CREATED")


def test_reports_the_master_lacks_are_sent_again_before_the_answer() -> None:
    world = World(SOURCE)
    world.engine.post(deploy(SOURCE))
    world.run()
    (deployed,) = world.of(Deployed)
    world.engine.post(Heartbeat(Attempt(1), 1, arrived=0, lacks=True))
    assert world.of(Deployed) == [deployed] * 2
    world.engine.post(Heartbeat(Attempt(1), 2, arrived=1))
    assert len(world.of(Deployed)) == 2
    assert [(a.sent, a.lacks) for a in world.of(HeartbeatAnswered)] == [(1, False)] * 2


def test_answers_name_the_attempt_that_was_taken_note_of() -> None:
    # By this the master tells a survivor that is still restoring from one that is stuck.
    world = World(SOURCE)
    assert world.engine.statistics()["attempt"] == 0
    world.engine.post(deploy(SOURCE))
    world.run()
    assert world.engine.statistics()["attempt"] == 1


def test_what_a_task_counted_is_told_after_it_is_closed_until_the_next_attempt() -> None:
    world = running_source()
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    read = world.engine.statistics()["rows_in"]
    assert read
    world.engine.post(Cancel(Attempt(1)))
    world.run()
    (stopped,) = world.of(Stopped)
    assert stopped.statistics["rows_in"] == world.engine.statistics()["rows_in"] == read
    world.engine.post(deploy(SOURCE, attempt=2))
    world.run()
    assert world.engine.statistics().get("rows_in", 0) == 0


def test_a_broken_channel_is_reported_and_a_cancel_stops_everything() -> None:
    world = running_source()
    world.engine.on_channel_broken(Attempt(1), CHANNEL, "reset by peer")
    world.run()
    assert world.of(PeerLost)[0].channel == CHANNEL
    world.engine.post(Cancel(Attempt(1)))
    world.run()
    (stopped,) = world.of(Stopped)
    assert (stopped.subtask, stopped.attempt) == (SOURCE, Attempt(1))
    assert world.closed == 1


# ------------------------------------------------------------------------------------ a consumer

SINK = SubtaskId(DST, 0)
LEFT = ChannelId(EdgeId(0), SubtaskId(SRC, 0), SINK)
RIGHT = ChannelId(EdgeId(0), SubtaskId(SRC, 1), SINK)


def rows(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"v": pa.array(values, pa.int64())})


@pytest.fixture
def consumer() -> World:
    return running_consumer(Doubling)


def running_consumer(work: type[Operator]) -> World:
    world = World(SINK)
    world.engine.post(deploy(SINK, producers=2, work=work))
    world.engine.post(Start(Attempt(1)))
    world.run()
    for channel in (LEFT, RIGHT):
        world.engine.on_frame(Attempt(1), channel, OpenFrame())
    world.run()
    assert [c for c, _ in world.credits] == [LEFT, RIGHT]
    return world


def arrive(world: World, channel: ChannelId, *frames: Frame) -> None:
    for frame in frames:
        world.engine.on_frame(Attempt(1), channel, frame)
    world.run()


def test_a_channel_whose_barrier_came_is_held_until_the_other_s_has_come(consumer: World) -> None:
    one = CheckpointId(1)
    arrive(consumer, LEFT, DataFrame(0, rows(1), 8, 0), BarrierFrame(one), DataFrame(1, rows(2, 3), 16, 0))
    assert consumer.engine.statistics()["rows_in"] == 1
    assert consumer.engine.statistics()["blocked_channels"] == [str(LEFT)]
    assert consumer.engine.statistics()["checkpoint"] == {"id": 1, "phase": "aligning", "since_ms": 1_000}
    arrive(consumer, RIGHT, DataFrame(0, rows(4), 8, 0))
    assert consumer.engine.statistics()["rows_in"] == 2
    assert not consumer.of(CheckpointAcked)
    arrive(consumer, RIGHT, BarrierFrame(one))
    assert len(consumer.of(CheckpointAcked)) == 1
    assert consumer.engine.statistics()["rows_in"] == 4


def test_an_aborted_checkpoint_lets_held_channels_go(consumer: World) -> None:
    arrive(consumer, LEFT, BarrierFrame(CheckpointId(1)), DataFrame(0, rows(2), 8, 0))
    assert consumer.engine.statistics()["rows_in"] == 0
    consumer.engine.post(CheckpointAborted(Attempt(1), CheckpointId(1)))
    consumer.run()
    assert consumer.engine.statistics()["rows_in"] == 1
    arrive(consumer, RIGHT, BarrierFrame(CheckpointId(1)))
    assert not consumer.of(CheckpointAcked)


def test_ended_inputs_still_take_part_in_checkpoints(consumer: World) -> None:
    arrive(consumer, LEFT, EndFrame())
    arrive(consumer, RIGHT, EndFrame())
    assert len(consumer.of(InputsEnded)) == 1
    arrive(consumer, LEFT, BarrierFrame(CheckpointId(1)))
    arrive(consumer, RIGHT, BarrierFrame(CheckpointId(1)))
    assert len(consumer.of(CheckpointAcked)) == 1
    consumer.engine.post(CheckpointCompleted(Attempt(1), CheckpointId(1)))
    consumer.run()
    assert consumer.of(Committed) == [Committed(SINK, Attempt(1), CheckpointId(1))]


def test_a_missing_frame_is_a_violation_that_a_restart_cannot_mend(consumer: World) -> None:
    arrive(consumer, LEFT, DataFrame(1, rows(1), 8, 0))
    (failure,) = consumer.of(TaskFailed)
    assert "ProtocolViolation" in failure.cause
    assert not failure.retryable


# ------------------------------------------------------------------- operators whose results take time


def test_a_blocked_task_takes_no_rows_but_watermarks_and_barriers_that_no_rows_precede() -> None:
    # left:  rows 1 · watermark 5 · barrier 1 · rows 2      right:  watermark 5 · barrier 1 · rows 3
    one = CheckpointId(1)
    world = running_consumer(Holding)
    held = Holding.made[-1]
    arrive(world, LEFT, DataFrame(0, rows(1), 8, 0), WatermarkFrame(5), BarrierFrame(one))
    arrive(world, LEFT, DataFrame(1, rows(2), 8, 0))
    arrive(world, RIGHT, WatermarkFrame(5), BarrierFrame(one), DataFrame(0, rows(3), 8, 0))
    assert world.engine.waiting_for() == "busy"
    (ack,) = world.of(CheckpointAcked)
    assert [(f.part, f.rows) for f in ack.files] == [("held", 1)]
    assert world.engine.statistics()["rows_in"] == 1
    held.let_go = True
    world.run()
    assert world.engine.statistics()["rows_in"] == 3
    assert world.engine.waiting_for() == "idle"


def test_a_blocked_source_serves_triggers_and_ends_only_when_its_chain_is_drained() -> None:
    world = running_source(RowsSource(TABLE.slice(0, 10)), Holding)
    held = Holding.made[-1]
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1)))
    world.run()
    assert [type(f) for _, f in world.frames] == [OpenFrame, BarrierFrame]
    assert [f.rows for f in world.of(CheckpointAcked)[0].files] == [10]
    assert not world.of(InputsEnded)
    held.let_go = True
    world.run()
    assert [type(f) for _, f in world.frames[2:]] == [DataFrame, WatermarkFrame, EndFrame]
    assert len(world.of(InputsEnded)) == 1


def test_the_end_of_all_inputs_waits_for_what_is_held_and_barriers_are_served_meanwhile() -> None:
    world = running_consumer(Holding)
    held = Holding.made[-1]
    arrive(world, LEFT, DataFrame(0, rows(1), 8, 0), EndFrame())
    arrive(world, RIGHT, EndFrame())
    for channel in (LEFT, RIGHT):
        arrive(world, channel, BarrierFrame(CheckpointId(1)))
    assert len(world.of(CheckpointAcked)) == 1
    assert not world.of(InputsEnded)
    held.let_go = True
    world.run()
    assert len(world.of(InputsEnded)) == 1


class StepsAside(Doubling):
    """Says at every turn that it is idle, its input's end or not."""

    def next_timer_ms(self) -> int | None:
        return 0 if self.words else None

    def open(self, *args: Any) -> None:
        super().open(*args)
        self.words = 3

    def end(self) -> None:
        self.words = 3

    def on_timer(self, now_ms: int) -> None:
        self.words -= 1
        self.out.emit_idle()


def test_nothing_follows_the_end_not_even_word_of_being_idle() -> None:
    world = running_source(work=StepsAside)
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run()
    kinds = [type(f) for _, f in world.frames]
    assert IdleFrame in kinds
    assert kinds[-1] is EndFrame


def source_without_rows(idle_after_ms: int, work: type[Operator] = Doubling) -> World:
    """A source that has run from time 1,000 on, whose splits the master has yet to find."""
    empty = pa.table({"t": pa.array([], pa.timestamp("ms"))})
    message = deploy(SOURCE, source=RowsSource(empty), work=work)
    first, *others = message.graph.vertices
    timed = replace(
        first.operators[0], time=TimeSpec(column="t", delay=0, idle_after=idle_after_ms * 1_000_000)
    )
    vertices = (replace(first, operators=(timed, *first.operators[1:])), *others)
    world = World(SOURCE)
    world.engine.post(replace(message, graph=replace(message.graph, vertices=vertices)))
    world.engine.post(Start(Attempt(1)))
    world.run(1_000)
    return world


def test_word_of_being_idle_leaves_at_once_where_time_alone_gave_rise_to_it() -> None:
    world = source_without_rows(50)
    assert world.engine.step(1_000).wake_at_ms == 1_050
    # No message comes, and no second step need follow this one: the master has yet to find the splits.
    world.engine.step(1_050)
    assert world.frames[-1] == (CHANNEL, IdleFrame())


class OnceMore(Doubling):
    """Has a row to say at time 1,200, whatever comes in."""

    said = False

    def next_timer_ms(self) -> int | None:
        return None if self.said else 1_200

    def on_timer(self, now_ms: int) -> None:
        self.said = True
        self.out.emit(pa.record_batch({"v": [1]}))


def test_rows_of_a_timer_wake_an_idle_channel_for_themselves_only() -> None:
    # Rows on a channel end its being idle; without another word it would hold everybody's event time back for ever.
    world = source_without_rows(50, OnceMore)
    world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
    world.run(1_050)
    assert [type(f) for _, f in world.frames] == [OpenFrame, IdleFrame]
    world.run(1_200)
    world.run(1_250)
    assert [type(f) for _, f in world.frames] == [OpenFrame, IdleFrame, DataFrame, IdleFrame]


def test_splits_know_themselves_over_json() -> None:
    split = Split(id="a", payload={"x": [1]}, min_time=5, order="z")
    assert Split.from_json(split.to_json()) == split


UNALIGNED = {"checkpoint.mode": "unaligned"}
DESTINATION = SubtaskId(DST, 0)


def restored(world: World, checkpoint_id: int, attempt: int = 2) -> Deploy:
    """Return the next attempt of the consumer, from what was acknowledged of a checkpoint."""
    files = tuple(file for ack in world.of(CheckpointAcked) for file in ack.files if file.kind == "in-flight")
    info = RestoreInfo(
        directory=f"memory://subtask-test/job/chk-{checkpoint_id}",
        checkpoint_id=CheckpointId(checkpoint_id),
        files=files,
    )
    return deploy(DESTINATION, attempt=attempt, work=Sunk, restore=info, config=UNALIGNED)


class Sunk(Operator):
    """Keeps what comes in, watermarks too."""

    got: list[Any] = []  # noqa: RUF012

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.got.extend(batch.column("v").to_pylist())

    def on_watermark(self, watermark: int) -> int | None:
        self.got.append(f"watermark {watermark}")
        return watermark


def data(seq: int, *values: int) -> DataFrame:
    return DataFrame(seq, pa.record_batch({"v": pa.array(values, pa.int64())}), 8, 0)


def test_without_credit_an_unaligned_barrier_leaves_at_once_and_the_rows_are_in_the_checkpoint() -> None:
    world = running_source(config=UNALIGNED)
    world.run()
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1)))
    world.run()
    assert world.frames == [
        (CHANNEL, OpenFrame()),
        (CHANNEL, BarrierFrame(CheckpointId(1), BarrierKind.URGENT)),
    ]
    (ack,) = world.of(CheckpointAcked)
    (file,) = (f for f in ack.files if f.kind == "in-flight")
    assert ack.splits["src"][0].finished
    assert file.rows == 100
    assert (file.uid, file.subtask_index) == ("dst", 0)


def test_a_timed_barrier_waits_behind_the_rows_until_its_time_is_over_and_then_overtakes() -> None:
    world = running_source(config={"checkpoint.alignment_timeout": "50ms"})
    world.run()
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1)))
    world.run()
    assert not world.of(CheckpointAcked), "what will have to be recorded is not known yet"
    assert world.engine.step(1_000).wake_at_ms == 1_050
    world.run(1_050)
    assert world.frames[-1] == (CHANNEL, BarrierFrame(CheckpointId(1), BarrierKind.URGENT))
    assert sum(file.rows for file in world.of(CheckpointAcked)[0].files if file.kind == "in-flight") > 0


def test_a_savepoint_is_aligned_in_whatever_mode() -> None:
    world = running_source(config=UNALIGNED)
    world.run()
    world.engine.post(TriggerCheckpoint(Attempt(1), CheckpointId(1), aligned=True))
    world.run(100_000)
    assert world.frames == [(CHANNEL, OpenFrame())]
    (ack,) = world.of(CheckpointAcked)
    assert not [file for file in ack.files if file.kind == "in-flight"]


@pytest.fixture
def behind() -> World:
    """A consumer whose second attempt begins with rows that were in flight, `Sunk` in front."""
    Sunk.got.clear()
    other = ChannelId(EdgeId(0), SubtaskId(SRC, 1), DESTINATION)
    world = World(DESTINATION)
    world.engine.post(deploy(DESTINATION, producers=2, work=Sunk, config=UNALIGNED))
    world.engine.post(Start(Attempt(1)))
    world.run()
    for channel in (CHANNEL, other):
        world.engine.on_frame(Attempt(1), channel, OpenFrame())
    for frame in (data(0, 1), WatermarkFrame(3), data(1, 4)):
        world.engine.on_frame(Attempt(1), CHANNEL, frame)
    world.engine.on_frame(Attempt(1), other, WatermarkFrame(2))
    world.engine.on_frame(Attempt(1), other, BarrierFrame(CheckpointId(1), BarrierKind.URGENT))
    world.engine.step(1_000)
    world.engine.on_frame(Attempt(1), CHANNEL, data(2, 5))
    world.engine.on_frame(Attempt(1), CHANNEL, BarrierFrame(CheckpointId(1), BarrierKind.URGENT))
    world.run()
    assert len(world.of(CheckpointAcked)) == 1
    assert world.of(Deployed)[-1] == Deployed(DESTINATION, Attempt(1), catches_up=False, number=1)
    Sunk.got.clear()

    world.engine.post(restored(world, 1))
    world.run()
    assert world.of(Deployed)[-1].catches_up
    world.engine.post(Start(Attempt(2)))
    world.engine.on_frame(Attempt(2), CHANNEL, OpenFrame())
    return world


def test_rows_in_flight_are_processed_before_anything_new_and_the_master_is_told(behind: World) -> None:
    behind.engine.step(1_000)
    behind.engine.on_frame(Attempt(2), CHANNEL, data(0, 6))
    assert not behind.of(CaughtUp)
    behind.run()
    assert not behind.of(TaskFailed)
    assert Sunk.got == [1, "watermark 2", 4, 5, 6]
    (told,) = behind.of(CaughtUp)
    assert (told.subtask, told.attempt) == (DESTINATION, Attempt(2))


def test_a_barrier_before_the_rows_in_flight_are_processed_is_a_violation(behind: World) -> None:
    behind.engine.step(1_000)
    behind.engine.on_frame(Attempt(2), CHANNEL, BarrierFrame(CheckpointId(2), BarrierKind.URGENT))
    behind.run()
    (failed,) = behind.of(TaskFailed)
    assert "checkpoint 2 was triggered before all had caught up" in failed.cause


# ------------------------------------------------------------------------------------------ memory


class Hoarding(Operator):
    """Holds rows back until memory is short; its state is as large as the test says."""

    bytes_of_state = 0

    def open(self, ctx: Any, out: Any, restored: Any) -> None:
        super().open(ctx, out, restored)
        self.held: list[pa.RecordBatch] = []

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.held.append(batch)

    def release_memory(self) -> None:
        for batch in self.held:
            self.out.emit(batch)
        self.held.clear()

    def snapshot(self, checkpoint_id: int) -> Any:
        return ()

    def state_bytes(self) -> int:
        return self.bytes_of_state


@pytest.fixture
def hoarding(monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """Make a source that reads nothing, whose operator's state takes so many MiB."""

    def make(state_mib: int = 0, **config: Any) -> World:
        world = running_source(work=Hoarding, config=config)
        monkeypatch.setattr(Hoarding, "bytes_of_state", state_mib << 20)
        world.engine.on_credit(Attempt(1), CHANNEL, PLENTY)
        return world

    return make


def warnings(world: World, type: str) -> list[str]:
    return [w.message for w in world.of(Warned) if w.type == type]


def test_state_is_measured_and_shown_and_warned_of_near_the_managed_share(hoarding: Any) -> None:
    world = hoarding(500)  # of 552.96
    world.run(now_ms=10_000)
    assert world.engine.statistics()["operators"]["op"]["state_bytes"] == 500 << 20
    world.run(now_ms=60_000)
    (message,) = warnings(world, "state_nears_budget")
    assert "500 MiB of the 552.96 MiB" in message
    assert "operator 'double' has 500 MiB" in message
    assert "state.backend=disk" in message
    assert not world.of(TaskFailed)


def test_state_well_below_the_managed_share_is_not_warned_of(hoarding: Any) -> None:
    world = hoarding(400)
    world.run(now_ms=10_000)
    assert world.engine.statistics()["operators"]["op"]["state_bytes"] == 400 << 20
    assert not world.of(Warned)


def test_more_state_than_the_managed_share_fails_nothing(hoarding: Any) -> None:
    world = hoarding(5_000)
    world.run(now_ms=10_000)
    assert len(warnings(world, "state_nears_budget")) == 1
    assert not world.of(TaskFailed)


def test_what_is_measured_while_a_task_runs_is_new_every_few_seconds(hoarding: Any) -> None:
    world = hoarding(1)
    world.run(now_ms=10_000)
    Hoarding.bytes_of_state = 2 << 20
    world.run(now_ms=11_500)
    assert world.engine.statistics()["operators"]["op"]["state_bytes"] == 1 << 20
    world.run(now_ms=12_500)
    assert world.engine.statistics()["operators"]["op"]["state_bytes"] == 2 << 20


def test_when_memory_is_short_operators_let_go_of_what_they_hold(hoarding: Any) -> None:
    world = hoarding()
    world.engine.step(1_000)
    world.engine.step(1_000)
    assert world.rows() == []
    world.engine.memory_pressed(ShedMemory(900 << 20, first=True))
    world.engine.step(1_000)
    assert 0 < len(world.rows()) < 100
    (message,) = warnings(world, "memory_pressure")
    assert "takes 900 MiB of its memory.process of 1,024 MiB" in message


def test_again_short_of_memory_makes_no_second_event_until_it_was_relaxed(hoarding: Any) -> None:
    world = hoarding()
    for command in (
        ShedMemory(900 << 20, first=True),
        ShedMemory(910 << 20, first=False),
        RelaxMemory(600 << 20),
        ShedMemory(900 << 20, first=True),
    ):
        world.engine.memory_pressed(command)
    world.run()
    assert len(warnings(world, "memory_pressure")) == 2
    assert len(warnings(world, "memory_relaxed")) == 1


def test_a_task_that_is_stopped_or_not_yet_there_sheds_nothing() -> None:
    world = World(SOURCE)
    world.engine.memory_pressed(ShedMemory(900 << 20, first=True))
    world.run()
    assert world.reports == []


def test_while_memory_is_short_a_consumer_lets_nothing_float() -> None:
    def granted(pressed: bool) -> int:
        """Bytes of credit after the first frame with a backlog."""
        world = World(SubtaskId(DST, 0))
        world.engine.post(deploy(SubtaskId(DST, 0)))
        world.engine.post(Start(Attempt(1)))
        world.run()
        world.engine.on_frame(Attempt(1), CHANNEL, OpenFrame())
        world.run()
        (first,) = world.credits
        if pressed:
            world.engine.memory_pressed(ShedMemory(900 << 20, first=True))
            world.run()
        batch = pa.record_batch({"v": [1, 2, 3]})
        world.engine._task._gate.block(CHANNEL)
        world.engine.on_frame(Attempt(1), CHANNEL, DataFrame(0, batch, first[1].nbytes, 5))
        world.run()
        return sum(credit.nbytes for _, credit in world.credits[1:])

    assert granted(pressed=False) > 0
    assert granted(pressed=True) == 0


def test_the_limit_is_what_was_set_or_asked_of_ray_and_without_either_it_is_not_firm() -> None:
    world = World(SOURCE)
    assert world.engine.memory_limit == (1 << 30, False)
    message = deploy(SOURCE, config={"memory.process": "2g"})
    world.engine.post(message)
    world.run()
    assert world.engine.memory_limit == (2 << 30, True)
    source, sink = message.graph.vertices
    large = replace(message.graph, vertices=(replace(source, resources=Resources(memory=5 << 30)), sink))
    world.engine.post(replace(message, attempt=Attempt(2), graph=large))
    world.run()
    assert world.engine.memory_limit == (5 << 30, True)


def test_the_end_of_a_process_names_the_largest_consumers_and_what_to_do() -> None:
    use = MemoryUse((("join", 700 << 20), ("sum", 30 << 20)), inputs=8 << 20, outputs=2 << 20)
    why = why_it_ends(1_100 << 20, 1 << 30, use)
    assert "takes 1,100 MiB, more than its memory.process of 1,024 MiB" in why
    assert "state about 730 MiB ('join' 700, 'sum' 30)" in why
    assert "buffers between subtasks 10 MiB" in why
    assert "the other 360 MiB" in why
    assert "state.backend=disk" in why
    assert "have the function hold less" in why_it_ends(1_100 << 20, 1 << 30, MemoryUse())
