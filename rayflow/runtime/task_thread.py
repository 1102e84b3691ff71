"""The thread that drives an engine: step while there is something to do, else sleep until woken.

A subtask's engine and the job master's are driven alike. The engine never sees this thread: it is told the
time and says how long it can wait.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from rayflow.runtime.accounting import Activity, TimeAccount
from rayflow.runtime.ports import Clock
from rayflow.runtime.stepping import StepResult

_log = logging.getLogger(__name__)


class Engine(Protocol):
    """What can be driven."""

    def step(self, now_ms: int) -> StepResult:
        """Do what can be done now; never blocks."""


class TaskThread:
    """One daemon thread for one engine.

    `waiting_for` says, after a step without progress, why there was none. If `step` raises, which an engine
    should never let happen, `on_crash` is called with the error and the thread ends.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        on_crash: Callable[[BaseException], None],
        waiting_for: Callable[[], Activity] = lambda: "idle",
    ) -> None:
        self.account = TimeAccount(time.monotonic())
        self._clock = clock
        self._on_crash = on_crash
        self._waiting_for = waiting_for
        self._woken = threading.Event()
        self._stopping = False
        self._engine: Engine | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def ident(self) -> int | None:
        """The thread's, None before `start`."""
        return self._thread.ident

    def wake(self) -> None:
        """Have the engine stepped soon. Any thread."""
        if not self._woken.is_set():
            self._woken.set()

    def start(self, engine: Engine) -> None:
        """Begin to drive `engine`."""
        self._engine = engine
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """End the thread after the running step; return whether it ended in time."""
        self._stopping = True
        self._woken.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._turn()
        except BaseException as error:
            _log.exception("%s crashed", self._thread.name)
            self._on_crash(error)

    def _turn(self) -> None:
        assert self._engine is not None
        # Cleared before the step: what is posted during it wakes the wait below at once.
        self._woken.clear()
        self.account.switch("busy", time.monotonic())
        result = self._engine.step(self._clock.now_ms())
        if result.progressed or self._stopping:
            return
        self.account.switch(self._waiting_for(), time.monotonic())
        if result.wake_at_ms is None:
            self._woken.wait()
        else:
            delay_ms = result.wake_at_ms - self._clock.now_ms()
            if delay_ms > 0:
                self._woken.wait(delay_ms / 1000)
