"""From what was seen of a job to how long it took to recover from each fault. Pure.

A fault is *recovered* from when the job runs again in an attempt after the one it had when it was hit. Where the
job's own events tell of the recovery in detail (`recovered`), their time and breakdown count: they are exact, while
what is seen from outside is as fine as the looks are frequent. What lasts a while need not cost an attempt: an
attempt that fails only after the next fault is that one's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from statistics import median
from typing import Any

RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Look:
    """The job at one moment (ms since the epoch)."""

    at_ms: int
    attempt: int
    state: str


def recovered_ms(at_ms: int, attempt: int, looks: Iterable[Look]) -> int | None:
    """Return how long after `at_ms` the job was first seen running in an attempt after `attempt`; None if never."""
    for look in looks:
        if look.at_ms >= at_ms and look.attempt > attempt and look.state in ("RUNNING", "FINISHED"):
            return look.at_ms - at_ms
    return None


def recovery_event(
    at_ms: int, attempt: int, events: Iterable[Mapping[str, Any]]
) -> tuple[int, dict[str, Any]] | None:
    """Return the time and the details of the job's own report of the recovery, None if it made none."""
    for event in events:
        if event["type"] == RECOVERED and event.get("attempt", 0) > attempt:
            event_ms = int(datetime.fromisoformat(event["at"]).timestamp() * 1000)
            if event_ms >= at_ms:
                hidden = ("seq", "at", "type", "message")
                return event_ms - at_ms, {k: v for k, v in event.items() if k not in hidden}
    return None


def own_attempt(
    at_ms: int, attempt: int, next_ms: int | None, events: Iterable[Mapping[str, Any]], looks: Iterable[Look]
) -> bool:
    """Whether the job left the attempt that it had before the next fault was injected."""
    if next_ms is None:
        return True
    for event in events:
        if event["type"] == "attempt_failed" and event.get("attempt", 0) >= attempt:
            failed_ms = int(datetime.fromisoformat(event["at"]).timestamp() * 1000)
            if at_ms <= failed_ms < next_ms:
                return True
    left = (look for look in looks if look.attempt > attempt or look.state != "RUNNING")
    return any(at_ms <= look.at_ms < next_ms for look in left)


def summary(faults: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return, by action and role, how many faults there were, how many were recovered from, and how long that took."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    for fault in faults:
        if fault["outcome"] == "injected":
            role = str(fault["target"]).partition(":")[0]
            grouped.setdefault(f"{fault['action'].replace('_', ' ')} {role}", []).append(fault)
    return {name: _of_group(group) for name, group in grouped.items()}


def _of_group(faults: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    times = sorted(f["recovered_ms"] for f in faults if f["recovered_ms"] is not None)
    return {
        "faults": len(faults),
        "recovered": len(times),
        "median_ms": int(median(times)) if times else None,
        "max_ms": times[-1] if times else None,
    }
