"""More bugs of channels, event time, and of what operators keep and pass on. Each was found by nothing that there was
when it was written: see the table in README.md."""

from __future__ import annotations

from typing import Any

from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.dedup.operator import DeduplicateOperator
from rayflow.operators.joins.interval import IntervalJoinOperator
from rayflow.operators.map_async import MapAsyncOperator
from rayflow.operators.top_n import TopNOperator
from rayflow.operators.transactions import TransactionalSink
from rayflow.protocol.credit import CreditReceiver
from rayflow.protocol.sequencing import Accept, ChannelSequence
from rayflow.runtime.event_clock import EventClock
from rayflow.runtime.outputs import OutputEdge
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task import Task
from rayflow.state.timers import TimerQueue
from rayflow.windows.time_windows import TimeWindowOperator
from tests.simulation.planted.registry import Patch, around, bug

# ------------------------------------------------------------------------------------------ credit, channels


@bug
def floating_credit_not_returned(patch: Patch) -> None:
    def on_consumed(original: Any, self: Any, event: Any) -> Any:
        free = self._free_batches
        grants = original(self, event)
        self._free_batches = min(free, self._free_batches)
        return grants

    around(patch, CreditReceiver, "_on_consumed", on_consumed)


@bug
def full_outputs_not_asked(patch: Patch) -> None:
    patch.setattr(Task, "backpressured", property(lambda self: False))


@bug
def data_frame_taken_twice(patch: Patch) -> None:
    """What was accepted before is accepted again."""

    def handle(original: Any, self: Any, event: Any) -> Any:
        original(self, event)
        return (Accept(),)

    around(patch, ChannelSequence, "handle", handle)


@bug
def gathered_rows_never_due(patch: Patch) -> None:
    patch.setattr(OutputEdge, "deadline_ms", property(lambda self: None))


@bug
def watermark_lost_without_rows(patch: Patch) -> None:
    def flush(original: Any, self: Any) -> None:
        if not self._gathered:
            self._watermark = None
        original(self)

    around(patch, OutputEdge, "flush", flush)


@bug
def channels_of_an_attempt_stay_open(patch: Patch) -> None:
    def end_attempt(original: Any, self: Any) -> None:
        transport, self._transport = self._transport, _Open()
        try:
            original(self)
        finally:
            self._transport = transport

    around(patch, SubtaskEngine, "_end_attempt", end_attempt)


class _Open:
    def close_channels(self, attempt: Any) -> None:
        """Nothing is closed."""


@bug
def task_not_closed(patch: Patch) -> None:
    """A survivor drops the task of the attempt before, and nobody closes its readers and its sink."""
    patch.setattr(Task, "close", lambda self: [])


# ------------------------------------------------------------------------------------------ event time


@bug
def cap_ignored(patch: Patch) -> None:
    """A source's watermark passes the splits that nobody has begun to read."""

    def cap(original: Any, self: Any, cap: int) -> None:
        original(self, WATERMARK_MAX)

    around(patch, EventClock, "cap", cap)


@bug
def watermark_overtakes_calls(patch: Patch) -> None:
    patch.setattr(MapAsyncOperator, "on_watermark", lambda self, watermark: watermark)


@bug
def join_holds_no_watermark_back(patch: Patch) -> None:
    def on_watermark(original: Any, self: Any, watermark: int) -> int:
        original(self, watermark)
        return watermark

    around(patch, IntervalJoinOperator, "on_watermark", on_watermark)


@bug
def windows_hold_no_watermark_back(patch: Patch) -> None:
    def on_watermark(original: Any, self: Any, watermark: int) -> int:
        original(self, watermark)
        return watermark

    around(patch, TimeWindowOperator, "on_watermark", on_watermark)


@bug
def deleted_timer_fires(patch: Patch) -> None:
    patch.setattr(TimerQueue, "discard", lambda self, time, slot: None)


# ------------------------------------------------------------------------------------------ state, sinks


@bug
def seen_keys_not_restored(patch: Patch) -> None:
    patch.setattr(DeduplicateOperator, "_restore", lambda self, restored: None)


@bug
def top_rows_not_restored(patch: Patch) -> None:
    def open_(original: Any, self: Any, ctx: Any, out: Any, restored: Any) -> None:
        original(self, ctx, out, ())

    around(patch, TopNOperator, "open", open_)


@bug
def restored_transactions_aborted(patch: Patch) -> None:
    """What is in the restored checkpoint is taken for what can never be committed."""

    def abort_all(original: Any, self: Any, ctx: Any, which: Any) -> None:
        original(self, ctx, lambda id: id.attempt < ctx.attempt)

    around(patch, TransactionalSink, "_abort_all", abort_all)
