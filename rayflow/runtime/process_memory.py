"""The memory of this process, and Python's collector of cyclic garbage: measured, and settled.

What counts is what the process has of its own (resident minus shared pages): shared ones are libraries, which all
processes have once, and plasma, which is Ray's.
"""

from __future__ import annotations

import gc
import os
import time
from typing import Any

_STATM = "/proc/self/statm"

# Young objects that make a collection. Rows that pass through a user's function as Python objects are freed by
# counting references; the default of 700 has the collector look at them again and again (tests/benchmarks/README.md).
YOUNG_OBJECTS = 50_000


def own_bytes() -> int | None:
    """Return the bytes of memory that are this process's own; None where the platform does not say."""
    pages = _pages()
    return None if pages is None else (pages[0] - pages[1]) * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int | None:
    """Return the bytes of this process that are in memory, shared ones included; None as above."""
    pages = _pages()
    return None if pages is None else pages[0] * os.sysconf("SC_PAGE_SIZE")


def _pages() -> tuple[int, int] | None:
    try:
        with open(_STATM, encoding="ascii") as f:
            _, resident, shared, *_ = f.read().split()
    except OSError:
        return None
    return int(resident), int(shared)


def settle_garbage() -> None:
    """The process is up: what lives now (modules, compiled kernels, the job's code) will live for good, so the
    collector need not look at it again. Once per process, before it has any state: what is frozen is never collected.

    Nothing is collected first: with 390,000 objects that takes 0.2 s of a processor while somebody waits for this
    process, to free 3 MiB."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    gc.freeze()


class GarbageMeter:
    """Counts the collector's runs and what they take, of the whole process, since it was made."""

    def __init__(self) -> None:
        self.collections = 0
        self.pause_ns = 0
        self.longest_ns = 0
        self._began_ns = 0
        gc.callbacks.append(self._called)

    def close(self) -> None:
        """Count no more."""
        gc.callbacks.remove(self._called)

    def statistics(self) -> dict[str, float]:
        """Return `gc_collections`, `gc_ms` (all pauses together) and `gc_longest_ms`."""
        return {
            "gc_collections": self.collections,
            "gc_ms": round(self.pause_ns / 1e6, 3),
            "gc_longest_ms": round(self.longest_ns / 1e6, 3),
        }

    def _called(self, phase: str, info: dict[str, Any]) -> None:
        # A collection stops every thread, so there is one at a time.
        if phase == "start":
            self._began_ns = time.perf_counter_ns()
            return
        took_ns = time.perf_counter_ns() - self._began_ns
        self.collections += 1
        self.pause_ns += took_ns
        self.longest_ns = max(self.longest_ns, took_ns)
