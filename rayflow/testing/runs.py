"""`rf.testing.simulate`: a user's own job under seeded faults, in this process, in seconds, without Ray.

    def test_my_job_is_exactly_once():
        env = rf.StreamEnvironment(parallelism=2)
        build(env, input="tests/data/sample.parquet", output="unused")
        rf.testing.simulate(env, seeds=range(50)).check()

Theory of operation. The job runs once without faults, then once per seed, in the simulated cluster of `simulation`:
rayflow's own engines, the job's own sources, functions and sinks, a virtual clock, and crashes, partitions, stalls and
storage errors where the seed says. Its file sinks are pointed at a scratch folder, a new one for each run. What a run
has committed must be the rows that the run without faults committed; and the engines' invariants are checked all along.

A seed always gives the same run, so a seed that failed is replayed by its number. It is a test of the job as well as
of rayflow: a function that keeps state of its own outside of rayflow's, or draws random numbers, is found out.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import pyarrow as pa

from rayflow.connectors.committed import committed_rows
from rayflow.graph.plan import JobGraph
from rayflow.model.config import JobConfig
from rayflow.model.errors import PlanError
from rayflow.protocol.lifecycle import JobState
from rayflow.testing.comparison import Verdict, compare
from rayflow.testing.faults import NO_FAULTS, Faults, draw_faults
from rayflow.testing.outputs import file_sinks, redirected
from rayflow.testing.simulation import Outcome, Simulation

_PATIENT = {
    "restart.max_attempts": 1_000,
    "restart.delay": "10ms",
    "checkpoint.failures_tolerated": 10,
}
_INTERVALS = ("20ms", "100ms", "500ms")
_BATCHES = (7, 100, 1_000)


class Environment(Protocol):
    """What `simulate` needs of a `rf.StreamEnvironment`."""

    config: dict[str, Any]

    def plan(self) -> JobGraph:
        """Return the graph of all sinks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedRun:
    """What one seed led to. `problem` is None where all is well; `faults` are those that struck, in order; `outputs`
    has a verdict for each file sink, by uid; `trace` the last steps of a run that failed.

    `state` FAILED without a problem: what was on storage had been damaged, and the job stopped loudly.
    """

    seed: int
    state: str
    attempts: int
    checkpoints: int
    virtual_ms: int
    faults: tuple[str, ...]
    outputs: Mapping[str, Verdict]
    problem: str | None = None
    trace: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SimulationReport:
    """What all seeds led to. `print` it for a table; `check` raises for the first seed that went wrong."""

    runs: tuple[SimulatedRun, ...] = field(default=())

    @property
    def failed(self) -> tuple[SimulatedRun, ...]:
        """The runs that went wrong."""
        return tuple(run for run in self.runs if run.problem is not None)

    def check(self) -> None:
        """Raise AssertionError for the first seed that went wrong: what, under which faults, and how to replay it."""
        for run in self.failed[:1]:
            faults = "\n  ".join(run.faults) or "none"
            raise AssertionError(
                f"{len(self.failed)} of {len(self.runs)} seeds failed; seed {run.seed}: {run.problem}\n"
                f"faults:\n  {faults}\nlast steps:\n  " + "\n  ".join(run.trace[-20:]) + "\n"
                f"replay it with rf.testing.simulate(env, seeds=[{run.seed}])"
            )

    def __str__(self) -> str:
        lines = [f"{'seed':>6}  {'state':9}  attempts  checkpoints  faults"]
        for run in self.runs:
            said = run.problem or ", ".join(run.faults) or "-"
            lines.append(
                f"{run.seed:>6}  {run.state:9}  {run.attempts:>8}  {run.checkpoints:>11}  {said.splitlines()[0]}"
            )
        return "\n".join([*lines, f"{len(self.runs)} seeds, {len(self.failed)} failed"])


def simulate(
    env: Environment,
    *,
    seeds: Iterable[int] = range(20),
    faults: Faults | None = None,
    ignore: Sequence[str] = (),
) -> SimulationReport:
    """Run the job in `env` (a `rf.StreamEnvironment` with its sinks) under the faults of each seed.

    `faults` None: each seed draws its own, of every kind (`draw_faults`). Columns `ignore` of the outputs are not
    compared: name what may rightly differ, such as processing times. Settings that `env.config` does not have are
    chosen for the purpose: a checkpoint each 20 to 500 ms of virtual time, batches of 7 to 1,000 rows, any number of
    restarts. Some thousand rows are enough, and quick; functions run in this process, and must not sleep.

    Sinks other than files are run as they are, in every attempt of every seed; their output is theirs to compare.
    Raises PlanError for a source that never ends, and what the job raises if it fails without any faults.
    """
    graph = env.plan()
    _check(graph)
    with tempfile.TemporaryDirectory(prefix="rayflow-testing-") as scratch:
        calm = redirected(graph, f"{scratch}/without")
        ended = _simulate(calm, _config(env.config, 0), Simulation(seed=0, faults=NO_FAULTS))
        if ended.problem is not None:
            raise AssertionError(f"the job failed without any faults: {ended.problem}")
        expected = _outputs(calm)
        runs: list[SimulatedRun] = []
        for seed in seeds:
            stormy = redirected(graph, f"{scratch}/{len(runs)}")
            sim = Simulation(seed=seed, faults=faults or draw_faults(random.Random(seed)))
            sim.storage_url = f"memory://rayflow-testing-{seed}"
            run = _simulate(stormy, _config(env.config, seed), sim)
            runs.append(run if sim.storage.forgotten else _judged(run, expected, stormy, ignore))
        return SimulationReport(tuple(runs))


def _check(graph: JobGraph) -> None:
    for vertex in graph.vertices:
        first = vertex.operators[0]
        if first.kind == "source" and not first.payload.bounded:
            raise PlanError(
                f"source {first.name!r} never ends, so there is no end result to compare; give it an end (rows=, no "
                "watch=) for the test",
                first.location,
            )


def _config(own: Mapping[str, Any], seed: int) -> dict[str, Any]:
    choice = random.Random(seed)
    drawn = {"checkpoint.interval": choice.choice(_INTERVALS), "batch.rows": choice.choice(_BATCHES)}
    flat = {key: value for key, value in own.items() if key != "checkpoint.storage"}
    config = {**_PATIENT, **drawn, **flat}
    JobConfig.from_flat(config)
    return config


def _simulate(graph: JobGraph, config: dict[str, Any], sim: Simulation) -> SimulatedRun:
    outcome, problem = None, None
    try:
        outcome = sim.run(graph, config)
        problem = _problem(sim, outcome)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error)
    finally:
        trace = tuple(sim.world.trace.lines)
        sim.close()
    return SimulatedRun(
        seed=sim.seed,
        state="BROKEN" if outcome is None or outcome.state is None else outcome.state.value,
        attempts=0 if outcome is None else outcome.attempts,
        checkpoints=0 if outcome is None else outcome.checkpoints,
        virtual_ms=0 if outcome is None else outcome.virtual_ms,
        faults=tuple(sim.injector.struck),
        outputs={},
        problem=problem,
        trace=trace if problem is not None else (),
    )


def _problem(sim: Simulation, outcome: Outcome) -> str | None:
    if outcome.state is JobState.FINISHED:
        return None
    if outcome.state is JobState.FAILED and sim.injector.corrupted:
        return None  # `run` has seen to it that it had to
    return f"the job ended {outcome.state}: {outcome.failure}"


def _judged(
    run: SimulatedRun, expected: Mapping[str, pa.Table], graph: JobGraph, ignore: Sequence[str]
) -> SimulatedRun:
    if run.state != JobState.FINISHED.value:
        return run
    found = _outputs(graph)
    verdicts = {uid: compare(expected[uid], found[uid], ignore) for uid in expected}
    wrong = [
        f"output of {uid}: {v.lost} rows lost, {v.duplicated} duplicated, {v.differing} differing "
        f"({'; '.join(v.examples)})"
        for uid, v in verdicts.items()
        if not v.exact
    ]
    return replace(run, outputs=verdicts, problem=run.problem or ("; ".join(wrong) or None))


def _outputs(graph: JobGraph) -> dict[str, pa.Table]:
    return {sink.uid: committed_rows(sink.payload, {}) for sink in file_sinks(graph)}
