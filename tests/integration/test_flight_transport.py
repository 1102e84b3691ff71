"""The data plane between two transports, and between processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path
from queue import Queue

import numpy as np
import pyarrow as pa
import pytest

from rayflow.actors.flight import FlightTransport
from rayflow.actors.lease import Lease
from rayflow.model.ids import Attempt, ChannelId, CheckpointId, EdgeId, JobId, SubtaskId, VertexId
from rayflow.protocol.alignment import BarrierKind
from rayflow.runtime.messages import (
    BarrierFrame,
    CreditFrame,
    DataFrame,
    EndFrame,
    IdleFrame,
    WatermarkFrame,
)

ONE, TWO = Attempt(1), Attempt(2)
WAIT_S = 20.0


class Recorder:
    """A receiver that keeps what it is told, by channel."""

    def __init__(self):
        self.frames = defaultdict(Queue)
        self.credits = defaultdict(Queue)
        self.broken = Queue()

    def on_frame(self, attempt, channel, frame):
        self.frames[channel].put((attempt, frame))

    def on_credit(self, attempt, channel, credit):
        self.credits[channel].put((attempt, credit))

    def on_channel_broken(self, attempt, channel, reason):
        self.broken.put((attempt, channel, reason))


def channel(producer: int = 0, consumer: int = 0) -> ChannelId:
    return ChannelId(
        EdgeId(0), SubtaskId(VertexId("source"), producer), SubtaskId(VertexId("sink"), consumer)
    )


def rows(n: int, start: int = 0) -> pa.RecordBatch:
    return pa.record_batch({"a": np.arange(start, start + n), "b": np.arange(n) * 0.5})


def data(seq: int, batch: pa.RecordBatch) -> DataFrame:
    return DataFrame(seq, batch, batch.nbytes, 0)


@pytest.fixture
def transport():
    made = []

    def make(job="job", token="secret", **heartbeats):
        made.append(FlightTransport(job_id=JobId(job), token=token, **heartbeats))
        return made[-1]

    yield make
    for t in made:
        t.close()


def test_frames_arrive_in_order_and_credits_come_back(transport):
    producer, consumer, at_producer, at_consumer = transport(), transport(), Recorder(), Recorder()
    c = channel()
    consumer.listen(at_consumer, ONE, [c])
    consumer.send_credit(ONE, c, CreditFrame(2, 100))
    consumer.send_credit(ONE, c, CreditFrame(1, 50))  # before the producer has called
    producer.connect(ONE, {c: consumer.address}, at_producer)
    sent = [
        WatermarkFrame(-5),
        IdleFrame(),
        BarrierFrame(CheckpointId(1), BarrierKind.URGENT),
        data(0, rows(3)),
    ]
    sent += [data(i, rows(5000, i)) for i in range(1, 50)] + [WatermarkFrame(7), EndFrame()]
    for frame in sent:
        producer.send(ONE, c, frame)
    got = [at_consumer.frames[c].get(timeout=WAIT_S) for _ in sent]
    assert got == [(ONE, f) for f in sent]
    assert at_producer.credits[c].get(timeout=WAIT_S) == (ONE, CreditFrame(3, 150))
    consumer.send_credit(ONE, c, CreditFrame(4, 9))
    assert at_producer.credits[c].get(timeout=WAIT_S) == (ONE, CreditFrame(4, 9))
    assert at_consumer.broken.empty()
    assert at_producer.broken.empty()


@pytest.mark.parametrize(
    "batch",
    [
        rows(7),
        rows(100_000).slice(99, 5),
        pa.record_batch({"s": ["x", None, "yz"], "l": [[1], [], None]}),
        pa.record_batch({"d": pa.array(["u", "v", "u"]).dictionary_encode()}),
        pa.record_batch({"n": pa.nulls(4)}),
        rows(0),
        rows(3_000_000),
    ],
    ids=["ints", "slice", "nested", "dictionary", "nulls", "empty", "large"],
)
def test_batches_arrive_equal_and_aligned(transport, batch):
    producer, consumer, got = transport(), transport(), Recorder()
    c = channel()
    consumer.listen(got, ONE, [c])
    producer.connect(ONE, {c: consumer.address}, Recorder())
    other = pa.record_batch({"other": ["schema"]})
    for i, b in enumerate([batch, other, batch]):
        producer.send(ONE, c, data(i, b))
    for b in [batch, other, batch]:
        received = got.frames[c].get(timeout=WAIT_S)[1].batch
        assert received.equals(b)
        assert all(x.address % 8 == 0 for col in received.columns for x in col.buffers() if x is not None)


def test_128_channels_into_one_process_run_on_while_producers_of_four_stand_still(transport):
    consumer, got = transport(), Recorder()
    channels = [channel(i) for i in range(128)]
    consumer.listen(got, ONE, channels)
    producer = transport()
    producer.connect(ONE, {c: consumer.address for c in channels}, Recorder())
    running = channels[4:]
    for seq in range(10):
        for c in running:
            producer.send(ONE, c, data(seq, rows(100)))
    for c in running:
        assert [got.frames[c].get(timeout=WAIT_S)[1].seq for _ in range(10)] == list(range(10))
    for c in channels[:4]:
        producer.send(ONE, c, BarrierFrame(CheckpointId(1)))
        assert got.frames[c].get(timeout=WAIT_S)[1] == BarrierFrame(CheckpointId(1))


CHILD = """
import sys, threading
sys.path[:0] = {path!r}
import test_flight_transport as t
consumer, got = t.FlightTransport(job_id="job", token="secret"), t.Recorder()
consumer.listen(got, t.ONE, [t.channel(0), t.channel(1)])
print(consumer.address, flush=True)
got.frames[t.channel(0)].get()
print("received", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def child():
    code = CHILD.format(path=[str(Path(__file__).parent), str(Path(__file__).parents[2])])
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()


def test_a_killed_peer_is_reported_for_each_of_its_channels(transport, child):
    address = child.stdout.readline().strip()
    producer, told = transport(), Recorder()
    channels = [channel(0), channel(1)]
    producer.connect(ONE, dict.fromkeys(channels, address), told)
    producer.send(ONE, channels[0], IdleFrame())
    assert child.stdout.readline().strip() == "received"
    child.kill()
    broken = [told.broken.get(timeout=WAIT_S) for _ in channels]
    assert sorted(c for _, c, _ in broken) == channels


def test_sending_to_a_stopped_peer_does_not_block_and_its_channels_can_be_closed(transport, child):
    address = child.stdout.readline().strip()
    producer, told = transport(), Recorder()
    c = channel(0)
    producer.connect(ONE, {c: address}, told)
    producer.send(ONE, c, IdleFrame())
    assert child.stdout.readline().strip() == "received"
    os.kill(child.pid, signal.SIGSTOP)
    for seq in range(50):
        producer.send(ONE, c, data(seq, rows(100_000)))
    threads = [t for t in threading.enumerate() if t.name.startswith(f"out {c}")]
    producer.close()
    child.kill()
    for t in threads:
        t.join(WAIT_S)
        assert not t.is_alive()
    assert told.broken.empty()


QUICK = {"heartbeat_interval_s": 0.05, "heartbeat_timeout_s": 0.5}
MUTE = {"heartbeat_interval_s": 1e4, "heartbeat_timeout_s": 1e5}


def test_a_peer_that_is_stopped_or_cut_off_is_reported_though_its_stream_stays_open(transport, child):
    address = child.stdout.readline().strip()
    producer, told = transport(**QUICK), Recorder()
    channels = [channel(0), channel(1)]
    producer.connect(ONE, dict.fromkeys(channels, address), told)
    producer.send(ONE, channels[0], IdleFrame())
    assert child.stdout.readline().strip() == "received"
    os.kill(child.pid, signal.SIGSTOP)
    broken = [told.broken.get(timeout=WAIT_S) for _ in channels]
    assert sorted(c for _, c, _ in broken) == channels
    assert {reason for *_, reason in broken} == {"nothing was heard of its other end for 0.5 s"}
    assert told.broken.empty()


def test_a_producer_that_falls_silent_is_reported_but_one_that_has_not_called_yet_is_waited_for(transport):
    consumer, got = transport(**QUICK), Recorder()
    silent, never = channel(0), channel(1)
    consumer.listen(got, ONE, [silent, never])
    producer = transport(**MUTE)
    producer.connect(ONE, {silent: consumer.address}, Recorder())
    producer.send(ONE, silent, IdleFrame())
    assert got.broken.get(timeout=WAIT_S)[:2] == (ONE, silent)
    assert got.broken.empty()


def test_heartbeats_keep_an_idle_channel_whole_at_both_ends(transport, monkeypatch):
    heard = Counter()
    renew = Lease.renew
    monkeypatch.setattr(Lease, "renew", lambda lease: (heard.update([id(lease)]), renew(lease))[1])
    quiet = {"heartbeat_interval_s": 0.02, "heartbeat_timeout_s": 5.0}
    consumer, producer, at_consumer, at_producer = (
        *(transport(**quiet), transport(**quiet)),
        *(Recorder(), Recorder()),
    )
    consumer.listen(at_consumer, ONE, [channel()])
    producer.connect(ONE, {channel(): consumer.address}, at_producer)
    until(lambda: len(heard) == 2 and min(heard.values()) > 50)
    assert at_consumer.broken.empty()
    assert at_producer.broken.empty()
    assert not at_consumer.frames
    assert not at_producer.credits


def until(condition):
    """Wait for a condition, at most WAIT_S."""
    given_up_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < given_up_s
        time.sleep(0.01)


def test_a_peer_that_cannot_be_reached_breaks_the_channel(transport):
    gone = transport()
    address = gone.address
    gone.close()
    told = Recorder()
    transport().connect(ONE, {channel(): address}, told)
    assert told.broken.get(timeout=WAIT_S)[:2] == (ONE, channel())


@pytest.mark.parametrize(
    ("attempt", "job", "token", "reason"),
    [
        (ONE, "job", "guess", "token is not this job's"),
        (ONE, "other", "secret", "this is job job, not other"),
        (TWO, "job", "secret", "is at attempt 1"),
    ],
)
def test_a_stranger_is_refused(transport, attempt, job, token, reason):
    consumer, got, told = transport(), Recorder(), Recorder()
    consumer.listen(got, ONE, [channel()])
    producer = transport(job=job, token=token)
    producer.connect(attempt, {channel(): consumer.address}, told)
    producer.send(attempt, channel(), IdleFrame())
    assert reason in told.broken.get(timeout=WAIT_S)[2]
    assert not got.frames


@pytest.mark.parametrize("first", ["consumer", "producer"])
def test_a_new_attempt_drops_the_old_one_without_breaks_or_threads_left(transport, first):
    # attempt 1: producer → consumer; both move to attempt 2, one after the other
    producer, consumer, at_producer, at_consumer = transport(), transport(), Recorder(), Recorder()
    c = channel()
    consumer.listen(at_consumer, ONE, [c])
    producer.connect(ONE, {c: consumer.address}, at_producer)
    producer.send(ONE, c, data(0, rows(10)))
    at_consumer.frames[c].get(timeout=WAIT_S)
    old_threads = [t for t in threading.enumerate() if t.name.startswith(f"out {c}")]
    if first == "consumer":
        consumer.listen(at_consumer, TWO, [c])
        producer.close_channels(ONE)
    else:
        producer.close_channels(ONE)
        consumer.listen(at_consumer, TWO, [c])
    producer.send(ONE, c, data(1, rows(10)))  # stale: dropped
    producer.connect(TWO, {c: consumer.address}, at_producer)
    producer.send(TWO, c, WatermarkFrame(1))
    assert at_consumer.frames[c].get(timeout=WAIT_S) == (TWO, WatermarkFrame(1))
    for t in old_threads:
        t.join(WAIT_S)
        assert not t.is_alive()
    assert at_consumer.broken.empty()
    assert at_producer.broken.empty()


def test_a_second_producer_of_a_channel_is_refused(transport):
    consumer, got, told = transport(), Recorder(), Recorder()
    consumer.listen(got, ONE, [channel()])
    first, second = transport(), transport()
    first.connect(ONE, {channel(): consumer.address}, Recorder())
    first.send(ONE, channel(), IdleFrame())
    got.frames[channel()].get(timeout=WAIT_S)
    second.connect(ONE, {channel(): consumer.address}, told)
    assert "has or had a producer" in told.broken.get(timeout=WAIT_S)[2]
    first.send(ONE, channel(), EndFrame())
    assert got.frames[channel()].get(timeout=WAIT_S) == (ONE, EndFrame())
