"""Calls on a real event loop. What they wait for is an event of the test, never time."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from rayflow.operators.async_calls import Completion
from rayflow.runtime.event_loop import EventLoopCalls

WAIT_S = 10


class Woken:
    """Counts down to the completions that a test waits for."""

    def __init__(self) -> None:
        self._semaphore = threading.Semaphore(0)
        self.calls = EventLoopCalls(self._semaphore.release)
        self.seen: list[Completion] = []

    def take(self, count: int) -> list[Completion]:
        while len(self.seen) < count:
            assert self._semaphore.acquire(timeout=WAIT_S)
            self.seen += self.calls.completed()
        return self.seen


async def answer(value: Any) -> Any:
    await asyncio.sleep(0)
    return value


async def broken() -> None:
    raise SystemExit("even this")


async def for_ever() -> None:
    await asyncio.get_running_loop().create_future()


def test_results_and_errors_come_back_and_wake_the_task() -> None:
    woken = Woken()
    woken.calls.start([(1, lambda: answer("one")), (2, broken)])
    seen = {completion.call: completion for completion in woken.take(2)}
    assert seen[1] == Completion(1, "one", None)
    assert isinstance(seen[2].error, SystemExit)
    assert not woken.calls.ready
    assert woken.calls.close(None) is None


def test_a_cancelled_call_is_not_reported() -> None:
    woken = Woken()
    woken.calls.start([(1, for_ever)])
    woken.calls.cancel(1)
    woken.calls.start([(2, lambda: answer(2))])
    assert [c.call for c in woken.take(1)] == [2]
    assert woken.calls.close(None) is None
    assert not woken.calls.ready


def test_close_cancels_what_runs_then_does_the_last_thing_on_the_same_loop() -> None:
    order: list[str] = []
    loops: list[Any] = []

    async def hanging() -> None:
        loops.append(asyncio.get_running_loop())
        try:
            await for_ever()
        finally:
            order.append("cancelled")

    async def last() -> None:
        order.append("last")
        loops.append(asyncio.get_running_loop())

    woken = Woken()
    woken.calls.start([(1, hanging), (2, lambda: answer(2))])
    woken.take(1)
    assert woken.calls.close(last) is None
    assert order == ["cancelled", "last"]
    assert loops[0] is loops[1]


def test_what_the_last_thing_raises_is_returned_and_close_without_calls_does_nothing() -> None:
    async def last() -> None:
        raise KeyError("x")

    woken = Woken()
    woken.calls.start([(1, lambda: answer(1))])
    assert isinstance(woken.calls.close(last), KeyError)
    assert EventLoopCalls(lambda: None).close(last) is None


def test_code_that_blocks_the_loop_is_left_behind() -> None:
    release = threading.Event()

    async def blocking() -> None:
        release.wait(WAIT_S)

    woken = Woken()
    woken.calls.start([(1, blocking)])
    assert isinstance(woken.calls.close(None), TimeoutError)
    release.set()
