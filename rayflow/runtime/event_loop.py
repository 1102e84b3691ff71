"""Asynchronous calls in production: an asyncio loop on a thread of its own, per operator and attempt.

The thread starts with the first call and ends with `close`. It is a daemon: code that blocks the loop, or ignores
its cancellation, is left behind with it after `_CLOSE_S`, and holds up neither a cancel nor the next attempt, which
has a loop of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rayflow.operators.async_calls import Completion, Coroutine

_CANCEL_S = 0.5
_CLOSE_S = 2.0


class EventLoopCalls:
    """`AsyncCalls` on an event loop; `wake` is called whenever a call has completed."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._completed: deque[Completion] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        # Of the loop's thread only. `_alive` holds the cancelled ones too: a loop alone does not keep tasks.
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._alive: set[asyncio.Task[None]] = set()

    def start(self, calls: Sequence[tuple[int, Coroutine]]) -> None:
        """See `AsyncCalls`."""
        self._running_loop().call_soon_threadsafe(self._start, calls)

    def cancel(self, call: int) -> None:
        """See `AsyncCalls`."""
        self._running_loop().call_soon_threadsafe(self._cancel, call)

    @property
    def ready(self) -> bool:
        """See `AsyncCalls`."""
        return bool(self._completed)

    def completed(self) -> list[Completion]:
        """See `AsyncCalls`."""
        return [self._completed.popleft() for _ in range(len(self._completed))]

    def close(self, last: Coroutine | None) -> BaseException | None:
        """See `AsyncCalls`."""
        loop, self._loop = self._loop, None
        if loop is None:
            return None
        closing = asyncio.run_coroutine_threadsafe(self._close(last), loop)
        try:
            closing.result(_CLOSE_S)
        except Exception as error:
            if not closing.done():
                return TimeoutError(
                    f"asynchronous calls did not end within {_CLOSE_S:.0f} s of their cancellation"
                )
            return error
        finally:
            loop.call_soon_threadsafe(loop.stop)
        return None

    # ------------------------------------------------------------------------ on the loop's thread

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=_run, args=(self._loop,), name="async-calls", daemon=True).start()
        return self._loop

    def _start(self, calls: Sequence[tuple[int, Coroutine]]) -> None:
        for call, make in calls:
            task = self._tasks[call] = asyncio.get_running_loop().create_task(self._call(call, make))
            self._alive.add(task)
            task.add_done_callback(self._alive.discard)

    def _cancel(self, call: int) -> None:
        task = self._tasks.pop(call, None)
        if task is not None:
            task.cancel()

    async def _call(self, call: int, make: Coroutine) -> None:
        result, error = None, None
        try:
            result = await make()
        except BaseException as raised:
            error = raised
        # Not there any more: it was cancelled, and nobody wants to know.
        if self._tasks.pop(call, None) is not None:
            self._completed.append(Completion(call, result, error))
            self._wake()

    async def _close(self, last: Coroutine | None) -> None:
        self._tasks.clear()
        await _cancelled(self._alive)
        if last is not None:
            await last()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        # What the user's code started in the background.
        loop.run_until_complete(_cancelled(asyncio.all_tasks(loop)))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()


async def _cancelled(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and give them a moment to take it in."""
    for task in list(tasks):
        task.cancel()
    if tasks:
        await asyncio.wait(list(tasks), timeout=_CANCEL_S)
