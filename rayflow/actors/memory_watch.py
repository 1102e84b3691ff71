"""Watches the memory of a subtask's process, and of its node, on a thread of its own.

Against the process's own limit it does what `protocol.memory_pressure` says: frees what allocators keep, has the engine
shed, and ends the process, with the attempt, saying why. Whatever the task thread is at, a user's function that fills
memory included, this thread gets its turn.

Besides, when the node's memory is about to run out, a process that takes more than its share ends itself before the
system ends it or somebody else, who may not be to blame: at once, since then nobody has time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from rayflow.protocol.memory_pressure import EndForMemory, MemoryPressure, MemorySampled, PressureCommand
from rayflow.runtime.process_memory import own_bytes
from rayflow.state.disk.scratch import LocalDisk

LAST_MEMORY = 0.06
"""Share of the node's memory below which a process that uses more than its own ends itself. Ray's monitor, which
does not know whose fault it is, acts at 0.05."""

_INTERVAL_S = 0.25
_PRESSED_INTERVAL_S = 0.05


class MemoryWatch:
    """`limit()` is what the process may take, and whether that is firm; `is_running()`, whether that counts now:
    restoring state takes room for a while that running does not. `press` has the engine shed or relax;
    `end(used, limit, node)` ends the process, where `node` says that it is the node's memory that runs out."""

    def __init__(
        self,
        limit: Callable[[], tuple[int, bool]],
        is_running: Callable[[], bool],
        press: Callable[[PressureCommand], None],
        end: Callable[[int, int, bool], None],
        used_bytes: Callable[[], int | None] = own_bytes,
    ) -> None:
        self._limit = limit
        self._is_running = is_running
        self._press = press
        self._end = end
        self._used_bytes = used_bytes
        self._pressure: MemoryPressure | None = None
        self._since_s = time.monotonic()

    def start(self) -> bool:
        """Begin to watch; False where the platform does not say what a process takes."""
        if self._used_bytes() is None:
            return False
        threading.Thread(target=self._run, name="memory watch", daemon=True).start()
        return True

    def _run(self) -> None:
        while self.look():
            pressed = self._pressure is not None and self._pressure.pressed
            time.sleep(_PRESSED_INTERVAL_S if pressed else _INTERVAL_S)

    def look(self) -> bool:
        """Take a sample and do what follows from it; return whether to go on."""
        used, (limit, firm) = self._used_bytes(), self._limit()
        if used is None:
            return False
        if self._is_running() and self._judge(used, limit, firm):
            return False
        if is_to_blame(used, limit, *node_memory()):
            self._end(used, limit, True)
            return False
        return True

    def _judge(self, used: int, limit: int, firm: bool) -> bool:
        """Do what the machine says; return whether that was the end."""
        if self._pressure is None or (self._pressure.limit_bytes, self._pressure.firm) != (limit, firm):
            self._pressure = MemoryPressure(limit, firm=firm)
        now_ms = round(1000 * (time.monotonic() - self._since_s))
        for command in self._pressure.handle(MemorySampled(used, now_ms)):
            if isinstance(command, EndForMemory):
                self._end(used, limit, False)
                return True
            LocalDisk().give_back()
            self._press(command)
        return False


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
