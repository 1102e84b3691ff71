"""Event time at a source: what rows tell of it, and what the machine that makes watermarks makes of that.

`protocol.split_watermarks.SplitWatermarks` decides; it knows numbers only. `EventClock` reads these from batches,
counts the times it does not believe, and keeps the newest answer until the task asks.
"""

from __future__ import annotations

import pyarrow as pa

from rayflow.batch.event_times import believed_times
from rayflow.graph.plan import OperatorSpec, TimeSpec
from rayflow.model.errors import PlanError
from rayflow.model.times import NANOS_PER_UNIT, WATERMARK_MIN
from rayflow.observe.metrics import MetricGroup
from rayflow.protocol.split_watermarks import (
    CapMoved,
    OthersMoved,
    ReadingResumed,
    RowsRead,
    SplitFinished,
    SplitOpened,
    SplitWatermarks,
    Ticked,
)
from rayflow.protocol.watermarks import (
    AdvanceWatermark,
    GoIdle,
)


class EventClock:
    """The source's event time: feeds `SplitWatermarks` from batches and keeps its newest answer.

    The machine needs the unit of the event-time column: from the source's schema, or else from the first rows,
    until when events are kept.
    """

    def __init__(
        self, spec: OperatorSpec, time: TimeSpec, watermark: int | None, metrics: MetricGroup
    ) -> None:
        self._spec = spec
        self._time = time
        self._metrics = metrics
        self._restored = WATERMARK_MIN if watermark is None else watermark
        self._early: list[SplitOpened | SplitFinished | CapMoved | OthersMoved] = []
        self._answer = watermark
        self._aside = False
        self._machine: SplitWatermarks | None = None
        self.current = watermark
        schema = spec.payload.schema
        if schema is not None:
            self._start(_unit_nanos(schema, time.column, spec))

    def opened(self, split_id: str, max_time: int | None) -> None:
        """See `SplitOpened`."""
        self._tell(SplitOpened(split_id, max_time))

    def finished(self, split_id: str) -> None:
        """See `SplitFinished`."""
        self._tell(SplitFinished(split_id))

    def cap(self, cap: int) -> None:
        """See `CapMoved`."""
        self._tell(CapMoved(cap))

    def others(self, watermark: int | None) -> None:
        """See `OthersMoved`."""
        self._tell(OthersMoved(watermark))

    def may_read(self, split_id: str) -> bool:
        """Whether the split is not too far ahead of the slowest one."""
        return self._machine is None or self._machine.may_read(split_id)

    @property
    def slowest(self) -> int | None:
        """The watermark of the slowest split that is read here, None where nobody need wait for one."""
        return None if self._machine is None else self._machine.slowest

    def read(self, split_id: str, batch: pa.RecordBatch, now_ms: int) -> tuple[pa.RecordBatch, int | None]:
        """Account for rows; return them, and their largest believable time (ns)."""
        nanos = _unit_nanos(batch.schema, self._time.column, self._spec)
        machine = self._machine or self._start(nanos)
        found = believed_times(batch, self._time.column, nanos, machine.limit(split_id), machine.step)
        self._metrics.counter("null_time_rows").inc(found.nulls)
        self._metrics.counter("far_future_rows").inc(found.future)
        self._aside = False
        self._take(machine.handle(RowsRead(split_id, found.newest, now_ms)))
        return found.batch, found.newest

    def next_deadline_ms(self) -> int | None:
        """When time alone may make the source idle."""
        return None if self._machine is None else self._machine.next_deadline_ms()

    def resumed(self, now_ms: int) -> None:
        """Reading goes on after a time in which nobody looked for rows."""
        if self._machine is not None:
            self._take(self._machine.handle(ReadingResumed(now_ms)))

    def take(self, now_ms: int | None, *, step_aside: bool) -> tuple[int | GoIdle, ...]:
        """Return what is new since the last call, in order; `now_ms` None when nobody looked for rows."""
        idle = False
        if self._machine is not None and now_ms is not None:
            idle = self._take(self._machine.handle(Ticked(now_ms)))
        answer, self._answer = self._answer, None
        if answer is None and step_aside and not self._aside:
            self._aside = idle = True
        # Who is idle stays at its last watermark: that is said first.
        return (*(() if answer is None else (answer,)), *((GoIdle(),) if idle else ()))

    def _start(self, nanos: int) -> SplitWatermarks:
        # The unit is the column's, so the machine starts with the first rows.
        t = self._time
        self._machine = SplitWatermarks(
            t.delay, nanos, t.idle_after, t.max_ahead, watermark=self._restored, max_drift=t.max_drift
        )
        for event in self._early:
            self._take(self._machine.handle(event))
        self._early.clear()
        return self._machine

    def _tell(self, event: SplitOpened | SplitFinished | CapMoved | OthersMoved) -> None:
        if self._machine is None:
            self._early.append(event)
        else:
            self._take(self._machine.handle(event))

    def _take(self, commands: tuple[AdvanceWatermark | GoIdle, ...]) -> bool:
        """Keep a new watermark; return whether the source is idle from now on, which only time makes it."""
        for command in commands:
            if isinstance(command, AdvanceWatermark):
                self._answer = self.current = command.watermark
        return GoIdle() in commands


def _unit_nanos(schema: pa.Schema, name: str, spec: OperatorSpec) -> int:
    """Return the nanoseconds of one unit of the event-time column; complain where it is none."""
    index = schema.get_field_index(name)
    if index < 0:
        raise PlanError(
            f"source {spec.name!r} has no event-time column {name!r}; it has {', '.join(schema.names)}",
            spec.location,
        )
    column_type = schema.field(index).type
    if not pa.types.is_timestamp(column_type):
        raise PlanError(
            f"source {spec.name!r}: event-time column {name!r} is {column_type}, expected a timestamp; "
            "cast it, or read it with schema=",
            spec.location,
        )
    return NANOS_PER_UNIT[column_type.unit]
