"""Runs one seed: builds the job the seed asks for, lets it run under the seed's faults, checks the outcome.

Most seeds run one job to its end. Some cancel it, and restore what it left in another job, at another parallelism;
some never stop with faults, and ask only that nothing wrong is seen (`mode="safety"`).
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

from rayflow.protocol.lifecycle import JobState
from rayflow.state.files import operator_state
from rayflow.state.finding import list_checkpoints, restorable, stored_job, without_zombies
from rayflow.state.manifest import CheckpointFiles, read_manifest
from rayflow.state.storage import open_store
from rayflow.testing.faults import Faults, Strike, draw_faults
from rayflow.testing.simulation import Outcome, Simulation
from tests.simulation.external import EXTERNAL, External, Row, SimSink, SimSource, SimTable
from tests.simulation.jobs import NUMBERED, SHAPES, Shape, plan
from tests.simulation.rarer_jobs import RARER
from tests.simulation.smallness import small

Mode = Literal["liveness", "safety"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a seed led to."""

    seed: int
    kind: str
    plan: str
    digest: str
    turns: int
    attempts: int
    checkpoints: int
    ends: tuple[str, ...]
    struck: tuple[str, ...]
    met: dict[str, int]
    """How often each fault struck, by the rows of `rayflow.testing.met`."""
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """What a seed asks for."""

    kind: str
    faults: Faults
    mode: Mode
    sources: tuple[SimSource, ...]
    config: dict[str, Any]
    budget: int
    busy_ms: int
    transactional: bool
    parallelism: int
    then_parallelism: int
    cancel_at_turn: int | None
    machines: int = 3


def simulate(seed: int, *, keep_trace: int = 400, mode: Mode | None = None, isolated: bool = False) -> Result:
    """Run `seed`; AssertionError (or an engine's error) when an invariant is broken. `isolated`: see `_isolated`."""
    scenario = _scenario(seed, mode)
    if isolated:
        scenario = _isolated(seed, scenario)
    with small(scenario.budget, scenario.busy_ms):
        return _Run(seed, scenario, keep_trace).result()


def _scenario(seed: int, mode: Mode | None) -> Scenario:
    choice = random.Random(seed * 2 + 1)
    kind = choice.choice(sorted(SHAPES))
    kind = _rarer(random.Random(seed * 13 + 7)) or kind
    shape = _shape(kind)
    drawn: Mode = choice.choice(("liveness",) * 6 + ("safety",))
    cancel_at_turn = choice.choice([None, None, None, None, 150, 400, 800])
    mode = mode or drawn
    apart_ms = _apart_ms(kind, random.Random(seed * 17 + 3))
    splits, rows = choice.choice([1, 3, 5]), choice.choice([5, 25])
    bounded = cancel_at_turn is None or choice.random() < 0.7
    faults = draw_faults(choice, safety=mode == "safety")
    lulls = kind in RARER and random.Random(seed * 29 + 3).random() < 0.4
    if kind in RARER:
        splits = min(splits, 4 - shape.sources)  # these jobs cost more
    if lulls:
        faults = _with_a_restore(faults, random.Random(seed * 31 + 3))
        cancel_at_turn = 1_200 if cancel_at_turn == 150 else cancel_at_turn
    # Aligned barriers, as on broadcast edges always, wait behind rows whose credit comes with such delays: where no
    # checkpoint can be in time and none may fail, no job ends (seed 6045).
    shortest = "5s" if faults.max_delay_ms >= 200 else "2s"
    return Scenario(
        kind=kind,
        mode=mode,
        faults=faults,
        sources=tuple(
            SimSource(seed, i, splits, rows, apart_ms, bounded=bounded, lulls=lulls)
            for i in range(shape.sources)
        ),
        config={
            "checkpoint.interval": f"{choice.choice([20, 100, 500])}ms",
            "checkpoint.timeout": choice.choice([shortest, "5s", "30s"]),
            "checkpoint.min_pause": choice.choice(["0s", "0s", "50ms"]),
            "checkpoint.max_concurrent": choice.choice([1, 1, 2, 3]),
            "checkpoint.retained": choice.choice([1, 2, 3]),
            "checkpoint.failures_tolerated": choice.choice([0, 3, 10]),
            "restart.max_attempts": 1000,
            "restart.delay": "10ms",
            "batch.rows": choice.choice([1, 7, 100]),
            "batch.linger": f"{choice.choice([0, 5, 20])}ms",
            **_barrier_mode(random.Random(seed * 5 + 3)),
            **_state_backend(random.Random(seed * 11 + 5)),
            **({"checkpoint.interval": "50ms"} if lulls else {}),
        },
        budget=choice.choice([1 << 10, 1 << 12, 1 << 26]),
        busy_ms=random.Random(seed * 19 + 11).choice([1, 200, 200]),
        transactional=kind in RARER and random.Random(seed * 23 + 1).random() < 0.4,
        parallelism=choice.choice([1, 2, 2, 2, 3]),
        then_parallelism=choice.choice([1, 2, 3, 4]),
        cancel_at_turn=cancel_at_turn,
    )


def _rarer(choice: random.Random) -> str | None:
    """A fifth of the seeds have another kind of job instead; they are drawn apart, so that the others stay."""
    return choice.choice(sorted(RARER)) if RARER and choice.random() < 0.2 else None


def _with_a_restore(faults: Faults, choice: random.Random) -> Faults:
    """There are few jobs of each rarer kind: most wait for checkpoints half-way, and then have to restore them."""
    strike = Strike(moment="announced", nth=choice.choice([6, 9, 13, 18]), action="crash")
    return replace(faults, aimed=(*faults.aimed, strike))


def _apart_ms(kind: str, choice: random.Random) -> int:
    """Where event time counts, splits overlap in some seeds: only the cap keeps watermarks behind unread ones."""
    counts = kind in RARER or kind in ("joined", "sliding", "timers", "windowed")
    return 700 if counts and choice.random() < 0.4 else 2_000


def _shape(kind: str) -> Shape:
    return RARER[kind] if kind in RARER else SHAPES[kind]


def _isolated(seed: int, scenario: Scenario) -> Scenario:
    """The same job, narrow, on two machines, with one fault: as the manager publishes its machine is cut off, with what
    else is on it, and a standby takes over before it knows."""
    nth = 1 + random.Random(seed * 11 + 1).randrange(6)
    strike = Strike(moment="after ack", nth=nth, action="isolate master")
    faults = Faults(
        aimed=(strike,),
        storage_slow_if_cut=0.8,
        longest_ms=6_000,
        active_ms=30_000,
        # Of one in three the others get in between any two requests.
        interleaved_io=seed % 3 == 0,
    )
    bounded = tuple(source.ending() for source in scenario.sources)
    narrow = replace(scenario, sources=bounded, parallelism=1, machines=2)
    return replace(narrow, faults=faults, mode="liveness", cancel_at_turn=None)


def _barrier_mode(choice: random.Random) -> dict[str, object]:
    mode = choice.choice(["aligned", "timed", "unaligned"])
    if mode == "aligned":
        return {}
    one = {"checkpoint.max_concurrent": 1}
    if mode == "unaligned":
        return {"checkpoint.mode": mode, **one}
    return {"checkpoint.alignment_timeout": f"{choice.choice([1, 10, 50])}ms", **one}


def _state_backend(choice: random.Random) -> dict[str, object]:
    """On disk, every key leaves memory at once, or some do."""
    managed = choice.choice([None, None, 0, 0.0001])
    return {} if managed is None else {"state.backend": "disk", "memory.managed": managed}


class _Run:
    """One seed's run."""

    def __init__(self, seed: int, scenario: Scenario, keep_trace: int) -> None:
        self.seed = seed
        self.scenario = scenario
        self.shape = _shape(scenario.kind)
        self.sim = Simulation(
            seed=seed, faults=scenario.faults, machines=scenario.machines, keep_trace=keep_trace
        )
        self.sim.storage_url = f"memory://simulation-{seed}"
        self.external = External(self.sim)
        self.outcomes: list[Outcome] = []

    def result(self) -> Result:
        EXTERNAL[self.seed] = self.external
        try:
            self._run()
            return self._summary()
        except BaseException as error:
            error.args = (f"seed {self.seed} ({self.scenario.kind}): {error}", *error.args[1:])
            error.trace_lines = tuple(self.sim.world.trace.lines)  # type: ignore[attr-defined]
            raise
        finally:
            self.sim.close()
            del EXTERNAL[self.seed]

    def _run(self) -> None:
        scenario = self.scenario
        first = self._job("first", scenario.sources, scenario.parallelism, None, scenario.cancel_at_turn)
        if first.state is JobState.CANCELLED:
            self._check(complete=False)
            restore_from = self._newest("first")
            bounded = tuple(source.ending() for source in scenario.sources)
            if restore_from is None and self.external.committed:
                assert self.sim.injector.corrupted, "I5: rows were committed, but no checkpoint is complete"
                # The storage lost the only manifest, and nobody looked again: there is nothing to go on from.
                return
            last = self._job("second", bounded, scenario.then_parallelism, restore_from, None)
        else:
            last = first
        if self.sim.storage.forgotten:
            return
        if last.state is JobState.FINISHED:
            self._check(complete=True)
            if not self.sim.injector.corrupted:
                self._check_state("second" if first.state is JobState.CANCELLED else "first")
            left = set(self.external.staged)
            assert left.isdisjoint(self.external.committed)
        elif last.state is JobState.FAILED:
            # I11: the simulation has seen to it that stopping was right.
            self._check(complete=False)
        else:
            assert scenario.mode == "safety", f"I8: the job ended {last.state}"
            self._check(complete=False)

    def _job(
        self,
        name: str,
        sources: tuple[SimSource, ...],
        parallelism: int,
        restore_from: str | None,
        cancel_at_turn: int | None,
    ) -> Outcome:
        sink = SimTable if self.scenario.transactional else SimSink
        graph = plan(self.shape, self.seed, sources, parallelism, sink)
        if restore_from is not None:
            self.external.continued.add(name)
        outcome = self.sim.run(
            graph,
            self.scenario.config,
            job_id=name,
            restore_from=restore_from,
            # Told again and again, as a user does who sees no effect: managers die.
            cancel_when=None
            if cancel_at_turn is None
            else lambda _, turns: turns >= cancel_at_turn and (turns - cancel_at_turn) % 50 == 0,
        )
        self.outcomes.append(outcome)
        return outcome

    def _newest(self, job_id: str) -> str | None:
        store = self.sim.store()
        found = restorable(store, job_id, list_checkpoints(store, job_id), stored_job(store, job_id))
        return f"{store.url}/{job_id}/chk-{found[-1]}" if found else None

    def _check(self, *, complete: bool) -> None:
        rows = [part for source in self.scenario.sources for part in source.rows()]
        self.shape.check(rows, self.external.rows(), complete)

    def _check_state(self, job_id: str) -> None:
        """I3: the numbers that the last checkpoint keeps by key are those of a run without faults."""
        store = self.sim.store()
        directory = f"{job_id}/chk-{without_zombies(store, job_id, list_checkpoints(store, job_id))[-1]}"
        manifest = read_manifest(store, directory)
        files = CheckpointFiles(f"{store.url}/{directory}", lambda url: open_store(url, {}))
        rows = [row for source in self.scenario.sources for part in source.rows() for row in part]
        want = Counter(row[0] for row in rows)
        for uid in sorted(NUMBERED & manifest.operators.keys()):
            table = operator_state(files, manifest, uid)["state"]
            got = dict(zip(table.column("key").to_pylist(), table.column("n.value").to_pylist()))
            assert got == want, f"I3: the state of {uid} at the end is {got}, expected {dict(want)}"

    def _summary(self) -> Result:
        world = self.sim.world
        return Result(
            seed=self.seed,
            kind=self.scenario.kind,
            plan=f"{self.scenario.mode}, {_said(self.scenario.faults)}",
            digest=world.trace.digest,
            turns=world.trace.count,
            attempts=sum(o.attempts for o in self.outcomes),
            checkpoints=sum(o.checkpoints for o in self.outcomes),
            ends=tuple(str(o.state.value if o.state else "RUNNING") for o in self.outcomes),
            struck=tuple(self.sim.injector.struck),
            met=dict(self.sim.injector.met),
            lines=tuple(world.trace.lines),
        )


def _said(faults: Faults) -> str:
    """The faults that a seed has, in words."""
    plain = Faults()
    names = [
        n for n in Faults.__dataclass_fields__ if getattr(faults, n) != getattr(plain, n) and n != "aimed"
    ]
    said = [f"{name}={getattr(faults, name)}" for name in names]
    return ", ".join([*said, *(f"{s.action} at {s.nth}. {s.moment}" for s in faults.aimed)]) or "no faults"


__all__ = ["Mode", "Result", "Row", "simulate"]
