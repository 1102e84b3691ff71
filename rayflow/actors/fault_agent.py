"""An actor that injects faults into processes of its own node. Whoever injects places one on each node concerned.

It signals a process only if that has the title that Ray gives to a rayflow actor of the expected kind, so a pid that
was given to another process meanwhile is left alone. What it begins it also ends, should its own process or the
one that injects be gone by then: a child that belongs to nobody sees to it.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

_TITLES = {"subtask": "ray::SubtaskActor", "jobmanager": "ray::JobManagerActor"}
_RESTORE = "import resource as r, sys; p, *l = map(int, sys.argv[1:]); r.prlimit(p, r.RLIMIT_FSIZE, l)"
_LATER = 'sleep "$0"; exec "$@"'


class FaultAgent:
    """The faults of one node. Each call returns whether the process was there."""

    def session(self) -> int:
        """Return the Unix session of this node's processes."""
        return os.getsid(0)

    def kill(self, role: str, pid: int) -> bool:
        """Kill the process with SIGKILL."""
        return _is_ours(role, pid) and _signal(pid, signal.SIGKILL)

    def stop(self, role: str, pid: int, for_ms: int) -> bool:
        """Stop the process with SIGSTOP, and have it go on after `for_ms`."""
        if not _is_ours(role, pid):
            return False
        _later(for_ms, "kill", "-CONT", str(pid))
        return _signal(pid, signal.SIGSTOP)

    def resume(self, pid: int) -> None:
        """Have a stopped process go on at once."""
        _signal(pid, signal.SIGCONT)

    def fail_writes(self, role: str, pid: int, for_ms: int) -> bool:
        """Have every write of the process to a file fail (EFBIG) for `for_ms`. Sockets go on working."""
        if not _is_ours(role, pid):
            return False
        try:
            soft, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            _later(for_ms, sys.executable, "-c", _RESTORE, str(pid), str(soft), str(hard))
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
        except ProcessLookupError:
            return False
        return True


def _is_ours(role: str, pid: int) -> bool:
    try:
        title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return False
    return title.startswith(_TITLES[role])


def _signal(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _later(for_ms: int, *command: str) -> None:
    """Run a command after `for_ms`, in a process that outlives this one."""
    script = ["sh", "-c", _LATER, str(for_ms / 1000), *command]
    # The shell in between ends at once, so that nobody who ends this process's children finds the other one.
    subprocess.run(
        ["sh", "-c", '"$@" >/dev/null 2>&1 &', "sh", *script], start_new_session=True, check=True, timeout=10
    )
