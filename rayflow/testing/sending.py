"""What is checked of what running tasks have to send, in any simulated job, by number.

I7   a task whose outputs are full takes no rows (T2): what queues there is bounded.
I8   whoever gathers rows, or holds back a watermark, has asked to be stepped within its linger; and what a source's
     clock has come to is on its way on every channel. (A job gets by without either: the next rows, or the end, bring
     along what was left behind.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rayflow.model.ids import Attempt
from rayflow.runtime.messages import WatermarkFrame
from rayflow.runtime.outputs import OutputChannel, OutputEdge
from rayflow.runtime.task import Task
from rayflow.testing.network import SimNetwork

if TYPE_CHECKING:
    from rayflow.testing.simulation import Simulation
    from rayflow.testing.world import Process


@dataclass(frozen=True, slots=True)
class _Full:
    """A task that was full, and what it had sent and taken in by then."""

    task: Task
    sent: int
    taken: float


class SendingWatch:
    """Looks between turns. Draws nothing."""

    def __init__(self) -> None:
        self._full: Mapping[str, _Full] = {}

    def check(self, sim: Simulation) -> None:
        """See the module."""
        full: dict[str, _Full] = {}
        for worker in sim.workers.values():
            task = worker.engine._task
            if task is None or not task._running or not worker.process.alive:
                continue
            for edge in task._parts.edges:
                _check_asked(edge, worker.process, sim.world.now)
                if any(channel.queued_bytes >= edge._limit_bytes for channel in edge.channels):
                    full[worker.name] = _Full(task, _sent(task), task._rows_in.value)
            _check_told(task, worker.name, worker.engine._fence.attempt, sim.network)
        for name, now in full.items():
            before = self._full.get(name)
            # Only what is sent makes room: it has been full all the time.
            if before is not None and before.task is now.task and before.sent == now.sent:
                assert now.taken == before.taken, (
                    f"I7: {name} took {now.taken - before.taken} rows while its outputs were full (T2)"
                )
        self._full = full


def _sent(task: Task) -> int:
    return sum(channel.bytes_sent for edge in task._parts.edges for channel in edge.channels)


def _check_asked(edge: OutputEdge, process: Process, now_ms: int) -> None:
    if (edge._gathered or edge._watermark is not None) and not process.woken:
        due = process.wake_at_ms
        latest = now_ms + edge._linger_ms
        assert (latest + 1 if due is None else due) <= latest, (
            f"I8: {process.name} holds back what it gathered for edge {edge.channels[0].id.edge} for more than "
            f"{edge._linger_ms} ms: its next step is {'never' if due is None else f'in {due - now_ms} ms'}"
        )


def _check_told(task: Task, name: str, attempt: int, network: SimNetwork) -> None:
    source = task._source
    clock = None if source is None or task._chain._operators or task._input_ended else source._clock
    # What it has yet to say it says with its next step.
    if clock is None or clock.current is None or clock._answer is not None:
        return
    for edge in task._parts.edges:
        for channel in edge.channels:
            opened = network.outgoing.get((name, Attempt(attempt), channel.id))
            if opened is None:
                continue
            queued = _newest(edge, channel)
            told = opened.told if queued is None else queued
            assert (clock.current - 1 if told is None else told) >= clock.current, (
                f"I8: {name} is at watermark {clock.current}, and {channel.id} was told {told}"
            )


def _newest(edge: OutputEdge, channel: OutputChannel) -> int | None:
    """The newest watermark that has yet to leave on a channel."""
    if edge._watermark is not None:
        return edge._watermark
    queued = (frame.watermark for frame in reversed(channel._queue) if isinstance(frame, WatermarkFrame))
    return next(queued, None)
