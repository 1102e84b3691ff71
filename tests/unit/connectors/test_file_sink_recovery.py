"""File sinks under crashes, rescaling, interrupted commits and zombies, against a naive model.

A small job is played by hand: a real `CommitLedger` and a real sink per subtask, checkpoints that complete or
not, permits that arrive late. A crash turns the attempt into a zombie, which goes on acting on what it has. The
model knows, for every completed checkpoint, which rows came before its barrier.

Checked after every step (numbers of `file_sink`'s and `upsert_files`' invariants in brackets): only rows of
completed checkpoints are visible, none twice [1]; and when all permits are delivered, exactly those.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE, with_op
from rayflow.batch.hashing import key_groups
from rayflow.connectors import upsert_files
from rayflow.connectors.file_sink import FileSink
from rayflow.connectors.targets import open_target
from rayflow.model.errors import StorageError
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.commits import (
    CommitLedger,
    CommitPermit,
    PermitGranted,
    TransactionCommitted,
    TransactionPrepared,
    TransactionsRestored,
)
from rayflow.protocol.key_groups import subtask_of_key_group

GROUPS = 3  # fewer than keys, so that keys share buckets
KEYS = ["a", "b", "c", "d", "e", None]
SCHEMA = pa.schema([("key", pa.string()), ("value", pa.int64())])

Row = tuple[Any, int, int]  # key, value, op


class Interrupted(Exception):
    """The process died in the middle of a commit."""


@dataclass
class Attempt:
    """The subtasks of one attempt, and the permits on their way to each."""

    number: int
    sinks: list[FileSink]
    ledgers: list[CommitLedger] = field(default_factory=list)
    permits: list[list[CommitPermit]] = field(default_factory=list)
    untold: list[list[CommitPermit]] = field(default_factory=list)
    """Commits that have gone through in the background, of which the task thread does not know yet."""

    @property
    def parallelism(self) -> int:
        return len(self.sinks)


@dataclass
class Checkpoint:
    """What a manifest would say: each subtask's open transactions; and the rows before the barrier."""

    number: int
    transactions: list[tuple[tuple[int, Any], ...]]
    rows: list[Row]


class PlayedJob:
    """A job with `mode` files at `url`."""

    def __init__(self, url: str, mode: str, format: str, options: dict[str, str]) -> None:
        self._make = lambda: FileSink(
            url, format, mode=mode, upsert_key=["key"] if mode == "upsert" else None, options=options
        )
        self._target = open_target(url, options)
        self._upsert = mode == "upsert"
        self._next_checkpoint = 1
        self._next_value = 0
        self._pending: list[Checkpoint] = []
        self.completed: list[Checkpoint] = [Checkpoint(0, [], [])]
        self.rows: list[Row] = []
        self.zombies: list[Attempt] = []
        self._make().start_job(self._context(0, -1, 1))
        self.attempt = self._deploy(1, 1)

    # ------------------------------------------------------------------------------------------- steps

    def write(self, keys: list[int], op: int) -> None:
        for subtask, rows in self._routed([(KEYS[k], self._value(), op) for k in keys]).items():
            self.attempt.sinks[subtask].write(self._batch(rows))
            self.rows += rows

    def prepare(self) -> None:
        """A barrier passes through all subtasks."""
        if len(self._pending) < 3:
            number = self._next_checkpoint
            self._next_checkpoint += 1
            transactions = [self._prepare(self.attempt, i, number) for i in range(self.attempt.parallelism)]
            self._pending.append(Checkpoint(number, transactions, list(self.rows)))

    def complete(self, which: int) -> None:
        """A pending checkpoint's manifest is published; older pending ones will never complete."""
        if self._pending:
            at = which % len(self._pending)
            done = self._pending[at]
            del self._pending[: at + 1]
            self.completed.append(done)
            permit = CommitPermit("job-1", self.attempt.number, done.number)  # type: ignore[arg-type]
            for queue in self.attempt.permits:
                queue.append(permit)

    def abort(self) -> None:
        if self._pending:
            self._pending.pop(0)

    def deliver(self, which: int, interrupt_after: int | None = None) -> None:
        """One subtask gets its next permit; it may die after publishing some files."""
        subtask = which % self.attempt.parallelism
        try:
            self._deliver(self.attempt, subtask, interrupt_after)
        except Interrupted:
            self.crash(self.attempt.parallelism)

    def tell(self, which: int) -> None:
        """The task thread of one subtask hears of its commits."""
        self._tell(self.attempt, which % self.attempt.parallelism)

    def crash(self, parallelism: int) -> None:
        """All subtasks are lost sight of; a new attempt starts from the last completed checkpoint."""
        self.zombies.append(self.attempt)
        self._pending = []
        self.rows = list(self.completed[-1].rows)
        self.attempt = self._deploy(self.attempt.number + 1, parallelism)

    def first_checkpoint_cleans(self) -> None:
        """What subtask 0 is told when the first checkpoint of an attempt completes."""
        if self.completed[-1].number:
            self.attempt.sinks[0].restored(self._context(self.attempt.number, 0, self.attempt.parallelism))

    def zombie(self, which: int) -> None:
        """A lost process wakes up: it gets a late permit, or writes and prepares as if nothing had happened."""
        if not self.zombies:
            return
        zombie = self.zombies[which % len(self.zombies)]
        subtask = which % zombie.parallelism
        try:
            if zombie.permits[subtask]:
                self._deliver(zombie, subtask, None)
            elif not self._upsert:
                zombie.sinks[subtask].write(self._batch([("zombie", -1, INSERT)]))
                zombie.sinks[subtask].prepare(1_000_000 + self._value())
        except StorageError:
            pass  # its directory is gone: as it should be

    def finish(self) -> None:
        """The last checkpoint: everything is committed, then the job is cleaned up."""
        self.prepare() if len(self._pending) < 3 else None
        self.complete(len(self._pending) - 1)
        self.settle()
        self.check_exact()
        self._make().finish_job(self._context(self.attempt.number, -1, 1, succeeded=True))
        for zombie in range(len(self.zombies)):
            for _ in range(3):
                self.zombie(zombie)
        self.check_exact()

    def settle(self) -> None:
        for subtask, queue in enumerate(self.attempt.permits):
            while queue:
                self._deliver(self.attempt, subtask, None)
            self._tell(self.attempt, subtask)

    # ------------------------------------------------------------------------------------------ checks

    def check(self) -> None:
        """Nothing visible that is not of a completed checkpoint; nothing twice."""
        visible = self._visible()
        if self._upsert:
            assert len({key for key, _ in visible}) == len(visible)
            allowed = {item for checkpoint in self.completed for item in self._resolved(checkpoint.rows)}
            assert set(visible) <= allowed
        else:
            assert not Counter(visible) - Counter((k, v) for k, v, _ in self.completed[-1].rows)

    def check_exact(self) -> None:
        """All permits are delivered: visible is what the last completed checkpoint says."""
        rows = self.completed[-1].rows
        expected = self._resolved(rows) if self._upsert else [(k, v) for k, v, _ in rows]
        assert Counter(self._visible()) == Counter(expected)

    # ----------------------------------------------------------------------------------------- details

    def _deploy(self, number: int, parallelism: int) -> Attempt:
        attempt = Attempt(number, [self._make() for _ in range(parallelism)])
        restored = self.completed[-1]
        permit = CommitPermit("job-1", number, restored.number)  # type: ignore[arg-type]
        for i, sink in enumerate(attempt.sinks):
            ledger = CommitLedger()
            attempt.ledgers.append(ledger)
            attempt.permits.append([])
            attempt.untold.append([])
            sink.open(self._context(number, i, parallelism, restored_checkpoint=restored.number or None))
            if restored.number:
                writers = [t for j, t in enumerate(restored.transactions) if j % parallelism == i]
                items = tuple(item for part in writers for item in part)
                for command in ledger.handle(TransactionsRestored(items, permit)):  # type: ignore[arg-type]
                    sink.commit(command.permit)
                    ledger.handle(TransactionCommitted())
                    sink.committed(command.permit)
        return attempt

    def _prepare(self, attempt: Attempt, subtask: int, number: int) -> tuple[tuple[int, Any], ...]:
        pending = attempt.sinks[subtask].prepare(number)
        attempt.ledgers[subtask].handle(TransactionPrepared(number, pending))  # type: ignore[arg-type]
        return json.loads(json.dumps(attempt.ledgers[subtask].open))  # type: ignore[no-any-return]

    def _deliver(self, attempt: Attempt, subtask: int, interrupt_after: int | None) -> None:
        if not attempt.permits[subtask]:
            return
        sink = attempt.sinks[subtask]
        self._tell(attempt, subtask)
        commands = attempt.ledgers[subtask].handle(PermitGranted(attempt.permits[subtask].pop(0)))
        for command in commands:
            if interrupt_after is not None and len(command.permit.pending["files"]) > interrupt_after:
                for staged, final in command.permit.pending["files"][:interrupt_after]:
                    sink._out.publish(staged, final)
                raise Interrupted
            self._tell(attempt, subtask)
            sink.commit(command.permit)
            attempt.untold[subtask].append(command.permit)

    def _tell(self, attempt: Attempt, subtask: int) -> None:
        while attempt.untold[subtask]:
            attempt.ledgers[subtask].handle(TransactionCommitted())
            attempt.sinks[subtask].committed(attempt.untold[subtask].pop(0))

    def _routed(self, rows: list[Row]) -> dict[int, list[Row]]:
        keys = pa.record_batch({"key": pa.array([row[0] for row in rows], pa.string())})
        routed: dict[int, list[Row]] = {}
        for row, group in zip(rows, key_groups(keys, ["key"], GROUPS).tolist(), strict=True):
            routed.setdefault(subtask_of_key_group(group, GROUPS, self.attempt.parallelism), []).append(row)
        return routed

    def _batch(self, rows: list[Row]) -> pa.RecordBatch:
        columns = [
            pa.array([row[0] for row in rows], pa.string()),
            pa.array([row[1] for row in rows], pa.int64()),
        ]
        batch = pa.record_batch(columns, schema=SCHEMA)
        return with_op(batch, np.array([row[2] for row in rows], np.int8)) if self._upsert else batch

    def _resolved(self, rows: list[Row]) -> list[tuple[Any, int]]:
        last: dict[Any, int | None] = {}
        for key, value, op in rows:
            if op != UPDATE_BEFORE:
                last[key] = None if op == DELETE else value
        return [(key, value) for key, value in last.items() if value is not None]

    def _visible(self) -> list[tuple[Any, int]]:
        sink = self._make()
        rows: list[tuple[Any, int]] = []
        for path in self._target.list(""):
            if path.endswith(sink.format.suffix):
                table = sink.format.read(self._target.read(path), SCHEMA)
                assert table.schema.names == SCHEMA.names
                rows += zip(table["key"].to_pylist(), table["value"].to_pylist(), strict=True)
        return rows

    def _value(self) -> int:
        self._next_value += 1
        return self._next_value

    def _context(self, attempt: int, subtask: int, parallelism: int, **more: Any) -> SinkContext:
        return SinkContext(
            job_id="job-1",
            attempt=attempt,
            uid="out",
            subtask_index=subtask,
            parallelism=parallelism,
            max_parallelism=GROUPS,
            **more,
        )


small = st.integers(0, 3)
writes = st.tuples(
    st.just("write"),
    st.lists(st.integers(0, len(KEYS) - 1), min_size=1, max_size=4),
    st.sampled_from([INSERT, UPDATE_BEFORE, UPDATE_AFTER, DELETE]),
)
prepares = st.tuples(st.just("prepare"))
completes = st.tuples(st.just("complete"), small)
deliveries = st.tuples(st.just("deliver"), small)
others = [
    st.tuples(st.just("abort")),
    st.tuples(st.just("tell"), small),
    st.tuples(st.just("deliver"), small, st.integers(0, 2)),
    st.tuples(st.just("crash"), st.integers(1, 3)),
    st.tuples(st.just("first_checkpoint_cleans")),
    st.tuples(st.just("zombie"), small),
]
# The usual course of things more often than failures, or checkpoints would rarely complete.
steps = st.one_of(*[writes, prepares, completes] * 3, deliveries, *others)


def play(job: PlayedJob, plan: list[tuple[Any, ...]]) -> None:
    for name, *arguments in plan:
        getattr(job, name)(*arguments)
        job.check()
    job.finish()


# The first commits while the second is staged: the third must build upon the second, not upon the committed file.
TWO_IN_FLIGHT: list[tuple[Any, ...]] = [
    ("write", [0], INSERT),
    ("prepare",),
    ("write", [0], UPDATE_AFTER),
    ("prepare",),
    ("complete", 0),
    ("deliver", 0),
    ("write", [1, 2, 3, 4, 5], INSERT),
    ("prepare",),
    ("complete", 1),
    ("deliver", 0),
]


@pytest.mark.parametrize(
    ("mode", "format", "cache_bytes"),
    [("append", "arrow", 0), ("upsert", "arrow", 0), ("upsert", "json", upsert_files.CACHE_BYTES)],
)
@given(plan=st.lists(steps, min_size=10, max_size=50))
@example(plan=TWO_IN_FLIGHT)
@settings(max_examples=60, deadline=None)
def test_every_order_of_failures_commits_each_row_once(
    mode: str, format: str, cache_bytes: int, plan: list[tuple[Any, ...]]
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(upsert_files, "CACHE_BYTES", cache_bytes)
        play(PlayedJob(f"{directory}/out", mode, format, {}), plan)


# Two in flight, an aborted one between, a commit that dies half-way, rescaling both ways, late zombies.
STORY: list[tuple[Any, ...]] = [
    ("write", [0, 1, 2, 3, 4], INSERT),
    ("prepare",),
    ("write", [0, 1], UPDATE_AFTER),
    ("prepare",),
    ("complete", 0),
    ("crash", 3),
    ("zombie", 0),
    ("write", [2, 3], DELETE),
    ("prepare",),
    ("abort",),
    ("write", [2, 4], INSERT),
    ("prepare",),
    ("complete", 0),
    ("deliver", 0, 1),
    ("zombie", 1),
    ("write", [0, 1, 2, 3, 4], UPDATE_AFTER),
    ("prepare",),
    ("complete", 0),
    ("crash", 2),
    ("first_checkpoint_cleans",),
    ("zombie", 0),
    ("zombie", 1),
    ("write", [1], DELETE),
]


@pytest.mark.s3
@pytest.mark.parametrize(
    ("mode", "format"), [("append", "parquet"), ("upsert", "parquet"), ("upsert", "csv")]
)
def test_on_s3_the_same_story_ends_as_well(s3_server: Any, mode: str, format: str) -> None:
    play(PlayedJob(f"s3://{s3_server.new_bucket()}/out", mode, format, s3_server.options), STORY)
