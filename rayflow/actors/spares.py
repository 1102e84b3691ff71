"""Warm spares: worker processes that are up, have the job's code loaded, and wait to take a dead one's place.

Theory of operation. A new process takes seconds to start; a spare becomes a subtask with one call. Whether a
spare is itself alive is known only from its answers, and when a worker was lost its node may be dying with
others on it: so from then on only a spare counts that has answered a ping *sent after that loss*. `take` waits
for such an answer for at most `ANSWER_S`. A spare that was used or has died is replaced once the job has been
quiet for `QUIET_S`, so that starting a process does not hold up the recovery that needed one, nor a short job.

Pure but for the `Crew` it is given: times are passed in. On the pool's thread only.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

ANSWER_S = 1.0
QUIET_S = 3.0
PING_S = 1.0
DEAD_S = 30.0
"""A spare that has answered nothing for so long, since it was started or since its last answer, is given up."""


class Crew(Protocol):
    """What spares need done."""

    def launch(self) -> Any:
        """Start a process and have it load the job's code; raises if that is impossible."""

    def ping(self, process: Any) -> Hashable:
        """Send a ping; return what stands for its answer."""

    def answered(self, pings: Sequence[Hashable]) -> dict[Hashable, bool]:
        """Return the pings that came back, and whether with an answer (False: the process is dead)."""

    def discard(self, process: Any, *, dead: bool) -> None:
        """End a process."""


@dataclass(slots=True, eq=False)
class _Spare:
    """`alive_s`: when the newest ping that was answered had been sent; `pings`: those under way, when sent."""

    process: Any
    since_s: float
    alive_s: float | None = None
    pings: dict[Hashable, float] = field(default_factory=dict)


class Spares:
    """Up to `wanted` spares. `tick` often; `busy` whenever a worker is started or becomes ready."""

    def __init__(self, crew: Crew, wanted: int) -> None:
        self._crew = crew
        self._wanted = wanted
        self._spares: list[_Spare] = []
        self._lost_s = float("-inf")
        self._refill_s = float("inf")
        self._next_ping_s = 0.0

    def __len__(self) -> int:
        return len(self._spares)

    def add(self, process: Any, now_s: float) -> None:
        """Another manager left this spare, and it has just answered."""
        self._spares.append(_Spare(process, now_s, alive_s=now_s))

    def busy(self, now_s: float) -> None:
        """Workers are coming up: what is missing is started when that has been over for a while."""
        self._refill_s = now_s + QUIET_S

    def lost(self, now_s: float) -> None:
        """A worker was lost: earlier answers count no more."""
        self._lost_s = now_s
        self._next_ping_s = now_s

    def take(self, now_s: float) -> tuple[Any, bool]:
        """Return a spare that lives, and True; (None, False): ask again soon; (None, True): there is none."""
        self.tick(now_s)
        for spare in self._spares:
            if spare.alive_s is not None and spare.alive_s >= self._lost_s:
                self._spares.remove(spare)
                return spare.process, True
        may_come = any(spare.alive_s is not None for spare in self._spares)
        return None, not may_come or now_s - self._lost_s > ANSWER_S

    def tick(self, now_s: float) -> None:
        """Look at answers, ping if it is time, replace what is missing."""
        self._hear(now_s)
        if now_s >= self._next_ping_s:
            self._next_ping_s = now_s + PING_S
            for spare in self._spares:
                spare.pings[self._crew.ping(spare.process)] = now_s
        if len(self._spares) < self._wanted and now_s >= self._refill_s:
            self._spares.append(_Spare(self._crew.launch(), now_s))

    def stop(self) -> None:
        """End all."""
        self._wanted = 0
        for spare in self._spares:
            self._crew.discard(spare.process, dead=False)
        self._spares.clear()

    def _hear(self, now_s: float) -> None:
        under_way = [ping for spare in self._spares for ping in spare.pings]
        answers = self._crew.answered(under_way) if under_way else {}
        for spare in list(self._spares):
            dead = now_s - max(spare.since_s, spare.alive_s or 0.0) > DEAD_S
            for ping in answers.keys() & spare.pings.keys():
                sent_s = spare.pings.pop(ping)
                dead |= not answers[ping]
                spare.alive_s = max(sent_s, spare.alive_s or sent_s)
            if dead:
                self._spares.remove(spare)
                self._crew.discard(spare.process, dead=True)
                self.busy(now_s)
