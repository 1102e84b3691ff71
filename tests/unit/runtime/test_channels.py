"""An output channel joined to an input gate by a fake wire: order, credit, merging, bounds."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.partition import make_partitioner
from rayflow.model.ids import ChannelId, CheckpointId, EdgeId, SubtaskId, VertexId
from rayflow.protocol.alignment import BarrierKind
from rayflow.protocol.network_budget import NetworkBudget
from rayflow.runtime.gate import InputGate
from rayflow.runtime.messages import (
    BarrierFrame,
    CreditFrame,
    DataFrame,
    EndFrame,
    Frame,
    IdleFrame,
    OpenFrame,
    WatermarkFrame,
)
from rayflow.runtime.outputs import OutputChannel, OutputEdge

A = ChannelId(EdgeId(0), SubtaskId(VertexId("p"), 0), SubtaskId(VertexId("c"), 0))
B = ChannelId(EdgeId(0), SubtaskId(VertexId("p"), 1), SubtaskId(VertexId("c"), 0))


def budget(gate_bytes: int) -> NetworkBudget:
    """A network share of which input gates get so much."""
    return NetworkBudget(4 * gate_bytes)


def rows(*values: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"v": pa.array(values, pa.int64())})


class Wire:
    """One producer edge (broadcast over the given channels) and one gate."""

    def __init__(
        self, *, budget_bytes: int = 1 << 20, batch_rows: int = 100, limit_bytes: int = 1 << 20
    ) -> None:
        self.forth: deque[tuple[ChannelId, Frame]] = deque()
        self.back: deque[tuple[ChannelId, CreditFrame]] = deque()
        self.gate = InputGate(
            {A: 0}, budget(budget_bytes), batch_rows, lambda c, f: self.back.append((c, f)), {A: 1}
        )
        self.channel = OutputChannel(A, lambda c, f: self.forth.append((c, f)))
        self.edge = OutputEdge(
            channels=[self.channel],
            partitioner=make_partitioner("forward", (), 16, 1, 0, 1),
            tag=None,
            batch_rows=batch_rows,
            linger_ms=20,
            gather_bytes=1 << 20,
            frame_bytes=1 << 20,
            limit_bytes=limit_bytes,
        )
        self.channel.push(OpenFrame())

    def settle(self, now_ms: int = 1_000_000) -> None:
        """Deliver everything that can be delivered, without consuming."""
        while True:
            self.edge.pump(now_ms)
            if not self.forth and not self.back:
                return
            while self.forth:
                self.gate.accept(*self.forth.popleft())
            while self.back:
                self.channel.on_credit(self.back.popleft()[1])

    def take(self) -> object:
        arrival = self.gate.poll()
        if arrival is None:
            return None
        return arrival.frame if arrival.batch is None else arrival.batch.column(0).to_pylist()


def test_rows_are_gathered_until_linger_has_passed_and_the_newest_watermark_follows_them() -> None:
    wire = Wire()
    wire.edge.emit(rows(1), now_ms=0)
    wire.edge.emit_watermark(5, now_ms=1)
    wire.edge.emit(rows(2), now_ms=2)
    wire.edge.emit_watermark(7, now_ms=3)
    wire.settle(now_ms=19)
    assert wire.take() is None
    wire.settle(now_ms=20)
    assert [wire.take(), wire.take(), wire.take()] == [[1, 2], WatermarkFrame(7), None]


def test_a_barrier_flushes_what_was_emitted_before_it() -> None:
    wire = Wire()
    wire.edge.emit(rows(1), now_ms=0)
    wire.edge.broadcast(BarrierFrame(1))  # type: ignore[arg-type]
    wire.edge.emit(rows(2), now_ms=0)
    wire.edge.broadcast(EndFrame())
    wire.settle(now_ms=0)
    assert [wire.take() for _ in range(4)] == [[1], BarrierFrame(1), [2], EndFrame()]  # type: ignore[arg-type]


def test_waiting_data_frames_are_merged_but_never_over_a_barrier() -> None:
    wire = Wire(batch_rows=1)
    wire.gate._batch_rows = 100
    for value in (1, 2, 3):
        wire.edge.emit(rows(value), now_ms=0)
    wire.edge.broadcast(BarrierFrame(1))  # type: ignore[arg-type]
    wire.settle()
    assert wire.take() == [1, 2, 3]
    assert wire.take() == BarrierFrame(1)  # type: ignore[arg-type]


def test_a_blocked_channel_gives_nothing_and_the_other_flows_on() -> None:
    grants: list[ChannelId] = []
    gate = InputGate({A: 0, B: 1}, budget(1 << 20), 10, lambda c, f: grants.append(c), {A: 1, B: 1})
    gate.accept(A, OpenFrame())
    gate.accept(B, OpenFrame())
    gate.accept(A, DataFrame(0, rows(1), 8, 0))
    gate.accept(B, DataFrame(0, rows(2), 8, 0))
    gate.block(A)
    arrival = gate.poll()
    assert arrival is not None
    assert (arrival.channel, arrival.port) == (B, 1)
    assert gate.poll() is None
    gate.unblock([A])
    assert gate.poll() is not None
    assert grants == [A, B]


def test_a_stalled_consumer_keeps_the_queue_within_the_budget_and_fills_the_producer() -> None:
    wire = Wire(budget_bytes=4096, batch_rows=16, limit_bytes=4096)
    emitted = 0
    while not wire.edge.full:
        wire.edge.emit(rows(*range(emitted, emitted + 16)), now_ms=0)
        emitted += 16
        wire.settle(now_ms=0)
        assert emitted < 10_000, "back-pressure never came"
    queued = sum(f.nbytes for f in wire.gate._queues[A].frames if isinstance(f, DataFrame))
    assert 0 < queued <= 4096 + 128
    got: list[int] = []
    while (taken := wire.take()) is not None:
        assert isinstance(taken, list)
        got += taken
        wire.settle(now_ms=0)
    assert got == list(range(emitted))


def test_watermarks_do_not_pile_up_at_a_stalled_consumer() -> None:
    wire = Wire()
    for watermark in range(1000):
        wire.edge.emit_watermark(watermark, now_ms=0)
        wire.edge.flush()
        wire.settle()
    assert wire.gate.queued_frames == 1
    assert wire.take() == WatermarkFrame(999)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.lists(st.integers(0, 99), min_size=1, max_size=30),
            st.just("barrier"),
            st.just("flush"),
            st.just("take"),
        ),
        max_size=60,
    ),
    st.sampled_from([64, 512, 1 << 16]),
    st.sampled_from([1, 8, 100]),
)
def test_whatever_is_emitted_arrives_in_order_without_loss(
    actions: list[object], budget_bytes: int, batch_rows: int
) -> None:
    wire = Wire(budget_bytes=budget_bytes, batch_rows=batch_rows)
    sent: list[object] = []
    got: list[object] = []
    barriers = 0

    def drain(limit: int) -> None:
        for _ in range(limit):
            taken = wire.take()
            if taken is None:
                return
            got.extend(taken if isinstance(taken, list) else [taken])
            wire.settle()

    for action in actions:
        if isinstance(action, list):
            wire.edge.emit(rows(*action), now_ms=0)
            sent.extend(action)
        elif action == "barrier":
            barriers += 1
            wire.edge.broadcast(BarrierFrame(barriers))  # type: ignore[arg-type]
            sent.append(BarrierFrame(barriers))  # type: ignore[arg-type]
        elif action == "flush":
            wire.edge.flush()
        else:
            drain(1)
        wire.settle(now_ms=0)
    wire.settle()
    drain(10_000)
    assert got == sent


def barrier(number: int) -> BarrierFrame:
    return BarrierFrame(CheckpointId(number), BarrierKind.URGENT)


def test_a_barrier_overtakes_what_has_no_credit_and_that_still_leaves_in_order() -> None:
    wire = Wire()
    for value in (1, 2):
        wire.edge.emit(rows(value), now_ms=0)
        wire.edge.broadcast(IdleFrame())
    wire.edge.broadcast(BarrierFrame(CheckpointId(1)))
    wire.edge.emit(rows(3), now_ms=0)
    overtaken = wire.edge.overtake(barrier(2))
    # The older barrier is given up: it must not arrive behind a newer one.
    assert overtaken == {A: [rows(1), IdleFrame(), rows(2), IdleFrame(), rows(3)]}
    wire.settle()
    got = [wire.take() for _ in range(7)]
    assert got == [barrier(2), [1], IdleFrame(), [2], IdleFrame(), [3], None]


def test_a_barrier_that_is_queued_overtakes_only_what_is_before_it() -> None:
    wire = Wire()
    wire.edge.emit(rows(1), now_ms=0)
    wire.edge.broadcast(BarrierFrame(CheckpointId(1), BarrierKind.TIMED))
    wire.edge.emit(rows(2), now_ms=0)
    wire.edge.flush()
    assert wire.channel.queued_barrier == 1
    assert wire.channel.overtake(barrier(1)) == [rows(1)]
    assert wire.channel.queued_barrier is None
    wire.settle()
    assert [wire.take() for _ in range(4)] == [barrier(1), [1, 2], None, None]


def test_a_barrier_that_has_credit_after_all_is_not_sent_twice() -> None:
    wire = Wire()
    wire.edge.emit(rows(1), now_ms=0)
    wire.edge.broadcast(BarrierFrame(CheckpointId(1), BarrierKind.TIMED))
    wire.channel.on_credit(CreditFrame(9, 1 << 20))
    assert wire.channel.overtake(barrier(1)) == []
    assert [type(frame) for _, frame in wire.forth] == [OpenFrame, DataFrame, BarrierFrame]


def recording_gate(budget_bytes: int = 1 << 20, *, never_held_back: Collection[ChannelId] = ()) -> InputGate:
    gate = InputGate(
        {A: 0, B: 0},
        budget(budget_bytes),
        10,
        lambda c, f: None,
        {A: 1, B: 1},
        never_held_back=never_held_back,
    )
    for channel in (A, B):
        gate.accept(channel, OpenFrame())
    return gate


def test_what_is_before_the_barrier_is_recorded_and_still_given() -> None:
    gate = recording_gate()
    gate.accept(A, DataFrame(0, rows(1), 8, 0))
    gate.accept(A, barrier(1))
    gate.accept(A, DataFrame(1, rows(2), 8, 0))
    gate.accept(B, DataFrame(0, rows(3), 8, 0))
    for channel in (A, B):
        gate.record(channel, CheckpointId(1))
    gate.accept(A, DataFrame(2, rows(4), 8, 0))
    for frame in (WatermarkFrame(5), WatermarkFrame(6), DataFrame(1, rows(7), 8, 0), barrier(1)):
        gate.accept(B, frame)
    gate.stop_recording(B)
    gate.accept(B, DataFrame(2, rows(8), 8, 0))
    assert gate.take_recorded() == {
        A: [DataFrame(0, rows(1), 8, 0)],
        B: [DataFrame(0, rows(3), 8, 0), WatermarkFrame(6), DataFrame(1, rows(7), 8, 0)],
    }
    given = []
    while (arrival := gate.poll()) is not None:
        given.append(arrival.frame if arrival.batch is None else arrival.batch.column(0).to_pylist())
    assert given == [[1, 2, 4], [3], WatermarkFrame(6), [7, 8]]
    assert gate.queued_frames == 0


def test_a_channel_whose_record_is_full_gives_no_more_rows_until_its_barrier_has_come() -> None:
    gate = recording_gate(budget_bytes=100)
    gate.record(A, CheckpointId(1))
    gate.accept(A, DataFrame(0, rows(1), 100, 0))
    gate.accept(B, DataFrame(0, rows(2), 8, 0))
    arrival = gate.poll()
    assert arrival is not None
    assert arrival.channel == B
    assert gate.poll() is None
    gate.accept(A, barrier(1))
    gate.stop_recording(A)
    arrival = gate.poll()
    assert arrival is not None
    assert arrival.channel == A


def test_who_may_have_to_send_rows_before_its_barrier_is_not_held_back_and_takes_nobody_elses_room() -> None:
    """Simulation seed 7864: behind a broadcast the barrier waited for the rows, and the rows for the barrier."""
    gate = recording_gate(budget_bytes=100, never_held_back={A})
    for channel in (A, B):
        gate.record(channel, CheckpointId(1))
    for number in range(3):
        gate.accept(A, DataFrame(number, rows(number), 100, 0))
        arrival = gate.poll()
        assert arrival is not None
        assert arrival.channel == A
    gate.accept(B, DataFrame(0, rows(7), 20, 0))
    arrival = gate.poll()
    assert arrival is not None
    assert arrival.channel == B
    for channel in (A, B):
        gate.accept(channel, DataFrame(3 if channel == A else 1, rows(8), 100, 0))
    arrival = gate.poll()
    assert arrival is not None
    assert arrival.channel == A
    assert gate.poll() is None, "B has recorded what it may"
    assert len(gate.take_recorded()[A]) == 4
