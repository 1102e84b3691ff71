"""Chaos in one running job, from what a user asks for to the report: what `JobHandle.chaos` and the command do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayflow.client.chaos.asking import Request
from rayflow.client.chaos.effects import RayEffects
from rayflow.client.chaos.injecting import Injector
from rayflow.client.chaos.schedule import Fault, Schedule
from rayflow.model.durations import parse_duration_ms
from rayflow.model.errors import ConfigError

if TYPE_CHECKING:
    from rayflow.client.handle import JobHandle

_PLAN_WAIT_S = 60.0
_ENDED = ("FINISHED", "CANCELLED", "FAILED", "STOPPED")


def request(
    *,
    kill: Any = (),
    stop: Any = None,
    storage_errors: Any = None,
    every: Any = None,
    times: int | None = None,
    seed: int | None = None,
    schedule: Any = None,
    replace_nodes: bool = False,
) -> Request:
    """Return what `JobHandle.chaos` was called with, checked. Raises ConfigError."""
    asked = Request(
        kill=(kill,) if isinstance(kill, str) else tuple(kill),
        stop_ms=_duration(stop, "stop"),
        storage_errors_ms=_duration(storage_errors, "storage_errors"),
        every_ms=_duration(every, "every"),
        times=times,
        seed=seed,
        schedule=_schedule(schedule),
        replace_nodes=replace_nodes,
    )
    asked.check()
    return asked


def run_chaos(
    job: JobHandle,
    asked: Request,
    *,
    on_fault: Callable[[dict[str, Any]], None] = lambda fault: None,
    stop_on_interrupt: bool = False,
) -> tuple[dict[str, Any], Schedule]:
    """Inject what was asked for; return the report, and the faults as a schedule that replays them. Returns when
    the last fault is recovered from, or the job has ended. With `stop_on_interrupt` Ctrl-C ends the chaos only."""
    description = _planned(job)
    faults, seed = asked.faults(description)
    drawn: list[Fault] = []
    injector = Injector(job, RayEffects(), replace_nodes=asked.replace_nodes, on_fault=on_fault)
    try:
        injector.run(_noted(faults, drawn))
    except KeyboardInterrupt:
        if not stop_on_interrupt:
            raise
    finally:
        injector.close()
    return injector.report(seed), Schedule(faults=tuple(drawn), seed=seed)


def _noted(faults: Any, drawn: list[Fault]) -> Iterator[Fault]:
    for fault in faults:
        drawn.append(fault)
        yield fault


def _planned(job: JobHandle) -> dict[str, Any]:
    """Return the job's description once it says which subtasks there are. ConfigError where it has ended."""
    deadline_s = time.monotonic() + _PLAN_WAIT_S
    while True:
        description = job.describe()
        if description["state"] in _ENDED:
            raise ConfigError(f"job {job.id} has ended as {description['state']}: there is nothing to hit")
        if description["subtasks"] or time.monotonic() > deadline_s:
            return description
        time.sleep(0.1)


def _duration(value: Any, name: str) -> int | None:
    if value is None:
        return None
    try:
        return parse_duration_ms(value)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


def _schedule(given: Any) -> Schedule | None:
    if given is None or isinstance(given, Schedule):
        return given
    try:
        return Schedule.from_text(Path(given).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the schedule {given}: {error.strerror or error}") from None
    except ConfigError as error:
        raise ConfigError(f"{given}: {error}") from None
