"""Bounds of the runtime that jobs of a hundred rows never come to, made as small as these jobs are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from rayflow.model.config import JobConfig
from rayflow.operators import keyed_parts
from rayflow.operators.joins import interval, sides
from rayflow.runtime import intake
from rayflow.state import timers

_ALWAYS = (
    (interval, "_MIN_ROWS_TO_FORGET", 8),
    (sides, "_MIN_UNUSED_KEYS", 2),
    (timers, "_MIN_LEFTOVERS", 4),
    (keyed_parts, "_RESTORED_ROWS", 16),
)


@contextmanager
def small(network_bytes: int, busy_ms: int) -> Iterator[None]:
    """Have subtasks exchange rows within `network_bytes`, far below what a configuration may ask for, so that credit
    runs out; and, where barriers may overtake, take rows in pieces that take about `busy_ms`, so that some wait."""
    with ExitStack() as stack:
        stack.enter_context(patch.object(JobConfig, "network_bytes", property(lambda self: network_bytes)))
        stack.enter_context(patch.object(intake, "_BUSY_MS", busy_ms))
        for module, name, value in _ALWAYS:
            stack.enter_context(patch.object(module, name, value))
        yield
