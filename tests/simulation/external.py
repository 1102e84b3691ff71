"""The input of simulated jobs, and the external system that their sinks commit to.

Sources and sinks travel by pickle, so they find the run's external system by its number.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rayflow.model.errors import TransientError
from rayflow.operators.contracts import Sink, SinkContext
from rayflow.operators.source_contract import Source, Split, SplitReader
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
Row = tuple[Any, ...]

_TRANSACTION = re.compile(r".*-a(\d+)-s(\d+)-c(\d+)")


@dataclass
class External:
    """The system outside: staged and committed transactions, by id. Survives all processes. What it sees of a broken
    promise ends the run, by number:

    I2: a transaction is staged twice, or committed that was never staged. I5: committed before its checkpoint
    is complete. I6: by an attempt before the one that staged it. I1: the target is prepared anew for a job that has
    committed, or that goes on from another's checkpoint.
    """

    sim: Simulation
    staged: dict[str, list[Row]] = field(default_factory=dict)
    committed: dict[str, list[Row]] = field(default_factory=dict)
    continued: set[str] = field(default_factory=set)
    """Jobs that begin from a checkpoint of another."""

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
def make_rows(seed: int, source: int, splits: int, rows_per_split: int) -> list[list[Row]]:
    """Return the rows of each split, as `SCHEMA` has them, time in ms; times are disordered by < `DISORDER_MS`."""
    rng = random.Random(seed * 31 + 7 + source)
    # Few keys make long histories; many reach every key group.
    keys = 60 if seed % 7 == 0 and seed else 7
    out: list[list[Row]] = []
    for index in range(splits):
        start = index * 2_000
        times = [start + i * 2_000 // rows_per_split for i in range(rows_per_split)]
        split = source * 100 + index
        out.append(
            [
                (rng.randrange(keys), rng.randrange(100), t + rng.randrange(DISORDER_MS), split, pos)
                for pos, t in enumerate(times)
            ]
        )
    return out


@functools.lru_cache(maxsize=8)
def make_batches(seed: int, source: int, splits: int, rows_per_split: int) -> list[pa.RecordBatch]:
    """Return the rows of each split as Arrow has them."""
    return [
        pa.RecordBatch.from_arrays(
            [pa.array(list(column), field.type) for column, field in zip(zip(*part), SCHEMA)], schema=SCHEMA
        )
        for part in make_rows(seed, source, splits, rows_per_split)
    ]


class SimSource(Source):
    """Reads the rows of a seed, a few at a time. Not `bounded`: its splits never end."""

    def __init__(
        self, seed: int, source: int, splits: int, rows_per_split: int, bounded: bool = True
    ) -> None:
        self.args = (seed, source, splits, rows_per_split)
        self._bounded = bounded

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
        return SimReader(make_batches(*self.args)[split.payload["index"]], position or 0, self._bounded)


class SimReader(SplitReader):
    def __init__(self, rows: pa.RecordBatch, position: int, bounded: bool) -> None:
        self.rows = rows
        self.at = position
        self.bounded = bounded

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self.at >= self.rows.num_rows and self.bounded:
            return None
        batch = self.rows.slice(self.at, min(max_rows, 1 + self.at % 5))
        self.at += batch.num_rows
        return batch

    def position(self) -> int:
        return self.at


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

    def write(self, batch: pa.RecordBatch) -> None:
        names = [name for name in batch.schema.names if name != "__op"]
        self.buffer.extend(zip(*(batch.column(name).to_pylist() for name in names)))

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
