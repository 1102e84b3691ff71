"""Runs one seed in two jobs: one is stopped at an unaligned checkpoint with rows in flight, the other restores it
at another parallelism and finishes. What both have committed must be what one job without faults commits."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from rayflow.model.config import JobConfig
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.job_master import JobMaster
from rayflow.state.finding import resolve_checkpoint
from rayflow.testing.faults import Faults
from rayflow.testing.simulation import Simulation
from tests.simulation.external import EXTERNAL, External, SimSource
from tests.simulation.jobs import SHAPES, plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Rescaled:
    """What a seed led to: rows in flight in the checkpoint that was restored, 0 where the first job finished."""

    seed: int
    kind: str
    parallelism: tuple[int, int]
    in_flight: int


def rescale(seed: int) -> Rescaled:
    """Run `seed`; AssertionError (or an engine's error) when an invariant is broken."""
    rng = random.Random(seed * 7 + 5)
    kind = rng.choice([*sorted(SHAPES), "sliding", "sliding"])
    before, after = rng.choice([(2, 1), (2, 3), (3, 2), (1, 2), (1, 3), (3, 1), (2, 2)])
    shape, splits = SHAPES[kind], rng.choice([1, 3, 5])
    sources = tuple(SimSource(seed, i, splits, rows_per_split=25) for i in range(shape.sources))
    crashes = rng.choice([0, 0, 1])
    config = {
        "checkpoint.interval": f"{rng.choice([20, 50])}ms",
        "checkpoint.timeout": "5s",
        "checkpoint.failures_tolerated": 10,
        "restart.max_attempts": 100,
        "restart.delay": "10ms",
        "batch.rows": rng.choice([1, 3, 7]),
        "batch.linger": f"{rng.choice([0, 5])}ms",
        **rng.choice([{"checkpoint.mode": "unaligned"}, {"checkpoint.alignment_timeout": "1ms"}]),
    }
    wanted_rows, budget = rng.choice([1, 5, 10]), rng.choice([1 << 9, 1 << 11])
    faults = Faults(strikes=crashes, crash=0.001, max_delay_ms=rng.choice([0, 5, 30]))
    sim = Simulation(seed=seed, faults=faults, storage_url=f"memory://rescaling-{seed}")
    external = EXTERNAL[seed] = External(sim)
    try:
        with patch.object(JobConfig, "network_bytes", property(lambda self: budget)):
            first = sim.run(
                plan(shape, seed, sources, before),
                config,
                job_id="first",
                cancel_when=lambda master, turns: _newest(master)[1] >= wanted_rows,
            )
            last, in_flight = first, 0
            if first.state is JobState.CANCELLED:
                path, in_flight = _newest(sim.master)
                graph = plan(shape, seed, sources, after)
                last = sim.run(graph, config, job_id="second", restore_from=path)
        assert last.state is JobState.FINISHED, f"I8: the job ended {last.state}: {last.failure}"
        shape.check([part for source in sources for part in source.rows()], external.rows(), True)
        return Rescaled(seed=seed, kind=kind, parallelism=(before, after), in_flight=in_flight)
    except BaseException as error:
        error.args = (f"seed {seed} ({kind}, {before} → {after}): {error}", *error.args[1:])
        raise
    finally:
        sim.close()
        del EXTERNAL[seed]


def _newest(master: JobMaster) -> tuple[str | None, int]:
    """The newest complete checkpoint, and how many rows were in flight in it."""
    done = [c for c in master.checkpoints() if c["status"] == "completed"]
    if not done or not done[-1]["in_flight_bytes"]:
        return (done[-1]["path"], 0) if done else (None, 0)
    manifest: Any = resolve_checkpoint(done[-1]["path"], {}).manifest
    return done[-1]["path"], sum(file.rows for file in manifest.files if file.kind == "in-flight")


if __name__ == "__main__":
    import sys

    results, failed = [], []
    for number in range(*map(int, sys.argv[1].split(":"))):
        try:
            results.append(rescale(number))
        except Exception as error:
            failed.append(number)
            print(f"FAILED {type(error).__name__}: {str(error)[:300]}")
    restored = [r for r in results if r.in_flight]
    print(f"{len(results)} passed, {len(restored)} with rows in flight, failed {failed}")
