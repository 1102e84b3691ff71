"""The functions that users write for `process`, and the context that they get.

A function is made once per subtask (each has a copy of its own), and everything in it is called on that subtask's one
thread, so it needs no locks and should not block. States and timers belong to the *current key*: that of the row
that `process` got, or of the timer.

Times are `datetime`s on one clock face: that of the event-time column, with its zone; without a zone they are
UTC. For a column of nanoseconds event times are what Arrow gives (`pandas.Timestamp` where pandas is
installed). Before the first watermark `ctx.watermark` is `datetime.min`, at the end of all input `datetime.max`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta, timezone
from typing import Any, Literal

import pyarrow as pa

from rayflow.model.times import NANOS_PER_UNIT, WATERMARK_MAX, WATERMARK_MIN
from rayflow.operators.bound_states import Cursor
from rayflow.operators.contracts import OperatorContext
from rayflow.operators.functions import FunctionContext
from rayflow.state.timers import TimerQueue

TimeDomain = Literal["event", "processing"]

_EPOCH = datetime(1970, 1, 1)
_EPOCH_UTC = datetime(1970, 1, 1, tzinfo=timezone.utc)
_NANOS_PER_MS = 1_000_000


class ProcessFunction:
    """What all process functions have. `open` is called before the first row, `close` at the end."""

    def open(self, ctx: ProcessContext) -> None:
        """Get ready. There is no current key yet: states and timers cannot be used."""

    def close(self) -> None:
        """Release what `open` took. Called once, also after failures."""

    def on_timer(self, ts: datetime, ctx: ProcessContext) -> Iterable[Any] | None:
        """A timer of the current key fires; `ts` is the time it was set for. Yield rows, or return None."""
        raise TypeError(f"{type(self).__name__} sets timers, but has no on_timer(self, ts, ctx)")


class KeyedProcessFunction(ProcessFunction):
    """A function of rows by key, with states and timers.

    Declare states as class attributes (`count = rf.ValueState("int64", default=0)`), use them as
    `self.count` in `process` and `on_timer`.
    """

    def process(self, row: dict[str, Any], ctx: ProcessContext) -> Iterable[Any] | None:
        """A row came. Yield (or return a list of) rows, as dicts; None for nothing."""
        raise TypeError(f"{type(self).__name__} has no process(self, row, ctx)")


class CoProcessFunction(ProcessFunction):
    """A function of the rows of two connected streams.

    Both keyed: states and timers belong to the key and are shared. One broadcast: its rows (`process2`) have no
    current key; they write `rf.MapState(..., broadcast=True)`, which `process1` may read.
    """

    def process1(self, row: dict[str, Any], ctx: ProcessContext) -> Iterable[Any] | None:
        """A row of the first stream came. Yield rows, or return None."""
        raise TypeError(f"{type(self).__name__} has no process1(self, row, ctx)")

    def process2(self, row: dict[str, Any], ctx: ProcessContext) -> Iterable[Any] | None:
        """A row of the second stream came. Yield rows, or return None."""
        raise TypeError(f"{type(self).__name__} has no process2(self, row, ctx)")


class ProcessContext(FunctionContext):
    """What a process function may know and do, besides its states. One object, valid until `close`."""

    def __init__(self, ctx: OperatorContext, times: TimeFace, cursor: Cursor, has_event_time: bool) -> None:
        super().__init__(ctx)
        self._face = times
        self._cursor = cursor
        self._has_event_time = has_event_time
        self._event_timers, self._processing_timers = TimerQueue(), TimerQueue()
        self._watermark = WATERMARK_MIN
        self._row = 0
        self._row_times: list[Any] | None = None
        self._timer: tuple[TimeDomain, datetime] | None = None
        self._key_values: list[Any] | None = None
        self._keys_of: Callable[[], list[Any]] = list
        self._put_aside: Callable[[str, Any], None] = _nowhere

    @property
    def current_key(self) -> Any:
        """The key at hand: a value, or a tuple where the stream has several key columns."""
        if self._cursor.at is None:
            raise RuntimeError(f"ctx.current_key: {self._cursor.misuse}")
        if self._key_values is None:
            self._key_values = self._keys_of()
        return self._key_values[self._cursor.at]

    @property
    def timestamp(self) -> datetime | None:
        """Event time of the row at hand, None where it has none; in `on_timer`, the timer's time."""
        if self._timer is not None:
            return self._timer[1]
        times: list[datetime | None] | None = self._row_times
        return None if times is None else times[self._row]

    @property
    def watermark(self) -> datetime:
        """Event time up to which rows have come; `datetime.min` before the first, `datetime.max` at the end."""
        reached: datetime = self._face.watermark(self._watermark)
        return reached

    @property
    def processing_time(self) -> datetime:
        """The clock's time now; the same for all rows of a batch."""
        return self._face.from_ms(self._cursor.now_ms)

    @property
    def time_domain(self) -> TimeDomain | None:
        """In `on_timer`, the kind of the timer; else None."""
        return None if self._timer is None else self._timer[0]

    def register_event_timer(self, ts: datetime) -> None:
        """Have `on_timer(ts, ctx)` called for the current key when the watermark reaches `ts`; once, however often it
        is registered. If the watermark is past `ts` already, that is when it advances next. At the end of bounded
        input all timers fire."""
        self._event_timers.add(self._event_ticks(ts, "register_event_timer"), self._slot())

    def delete_event_timer(self, ts: datetime) -> None:
        """Delete the current key's event timer for `ts`, if there is one."""
        self._event_timers.discard(self._event_ticks(ts, "delete_event_timer"), self._slot())

    def register_processing_timer(self, ts: datetime) -> None:
        """Have `on_timer(ts, ctx)` called for the current key when the clock reaches `ts`, at once if it has; after a
        restart, if `ts` is past by then. At the end of bounded input the timers that are set fire early; those set
        from then on do not."""
        self._processing_timers.add(self._face.ticks(ts, "register_processing_timer"), self._slot())

    def delete_processing_timer(self, ts: datetime) -> None:
        """Delete the current key's processing timer for `ts`, if there is one."""
        self._processing_timers.discard(self._face.ticks(ts, "delete_processing_timer"), self._slot())

    def output(self, tag: str, row: Mapping[str, Any]) -> None:
        """Put a row into the side output `tag`, which `stream.side_output(tag, returns=…)` reads."""
        self._put_aside(tag, row)

    def _event_ticks(self, ts: Any, what: str) -> int:
        if not self._has_event_time:
            raise RuntimeError(
                f"ctx.{what}: the stream has no event time; read it with watermark=rf.Watermark(column, …), or "
                "use a processing timer"
            )
        return self._face.ticks(ts, what)

    def _slot(self) -> int:
        if self._cursor.at is None:
            raise RuntimeError(f"a timer belongs to a key, but {self._cursor.misuse}")
        slot: int = self._cursor.slots[self._cursor.at]
        return self._cursor.written(slot)


class TimeFace:
    """How times look to a function: datetimes in the zone of `type_`, the event-time column's; and how they are
    counted: in whole microseconds since the epoch, in nanoseconds where the column has them."""

    def __init__(self, type_: pa.DataType | None) -> None:
        nanos = type_ is not None and type_.unit == "ns"
        tz = None if type_ is None else type_.tz
        self.type = pa.timestamp("ns" if nanos else "us", tz)
        """Type of times as they are counted here."""
        self.unit_ns = NANOS_PER_UNIT[self.type.unit]
        self._zone = None if tz is None else pa.lib.string_to_tzinfo(tz)

    def ticks(self, ts: Any, what: str) -> int:
        """Return a time as a number. Raises TypeError for what is none."""
        if not isinstance(ts, datetime) or ts != ts:
            raise TypeError(
                f"ctx.{what}: expected a datetime, such as ctx.timestamp + timedelta(seconds=10); got {ts!r} "
                f"({type(ts).__name__})"
            )
        since = ts - (_EPOCH if ts.tzinfo is None else _EPOCH_UTC)
        micros = (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds
        extra = getattr(ts, "nanosecond", 0)
        # Never before the time that was asked for.
        ticks = micros * 1_000 + extra if self.unit_ns == 1 else micros + (extra > 0)
        if not -(2**63) <= ticks < 2**63:
            raise ValueError(f"ctx.{what}: {ts!r} is beyond what {self.type} can hold")
        return ticks

    def time(self, ticks: int) -> Any:
        """Return the datetime of a number."""
        if self.unit_ns == 1:
            return pa.scalar(ticks, self.type).as_py()
        return self._plain(ticks)

    def from_ms(self, now_ms: int) -> datetime:
        """Return the datetime of milliseconds since the epoch."""
        return self._plain(now_ms * 1_000)

    def watermark(self, watermark: int) -> Any:
        """Return the datetime of a watermark in nanoseconds."""
        if watermark == WATERMARK_MIN:
            return datetime.min.replace(tzinfo=self._zone)
        if watermark == WATERMARK_MAX:
            return datetime.max.replace(tzinfo=self._zone)
        try:
            return self.time(watermark // self.unit_ns)
        except (OverflowError, ValueError):
            limit = datetime.min if watermark < 0 else datetime.max
            return limit.replace(tzinfo=self._zone)

    def limit_of_ms(self, now_ms: int) -> int:
        """Return the number of milliseconds since the epoch."""
        return now_ms * _NANOS_PER_MS // self.unit_ns

    def ms_from(self, ticks: int) -> int:
        """Return the first millisecond at which `ticks` is reached."""
        return -(-ticks * self.unit_ns // _NANOS_PER_MS)

    def _plain(self, micros: int) -> datetime:
        if self._zone is None:
            return _EPOCH + timedelta(microseconds=micros)
        return (_EPOCH_UTC + timedelta(microseconds=micros)).astimezone(self._zone)


def _nowhere(tag: str, row: Any) -> None:
    raise RuntimeError("ctx.output can be used only while rows or timers are processed")
