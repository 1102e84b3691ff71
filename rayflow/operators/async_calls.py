"""The port through which an operator has coroutines run off the task thread.

An operator never sees an event loop: it starts numbered calls and later finds out which have completed. In
production a thread with an asyncio loop is behind it (`runtime.event_loop`); the simulator and the tests have calls
complete when and in what order they like. Time is the operator's own business: nothing here knows of timeouts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

Coroutine = Callable[[], Awaitable[Any]]
"""Makes what is awaited; called where the call runs, once."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Call number `call` has returned `result`, or raised `error`."""

    call: int
    result: Any
    error: BaseException | None


class AsyncCalls(Protocol):
    """The calls of one operator in one attempt. Task thread only; no method but `close` blocks."""

    def start(self, calls: Sequence[tuple[int, Coroutine]]) -> None:
        """Begin these calls. When some have completed, the task thread is woken."""

    def cancel(self, call: int) -> None:
        """Cancel a call that has not completed; whatever becomes of it is not reported."""

    @property
    def ready(self) -> bool:
        """Whether `completed` would return something."""

    def completed(self) -> list[Completion]:
        """Return what has completed since the last time, in that order."""

    def close(self, last: Coroutine | None) -> BaseException | None:
        """Cancel all calls, then run `last`, and let go of everything. Waits a moment, not for ever, for
        code that ignores its cancellation. Return what `last` raised."""


OpenAsyncCalls = Callable[[], AsyncCalls]
"""Opens the calls of one operator; given to it with its context."""


def no_async_calls() -> AsyncCalls:
    """The `OpenAsyncCalls` of a host without any."""
    raise RuntimeError("this host of operators has no asynchronous calls")
