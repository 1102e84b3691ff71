"""Work on the I/O pool whose answers come back to the master's own thread.

`run(work, then)` hands `work` to the pool; when it has ended, a `WorkEnded` goes into the master's mailbox,
and the master's step calls `then(result, error)`. So only `work` runs elsewhere, and it must not touch the
master's state.

*Critical* work may change which checkpoints exist. A new attempt chooses its checkpoint only when none is
under way (`critical == 0`), so that what it sees on storage stays true.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rayflow.runtime.ports import IoPool

Then = Callable[[Any, BaseException | None], None]


@dataclass(frozen=True, slots=True)
class WorkEnded:
    """A mailbox entry: call `settle` on the master's thread."""

    then: Then
    result: Any
    error: BaseException | None
    critical: bool


class Background:
    """The master's way to the I/O pool. Used on the master's thread only."""

    def __init__(self, io: IoPool, post: Callable[[WorkEnded], None]) -> None:
        self._io = io
        self._post = post
        self.critical = 0

    def run(self, work: Callable[[], Any], then: Then, *, critical: bool = False) -> None:
        """Run `work()` elsewhere, then `then(result, error)` on the master's thread."""
        self.critical += critical
        post = self._post
        self._io.submit(work, lambda result, error: post(WorkEnded(then, result, error, critical)))

    def settle(self, ended: WorkEnded) -> None:
        """Take a `WorkEnded` out of the mailbox."""
        self.critical -= ended.critical
        ended.then(ended.result, ended.error)


class InTurn:
    """Critical work that is done one piece after the other, in the order in which it was asked for."""

    def __init__(self, background: Background) -> None:
        self._background = background
        self._waiting: deque[tuple[Callable[[], Any], Then]] = deque()
        self._busy = False

    def run(self, work: Callable[[], Any], then: Then) -> None:
        """See `Background.run`. What waits is critical too."""
        self._background.critical += 1
        self._waiting.append((work, then))
        self._next()

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        work, then = self._waiting.popleft()
        self._busy = True

        def ended(result: Any, error: BaseException | None) -> None:
            self._busy = False
            self._background.critical -= 1
            then(result, error)
            self._next()

        self._background.run(work, ended)


class LatestWrite:
    """Writes one document again and again, one write at a time; of several waiting only the newest."""

    def __init__(self, background: Background, write: Callable[[Any], None], failed: Callable[[str], None]):
        self._background = background
        self._write = write
        self._failed = failed
        self._waiting: list[Any] = []
        self._busy = False

    @property
    def idle(self) -> bool:
        """Whether everything put has been written, or has failed."""
        return not self._busy and not self._waiting

    def put(self, document: Any) -> None:
        """Write `document` as soon as the write before it has ended."""
        self._waiting = [document]
        self._next()

    def _next(self) -> None:
        if self._busy or not self._waiting:
            return
        document = self._waiting.pop()
        self._busy = True
        self._background.run(lambda: self._write(document), self._written)

    def _written(self, _result: Any, error: BaseException | None) -> None:
        self._busy = False
        if error is not None:
            self._failed(str(error))
        self._next()
