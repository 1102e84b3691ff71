"""What is known of a process that ended inside a user's function, though nobody could report it as an error.

Ray tells no exit code (only the parent of a process learns it). So what can be known is made to be:

- `os._exit` is replaced: called from within an operator, it first says so to the manager (`tell_exits`);
- a process that takes the node's last memory, and more than its share, ends itself before the system ends it or
  somebody else (`watch_memory`);
- a crash in native code leaves Python's stack in the process's stderr, which is a file of Ray's: whoever is on the
  same machine can read it (`crash_report`).
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from rayflow.runtime.at_work import AtWork, operator_at_work

Tell = Callable[[AtWork, str], None]
"""Reports that the process ends because of an operator, and why; may take a moment."""

LAST_MEMORY = 0.06
"""Share of the node's memory below which a process that uses more than its own ends itself. Ray's monitor, which
does not know whose fault it is, acts at 0.05."""

_INTERVAL_S = 0.25
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


def watch_memory(
    own_bytes: Callable[[], int], allowed_bytes: int, thread_id: Callable[[], int | None], end: Tell
) -> None:
    """On a thread of its own, call `end` once when the node's memory is about to run out and this process, whose task
    thread is `thread_id()`, uses more than `allowed_bytes`."""

    def run() -> None:
        while not is_to_blame(own_bytes(), allowed_bytes, *node_memory()):
            time.sleep(_INTERVAL_S)
        used = own_bytes()
        frame = sys._current_frames().get(thread_id() or 0)
        end(
            operator_at_work(frame) or AtWork("unknown", None),
            f"the process uses {used >> 20} MiB, more than its share (memory.process is {allowed_bytes >> 20} "
            "MiB), and the node's memory is running out",
        )

    threading.Thread(target=run, name="memory watch", daemon=True).start()


def is_to_blame(own_bytes: int, allowed_bytes: int, available_bytes: int, total_bytes: int) -> bool:
    """Whether memory runs out and this process uses more than its share of it."""
    return own_bytes > allowed_bytes and available_bytes < LAST_MEMORY * total_bytes


def node_memory() -> tuple[int, int]:
    """Return what is available and the total, in bytes: of the container where that is limited, else the machine."""
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available, total = (int(fields[name].split()[0]) << 10 for name in ("MemAvailable", "MemTotal"))
    # Where nothing can be read there is no limit.
    with suppress(OSError):
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit() and int(limit) < total:
            total = int(limit)
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            statistics = dict(
                line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines()
            )
            available = min(available, total - used + int(statistics.get("inactive_file", 0)))
    return available, total


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
