"""What is known of a process that ended inside a user's function, though nobody could report it as an error.

Ray tells no exit code (only the parent of a process learns it). So what can be known is made to be:

- `os._exit` is replaced: called from within an operator, it first says so to the manager (`tell_exits`);
- a process that takes too much memory ends itself before the system ends it (`memory_watch`);
- a crash in native code leaves Python's stack in the process's stderr, which is a file of Ray's: whoever is on the
  same machine can read it (`crash_report`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from rayflow.runtime.at_work import AtWork, operator_at_work

Tell = Callable[[AtWork, str], None]
"""Reports that the process ends because of an operator, and why; may take a moment."""

_TAIL_BYTES = 16_384
_OWN_CODE = ("/rayflow/", "/site-packages/", "/lib/python", "<frozen")


def tell_exits(tell: Tell) -> Callable[[int], NoReturn]:
    """From now on `tell` of each `os._exit` that is called from within an operator. Return the bare `os._exit`."""
    bare = os._exit

    def exit_and_tell(status: int) -> NoReturn:
        at_work = operator_at_work(sys._getframe())
        if at_work is not None:
            tell(at_work, f"the function ended its process: os._exit({status})")
        bare(status)

    os._exit = exit_and_tell
    return bare


def own_stderr() -> str:
    """Return the file that this process's stderr goes to; empty where it is none."""
    path = os.readlink("/proc/self/fd/2")
    return path if path.startswith("/") and os.path.isfile(path) else ""


def crash_report(stderr: str) -> str | None:
    """Return what a dead process's stderr tells of a crash in native code: which, and the user's line. None where
    it tells nothing, or cannot be read from here."""
    try:
        with open(stderr, "rb") as file:
            file.seek(max(0, os.path.getsize(stderr) - _TAIL_BYTES))
            said = file.read().decode(errors="replace")
    except OSError:
        return None
    _, found, rest = said.rpartition("Fatal Python error: ")
    if not found:
        return None
    what, *lines = rest.splitlines()
    frames = [line.strip() for line in lines if line.startswith("  File ")]
    users = [frame for frame in frames if not any(part in frame for part in _OWN_CODE)]
    return f"{what.strip()}, at {(users or frames or ['an unknown place'])[0]}"
