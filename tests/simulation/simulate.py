"""Runs one seed: builds the job the seed asks for, lets it run under faults, checks the outcome."""

from __future__ import annotations

import random
from dataclasses import dataclass
from unittest.mock import patch

from rayflow.model.config import JobConfig
from rayflow.model.ids import JobId
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.job_master import JobMaster
from rayflow.state.storage import open_store
from rayflow.testing.cluster import SimPool
from rayflow.testing.world import Faults, Node, World
from tests.simulation.checks import check_credit
from tests.simulation.jobs import EXTERNAL, KINDS, External, SimSource, check_output, job_graph


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a seed led to."""

    seed: int
    kind: str
    digest: str
    turns: int
    attempts: int
    checkpoints: int
    lines: tuple[str, ...]


def simulate(seed: int, *, keep_trace: int = 400) -> Outcome:
    """Run `seed`; AssertionError (or an engine's error) when an invariant is broken."""
    choice = random.Random(seed * 2 + 1)
    kind = choice.choice(sorted(KINDS))
    faults = Faults(
        crashes=choice.choice([0, 1, 1, 2, 3]),
        crash_probability=choice.choice([0.0005, 0.002, 0.01]),
        io_errors=choice.choice([0, 0, 2]),
        io_error_probability=0.05,
        max_delay_ms=choice.choice([0, 5, 30, 200]),
    )
    source = SimSource(seed, splits=choice.choice([1, 3, 5]), rows_per_split=choice.choice([5, 25]))
    config = {
        "checkpoint.storage": f"memory://simulation-{seed}",
        "checkpoint.interval": f"{choice.choice([20, 100, 500])}ms",
        "checkpoint.timeout": "5s",
        "checkpoint.max_concurrent": choice.choice([1, 1, 2]),
        "checkpoint.failures_tolerated": 10,
        "restart.max_attempts": 100,
        "restart.delay": "10ms",
        "batch.rows": choice.choice([1, 7, 100]),
        "batch.linger": f"{choice.choice([0, 5, 20])}ms",
    }
    config.update(_barrier_mode(random.Random(seed * 5 + 3)))
    # Budgets of a few frames, far below what a configuration may ask for, so that credit runs out.
    budget = choice.choice([1 << 10, 1 << 12, 1 << 26])
    with patch.object(JobConfig, "network_bytes", property(lambda self: budget)):
        return _run(seed, kind, World(seed, faults, keep_trace=keep_trace), source, config)


def _barrier_mode(choice: random.Random) -> dict[str, object]:
    mode = choice.choice(["aligned", "timed", "unaligned"])
    if mode == "aligned":
        return {}
    one = {"checkpoint.max_concurrent": 1}
    if mode == "unaligned":
        return {"checkpoint.mode": mode, **one}
    return {"checkpoint.alignment_timeout": f"{choice.choice([1, 10, 50])}ms", **one}


def _run(seed: int, kind: str, world: World, source: SimSource, config: dict[str, object]) -> Outcome:
    external = EXTERNAL[seed] = External()
    store = open_store(str(config["checkpoint.storage"]), {})
    store.delete_prefix("")
    pool = SimPool(world)
    master = JobMaster(
        job_id=JobId(f"sim-{seed}"),
        graph=job_graph(kind, seed, source),
        config=config,
        workers=pool,
        io=world,
        open_store=open_store,
        wake=lambda: world.wake("master"),
        clock=world,
    )
    pool.events = master
    world.add(Node("master", master.step))
    world.after_turn.append(lambda: check_credit(pool, world))
    # A job that cannot even be stored fails at once, by design: faults begin when it runs.
    world.faults_on = lambda: master.state is not JobState.CREATED
    try:
        world.run(until=lambda: master.state.ended)
        assert master.state is JobState.FINISHED, f"job ended {master.state}: {master.failure}"
        check_output(kind, source, external)
        assert not external.staged or set(external.staged).isdisjoint(external.committed)
        assert external.fresh_starts >= 1
        described = master.describe()
        return Outcome(
            seed=seed,
            kind=kind,
            digest=world.trace.digest,
            turns=world.trace.count,
            attempts=described["attempt"],
            checkpoints=described["checkpoints"]["completed"],
            lines=tuple(world.trace.lines),
        )
    except BaseException as error:
        error.args = (f"seed {seed} ({kind}): {error}", *error.args[1:])
        error.trace_lines = tuple(world.trace.lines)  # type: ignore[attr-defined]
        raise
    finally:
        del EXTERNAL[seed]
        store.delete_prefix("")
