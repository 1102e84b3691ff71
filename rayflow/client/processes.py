"""Processes by pid and start time, so that a pid that the system gave to another process is never mistaken."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_POLL_S = 0.05
_KILL_S = 5.0
"""The kernel ends a killed process when it gets to it: bounds the wait for that."""


def started_at(pid: int) -> int | None:
    """Return when the process started (clock ticks since boot); None if there is none, or only a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    # The command name, in parentheses, may hold anything.
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def is_alive(pid: int, start: int) -> bool:
    """Return whether that very process still runs."""
    return started_at(pid) == start


def session_members(session: int) -> list[tuple[int, int]]:
    """Return (pid, start time) of every process of a Unix session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                start = started_at(int(entry.name))
                if start is not None and os.getsid(int(entry.name)) == session:
                    found.append((int(entry.name), start))
    return found


def end(processes: Sequence[tuple[int, int]], grace_s: float | None) -> None:
    """Ask these processes to end, wait `grace_s` for it, kill those that have not, and see them gone. With a grace of
    None they are not asked."""
    asked = () if grace_s is None else ((signal.SIGTERM, grace_s),)
    for number, wait_s in (*asked, (signal.SIGKILL, _KILL_S)):
        _signal(processes, number)
        deadline_s = time.monotonic() + wait_s
        while any(is_alive(*p) for p in processes) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)


def _signal(processes: Sequence[tuple[int, int]], number: signal.Signals) -> None:
    for pid, start in processes:
        if is_alive(pid, start):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
