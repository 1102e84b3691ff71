"""A batched sink in simulated jobs: the system outside errs, is slow, or applies a write whose answer gets lost, while
subtasks die, hang and come back as zombies."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import rayflow as rf
from rayflow import col
from rayflow.batch.changelog import OP_COLUMN
from rayflow.model.errors import TransientError
from rayflow.protocol.lifecycle import JobState
from rayflow.testing.faults import Faults, Strike, draw_faults
from rayflow.testing.simulation import Simulation

ROWS, KEYS = 240, 12
SYSTEMS: dict[int, System] = {}
"""The system outside of each running simulation, by its seed."""


@dataclass
class System:
    """A table by key that outlives all processes, and refuses whoever is older than the newest attempt it has seen.
    What it sees of a broken promise ends the run."""

    sim: Simulation
    rows: dict[int, tuple[int, ...]] = field(default_factory=dict)
    appended: list[int] = field(default_factory=list)
    newest: int = 0
    refuse: frozenset[int] = frozenset()
    keyed: bool = True
    last: dict[tuple[int, int], tuple[int, str]] = field(default_factory=dict)
    """By attempt and key, what was written last, and by which request."""

    def meet(self, attempt: int) -> None:
        if attempt < self.newest:
            raise TransientError(f"attempt {attempt} is over: {self.newest} is here")
        self.newest = attempt

    def write(self, attempt: int, request: str, rows: list[dict[str, int]]) -> None:
        sim = self.sim
        fault = sim.injector.external()
        process = sim.world.stepping or sim.io.process
        sim.world.note(f"external commit of {len(rows)} rows{f': {fault}' if fault else ''}")
        if fault == "slow" and process is not None:
            process.stalled_until_ms = sim.world.now + sim.injector.duration_ms()
        if fault == "error":
            raise TransientError("simulated: not written")
        self.meet(attempt)
        if refused := [row["n"] for row in rows if row["n"] in self.refuse]:
            raise ValueError(f"{refused[0]} is refused")
        for row in rows:
            self.appended.append(row["n"])
            self.rows[row["k"]] = tuple(row.values())
            before, whose = self.last.get((attempt, row["k"]), (-1, ""))
            # The same request once more: its answer was lost.
            if self.keyed and row["n"] < before and whose != request:
                sim.world.violated(
                    f"W1: key {row['k']} went from {before} to {row['n']} in attempt {attempt}"
                )
            self.last[attempt, row["k"]] = row["n"], request
        if fault == "applied":
            raise ConnectionResetError("simulated: written, but the answer was lost")


class SystemSink(rf.BatchedSink):
    accepts_upserts = True

    def __init__(self, seed: int, keys: tuple[str, ...], **batching: Any) -> None:
        self.seed, self.keys = seed, keys
        self.batching = rf.Batching(**batching)

    def open(self, ctx: rf.SinkContext) -> None:
        self.attempt = ctx.attempt
        SYSTEMS[self.seed].meet(ctx.attempt)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        if OP_COLUMN in batch.schema.names:
            batch = batch.drop_columns([OP_COLUMN])
        SYSTEMS[self.seed].write(self.attempt, self.request_id, batch.to_pylist())


def run(seed: int, tmp_path: Path, kind: str) -> tuple[System, Any]:
    """Run one of the jobs under the faults of a seed; every seed has sink faults."""
    choice = random.Random(seed)
    drawn = draw_faults(choice)
    faults = Faults(
        **{
            **{name: getattr(drawn, name) for name in Faults.__dataclass_fields__},
            "corruption": 0.0,
            "external_error": choice.choice([0.02, 0.3]),
            "external_applied": choice.choice([0.02, 0.3]),
            "external_slow": choice.choice([0, 0.05]),
            "aimed": (*drawn.aimed, Strike(moment="commit", nth=choice.choice([1, 3, 9]), action="crash")),
        }
    )
    config = {
        "checkpoint.interval": choice.choice(["20ms", "100ms"]),
        "checkpoint.failures_tolerated": 10,
        "restart.max_attempts": 1_000,
        "restart.delay": "10ms",
        "batch.rows": choice.choice([1, 7, 100]),
        "checkpoint.mode": choice.choice(["aligned", "unaligned"]),
    }
    env = rf.StreamEnvironment(parallelism=choice.choice([1, 2]), max_parallelism=8, config=config)
    table = pa.table({"k": [n % KEYS for n in range(ROWS)], "n": range(ROWS)})
    rows = env.from_arrow(table).rebalance().map(lambda row: row, returns={"k": int, "n": int})
    batching = {
        "rows": choice.choice([1, 5, 50]),
        "linger": choice.choice(["0ms", "20ms"]),
        "in_flight": choice.choice([1, 2, 4]),
        "timeout": "10s",
        "retry_for": choice.choice(["0s", "5s", "60s"]),
    }
    if kind == "changes":
        rows = rows.key_by("k").aggregate(n=col("n").max(), rows=rf.count())
        rows.sink_to(SystemSink(seed, ("k",), **batching))
    else:
        keys = ("k",) if kind == "keyed" else ()
        rows = rows.key_by("k").process(InOrder, returns={"k": int, "n": int})
        stage = rows.sink_to(SystemSink(seed, keys, **batching)).on_error(rf.SideOutput("refused"))
        stage.side_output("refused").select("k", "n").write_parquet(tmp_path / "refused")
    sim = Simulation(seed=seed, faults=faults, storage_url=f"memory://batched-{seed}")
    system = SYSTEMS[seed] = System(sim, keyed=kind != "append")
    if kind != "changes":
        system.refuse = frozenset(choice.sample(range(ROWS), 5))
    try:
        return system, sim.run(env.plan(), env.config)
    finally:
        sim.close()
        del SYSTEMS[seed]


class InOrder(rf.KeyedProcessFunction):
    """Numbers the rows of a key anew, in order of arrival, so that a later row has a greater number."""

    n = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: Any) -> Any:
        yield {"k": row["k"], "n": self.n.value * KEYS + row["k"]}
        self.n.value += 1


def refused(path: Path) -> Counter[int]:
    found = ds.dataset([str(file) for file in path.rglob("*.parquet")], format="parquet").to_table()
    return Counter(found["n"].to_pylist())


@pytest.mark.parametrize("seed", range(5))
def test_the_table_has_the_last_row_of_every_key(tmp_path: Path, seed: int) -> None:
    system, outcome = run(seed, tmp_path, "changes")
    assert outcome.state is JobState.FINISHED, outcome.failure
    assert system.rows == {k: (k, ROWS - KEYS + k, ROWS // KEYS) for k in range(KEYS)}


@pytest.mark.parametrize("seed", range(100, 105))
def test_what_is_refused_is_aside_once_and_the_table_has_the_last_of_the_others(
    tmp_path: Path, seed: int
) -> None:
    system, outcome = run(seed, tmp_path, "keyed")
    assert outcome.state is JobState.FINISHED, outcome.failure
    assert refused(tmp_path / "refused") == Counter(system.refuse)
    kept = [n for n in range(ROWS) if n not in system.refuse]
    assert system.rows == {n % KEYS: (n % KEYS, n) for n in kept}


@pytest.mark.parametrize("seed", range(200, 203))
def test_without_keys_every_row_is_written_at_least_once(tmp_path: Path, seed: int) -> None:
    system, outcome = run(seed, tmp_path, "append")
    assert outcome.state is JobState.FINISHED, outcome.failure
    assert set(system.appended) == set(range(ROWS)) - system.refuse
    assert refused(tmp_path / "refused") == Counter(system.refuse)
