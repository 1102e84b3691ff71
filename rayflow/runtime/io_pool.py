"""Blocking work on a few threads: storage, split discovery, sink hooks.

Threads start on demand and are daemons: a storage that never answers may hold one up, and must not hold
up the end of the process.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import Any

Work = Callable[[], Any]
Done = Callable[[Any, BaseException | None], None]


class ThreadIoPool:
    """`IoPool` of at most `threads` threads. Work beyond that waits in order of submission."""

    def __init__(self, threads: int = 32, name: str = "rayflow-io") -> None:
        self._limit = threads
        self._name = name
        self._queue: queue.SimpleQueue[tuple[Work, Done] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0
        self._closed = False

    def submit(self, work: Work, done: Done) -> None:
        """Run `work()` on a thread, then `done(result, error)` there. After `close` nothing runs any more."""
        with self._lock:
            if self._closed:
                return
            self._unfinished += 1
            if self._unfinished > len(self._threads) and len(self._threads) < self._limit:
                thread = threading.Thread(
                    target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True
                )
                self._threads.append(thread)
                thread.start()
        self._queue.put((work, done))

    def close(self) -> None:
        """Let the threads end after the work they are at. Does not wait."""
        with self._lock:
            self._closed = True
            threads = len(self._threads)
        for _ in range(threads):
            self._queue.put(None)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            work, done = item
            result, error = None, None
            try:
                result = work()
            except BaseException as raised:
                error = raised
            with self._lock:
                self._unfinished -= 1
            done(result, error)
