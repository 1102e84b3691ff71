"""Rows that a task has taken in: how many a call of its operators gets, and those that wait for their turn.

A throttled task (a sink with a rate limit) takes large batches in pieces, so that it can keep to its rate. A task that
may have to snapshot out of turn takes so many rows that it is not in one call for long (see `protocol.pace`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import pyarrow as pa

from rayflow.batch.tables import slice_rows
from rayflow.model.ids import ChannelId
from rayflow.protocol.pace import Pace
from rayflow.protocol.rate import RateLimiter
from rayflow.runtime.barriers import Flying

_BUSY_MS = 200


class Intake:
    """Task thread only. `throttle_rows()` counts the rows that `throttle` is about; `piece_rows` bounds a call's rows;
    `paced`: a call should not take long."""

    def __init__(
        self,
        throttle: RateLimiter | None,
        throttle_rows: Callable[[], float],
        piece_rows: int,
        *,
        paced: bool,
    ) -> None:
        self._throttle = throttle
        self._throttle_rows = throttle_rows
        self._throttled_rows = 0.0
        self._piece_rows = piece_rows
        self._pace = Pace(_BUSY_MS if paced else None)
        # Of what channel, None for none.
        self._held: deque[tuple[pa.RecordBatch, int, ChannelId | None]] = deque()
        self._worked_rows = 0
        self._began_ms = 0

    def __bool__(self) -> bool:
        """Whether rows wait."""
        return bool(self._held)

    @property
    def rows(self) -> int:
        """The most rows that a call gets."""
        return min(self._piece_rows, self._pace.rows)

    def begin(self, now_ms: int) -> None:
        """A turn of the task begins: what the one before has processed is done."""
        if self._worked_rows:
            self._pace.worked(self._worked_rows, now_ms - self._began_ms)
            self._worked_rows = 0
        self._began_ms = now_ms

    def add(self, batch: pa.RecordBatch, port: int, channel: ChannelId | None) -> None:
        """Take rows in."""
        rows = self.rows
        pieces = [batch] if batch.num_rows <= rows else slice_rows(batch, max_rows=rows)
        self._held.extend((piece, port, channel) for piece in pieces)

    def next(self) -> tuple[pa.RecordBatch, int]:
        """Return the next rows to process, with the input they are for."""
        batch, port, _ = self._held.popleft()
        self._worked_rows += batch.num_rows
        return batch, port

    def processed(self, now_ms: int) -> None:
        """What `next` gave has gone through the operators."""
        if self._throttle is not None:
            total = self._throttle_rows()
            self._throttle.take(int(total - self._throttled_rows), now_ms)
            self._throttled_rows = total

    def wait_ms(self, now_ms: int) -> int:
        """How long to take nothing, for the sake of the rate."""
        return 0 if self._throttle is None else self._throttle.wait_ms(now_ms)

    def waiting(self) -> dict[ChannelId, Flying]:
        """Return the rows that wait, by channel; there must be none without a channel."""
        found: dict[ChannelId, Flying] = {}
        for batch, _, channel in self._held:
            assert channel is not None, "no barrier comes while rows of a checkpoint are processed"
            found.setdefault(channel, []).append(batch)
        return found
