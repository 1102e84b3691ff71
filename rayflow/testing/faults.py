"""What may go wrong in a simulated run, and the injector that decides when it does.

Theory of operation
-------------------
`Faults` is a plan: how likely each kind is, and how many of each at most. `draw_faults` makes one from a seed: most
seeds have a few kinds, some have all, some none. The injector strikes in two ways. Before each turn it may do
something by chance (crash, freeze, cut, break a stream). And it listens to the trace for *moments* that are hard to
hit by chance: right after an ack, between an upload and its ack, with a manifest published but not announced, during
alignment, reset or restore; at such a line it strikes whom the line is about. Storage and outside systems ask it
about every request.

Faults stop, and what is broken heals, `active_ms` after the job has begun to run (never, where that is None: then only
safety can be asked for).
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from rayflow.testing.world import World

Action = Literal[
    "crash",
    "freeze",
    "cut",
    "crash master",
    "crash machine",
    "crash all",
    "freeze master",
    "isolate master",
    "damage",
]
StorageFault = Literal["error", "applied", "torn", "flip", "missing", "crash"]

MOMENTS: dict[str, str] = {
    "after ack": "deliver CheckpointAcked from ",
    "after upload": "store write chk-",
    "manifest published": "store create chk-",
    "aligning": "deliver BarrierFrame",
    "reset": "deliver Deploy to ",
    "restored": "deliver Deployed from ",
    "started": "deliver Start to ",
    "claimed": "store create attempts/",
    "announced": "deliver CheckpointCompleted to ",
    "committed": "deliver Committed from ",
    "ended": "deliver InputsEnded from ",
    "commit": "external commit",
    "recovering": "store read chk-",
    "keys told": "deliver SaltKeys to ",
}
"""Moments that a strike can be aimed at, and what the trace says then."""

# Few jobs have the others: a seed is to strike.
_DRAWN_MOMENTS = sorted(MOMENTS.keys() - {"keys told"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """At the `nth` time that the trace tells of `moment`, do `action` to whom it is about."""

    moment: str
    nth: int
    action: Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What may go wrong. Probabilities are per turn (crashes … streams), per message or per request."""

    strikes: int = 0
    crash: float = 0.0
    crash_master: float = 0.0
    crash_machine: float = 0.0
    crash_all: float = 0.0
    freeze: float = 0.0
    cut: float = 0.0
    break_stream: float = 0.0
    duplicate: float = 0.0
    lost_call: float = 0.0
    storage_error: float = 0.0
    storage_applied: float = 0.0
    storage_slow: float = 0.0
    storage_slow_if_cut: float = 0.0
    corruption: float = 0.0
    external_error: float = 0.0
    external_applied: float = 0.0
    external_slow: float = 0.0
    hanging_calls: float = 0.0
    frame_twice: float = field(default=0.0, repr=False)  # so that what is drawn from the others stays
    aimed: tuple[Strike, ...] = ()
    slow_machines: int = 0
    longest_ms: int = 20_000
    max_delay_ms: int = 30
    interleaved_io: bool = False
    active_ms: int | None = 30_000


NO_FAULTS = Faults(active_ms=0)


def draw_faults(rng: random.Random, *, safety: bool = False) -> Faults:
    """Return the faults of a seed. With `safety` they never stop."""
    often = rng.choice([0.0005, 0.002, 0.01])
    kinds = rng.choice([0, 1, 1, 2, 2, 3, 12])
    chosen = set(rng.sample(_KINDS, min(kinds, len(_KINDS))))
    faults = Faults(
        strikes=rng.choice([1, 2, 3, 6]) if kinds else 0,
        max_delay_ms=rng.choice([0, 5, 30, 200]),
        longest_ms=rng.choice([300, 3_000, 20_000, 40_000]),
        interleaved_io=rng.random() < 0.2,
        active_ms=None if safety else rng.choice([1_000, 10_000, 60_000]),
        slow_machines=rng.choice([0, 0, 0, 1]),
        aimed=tuple(_aim(rng) for _ in range(rng.choice([0, 0, 1, 1, 2]))) if kinds else (),
    )
    for kind in _KINDS:
        if kind in chosen:
            likely: Any = {kind: often if kind in _BY_TURN else rng.choice([0.02, 0.1])}
            faults = replace(faults, **likely)
    # Drawn last: what a seed had before this kind existed it still has.
    faults = replace(faults, lost_call=rng.choice([0, 0, 0, 0.02, 0.1])) if kinds else faults
    return _with_a_rare_one(faults) if kinds else faults


_BY_TURN = ("crash", "crash_master", "crash_machine", "crash_all", "freeze", "cut", "break_stream")
_KINDS = (
    *_BY_TURN,
    "duplicate",
    "storage_error",
    "storage_applied",
    "storage_slow",
    "corruption",
    "external_error",
    "external_applied",
    "external_slow",
    "hanging_calls",
)
_ACTIONS: tuple[Action, ...] = (
    "crash",
    "crash",
    "crash",
    "crash master",
    "crash master",
    "freeze",
    "cut",
    "crash machine",
    "crash all",
    "freeze master",
)


def _aim(rng: random.Random) -> Strike:
    return Strike(
        moment=rng.choice(_DRAWN_MOMENTS), nth=rng.choice([1, 1, 2, 3, 5, 8]), action=rng.choice(_ACTIONS)
    )


def _with_a_rare_one(faults: Faults) -> Faults:
    """Of one seed in twelve the newest checkpoint is damaged; in one of twenty-four the manager stands still for longer
    than its workers' leases last; in as many it is cut off, with requests to storage under way that are carried out
    once it is back; and in as many data frames arrive twice. Drawn from what else a seed has: all others are what they
    were before these existed."""
    rng = random.Random(repr(faults))
    chance, nth = rng.random(), rng.choice([1, 2, 4, 8])
    if chance < 2 / 24:
        strike = Strike(moment="announced", nth=nth, action="damage")
        return replace(faults, aimed=(*faults.aimed, strike))
    if chance < 3 / 24:
        strike = Strike(moment="announced", nth=nth, action="freeze master")
        return replace(faults, aimed=(*faults.aimed, strike), longest_ms=40_000, active_ms=60_000)
    if chance < 4 / 24:
        strike = Strike(moment="after ack", nth=nth, action="isolate master")
        late = replace(faults, storage_slow_if_cut=0.8, longest_ms=6_000, active_ms=60_000)
        return replace(late, aimed=(*faults.aimed, strike))
    if chance < 5 / 24:
        return replace(faults, frame_twice=0.2)
    return faults


@dataclass(slots=True)
class _Aim:
    strike: Strike
    left: int = 0


@dataclass(slots=True, eq=False)
class Injector:
    """Decides about faults in one run. `act(action, line)` carries one out and returns whether it could."""

    world: World
    faults: Faults
    act: Callable[[Action, str | None], bool] = lambda action, line: False
    heal: Callable[[], None] = lambda: None
    break_stream: Callable[[], bool] = lambda: False
    struck: list[str] = field(default_factory=list)
    began_ms: int | None = None
    ended_ms: int | None = None
    corrupted: int = 0
    met: Counter[str] = field(default_factory=Counter)
    """How often each fault really struck (`met.ROWS`)."""
    _left: int = 0
    _by_turn: tuple[tuple[float, Action | Literal["break stream"]], ...] = ()
    _aims: list[_Aim] = field(default_factory=list)
    _due: list[tuple[Action, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        faults = self.faults
        self._left = faults.strikes
        likely: tuple[tuple[float, Action | Literal["break stream"]], ...] = (
            (faults.crash, "crash"),
            (faults.crash_master, "crash master"),
            (faults.crash_machine, "crash machine"),
            (faults.crash_all, "crash all"),
            (faults.freeze, "freeze"),
            (faults.freeze / 3, "freeze master"),
            (faults.cut, "cut"),
            (faults.break_stream, "break stream"),
        )
        self._by_turn = tuple(pair for pair in likely if pair[0] > 0)
        self._aims = [_Aim(strike, strike.nth) for strike in self.faults.aimed]
        if self._aims:
            self.world.trace.listeners.append(self._listen)
        self.world.before_turn.append(self._before_turn)

    def begin(self) -> None:
        """The job runs: from now on things may go wrong."""
        if self.began_ms is None:
            self.began_ms = self.world.now

    @property
    def active(self) -> bool:
        """Whether things may go wrong now."""
        return self.began_ms is not None and self.ended_ms is None

    def chance(self, probability: float) -> bool:
        """Return whether something that is this likely goes wrong now."""
        return probability > 0 and self.active and self.world.happens(probability)

    def duration_ms(self) -> int:
        """How long a fault that passes by itself takes."""
        return 1 + self.world.draw(self.faults.longest_ms)

    # ------------------------------------------------------------------ requests

    def storage(self, verb: str, path: str) -> StorageFault | None:
        """What goes wrong with a request to storage."""
        if not self.active:
            return None
        faults = self.faults
        if self.chance(faults.storage_error):
            self.met["storage: error"] += 1
            return "error"
        if self.chance(faults.storage_applied):
            self.met["storage: applied, no answer"] += 1
            return "applied"
        if verb in ("write", "create") and "/chk-" in path and self.chance(faults.corruption):
            self.corrupted += 1
            return self.kind_of_damage()
        return None

    def external(self) -> Literal["error", "applied", "slow"] | None:
        """What goes wrong with a request to the system outside."""
        faults = self.faults
        if self.chance(faults.external_error):
            return "error"
        if self.chance(faults.external_applied):
            self.met["sink: outcome unknown"] += 1
            return "applied"
        if self.chance(faults.external_slow):
            self.met["sink: stalled"] += 1
            return "slow"
        return None

    def kind_of_damage(self) -> StorageFault:
        """How an object is damaged."""
        kinds: Sequence[StorageFault] = ("torn", "flip", "missing")
        kind = kinds[self.world.draw(3)]
        self.met[f"storage: {'flipped' if kind == 'flip' else kind}"] += 1
        return kind

    # ------------------------------------------------------------------ strikes

    def _listen(self, line: str) -> None:
        if not self.active:
            return
        for aim in self._aims:
            if aim.left > 0 and MOMENTS[aim.strike.moment] in line:
                aim.left -= 1
                if aim.left == 0:
                    self._due.append((aim.strike.action, line))

    def _before_turn(self) -> None:
        if self.began_ms is None or self.ended_ms is not None:
            return
        if self.faults.active_ms is not None and self.world.now >= self.began_ms + self.faults.active_ms:
            self.stop()
            return
        while self._due:
            action, line = self._due.pop(0)
            self._strike(action, line)
        if self._left > 0 and self._by_turn:
            self._by_chance()

    def _by_chance(self) -> None:
        for probability, action in self._by_turn:
            if self.world.happens(probability):
                if action != "break stream":
                    self._strike(action, None)
                elif self.break_stream():
                    self._left -= 1
                    self.struck.append(action)

    def _strike(self, action: Action, line: str | None) -> None:
        if self.act(action, line):
            self._left -= 1
            self.struck.append(action if line is None else f"{action} at {line.partition(' ')[2]}")

    def stop(self) -> None:
        """Nothing goes wrong any more, and what is broken heals."""
        if self.ended_ms is None:
            self.ended_ms = self.world.now
            self.world.note("faults end")
            self.heal()
