"""Which keys of an operator are salted: a machine of the job master, fed by what senders tell of their keys.

Theory of operation
-------------------
Each sender tells, with every heartbeat, of the rows of the last seconds how many belong to each consumer, how many
each of its most frequent keys had, and which keys it salts at present. All senders' numbers together go through
`keys_to_salt`, which chooses in two steps.

*Hot keys*: a key whose share is a noticeable part of what one consumer should get, `1 / consumers` of all rows, or of
what is left once hotter ones are out, is salted wherever it lies.

*Level.* What is left lies where its hashes put it, and may lie badly: the tenth key beside the twelfth. So, from the
most frequent key down, those of consumers that have noticeably more than the one with the least are salted too,
as long as none falls below that: all come down to the least. Rows of salted keys are dealt out evenly, so what this
leaves uneven is what few keys, or many rare ones, have.

A key stays salted until it has not been chosen for `COOL_MS`, and one that is salted is chosen by half the measure:
so a key at the edge does not come and go.

A sender whose set is another one is told the right one; so it is at its next heartbeat, whatever was lost, and a
sender that has begun anew gets the set back. A sender to which nothing has been told yet chooses by its own first
rows, in the same way. A machine that is new itself, as its master was lost or the job begins, begins with
the set of the checkpoint that is restored, where there is one, and takes over what its senders say.

*Restarts.* The set outlives them, so that they are not followed by a time without one: the machine stays through
attempts, its set is in the manifest of every checkpoint, and goes with each deployment, so senders have it before
their first row. It is that of the moment when the checkpoint is published, the newest there is. Keys are known by
hashes, which do not depend on the parallelism: at another one the same keys are spread over other numbers of
consumers. What has become of the stream since, if much time has passed, shows as it does in a job that runs.

Salting never decides what results are, only which way rows take (see `rayflow.skew`): senders may for a while have
different sets.

Invariants
  K1  at most `MOST_KEYS` keys are salted, those that are wanted and of the largest shares.
  K2  a key comes in only when it is chosen, and goes out only after it has not been for `COOL_MS`, or for K1.
  K3  a sender that has the set is told nothing.
  K4  for one consumer no key is salted.
  K5  levelling takes no consumer below the one that has the least once the hot keys are out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

HOT_PART = 1 / 32
"""A key with this part of a consumer's fair share is hot …"""

LUMP_PART = 1 / 8
"""… or with this part of a fair share of what is left without those that have more rows."""

UNEVEN_PART = 0.05
"""A consumer with so much more than the one with the least is to be levelled."""

LEAST_PART = 1 / 256
"""What levels: keys with at least this part of a consumer's fair share of what is left …"""

LEAST_SHARE = 1 / 8192
"""… and of all rows. Rarer ones are the sample's noise."""

MOST_KEYS = 256
COOL_MS = 4_000
FRESH_MS = 5_000
"""What a sender has told counts for so long."""

LEAST_ROWS = 1_000
"""Fewer rows say nothing about shares."""


@dataclass(frozen=True, slots=True)
class KeyCount:
    """`rows` of one key, known by its hash, which belong to a consumer."""

    key: int
    consumer: int
    rows: float


@dataclass(frozen=True, slots=True)
class SeenKeys:
    """Of some rows: how many belong to each consumer, where no key is salted, and the most frequent keys (none twice).
    Rows of these count among their consumers'."""

    consumers: tuple[float, ...]
    keys: tuple[KeyCount, ...] = ()

    @property
    def rows(self) -> float:
        """All rows."""
        return sum(self.consumers)


@dataclass(frozen=True, slots=True, kw_only=True)
class HotKeysTold:
    """A sender had these rows in the last seconds; `salted` are the keys it salts."""

    sender: int
    now_ms: int
    seen: SeenKeys
    salted: frozenset[int]


@dataclass(frozen=True, slots=True)
class SendersBegan:
    """A new attempt: what was told is no more. The set stays."""


@dataclass(frozen=True, slots=True)
class SetRestored:
    """A machine that is new goes on with this set, of the checkpoint from which its job does."""

    keys: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TellSender:
    """Have a sender salt these keys (ascending), and no others."""

    sender: int
    keys: tuple[int, ...]


class SaltedKeys:
    """The set of one operator with `consumers` subtasks."""

    def __init__(self, consumers: int) -> None:
        self._consumers = consumers
        self._told: dict[int, HotKeysTold] = {}
        self._known: set[int] = set()
        # By salted key: since when it has been cool, None while it is not.
        self._cool_since: dict[int, int | None] = {}

    @property
    def keys(self) -> tuple[int, ...]:
        """The salted keys, ascending."""
        return tuple(sorted(self._cool_since))

    def handle(self, event: HotKeysTold | SendersBegan | SetRestored) -> tuple[TellSender, ...]:
        """Take an event; return what is to be done."""
        if isinstance(event, SendersBegan):
            self._told.clear()
            return ()
        if self._consumers == 1:
            return ()
        if isinstance(event, SetRestored):
            self._cool_since = dict.fromkeys(sorted(event.keys)[:MOST_KEYS])
            return ()
        if event.sender not in self._known:
            self._known.add(event.sender)
            for key in sorted(event.salted):
                self._cool_since.setdefault(key, None)
        self._told[event.sender] = event
        self._decide(event.now_ms)
        return () if event.salted == self._cool_since.keys() else (TellSender(event.sender, self.keys),)

    def _decide(self, now_ms: int) -> None:
        seen = together(told.seen for told in self._told.values() if now_ms - told.now_ms <= FRESH_MS)
        wanted = set(self._cool_since)
        if seen.rows >= LEAST_ROWS:
            wanted = keys_to_salt(seen, self._cool_since)
            self._cool(wanted, now_ms)
        rows = {count.key: count.rows for count in seen.keys}
        for key in sorted(self._cool_since, key=lambda k: (k not in wanted, -rows.get(k, 0.0), k))[
            MOST_KEYS:
        ]:
            del self._cool_since[key]

    def _cool(self, wanted: set[int], now_ms: int) -> None:
        for key, since_ms in list(self._cool_since.items()):
            if since_ms is None:
                self._cool_since[key] = now_ms
            elif now_ms - since_ms >= COOL_MS:
                del self._cool_since[key]
        for key in sorted(wanted):
            self._cool_since[key] = None


def together(parts: Iterable[SeenKeys]) -> SeenKeys:
    """Return what several senders to the same consumers have seen, as one."""
    consumers: tuple[float, ...] = ()
    keys: dict[int, KeyCount] = {}
    for part in parts:
        consumers = tuple(a + b for a, b in zip(consumers, part.consumers)) if consumers else part.consumers
        for count in part.keys:
            before = keys.get(count.key)
            rows = count.rows if before is None else before.rows + count.rows
            keys[count.key] = KeyCount(count.key, count.consumer, rows)
    return SeenKeys(consumers, tuple(keys.values()))


def keys_to_salt(seen: SeenKeys, salted: Collection[int] = ()) -> set[int]:
    """Return which of the keys are to be salted, at most `MOST_KEYS`, so that each consumer gets about as many rows.
    Those that are `salted` already are chosen by half the measure. Nothing of fewer than `LEAST_ROWS` rows."""
    left, rows = list(seen.consumers), seen.rows
    chosen: set[int] = set()
    if len(left) < 2 or rows < LEAST_ROWS:
        return chosen
    by_rows = sorted(seen.keys, key=lambda count: (-count.rows, count.key))

    def choose(count: KeyCount) -> None:
        if len(chosen) < MOST_KEYS:
            chosen.add(count.key)
            left[count.consumer] -= count.rows

    least_rows = LEAST_SHARE * rows
    for count in by_rows:
        lump = max(LUMP_PART * sum(left) / len(left), least_rows)
        if count.rows >= _measure(min(HOT_PART * rows / len(left), lump), count, salted):
            choose(count)
    lowest, fair = min(left), sum(left) / len(left)
    for count in by_rows:
        excess = left[count.consumer] - lowest
        if (
            count.key not in chosen
            and excess > _measure(UNEVEN_PART * fair, count, salted)
            and _measure(max(LEAST_PART * fair, least_rows), count, salted) <= count.rows <= excess
        ):
            choose(count)
    return chosen


def _measure(measure: float, count: KeyCount, salted: Collection[int]) -> float:
    return measure / 2 if count.key in salted else measure
