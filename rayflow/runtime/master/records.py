"""Keeps the job's metadata on storage up to date: job.json on every change, events.jsonl once a second.

For people, and for a master that recovers the job; nothing that must be exact is decided by them. A write
that fails is noted, and made good by the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayflow.runtime.master.background import LatestWrite
from rayflow.runtime.master.context import Context

_EVENTS_EVERY_MS = 1_000


class Records:
    """The metadata of a running job. `document` returns what job.json shall hold now."""

    def __init__(self, ctx: Context, document: Callable[[], dict[str, Any]]) -> None:
        self._ctx = ctx
        self._document = document
        self._job = LatestWrite(ctx.background, ctx.storage.save_job, self._failed)
        self._events = LatestWrite(ctx.background, ctx.storage.save_events, self._failed)
        self._stored_seq = ctx.log.next_seq
        self._next_events_ms = ctx.now_ms
        self._told_failure = False

    @property
    def idle(self) -> bool:
        """Whether no write is under way."""
        return self._job.idle and self._events.idle

    def save_job(self) -> None:
        """The job has changed."""
        self._job.put(self._document())

    def tick(self) -> None:
        """Store new events, if it is time."""
        if self._ctx.now_ms >= self._next_events_ms and self._ctx.log.next_seq != self._stored_seq:
            self._next_events_ms = self._ctx.now_ms + _EVENTS_EVERY_MS
            self._stored_seq = self._ctx.log.next_seq
            self._events.put(self._ctx.log.since(0))

    @property
    def next_deadline_ms(self) -> int | None:
        """When `tick` has something to do."""
        return None if self._ctx.log.next_seq == self._stored_seq else self._next_events_ms

    def _failed(self, problem: str) -> None:
        # Told once: a storage that is away would otherwise fill the log with the news that it is.
        if not self._told_failure:
            self._told_failure = True
            self._ctx.note("metadata_failed", f"the job's metadata could not be stored: {problem}")
