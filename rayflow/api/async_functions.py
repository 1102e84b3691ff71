"""`map_async`: what a user may ask of asynchronous calls, checked at the user's line."""

from __future__ import annotations

import inspect
from datetime import timedelta
from functools import partial
from typing import Any

from rayflow.api.planning import duration_ns, plan_error
from rayflow.operators.map_async import AsyncOptions

_NANOS_PER_MS = 1_000_000


def check_async(fn: Any) -> None:
    """Raise PlanError unless `fn` is an async function, or a class or object with an async `__call__`."""
    function = fn if inspect.isroutine(fn) or isinstance(fn, partial) else getattr(fn, "__call__", None)  # noqa: B004
    if not callable(function) or not inspect.iscoroutinefunction(inspect.unwrap(function)):
        raise plan_error(
            f"map_async: expected an `async def` function, or a class with an `async def __call__`; got {fn!r}; "
            "use map for a plain function"
        )


def async_options(
    *,
    capacity: int,
    timeout: str | timedelta | None,
    ordered: bool,
    retries: int,
    retry_delay: str | timedelta,
    on_timeout: str,
) -> AsyncOptions:
    """Return the options of `map_async`. Raises PlanError."""
    if on_timeout not in ("fail", "drop"):
        raise plan_error(f"map_async: on_timeout: expected 'fail' or 'drop'; got {on_timeout!r}")
    if on_timeout == "drop" and timeout is None:
        raise plan_error("map_async: on_timeout='drop' needs a timeout=")
    limit_ns = None if timeout is None else duration_ns("map_async: timeout", timeout, positive=True)
    return AsyncOptions(
        capacity=_at_least(1, "capacity", capacity),
        timeout_ms=None if limit_ns is None else max(1, limit_ns // _NANOS_PER_MS),
        ordered=bool(ordered),
        retries=_at_least(0, "retries", retries),
        retry_delay_ms=max(1, duration_ns("map_async: retry_delay", retry_delay) // _NANOS_PER_MS),
        drop_late=on_timeout == "drop",
    )


def _at_least(least: int, what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise plan_error(f"map_async: {what}: expected a number from {least}; got {value!r}")
    return value
