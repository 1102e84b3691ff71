"""The simulated I/O pool of a process: blocking work happens at some later turn, and is answered at yet another.

Where the seed asks for it, work is cut at each of its storage requests, so that others go on in between (two masters
that race for an attempt, a crash between two files): it then runs as a `Fiber`, a thread that only ever runs while
the simulation waits for it.

Work of a process that has died goes no further than the request that was under way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from rayflow.testing.faults import Injector
from rayflow.testing.world import Process, World

Done = Callable[[Any, BaseException | None], None]


class SimulatedCrash(BaseException):
    """Unwinds the work of a process that has died."""


class Fiber:
    """Runs `work` on a thread of its own, from `resume` to the next `pause` or the end."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.finished = False
        self.result: Any = None
        self.error: BaseException | None = None
        self._work = work
        # Bare locks, taken by one side and let go by the other: each is handed over thousands of times a second.
        self._go, self._back = threading.Lock(), threading.Lock()
        self._go.acquire()
        self._back.acquire()
        self._thread: threading.Thread | None = None
        self._abandoned = False

    def resume(self) -> bool:
        """Run on; return whether the work has ended."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="simulated io", daemon=True)
            self._thread.start()
        self._go.release()
        self._back.acquire()
        return self.finished

    def pause(self) -> None:
        """Let the simulation go on. Called by the work."""
        self._back.release()
        self._go.acquire()
        if self._abandoned:
            raise SimulatedCrash

    def abandon(self) -> None:
        """End the work where it is."""
        if self._thread is not None and not self.finished:
            self._abandoned = True
            self.resume()
            self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        try:
            self.result = self._work()
        except BaseException as error:
            self.error = error
        self.finished = True
        self._back.release()


class IoRuns:
    """All I/O work of a run. `pause` is called by each storage request."""

    def __init__(self, world: World, injector: Injector) -> None:
        self.world = world
        self.injector = injector
        self._serial = 0
        self._fiber: Fiber | None = None
        self.process: Process | None = None
        """Whose work is done just now."""
        self._requests = 0
        self._open: dict[int, Fiber] = {}

    def pool(self, process: Process) -> SimIo:
        """Return the pool of one process."""
        return SimIo(self, process)

    def pause(self) -> None:
        """A request of the current work begins."""
        self._requests += 1
        if self.process is not None and not self.process.alive and self._requests > 1:
            raise SimulatedCrash
        if self._fiber is not None and self._requests > 1:
            self._fiber.pause()

    def close(self) -> None:
        """Abandon what is not finished."""
        for fiber in list(self._open.values()):
            fiber.abandon()
        self._open.clear()

    def submit(self, process: Process, work: Callable[[], Any], done: Done) -> None:
        """Have `work` done for `process`."""
        self._serial += 1
        serial = self._serial
        slow = self.injector.chance(self.injector.faults.storage_slow) or self._slow_behind_a_cut(process)
        self.injector.met["storage: slow"] += slow
        label = f"io {serial} of {process.name}{' (slow)' if slow else ''}"
        fiber = Fiber(work) if self.injector.faults.interleaved_io else None

        def run() -> None:
            # What a process that died had under way may still happen.
            if not process.alive and not self.world.happens(0.5):
                return
            self._run(serial, process, work if fiber is None else fiber, done, label)

        self.world.post(
            ("io", serial),
            label,
            run,
            self.injector.duration_ms() if slow else 0,
            source=process,
            target=process,
        )

    def _held_up_ms(self, process: Process) -> int:
        """How long the next request of a piece of work waits: who is cut off, and who takes its place, take their steps
        in any order."""
        rate = self.injector.faults.storage_slow_if_cut
        if not self.world.cuts or not rate:
            return 0
        likely = rate if self.world.is_cut(process.machine) else rate / 4
        return self.injector.duration_ms() if self.injector.chance(likely) else 0

    def _slow_behind_a_cut(self, process: Process) -> bool:
        cut = self.world.is_cut(process.machine)
        return cut and self.injector.chance(self.injector.faults.storage_slow_if_cut)

    def _run(
        self, serial: int, process: Process, work: Callable[[], Any] | Fiber, done: Done, label: str
    ) -> None:
        self.process, self._requests = process, 0
        result: Any = None
        error: BaseException | None = None
        if isinstance(work, Fiber):
            self._fiber, self._open[serial] = work, work
            self._requests = 1 if work._thread is not None else 0
            finished = work.resume()
            self._fiber = self.process = None
            if not finished:
                again = lambda: self._run(serial, process, work, done, label)  # noqa: E731
                delay_ms = self._held_up_ms(process)
                self.world.post(
                    ("io", serial), f"{label} goes on", again, delay_ms, source=process, target=process
                )
                return
            del self._open[serial]
            result, error = work.result, work.error
        else:
            try:
                result = work()
            except BaseException as raised:
                error = raised
            self.process = None
        if isinstance(error, SimulatedCrash):
            return
        if error is not None and not isinstance(error, Exception):
            raise error
        self._answer(serial, process, done, result, error, label)

    def _answer(
        self,
        serial: int,
        process: Process,
        done: Done,
        result: Any,
        error: BaseException | None,
        label: str,
    ) -> None:
        def answer() -> None:
            if process.alive:
                done(result, error)

        self.world.post(("io", serial), f"{label} ended", answer, source=process, target=process)


class SimIo:
    """`IoPool` of one process."""

    def __init__(self, runs: IoRuns, process: Process) -> None:
        self._runs = runs
        self._process = process

    def submit(self, work: Callable[[], Any], done: Done) -> None:
        """See `IoPool`."""
        self._runs.submit(self._process, work, done)
