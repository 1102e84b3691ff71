"""The input of simulated jobs, and the external system that their sinks commit to.

Sources and sinks travel by pickle, so they find the run's external system by its number.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from rayflow.model.errors import TransientError
from rayflow.operators.contracts import Sink, SinkContext
from rayflow.operators.source_contract import Source, Split, SplitReader
from rayflow.operators.transactions import Outcome, Transaction, TransactionalSink, TransactionId
from rayflow.protocol.commits import CommitPermit
from rayflow.testing.simulation import Simulation

SCHEMA = pa.schema(
    [
        ("key", pa.int64()),
        ("value", pa.int64()),
        ("time", pa.timestamp("ms")),
        ("split", pa.int64()),
        ("pos", pa.int64()),
    ]
)
DISORDER_MS = 200
_SPLIT_MS = 2_000
_LULLS, _LULL_CHECKPOINTS = 200, 2
Row = tuple[Any, ...]

_TRANSACTION = re.compile(r".*-a(\d+)-s(\d+)-c(\d+)")


@dataclass
class External:
    """The system outside: staged and committed transactions, by id. Survives all processes. What it sees of a broken
    promise ends the run, by number:

    I2: a transaction is staged twice, or committed that was never staged. I5: committed before its checkpoint
    is complete. I6: by an attempt before the one that staged it. I1: the target is prepared anew for a job that has
    committed, or that goes on from another's checkpoint. I10: a reader or a sink is opened in a process that has not
    closed what it had open in an attempt before, or a reader that is at its end.
    """

    sim: Simulation
    staged: dict[str, list[Row]] = field(default_factory=dict)
    committed: dict[str, list[Row]] = field(default_factory=dict)
    continued: set[str] = field(default_factory=set)
    """Jobs that begin from a checkpoint of another."""
    open: dict[str, dict[int, tuple[Any, int]]] = field(default_factory=dict)
    """What each process has open, by identity, and in which attempt it was opened."""

    def rows(self) -> list[Row]:
        """All committed rows, in order of checkpoints."""
        found = sorted(self.committed.items(), key=lambda item: int(_parts(item[0])[2]))
        return [row for _, rows in found for row in rows]

    def prepare_target(self, job_id: str) -> None:
        """A job begins: a target that it would overwrite holds nothing by now."""
        if job_id in self.continued or any(t.startswith(f"{job_id}-a") for t in self.committed):
            self.sim.world.violated(f"I1: the target of {job_id}, which has committed rows, is prepared anew")

    def stage(self, transaction: str, rows: list[Row]) -> None:
        """A sink prepared a transaction."""
        fault = self._request(f"external stage {transaction}")
        if fault == "error":
            raise TransientError("simulated: not staged")
        if transaction in self.staged or transaction in self.committed:
            self.sim.world.violated(f"I6: {transaction} is staged twice: an attempt number was used again")
        self.staged[transaction] = rows
        if fault == "applied":
            raise TransientError("simulated: staged, but the answer was lost")

    def commit(self, job_id: str, permit: CommitPermit) -> None:
        """A sink commits a transaction."""
        transaction, world = permit.pending, self.sim.world
        fault = self._request(f"external commit {transaction} with {permit.attempt}/{permit.checkpoint_id}")
        if fault == "error":
            raise TransientError("simulated: not committed")
        checkpoint = int(_parts(transaction)[2])
        if not self.sim.storage.was_published(job_id, permit.checkpoint_id):
            world.violated(
                f"I5: {transaction} is committed, but checkpoint {permit.checkpoint_id} is not complete"
            )
        if checkpoint > permit.checkpoint_id:
            world.violated(f"I5: {transaction} is committed by leave of checkpoint {permit.checkpoint_id}")
        if transaction not in self.committed:
            rows = self.staged.pop(transaction, None)
            if rows is None:
                world.violated(f"I1: {transaction} is committed, but was never staged, or was aborted")
            else:
                self.committed[transaction] = rows
        if fault == "applied":
            raise TransientError("simulated: committed, but the answer was lost")

    def abort(self, transaction: str) -> None:
        """A sink discards a transaction."""
        if transaction in self.committed:
            self.sim.world.violated(f"I1: {transaction} is aborted after it was committed")
        self.staged.pop(transaction, None)

    @property
    def checkpoints(self) -> int:
        """How many checkpoints the newest of all is the last of, as far as any was announced."""
        return sum(self.sim.storage.announced.values())

    def opened(self, handle: Any) -> None:
        """A task opened a reader or a sink."""
        process = self.sim.world.stepping
        worker = None if process is None else self.sim.workers.get(process.name)
        if process is None or worker is None:
            return
        attempt = worker.engine.statistics()["attempt"]
        own = self.open.setdefault(process.name, {})
        for other, since in own.values():
            if since != attempt or getattr(other, "ended", False):
                self.sim.world.violated(
                    f"I10: {process.name} opens a {type(handle).__name__} in attempt {attempt}, and has yet to close "
                    f"a {type(other).__name__} of attempt {since}"
                )
        own[id(handle)] = handle, attempt

    def closed(self, handle: Any) -> None:
        """It closed it."""
        for own in self.open.values():
            own.pop(id(handle), None)

    def _request(self, what: str) -> str | None:
        sim = self.sim
        process = sim.world.stepping or sim.io.process
        fault = sim.injector.external()
        sim.world.note(f"{what} by {process.name if process else 'nobody'}{f': {fault}' if fault else ''}")
        if fault == "slow" and process is not None:
            process.stalled_until_ms = sim.world.now + sim.injector.duration_ms()
        return fault


def _parts(transaction: str) -> tuple[str, str, str]:
    found = _TRANSACTION.fullmatch(transaction)
    assert found is not None
    return found[1], found[2], found[3]


EXTERNAL: dict[int, External] = {}
"""The external system of each running simulation, by its number."""


@functools.lru_cache(maxsize=8)
def make_rows(
    seed: int, source: int, splits: int, rows_per_split: int, apart_ms: int = _SPLIT_MS
) -> list[list[Row]]:
    """Return the rows of each split, as `SCHEMA` has them, time in ms; times are disordered by < `DISORDER_MS`. Splits
    begin `apart_ms` apart."""
    rng = random.Random(seed * 31 + 7 + source)
    # Few keys make long histories; many reach every key group.
    keys = 60 if seed % 7 == 0 and seed else 7
    out: list[list[Row]] = []
    for index in range(splits):
        start = index * apart_ms
        times = [start + i * _SPLIT_MS // rows_per_split for i in range(rows_per_split)]
        split = source * 100 + index
        out.append(
            [
                (rng.randrange(keys), rng.randrange(100), t + rng.randrange(DISORDER_MS), split, pos)
                for pos, t in enumerate(times)
            ]
        )
    return out


@functools.lru_cache(maxsize=8)
def make_batches(
    seed: int, source: int, splits: int, rows_per_split: int, apart_ms: int = _SPLIT_MS
) -> list[pa.RecordBatch]:
    """Return the rows of each split as Arrow has them."""
    return [
        pa.RecordBatch.from_arrays(
            [pa.array(list(column), field.type) for column, field in zip(zip(*part), SCHEMA)], schema=SCHEMA
        )
        for part in make_rows(seed, source, splits, rows_per_split, apart_ms)
    ]


class SimSource(Source):
    """Reads the rows of a seed, a few at a time. Not `bounded`: its splits never end. `lulls`: half-way through a
    split there are none until a checkpoint was announced, or nothing has come of it for long."""

    def __init__(
        self,
        seed: int,
        source: int,
        splits: int,
        rows_per_split: int,
        apart_ms: int = _SPLIT_MS,
        *,
        bounded: bool = True,
        lulls: bool = False,
    ) -> None:
        self.args = (seed, source, splits, rows_per_split, apart_ms)
        self._bounded = bounded
        self._lulls = lulls

    def ending(self) -> SimSource:
        """Return one of the same rows that is bounded."""
        return SimSource(*self.args, lulls=self._lulls)

    @property
    def bounded(self) -> bool:
        return self._bounded

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    def rows(self) -> list[list[Row]]:
        return make_rows(*self.args)

    def splits(self) -> Sequence[Split]:
        return [
            Split(
                id=f"s{i}",
                payload={"index": i},
                min_time=min(r[2] for r in part) * 1_000_000,
                order=f"{i:04}",
            )
            for i, part in enumerate(self.rows())
        ]

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        rows = make_batches(*self.args)[split.payload["index"]]
        return SimReader(rows, position or 0, self._bounded, EXTERNAL.get(self.args[0]), lulls=self._lulls)


class SimReader(SplitReader):
    def __init__(
        self,
        rows: pa.RecordBatch,
        position: int,
        bounded: bool,
        external: External | None = None,
        *,
        lulls: bool = False,
    ) -> None:
        self.rows = rows
        self.at = position
        self.bounded = bounded
        self.ended = False
        # How often it may still say that there are no rows now, before the second half.
        self._lulls = _LULLS if lulls and position < rows.num_rows // 2 else 0
        self._until = 0 if external is None else external.checkpoints + _LULL_CHECKPOINTS
        self._external = external
        if external is not None:
            external.opened(self)

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self.at >= self.rows.num_rows and self.bounded:
            self.ended = True
            return None
        if self._lulls and self.at >= self.rows.num_rows // 2 and self._external is not None:
            self._lulls = 0 if self._external.checkpoints >= self._until else self._lulls - 1
            return self.rows.slice(0, 0)
        batch = self.rows.slice(self.at, min(max_rows, 1 + self.at % 5))
        self.at += batch.num_rows
        return batch

    def position(self) -> int:
        return self.at

    def close(self) -> None:
        if self._external is not None:
            self._external.closed(self)


class SimSink(Sink):
    """Exactly-once sink over an `External`; of every other run it commits in the background."""

    accepts_upserts = True

    def __init__(self, run: int) -> None:
        self.run = run
        self.commit_in_background = run % 2 == 1
        self.buffer: list[Row] = []

    def start_job(self, ctx: SinkContext) -> None:
        EXTERNAL[self.run].prepare_target(ctx.job_id)

    def finish_job(self, ctx: SinkContext) -> None:
        """What no restore can need goes: all that is staged, unless the job may be continued."""
        external = EXTERNAL[self.run]
        for transaction in list(external.staged):
            checkpoint = int(_parts(transaction)[2])
            if transaction.startswith(f"{ctx.job_id}-a") and (
                ctx.succeeded or ctx.completed_checkpoint is None or checkpoint > ctx.completed_checkpoint
            ):
                external.abort(transaction)

    def open(self, ctx: SinkContext) -> None:
        self.ctx = ctx
        EXTERNAL[self.run].opened(self)

    def close(self) -> None:
        EXTERNAL[self.run].closed(self)

    def write(self, batch: pa.RecordBatch) -> None:
        self.buffer.extend(_rows_of(batch))

    def prepare(self, checkpoint_id: int) -> str | None:
        if not self.buffer:
            return None
        transaction = f"{self.ctx.job_id}-a{self.ctx.attempt}-s{self.ctx.subtask_index}-c{checkpoint_id}"
        EXTERNAL[self.run].stage(transaction, self.buffer)
        self.buffer = []
        return transaction

    def commit(self, permit: CommitPermit) -> None:
        EXTERNAL[self.run].commit(permit.pending.rpartition("-a")[0], permit)

    def abort(self, pending: Any) -> None:
        EXTERNAL[self.run].abort(pending)


class SimTable(TransactionalSink):
    """The same on the base of sinks for databases: what failed attempts left is found by its name, and aborted."""

    accepts_upserts = True

    def __init__(self, run: int) -> None:
        self.run = run
        self.commit_in_background = run % 2 == 1

    def start_job(self, ctx: SinkContext) -> None:
        EXTERNAL[self.run].prepare_target(ctx.job_id)

    def connect(self, ctx: SinkContext) -> None:
        self.rows: list[Row] = []
        EXTERNAL[self.run].opened(self)

    def begin(self, transaction: str) -> None:
        assert not self.rows, f"{transaction} is begun with rows of the one before"

    def write_rows(self, transaction: str, batch: pa.RecordBatch) -> None:
        self.rows.extend(_rows_of(batch))

    def pre_commit(self, transaction: str) -> None:
        rows, self.rows = self.rows, []
        EXTERNAL[self.run].stage(_name(transaction), rows)

    def commit(self, permit: CommitPermit) -> None:
        self.permit = permit
        super().commit(permit)

    def commit_transaction(self, transaction: Transaction) -> None:
        name = _name(transaction.id)
        EXTERNAL[self.run].commit(name.rpartition("-a")[0], replace(self.permit, pending=name))

    def abort_transaction(self, transaction: Transaction) -> None:
        EXTERNAL[self.run].abort(_name(transaction.id))

    def outcome(self, transaction: Transaction) -> Outcome:
        external, name = EXTERNAL[self.run], _name(transaction.id)
        return (
            "committed" if name in external.committed else "pending" if name in external.staged else "unknown"
        )

    def list_transactions(self, prefix: str) -> list[str]:
        job, _, sink = prefix.removeprefix("rf-").removesuffix("-").rpartition("-")
        found = (_parts(name) for name in EXTERNAL[self.run].staged if name.rpartition("-a")[0] == job)
        return [f"rf-{job}-{sink}-{subtask}-{attempt}-{checkpoint}" for attempt, subtask, checkpoint in found]

    def disconnect(self) -> None:
        EXTERNAL[self.run].closed(self)


def _name(transaction: str) -> str:
    """What an `External` calls a transaction."""
    id = TransactionId.parse(transaction)
    assert id is not None, transaction
    return f"{id.job_id}-a{id.attempt}-s{id.subtask}-c{id.checkpoint}"


def _rows_of(batch: pa.RecordBatch) -> Iterable[Row]:
    names = [name for name in batch.schema.names if name != "__op"]
    return zip(*(batch.column(name).to_pylist() for name in names))
