"""Whole jobs in one process: source → hash exchange → operator → transactional sink."""

from __future__ import annotations

import gc
import json
import tempfile
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rayflow.graph.plan import Exchange, JobEdge, JobGraph, JobVertex, OperatorSpec, Resources
from rayflow.model.errors import PlanError, StorageError, UserFunctionError
from rayflow.model.ids import Attempt, ChannelId, EdgeId, SubtaskId, VertexId
from rayflow.operators.contracts import Operator, Sink, SinkContext
from rayflow.operators.source_contract import Source, Split, SplitReader
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.clock import SystemClock
from rayflow.runtime.io_pool import ThreadIoPool
from rayflow.runtime.local import LocalCluster, LocalJob, LocalResult, LocalWorker, run_local
from rayflow.runtime.local_transport import LocalNetwork
from rayflow.runtime.master.storage import JobStorage
from rayflow.runtime.messages import CreditFrame, EndFrame

SCHEMA = pa.schema([("key", pa.int64()), ("value", pa.int64())])
SOURCE, WORK = VertexId("source"), VertexId("work")


@dataclass
class Outside:
    """The world outside of one job. Subtasks get copies of the graph, and find it by its number."""

    staged: dict[str, list[int]] = field(default_factory=dict)
    committed: dict[str, list[int]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    more: threading.Event = field(default_factory=threading.Event)
    on_commit: Any = None
    ended: Any = None

    def values(self) -> list[int]:
        return [value for values in self.committed.values() for value in values]


OUTSIDE: dict[int, Outside] = {}


@pytest.fixture
def outside() -> Outside:
    made = Outside()
    made.more.set()
    OUTSIDE[id(made)] = made
    return made


class Numbers(Source):
    """`count` splits of `rows` rows; the second half of each is there when `more` is set."""

    def __init__(self, number: int, count: int, rows: int) -> None:
        self.number, self.count, self.rows = number, count, rows

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def splits(self) -> Sequence[Split]:
        return [Split(id=f"s{i}", payload={"i": i}, order=f"{i}") for i in range(self.count)]

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        return NumbersReader(self, split.payload["i"], position or 0)


class NumbersReader(SplitReader):
    def __init__(self, source: Numbers, index: int, at: int) -> None:
        self.source, self.index, self.at = source, index, at

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        rows = self.source.rows
        if self.at >= rows:
            return None
        there = rows if OUTSIDE[self.source.number].more.is_set() else rows // 2
        stop = min(self.at + min(max_rows, 50), there)
        values = [self.index * rows + v for v in range(self.at, stop)]
        self.at = max(self.at, stop)
        return pa.RecordBatch.from_pydict({"key": [v % 7 for v in values], "value": values}, schema=SCHEMA)

    def position(self) -> int:
        return self.at


class Missing(Numbers):
    def splits(self) -> Sequence[Split]:
        raise FileNotFoundError("no such file: flights.parquet")


class Double(Operator):
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        doubled = pc.multiply(batch.column(1), 2)
        self.out.emit(pa.RecordBatch.from_arrays([batch.column(0), doubled], schema=SCHEMA))


class Raises(Operator):
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        raise UserFunctionError("work", "boom", "job.py:7")


class Transactional(Sink):
    def __init__(self, number: int) -> None:
        self.number = number
        self.buffer: list[int] = []

    @property
    def outside(self) -> Outside:
        return OUTSIDE[self.number]

    def start_job(self, ctx: SinkContext) -> None:
        self.outside.calls.append("start_job")

    def finish_job(self, ctx: SinkContext) -> None:
        self.outside.calls.append("finish_job")
        self.outside.ended = (ctx.succeeded, ctx.completed_checkpoint)

    def open(self, ctx: SinkContext) -> None:
        self.ctx = ctx

    def write(self, batch: pa.RecordBatch) -> None:
        self.buffer.extend(batch.column(1).to_pylist())

    def prepare(self, checkpoint_id: int) -> str | None:
        if not self.buffer:
            return None
        name = f"{self.ctx.job_id}-a{self.ctx.attempt}-s{self.ctx.subtask_index}-c{checkpoint_id}"
        self.outside.staged[name], self.buffer = self.buffer, []
        return name

    def commit(self, permit: CommitPermit) -> None:
        self.outside.committed.setdefault(permit.pending, self.outside.staged[permit.pending])
        if self.outside.on_commit is not None:
            self.outside.on_commit(permit)


class Refuses(Transactional):
    def start_job(self, ctx: SinkContext) -> None:
        raise PlanError("out/ is not empty")


def graph_of(
    outside: Outside,
    *,
    source: type[Numbers] = Numbers,
    operator: type[Operator] = Double,
    sink: type[Transactional] = Transactional,
    splits: int = 3,
    rows: int = 1_000,
    parallelism: int = 2,
    workers: int = 2,
) -> JobGraph:
    number = id(outside)
    numbers = OperatorSpec(
        uid="source", name="numbers", kind="source", payload=source(number, splits, rows), schema=SCHEMA
    )
    work = OperatorSpec(uid="work", name="double", kind="operator", payload=operator)
    end = OperatorSpec(uid="sink", name="out", kind="sink", payload=sink(number), location="job.py:9")
    return JobGraph(
        name="local",
        max_parallelism=16,
        vertices=(
            JobVertex(id=SOURCE, operators=(numbers,), parallelism=parallelism),
            JobVertex(id=WORK, operators=(work, end), parallelism=workers),
        ),
        edges=(
            JobEdge(
                id=EdgeId(0), source=SOURCE, target=WORK, exchange=Exchange("hash", ("key",)), schema=SCHEMA
            ),
        ),
    )


def expected(splits: int = 3, rows: int = 1_000) -> list[int]:
    return [2 * v for v in range(splits * rows)]


def types_of(result: LocalResult) -> list[str]:
    return [event["type"] for event in result.events]


def test_a_bounded_job_commits_every_row_once_and_finishes(outside: Outside) -> None:
    result = run_local(graph_of(outside), {})
    assert result.state is JobState.FINISHED
    assert result.failure is None
    assert sorted(outside.values()) == expected()
    assert outside.calls == ["start_job", "finish_job"]
    assert [c["status"] for c in result.checkpoints] == ["completed"]
    assert result.describe["restarts"] == []
    assert {s["state"] for s in result.describe["subtasks"]} == {"FINISHED"}
    assert outside.ended == (True, 1)


def test_everything_inspecting_commands_get_is_json(outside: Outside) -> None:
    result = run_local(graph_of(outside), {})
    json.dumps([result.describe, result.metrics, result.checkpoints, result.events])


def test_a_crashed_subtask_is_replaced_and_the_job_goes_on_from_its_checkpoint(outside: Outside) -> None:
    # half the rows · checkpoint commits · crash · attempt 2 restores it · the other half
    outside.more.clear()
    crashed = threading.Event()

    def on_start(job: LocalJob) -> None:
        def on_commit(permit: CommitPermit) -> None:
            if not crashed.is_set() and len(outside.values()) >= 1_000:
                crashed.set()
                threading.Thread(target=job.cluster.crash, args=(SubtaskId(WORK, 1),)).start()
            if permit.attempt > 1 or crashed.is_set():
                outside.more.set()

        outside.on_commit = on_commit

    result = run_local(
        graph_of(outside), {"checkpoint.interval": "20ms", "restart.delay": "1ms"}, on_start=on_start
    )
    assert result.state is JobState.FINISHED
    assert sorted(outside.values()) == expected()
    restarts = result.describe["restarts"]
    assert [r["attempt"] for r in restarts] == [2]
    assert "work[1]" in restarts[0]["cause"]
    assert "/chk-" in restarts[0]["restored_from"]
    assert {"subtask_lost", "attempt_failed", "restored"} <= set(types_of(result))


def test_a_function_that_raises_fails_the_job_with_its_place(outside: Outside) -> None:
    result = run_local(graph_of(outside, operator=Raises), {"restart.strategy": "none"})
    assert result.state is JobState.FAILED
    assert result.failure is not None
    job_id, cause, operator, location = result.failure
    assert job_id == result.job_id
    assert "boom" in cause
    assert (operator, location) == ("work", "job.py:7")
    assert outside.ended == (False, None)
    assert outside.values() == []
    assert outside.calls == ["start_job", "finish_job"]


def test_restarts_end_when_their_budget_is_spent(outside: Outside) -> None:
    config = {"restart.max_attempts": 2, "restart.delay": "1ms", "restart.strategy": "fixed"}
    result = run_local(graph_of(outside, operator=Raises), config)
    assert result.state is JobState.FAILED
    assert [r["attempt"] for r in result.describe["restarts"]] == [2, 3]


def test_a_source_that_cannot_be_listed_fails_the_job_at_once(outside: Outside) -> None:
    result = run_local(graph_of(outside, source=Missing), {})
    assert result.state is JobState.FAILED
    assert result.failure is not None
    assert "flights.parquet" in result.failure[1]
    assert result.failure[2] == "numbers"
    assert result.describe["restarts"] == []


def test_a_sink_that_refuses_its_target_fails_the_job_before_data_flows(outside: Outside) -> None:
    result = run_local(graph_of(outside, sink=Refuses), {})
    assert result.failure is not None
    assert result.failure[1:] == (
        "sink 'out' cannot begin: out/ is not empty\n  at job.py:9",
        "out",
        "job.py:9",
    )
    assert outside.staged == {}


def test_a_cancelled_job_commits_nothing_more(outside: Outside) -> None:
    outside.more.clear()

    def cancel_once_it_runs(job: LocalJob) -> None:
        while job.master.state is not JobState.RUNNING and not job.master.closed:
            time.sleep(0.01)
        job.master.cancel()

    result = run_local(
        graph_of(outside),
        {},
        on_start=lambda job: threading.Thread(target=cancel_once_it_runs, args=(job,), daemon=True).start(),
    )
    assert result.state is JobState.CANCELLED
    assert outside.values() == []
    assert outside.calls == ["start_job", "finish_job"]


def test_a_cancelled_job_spares_what_a_checkpoint_left_that_it_took_for_failed(
    outside: Outside, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Published; the look at the claims that follows fails, and so does the deletion: it is there, to be restored.
    publish = JobStorage.publish

    def published_and_lost(self: JobStorage, *args: Any) -> bool:
        publish(self, *args)
        raise StorageError("no answer")

    def not_deleted(*_args: Any) -> None:
        raise StorageError("no answer")

    monkeypatch.setattr(JobStorage, "publish", published_and_lost)
    monkeypatch.setattr(JobStorage, "discard", not_deleted)
    outside.more.clear()

    def cancel_after_a_failure(job: LocalJob) -> None:
        while not any(event["type"] == "checkpoint_failed" for event in job.master.events()):
            if job.master.closed:
                return
            time.sleep(0.01)
        job.master.cancel()

    run_local(
        graph_of(outside),
        {"checkpoint.interval": "20ms", "checkpoint.storage": str(tmp_path)},
        on_start=lambda job: threading.Thread(
            target=cancel_after_a_failure, args=(job,), daemon=True
        ).start(),
    )
    newest = max(int(path.parent.name.removeprefix("chk-")) for path in tmp_path.rglob("manifest.json"))
    assert outside.ended == (False, newest)


def test_a_checkpoint_restores_at_another_parallelism(outside: Outside, tmp_path: Path) -> None:
    outside.more.clear()
    config = {"checkpoint.interval": "20ms", "checkpoint.storage": f"file://{tmp_path}"}

    def on_start(job: LocalJob) -> None:
        def on_commit(permit: CommitPermit) -> None:
            if len(outside.values()) == 1_000:
                job.master.cancel()

        outside.on_commit = on_commit

    first = run_local(graph_of(outside), config, on_start=on_start)
    assert first.state is JobState.CANCELLED
    # What this checkpoint left pending may still be wanted.
    newest = max(c["id"] for c in first.checkpoints if c["status"] == "completed")
    assert outside.ended == (False, newest)
    outside.more.set()
    outside.on_commit = None
    graph = graph_of(outside, parallelism=1, workers=3)
    second = run_local(graph, config, restore_from=f"{tmp_path}/{first.job_id}")
    assert second.state is JobState.FINISHED
    assert sorted(outside.values()) == expected()
    assert first.job_id in second.describe["restored_from"]
    assert outside.calls.count("start_job") == 1


def test_without_a_storage_nothing_is_left_behind(outside: Outside, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run_local(graph_of(outside), {})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------- transport


class Receiver:
    def __init__(self) -> None:
        self.got: list[Any] = []

    def on_frame(self, attempt: int, channel: ChannelId, frame: Any) -> None:
        self.got.append((attempt, frame))

    def on_credit(self, attempt: int, channel: ChannelId, credit: CreditFrame) -> None:
        self.got.append((attempt, credit))

    def on_channel_broken(self, attempt: int, channel: ChannelId, reason: str) -> None:
        self.got.append((attempt, f"broken: {reason}"))


CHANNEL = ChannelId(EdgeId(0), SubtaskId(SOURCE, 0), SubtaskId(WORK, 0))
FIRST, SECOND = Attempt(1), Attempt(2)


def connected() -> tuple[Any, Any, Receiver, Receiver]:
    network = LocalNetwork()
    a, b, at_a, at_b = network.endpoint(), network.endpoint(), Receiver(), Receiver()
    b.listen(at_b, FIRST, [CHANNEL])
    a.connect(FIRST, {CHANNEL: b.address}, at_a)
    return a, b, at_a, at_b


def test_frames_and_credits_reach_the_other_end() -> None:
    a, b, at_a, at_b = connected()
    a.send(FIRST, CHANNEL, EndFrame())
    b.send_credit(FIRST, CHANNEL, CreditFrame(1, 2))
    assert at_b.got == [(1, EndFrame())]
    assert at_a.got == [(1, CreditFrame(1, 2))]


def test_an_endpoint_that_fails_breaks_its_channels() -> None:
    a, b, at_a, at_b = connected()
    b.fail("died")
    assert at_a.got == [(1, "broken: died")]
    a.send(FIRST, CHANNEL, EndFrame())
    assert at_b.got == []


def test_a_channel_nobody_expects_is_broken_from_the_start() -> None:
    a, b, at_a, _ = connected()
    a.connect(SECOND, {CHANNEL: b.address}, at_a)
    assert at_a.got[0][0] == 2
    assert "does not expect" in at_a.got[0][1]


def test_closed_channels_carry_nothing_and_tell_nobody() -> None:
    a, b, at_a, at_b = connected()
    b.close_channels(FIRST)
    a.send(FIRST, CHANNEL, EndFrame())
    assert at_a.got == at_b.got == []


def test_a_worker_that_dies_while_it_starts_is_not_told_ready_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever was told so waited for its heartbeats, for `heartbeat.timeout`, until it found out.
    told: list[str] = []
    crashes: list[threading.Thread] = []
    io = ThreadIoPool()
    cluster = LocalCluster(SystemClock(), io)

    class Events:
        def on_worker_ready(self, *args: Any) -> None:
            told.append("ready")

        def on_worker_lost(self, *args: Any) -> None:
            told.append("lost")

        def on_message(self, message: Any) -> None:
            pass

    start = LocalWorker.start

    def start_and_crash(worker: LocalWorker) -> None:
        start(worker)
        crashes.append(threading.Thread(target=cluster.crash, args=(worker.subtask,)))
        crashes[0].start()
        # As long as a crash may take that need not wait for anything.
        crashes[0].join(0.3)

    monkeypatch.setattr(LocalWorker, "start", start_and_crash)
    cluster.report_to(Events())
    cluster.ensure(SubtaskId(WORK, 0), Resources())
    crashes[0].join()
    assert told == ["ready", "lost"]
    cluster.join(5)
    io.close()


class NoEvents:
    def on_worker_ready(self, *args: Any) -> None: ...

    def on_worker_lost(self, *args: Any) -> None: ...

    def on_message(self, message: Any) -> None: ...


def test_a_dead_worker_whose_function_exits_late_takes_no_other_with_it() -> None:
    io = ThreadIoPool()
    cluster, subtask = LocalCluster(SystemClock(), io), SubtaskId(WORK, 0)
    cluster.report_to(NoEvents())
    cluster.ensure(subtask, Resources())
    old = cluster._workers[subtask]
    # In a long call, which ends when there is another worker.
    cluster.kill(subtask)
    cluster.ensure(subtask, Resources())
    new = cluster._workers[subtask]
    cluster._crashed(old, SystemExit(1))
    assert cluster._workers.get(subtask) is new
    cluster.shutdown()
    cluster.join(5)
    io.close()


def test_workers_that_died_are_forgotten_once_their_threads_have_ended() -> None:
    # A job that restarted 250 times kept 500 engines, with their state.
    io = ThreadIoPool()
    cluster, subtask = LocalCluster(SystemClock(), io), SubtaskId(WORK, 0)
    cluster.report_to(NoEvents())
    threads, dead = set(threading.enumerate()), []
    for _ in range(10):
        cluster.ensure(subtask, Resources())
        dead.append(weakref.ref(cluster._workers[subtask]))
        assert cluster.crash(subtask)
        for thread in set(threading.enumerate()) - threads:
            thread.join(10)
    gc.collect()
    assert sum(worker() is not None for worker in dead) <= 1
    cluster.join(1)
    io.close()
