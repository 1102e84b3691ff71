"""Rows whose asynchronous calls are under way, in order, with the watermarks between them.

The queue is cut into *segments*, each closed by a watermark but for the last. Ordered, a result may leave when all
before it have; unordered, when all segments before its own have. A watermark leaves when its segment is empty.

Invariants
  Q1  no result leaves before a watermark that came before its row, nor after one that came after it.
  Q2  every call that was added leaves exactly once, after it was finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(slots=True, eq=False)
class Call:
    """Row number `row` of `batch` under way. `number` is that of the running try, None while there is none;
    `tries` counts those begun. `dropped`: it makes no result; `poison` is why, where the row is a poison row."""

    batch: pa.RecordBatch
    row: int
    number: int | None = None
    tries: int = 0
    done: bool = False
    dropped: bool = False
    poison: Exception | None = None
    result: Any = None

    @property
    def rows(self) -> pa.RecordBatch:
        """The row as a batch."""
        return self.batch.slice(self.row, 1)


@dataclass(slots=True)
class _Segment:
    """Calls in order of their rows (unordered: those that are not done), those `done` in order of their results,
    and what closes it."""

    calls: dict[int, Call] = field(default_factory=dict)
    done: list[Call] = field(default_factory=list)
    watermark: int | None = None


class CallQueue:
    """The calls of one operator."""

    def __init__(self, ordered: bool) -> None:
        self._ordered = ordered
        self._segments: deque[_Segment] = deque([_Segment()])
        self._segment_of: dict[int, _Segment] = {}

    def __len__(self) -> int:
        """Return how many calls have been added and not taken."""
        return len(self._segment_of)

    def calls(self) -> Iterator[Call]:
        """Yield the calls that have not been taken, finished or not: within a segment in order of their rows, those
        that an unordered queue holds back first."""
        for segment in self._segments:
            yield from segment.done
            yield from segment.calls.values()

    def add(self, call: Call) -> None:
        """Append a call."""
        segment = self._segments[-1]
        segment.calls[id(call)] = call
        self._segment_of[id(call)] = segment

    def add_watermark(self, watermark: int) -> None:
        """Append a watermark; it takes the place of one that it directly follows."""
        last = self._segments[-1]
        if not last.calls and not last.done and len(self._segments) > 1:
            self._segments[-2].watermark = watermark
        else:
            last.watermark = watermark
            self._segments.append(_Segment())

    def finish(self, call: Call) -> None:
        """The call has its result, or is dropped."""
        call.done = True
        if not self._ordered:
            segment = self._segment_of[id(call)]
            segment.done.append(segment.calls.pop(id(call)))

    def take(self) -> tuple[list[Call], int | None]:
        """Return finished calls whose turn it is, and the watermark that comes right behind them, if one does. To
        be called until it returns neither."""
        head = self._segments[0]
        taken = self._heads(head) if self._ordered else head.done
        head.done = []
        for call in taken:
            del self._segment_of[id(call)]
        if head.calls or head.watermark is None:
            return taken, None
        self._segments.popleft()
        return taken, head.watermark

    @staticmethod
    def _heads(segment: _Segment) -> list[Call]:
        taken = []
        for key, call in list(segment.calls.items()):
            if not call.done:
                break
            taken.append(segment.calls.pop(key))
        return taken
