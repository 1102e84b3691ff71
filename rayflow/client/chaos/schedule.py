"""Which faults happen when: decided by a seed, kept in a file, replayed from it. Pure.

Theory of operation. A schedule is a list of faults in the order of their times, counted from the beginning of the
chaos. The k-th one falls into the k-th stretch of `every_ms`, at a random place in its first half, so that faults do
not keep step with checkpoints. Which kind it is and whom it hits is drawn from the kinds asked for. Same seed, kinds
and targets: same schedule, on every machine and Python version, since nothing but `Random.random` is used.

Faults name roles, not processes: these are looked up when the fault is due (`victims`). That is why a schedule can be
replayed on another run of the job, whose processes have other numbers.

| target | who that is |
|---|---|
| `subtask:OPERATOR[INDEX]` | the process of that subtask |
| `jobmanager` | the process of the job manager |
| `all` | all of these at once, with spares and a manager that stands by |
| `head` | the head node; only where it can be lost |
| `node:N` | the N-th, counted round, of the nodes besides the head that run any of these |
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from rayflow.model.errors import ConfigError

Action = Literal["kill", "stop", "storage_errors", "slow_storage", "partition"]

FORMAT_VERSION = 1
_NODE_DRAWS = 1_000
_TARGET = re.compile(r"subtask:.+\[\d+\]|node:\d+|jobmanager|all|storage|head")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault. `for_ms`: how long it lasts (0: for good, as a kill). Of a partition: `peer` is who `target` is cut
    off from (None: from everybody), `one_way` lets what `target` sends through, and it comes and goes `flaps` times.
    `delay_ms`: by how much slow storage is slower."""

    at_ms: int
    action: Action
    target: str
    for_ms: int = 0
    peer: str | None = None
    one_way: bool = False
    flaps: int = 1
    delay_ms: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data, without what has its default."""
        values = {f.name: (getattr(self, f.name), f.default) for f in fields(self)}
        return {name: value for name, (value, default) in values.items() if value != default}

    def __str__(self) -> str:
        much = f" for {self.for_ms / 1000:g} s" if self.for_ms else ""
        peer = f" from {self.peer}" if self.peer else ""
        way = ", one way" if self.one_way else ""
        return f"{self.action.replace('_', ' ')} {self.target}{peer}{much}{way}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultKind:
    """Faults that differ in their target only: what one option of the command line asks for. An empty `targets`
    means a node, drawn by number."""

    action: Action
    targets: tuple[str, ...] = ()
    for_ms: int = 0
    peers: tuple[str | None, ...] = (None,)
    one_way: bool = False
    flaps: int = 1
    delay_ms: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Faults in the order of their times. `seed`: what they were drawn with, None where a file does not say."""

    faults: tuple[Fault, ...]
    seed: int | None = None

    def to_text(self) -> str:
        """Return it as `from_text` reads it: JSON, a fault a line."""
        lines = ",\n  ".join(json.dumps(fault.to_json()) for fault in self.faults)
        head = f'{{"version": {FORMAT_VERSION}, "seed": {json.dumps(self.seed)}, "faults": ['
        return f"{head}\n  {lines}\n]}}\n"

    @staticmethod
    def from_text(text: str) -> Schedule:
        """Return the schedule that `text` holds. ConfigError says which fault is wrong and why."""
        try:
            document = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"a schedule of faults is JSON, and this is not: {error}") from None
        if not isinstance(document, dict) or not isinstance(document.get("faults"), list):
            raise ConfigError('a schedule of faults is an object {"version": 1, "seed": N, "faults": […]}')
        if document.get("version") != FORMAT_VERSION:
            raise ConfigError(
                f"a schedule of faults has version {FORMAT_VERSION}; got {document.get('version')!r}"
            )
        faults = [_fault(number, given) for number, given in enumerate(document["faults"])]
        seed = document.get("seed")
        return Schedule(faults=tuple(sorted(faults, key=lambda f: f.at_ms)), seed=seed)


def draw(kinds: Sequence[FaultKind], *, every_ms: int, seed: int, times: int) -> Schedule:
    """Return `times` faults, one every `every_ms` on average. ConfigError if there is no kind of fault."""
    if not kinds:
        raise ConfigError("no fault was asked for: say what to kill or to stop")
    return Schedule(faults=tuple(_take(faults(kinds, every_ms=every_ms, seed=seed), times)), seed=seed)


def faults(kinds: Sequence[FaultKind], *, every_ms: int, seed: int) -> Iterator[Fault]:
    """Yield faults without an end; the first ones are those of `draw` with the same seed."""
    chance = random.Random(seed)
    number = 0
    while True:
        at_ms = int(every_ms * (number + chance.random() / 2))
        kind = _one_of(kinds, chance)
        target = (
            _one_of(kind.targets, chance) if kind.targets else f"node:{int(chance.random() * _NODE_DRAWS)}"
        )
        others = [peer for peer in kind.peers if peer != target] or [None]
        yield Fault(
            at_ms=at_ms,
            action=kind.action,
            target=target,
            for_ms=kind.for_ms,
            peer=_one_of(others, chance),
            one_way=kind.one_way,
            flaps=kind.flaps,
            delay_ms=kind.delay_ms,
        )
        number += 1


def _one_of(choices: Sequence[Any], chance: random.Random) -> Any:
    return choices[int(chance.random() * len(choices))]


def _take(source: Iterable[Fault], times: int) -> Iterator[Fault]:
    for _, fault in zip(range(times), source):
        yield fault


def _fault(number: int, given: Any) -> Fault:
    known = {f.name for f in fields(Fault)}
    if not isinstance(given, dict) or not {"at_ms", "action", "target"} <= given.keys() <= known:
        raise ConfigError(
            f"fault {number} of the schedule needs at_ms, action and target, and may have "
            f"{', '.join(sorted(known - {'at_ms', 'action', 'target'}))}; got {given!r}"
        )
    fault = Fault(**given)
    if fault.action not in get_args(Action):
        raise ConfigError(
            f"fault {number} of the schedule: action is one of {', '.join(get_args(Action))}; "
            f"got {fault.action!r}"
        )
    if not isinstance(fault.target, str) or not _TARGET.fullmatch(fault.target):
        raise ConfigError(
            f"fault {number} of the schedule: target is subtask:OPERATOR[INDEX], jobmanager, all, node:N, "
            f"head or storage; got {fault.target!r}"
        )
    for name in ("at_ms", "for_ms", "flaps", "delay_ms"):
        value = getattr(fault, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigError(f"fault {number} of the schedule: {name} is a whole number; got {value!r}")
    return fault
