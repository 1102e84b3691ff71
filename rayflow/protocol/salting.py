"""Which keys of an operator are salted: a machine of the job master, fed by what senders tell of their keys.

Theory of operation
-------------------
Each sender tells, with every heartbeat, how many rows of the last seconds each of its most frequent keys had, of how
many in all, and which keys it salts at present. The counts of all senders together give each key's share. A key is
*hot* when that share is a noticeable part of what one subtask should get, `1 / consumers` of all rows: what is left
to lie where its hash puts it must be too little to upset the balance. It stays salted until it has been cool, with
less than half of that, for `COOL_MS`: so a key at the edge does not come and go.

A sender whose set is another one is told the right one; so it is at its next heartbeat, whatever was lost, and a
sender that has begun anew gets the set back. A machine that is new itself, as its master was lost, takes over what
its senders say.

Salting never decides what results are, only which way rows take (see `rayflow.skew`): senders may for a while have
different sets.

Invariants
  K1  at most `MOST_KEYS` keys are salted, those of the largest shares.
  K2  a key comes in only when it is hot, and goes out only after it has been cool for `COOL_MS`, or for K1.
  K3  a sender that has the set is told nothing.
  K4  for one consumer no key is salted.
"""

from __future__ import annotations

from dataclasses import dataclass

HOT_PART = 1 / 32
"""A key with this part of a subtask's fair share is hot."""

MOST_KEYS = 64
COOL_MS = 4_000
FRESH_MS = 5_000
"""What a sender has told counts for so long."""

LEAST_ROWS = 1_000
"""Fewer rows say nothing about shares."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HotKeysTold:
    """Of `rows` in the last seconds `counts` had so many, by the key's hash; `salted` are those the sender salts."""

    sender: int
    now_ms: int
    rows: float
    counts: tuple[tuple[int, float], ...]
    salted: frozenset[int]


@dataclass(frozen=True, slots=True)
class SendersBegan:
    """A new attempt: what was told is no more. The set stays."""


@dataclass(frozen=True, slots=True)
class TellSender:
    """Have a sender salt these keys (ascending), and no others."""

    sender: int
    keys: tuple[int, ...]


class SaltedKeys:
    """The set of one operator with `consumers` subtasks."""

    def __init__(self, consumers: int) -> None:
        self._hot_share = HOT_PART / consumers
        self._consumers = consumers
        self._told: dict[int, HotKeysTold] = {}
        self._known: set[int] = set()
        # By salted key: since when it has been cool, None while it is not.
        self._cool_since: dict[int, int | None] = {}

    @property
    def keys(self) -> tuple[int, ...]:
        """The salted keys, ascending."""
        return tuple(sorted(self._cool_since))

    def handle(self, event: HotKeysTold | SendersBegan) -> tuple[TellSender, ...]:
        """Take an event; return what is to be done."""
        if isinstance(event, SendersBegan):
            self._told.clear()
            return ()
        if self._consumers == 1:
            return ()
        if event.sender not in self._known:
            self._known.add(event.sender)
            for key in sorted(event.salted):
                self._cool_since.setdefault(key, None)
        self._told[event.sender] = event
        self._decide(event.now_ms)
        return () if event.salted == self._cool_since.keys() else (TellSender(event.sender, self.keys),)

    def _decide(self, now_ms: int) -> None:
        fresh = [told for told in self._told.values() if now_ms - told.now_ms <= FRESH_MS]
        rows = sum(told.rows for told in fresh)
        if rows < LEAST_ROWS:
            return
        shares: dict[int, float] = {}
        for told in fresh:
            for key, count in told.counts:
                shares[key] = shares.get(key, 0.0) + count / rows
        for key, share in shares.items():
            if share >= self._hot_share:
                self._cool_since[key] = None
        for key, since_ms in list(self._cool_since.items()):
            if shares.get(key, 0.0) >= self._hot_share / 2:
                self._cool_since[key] = None
            elif since_ms is None:
                self._cool_since[key] = now_ms
            elif now_ms - since_ms >= COOL_MS:
                del self._cool_since[key]
        for key in sorted(self._cool_since, key=lambda k: (-shares.get(k, 0.0), k))[MOST_KEYS:]:
            del self._cool_since[key]
