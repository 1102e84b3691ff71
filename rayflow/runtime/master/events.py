"""The job's event log: what happened, in order, for people and for `rayflow events`.

Bounded: when it is full the oldest *routine* event (a checkpoint's or the like, of which there are many) goes
first, so that restarts and failures of a long job stay visible.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timezone
from typing import Any

MAX_EVENTS = 1_000
_ROUTINE = ("checkpoint_triggered", "checkpoint_completed", "checkpoint_aborted", "splits_discovered")


def iso_utc(ms: int) -> str:
    """Return a time (ms since the epoch) as ISO 8601 text in UTC."""
    return datetime.fromtimestamp(ms / 1000, tz=timezone.utc).isoformat(timespec="milliseconds")


class EventLog:
    """Events as JSON-able dicts with `seq` (from 0), `at`, `type`, `message` and what else they tell."""

    def __init__(self, max_events: int = MAX_EVENTS) -> None:
        self._events: list[dict[str, Any]] = []
        self._max_events = max_events
        self._next_seq = 0

    def restore(self, events: Iterable[dict[str, Any]]) -> None:
        """Put the events of the job's dead master in front."""
        earlier = list(events)
        first = 1 + max((event["seq"] for event in earlier), default=-1)
        later = [{**event, "seq": first + i} for i, event in enumerate(self._events)]
        self._events = [*earlier, *later]
        self._next_seq = first + len(later)
        self._trim()

    def add(self, now_ms: int, type: str, message: str, **fields: Any) -> None:
        """Note an event; `type` is in snake_case and past tense."""
        event = {"seq": self._next_seq, "at": iso_utc(now_ms), "type": type, "message": message, **fields}
        self._next_seq += 1
        self._events.append(event)
        self._trim()

    def since(self, seq: int) -> list[dict[str, Any]]:
        """Return the events numbered `seq` and up, oldest first."""
        return [dict(event) for event in self._events if event["seq"] >= seq]

    @property
    def next_seq(self) -> int:
        """The number the next event will have."""
        return self._next_seq

    def _trim(self) -> None:
        while len(self._events) > self._max_events:
            self._events.pop(self._oldest_routine())

    def _oldest_routine(self) -> int:
        for index, event in enumerate(self._events[:-1]):
            if event["type"] in _ROUTINE:
                return index
        return 0
