"""Runs one seed in two jobs: one is stopped at an unaligned checkpoint with rows in flight, the other restores it
at another parallelism and finishes. What both have committed must be what one job without faults commits."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.model.config import JobConfig
from rayflow.model.ids import JobId
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.job_master import JobMaster
from rayflow.state.manifest import resolve_checkpoint
from rayflow.state.storage import open_store
from rayflow.testing.cluster import SimPool
from rayflow.testing.world import Faults, Node, World
from rayflow.windows.making import time_window_operator
from rayflow.windows.time_windows import TimeWindows
from tests.simulation.jobs import (
    EXTERNAL,
    KINDS,
    SCHEMA,
    WINDOW_MS,
    External,
    SimSource,
    _utc,
    check_output,
    job_graph,
    make_rows,
)

_NANOS = 1_000_000
SLIDE_MS = WINDOW_MS // 4


def sliding_sum() -> Any:
    windows = TimeWindows(
        keys=("key",), size_ns=WINDOW_MS * _NANOS, slide_ns=SLIDE_MS * _NANOS, time_column="time"
    )
    return time_window_operator(windows, [("n", count()), ("total", col("value").sum())], SCHEMA)


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
    kind = rng.choice([*sorted(KINDS), "sliding", "sliding"])
    before, after = rng.choice([(2, 1), (2, 3), (3, 2), (1, 2), (1, 3), (3, 1), (2, 2)])
    source = SimSource(seed, splits=rng.choice([1, 3, 5]), rows_per_split=25)
    crashes = rng.choice([0, 0, 1])
    config = {
        "checkpoint.storage": f"memory://rescaling-{seed}",
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
    external = EXTERNAL[seed] = External()
    store = open_store(str(config["checkpoint.storage"]), {})
    try:
        with (
            patch.object(JobConfig, "network_bytes", property(lambda self: budget)),
            patch.dict(KINDS, {"sliding": sliding_sum}),
        ):
            faults = Faults(crashes=crashes, crash_probability=0.001, max_delay_ms=rng.choice([0, 5, 30]))
            job = _Job(seed, f"first-{seed}", kind, source, config, before, faults, None)
            path, in_flight = job.run_until_in_flight(wanted_rows)
            if path is not None:
                job = _Job(seed + 1, f"second-{seed}", kind, source, config, after, faults, path)
                job.finish()
        check_sliding(source, external) if kind == "sliding" else check_output(kind, source, external)
        return Rescaled(seed=seed, kind=kind, parallelism=(before, after), in_flight=in_flight)
    except BaseException as error:
        error.args = (f"seed {seed} ({kind}, {before} → {after}): {error}", *error.args[1:])
        raise
    finally:
        del EXTERNAL[seed]
        store.delete_prefix("")


class _Job:
    def __init__(
        self,
        world_seed: int,
        name: str,
        kind: str,
        source: SimSource,
        config: dict[str, Any],
        parallelism: int,
        faults: Faults,
        restore_from: str | None,
    ) -> None:
        self.world = world = World(world_seed, faults)
        pool = SimPool(world)
        self.config = config
        self.master = JobMaster(
            job_id=JobId(name),
            graph=job_graph(kind, source.args[0], source, parallelism),
            config=config,
            workers=pool,
            io=world,
            open_store=open_store,
            wake=lambda: world.wake("master"),
            clock=world,
            restore_from=restore_from,
        )
        pool.events = self.master
        world.add(Node("master", self.master.step))
        world.faults_on = lambda: self.master.state is JobState.RUNNING

    def finish(self) -> None:
        self.world.run(until=lambda: self.master.state.ended)
        assert self.master.state is JobState.FINISHED, f"job ended {self.master.state}: {self.master.failure}"

    def run_until_in_flight(self, rows: int) -> tuple[str | None, int]:
        """Stop at a checkpoint with so many rows in flight. Return the newest, and what it has; None if the job
        finished first."""
        self.world.run(until=lambda: self.master.state.ended or self._newest()[1] >= rows)
        if not self.master.state.ended:
            self.master.cancel()
            self.world.run(until=lambda: self.master.state.ended)
        if self.master.state is JobState.FINISHED:
            return None, 0
        assert self.master.state is JobState.CANCELLED, self.master.failure
        path, found = self._newest()
        # The second job would read what this one has committed after the checkpoint again.
        return path, found

    def _newest(self) -> tuple[str | None, int]:
        done = [c for c in self.master.checkpoints() if c["status"] == "completed"]
        if not done or not done[-1]["in_flight_bytes"]:
            return (done[-1]["path"], 0) if done else (None, 0)
        manifest = resolve_checkpoint(done[-1]["path"], {}).manifest
        return done[-1]["path"], sum(file.rows for file in manifest.files if file.kind == "in-flight")


def check_sliding(source: SimSource, external: External) -> None:
    """I1, I2, I3 for sliding windows."""
    sums: dict[tuple[int, int], list[int]] = {}
    for part in make_rows(*source.args):
        for key, value, time in part:
            for start in range(time // SLIDE_MS * SLIDE_MS, time - WINDOW_MS, -SLIDE_MS):
                entry = sums.setdefault((key, start), [0, 0])
                entry[0] += 1
                entry[1] += value
    want = Counter((k, start, n, t) for (k, start), (n, t) in sums.items())
    got = Counter((k, int(s.timestamp() * 1000), n, t) for k, s, _, n, t in _utc(external.rows()))
    assert not want - got, f"I1: lost {dict(want - got)}"
    assert not got - want, f"I2: too much {dict(got - want)}"


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
