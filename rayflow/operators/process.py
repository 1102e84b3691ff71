"""Process functions in a subtask: rows and timers go through users' Python, with state by key.

Rows are handed over one at a time, in the order in which they came; all else is done by batch: keys become
slots, values of states are loaded and stored, results become Arrow.

Timers. Event timers fire when the watermark reaches them, in order of time, before the watermark is passed on,
so that what `on_timer` emits is not late for whoever comes next. One that is set for the time of the timer that
fires, or before, waits for the next watermark. At the end of all input, first the event timers fire, then the
processing timers that are set, then what event timers these have set; processing timers set from then on are
dropped and counted in `timers_after_end`. A timer that always sets another would go on for ever there: that is
an error.

Broadcast rows have no key; they may change broadcast states, which all others may only read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import GeneratorType
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.python_values import pylist, row_dicts
from rayflow.batch.tables import slice_rows
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.operators.bound_states import Cursor
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import ResultShape, UserFunction
from rayflow.operators.keyed_parts import restored_watermark, watermark_part
from rayflow.operators.keyed_states import BroadcastStates, KeyedStates
from rayflow.operators.process_functions import ProcessContext, ProcessFunction, TimeDomain, TimeFace
from rayflow.operators.states import declared_states
from rayflow.protocol.commits import CommitPermit
from rayflow.state.parts import RestoredPart, StatePart
from rayflow.state.timers import Timer, TimerQueue

_EVENT_PART, _PROCESSING_PART = "event-timers", "processing-timers"
_TIMERS_AFTER_END = 1_000
_TIMERS_AFTER_END_PER_TIMER = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """One input. `method` of the function takes its rows; without `keys` they have no current key."""

    method: str
    keys: tuple[str, ...] = ()
    time_column: str | None = None
    time_type: pa.DataType | None = None
    is_broadcast: bool = False


class ProcessOperator(Operator):
    """Runs a process function on rows of one or two inputs. `key_schema` None: nothing is keyed.

    `make` is the function, or its class, which is made here. `returns` None: see `ResultShape`.
    """

    state_place = "disk"

    def __init__(
        self,
        make: ProcessFunction | type[ProcessFunction],
        ports: Sequence[Port],
        key_schema: pa.Schema | None,
        returns: pa.Schema | None,
    ) -> None:
        self._make = make
        self._ports = tuple(ports)
        self._key_schema = key_schema
        self._returns = returns
        self._results: list[Any] = []
        self._aside: dict[str, list[Any]] = {}
        self._cursor = Cursor()
        self._may_fire: float = math.inf
        self._keyed: KeyedStates | None = None

    # ---------------------------------------------------------------------------------- life

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        timed = [port for port in self._ports if port.time_column is not None]
        # The finer of two clocks: no time of either is cut short.
        types: list[Any] = sorted((port.time_type for port in timed), key=_is_nanos)
        self._face = TimeFace(types[-1] if types else None)
        self._context = ProcessContext(ctx, self._face, self._cursor, bool(timed))
        self._event_timers = self._context._event_timers
        self._processing_timers = self._context._processing_timers
        self._function = UserFunction(self._make)
        self._shape = ResultShape(self._function, self._returns)
        self._side_shapes = {
            tag: ResultShape(self._function, schema) for tag, schema in ctx.side_outputs.items()
        }
        self._function.make(ctx)
        self._bind(restored)
        self._cursor.misuse = "open has none; use it in process and on_timer"
        self._function.begin(self._context)
        self._cursor.misuse = "there is none now"
        self._context._put_aside = self._put_aside
        fn = self._function.instance
        self._methods = [getattr(fn, port.method) for port in self._ports]
        self._on_timer = fn.on_timer

    def _bind(self, restored: Sequence[RestoredPart]) -> None:
        fn, ctx = self._function.instance, self.ctx
        states = declared_states(type(fn))
        keyed = {name: state for name, state in states.items() if not state.is_broadcast}
        self._broadcast = BroadcastStates({n: s for n, s in states.items() if n not in keyed}, self._cursor)
        self._broadcast.restore(ctx, restored)
        vars(fn).update(self._broadcast.bound)
        if self._key_schema is None:
            return
        queues = {_EVENT_PART: self._event_timers, _PROCESSING_PART: self._processing_timers}
        self._keyed = KeyedStates(self._key_schema, keyed, queues, self._face.type, self._cursor, ctx)
        self._keyed.restore(ctx, restored)
        vars(fn).update(self._keyed.bound)
        self._context._keys_of = self._keyed.current_keys
        self._context._watermark = restored_watermark(restored)
        self._cursor.describe_key = lambda: repr(self._context.current_key)

    def close(self) -> None:
        """See `Operator`."""
        try:
            self._function.close()
        finally:
            if self._keyed is not None:
                self._keyed.close()

    def notify_complete(self, permit: CommitPermit) -> None:
        """See `Operator`."""
        if self._keyed is not None:
            self._keyed.completed(permit.checkpoint_id)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """See `Operator`."""
        parts = self._broadcast.snapshot(self.ctx)
        if self._keyed is not None:
            parts += self._keyed.snapshot(self.ctx, checkpoint_id)
            # The end of all input is not: whoever restores this with more input goes on from there.
            if WATERMARK_MIN < self._context._watermark < WATERMARK_MAX:
                parts.append(watermark_part(self.ctx, self._context._watermark))
        return parts

    # ---------------------------------------------------------------------------------- rows

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        rows, given = visible(batch), self._ports[port]
        self._cursor.now_ms = self.ctx.now_ms()
        columns = [pylist(column) for column in rows.columns]
        context = self._context
        context._timer = None
        context._row_times = (
            None if given.time_column is None else columns[rows.schema.get_field_index(given.time_column)]
        )
        dicts = row_dicts(rows.schema.names, columns, rows.num_rows)
        if given.keys and self._keyed is not None:
            places: Sequence[int | None] = self._begin([rows.column(key) for key in given.keys])
        else:
            places = [None] * rows.num_rows
            whose = "the broadcast side" if given.is_broadcast else "a stream without key_by"
            self._cursor.misuse = f"rows of {whose} have none"
        self._cursor.may_write_broadcast = given.is_broadcast
        try:
            self._run(self._methods[port], places, dicts, rows)
        finally:
            self._cursor.may_write_broadcast = False
            context._row_times = None
        if given.keys and self._keyed is not None:
            self._keyed.end()
        self._cursor.misuse = "there is none now"
        self._emit_all(rows)

    def _begin(self, keys: list[pa.Array]) -> list[int]:
        assert self._keyed is not None
        self._context._key_values = None
        return self._keyed.begin(keys)

    def _run(
        self, method: Callable[..., Any], places: Sequence[int | None], dicts: Any, rows: pa.RecordBatch
    ) -> None:
        context, cursor, results, limit = self._context, self._cursor, self._results, self.ctx.batch_rows
        context._row = -1
        try:
            # Assigns straight to what states and context look at: this loop is the price of every row.
            for context._row, (cursor.at, row) in enumerate(zip(places, dicts)):
                made = method(row, context)
                if made is not None:
                    results.extend(made if type(made) in _MANY else _checked(made))
                    if len(results) >= limit:
                        self._emit(rows)
        except Exception as error:
            with self._function.blamed(rows.slice(max(context._row, 0), 1)):
                raise error

    # ---------------------------------------------------------------------------------- timers

    def on_watermark(self, watermark: int) -> int | None:
        """Fire the event timers that are due, then pass the watermark on; the last one when processing timers
        have fired too."""
        # After a restart it begins again, from further back.
        reached = max(watermark, self._context._watermark)
        self._context._watermark = reached
        if reached == WATERMARK_MAX and self._keyed is not None:
            self._limit_firing(self._keyed)
        self._fire(_EVENT_PART, reached // self._face.unit_ns)
        return None if watermark == WATERMARK_MAX else watermark

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        ticks = None if self._keyed is None else self._keyed.next_time(_PROCESSING_PART)
        return None if ticks is None else self._face.ms_from(ticks)

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        self._fire(_PROCESSING_PART, self._face.limit_of_ms(now_ms))

    def end(self) -> None:
        """See `Operator`."""
        keyed = self._keyed
        if keyed is not None:
            forever = WATERMARK_MAX // self._face.unit_ns
            self._limit_firing(keyed)
            self._fire_all(keyed, forever)
            self._processing_timers.hold(forever)
            self._fire(_PROCESSING_PART, forever)
            self._fire_all(keyed, forever)
            if dropped := keyed.drop_timers(_PROCESSING_PART, self.ctx.batch_rows):
                self.ctx.metrics.counter("timers_after_end").inc(dropped)
        self.out.emit_watermark(WATERMARK_MAX)

    def _fire_all(self, keyed: KeyedStates, forever: int) -> None:
        while keyed.timers(_EVENT_PART):
            self._fire(_EVENT_PART, forever)

    def _limit_firing(self, keyed: KeyedStates) -> None:
        timers = keyed.timers(_EVENT_PART) + keyed.timers(_PROCESSING_PART)
        self._may_fire = _TIMERS_AFTER_END + _TIMERS_AFTER_END_PER_TIMER * timers

    def _fire(self, kind: str, limit: int) -> None:
        keyed = self._keyed
        if keyed is None:
            return
        queue, domain = self._queue(kind)
        self._cursor.now_ms = self.ctx.now_ms()
        more = True
        while more:
            reached, more = keyed.bring_due(kind, limit, self.ctx.batch_rows)
            while due := queue.due(reached, self.ctx.batch_rows):
                self._context._key_values = None
                places = keyed.begin_slots(np.fromiter((slot for _, slot in due), np.int64, len(due)))
                self._fire_due(queue, domain, due, places)
                keyed.end()
                self._emit_all(keyed.rows_of_keys([]))
            # What has fired may have driven out keys that are due too.
            more = more or keyed.is_due_on_disk(kind, limit)
        self._context._timer = None
        queue.done()

    def _queue(self, kind: str) -> tuple[TimerQueue, TimeDomain]:
        if kind == _EVENT_PART:
            return self._event_timers, "event"
        return self._processing_timers, "processing"

    def _fire_due(
        self, queue: TimerQueue, domain: TimeDomain, due: Sequence[Timer], places: Sequence[int]
    ) -> None:
        at_of_slot = dict(zip((slot for _, slot in due), places))
        for timer, place in zip(due, places):
            # What has been set meanwhile is of the same keys.
            for earlier in queue.before(timer):
                self._fire_one(queue, domain, earlier, at_of_slot[earlier[1]])
            self._fire_one(queue, domain, timer, place)

    def _fire_one(self, queue: TimerQueue, domain: TimeDomain, timer: Timer, place: int) -> None:
        if not queue.take(timer):
            return
        context, cursor = self._context, self._cursor
        cursor.at = place
        self._may_fire -= 1
        try:
            if self._may_fire < 0:
                raise RuntimeError(
                    "on_timer goes on setting timers at the end of the input, where all timers fire; set none when "
                    "ctx.watermark is datetime.max"
                )
            ts = self._face.time(timer[0])
            context._timer = (domain, ts)
            made = self._on_timer(ts, context)
            if made is not None:
                self._results.extend(made if type(made) in _MANY else _checked(made))
        except Exception as error:
            with self._function.blamed(self._keyed_rows(timer)):
                raise error
        if len(self._results) >= self.ctx.batch_rows:
            self._emit(self._keyed_rows(timer))

    def _keyed_rows(self, timer: Timer) -> pa.RecordBatch:
        assert self._keyed is not None
        return self._keyed.rows_of_keys([timer[1]])

    # ---------------------------------------------------------------------------------- results

    def _put_aside(self, tag: str, row: Any) -> None:
        if tag not in self._side_shapes:
            self.ctx.metrics.counter("unread_side_rows").inc()
            return
        rows = self._aside.setdefault(tag, [])
        rows.append(row)
        if len(rows) >= self.ctx.batch_rows:
            self._emit_aside(tag, None)

    def _emit_all(self, given: pa.RecordBatch) -> None:
        self._emit(given)
        for tag in self._aside:
            self._emit_aside(tag, given)

    def _emit(self, given: pa.RecordBatch) -> None:
        # In place: the loop over rows holds this list.
        made = self._shape.batch_of_rows(self._results, given)
        self._results.clear()
        if made is not None:
            for piece in slice_rows(made, max_rows=self.ctx.batch_rows):
                self.out.emit(piece)

    def _emit_aside(self, tag: str, given: pa.RecordBatch) -> None:
        made = self._side_shapes[tag].batch_of_rows(self._aside[tag], given)
        self._aside[tag].clear()
        if made is not None:
            self.out.emit_side(tag, made)


def _is_nanos(type_: Any) -> bool:
    return bool(type_.unit == "ns")


_MANY = {list, tuple, GeneratorType}


def _checked(made: Any) -> Iterable[Any]:
    if isinstance(made, Iterable) and not isinstance(made, (str, bytes, Mapping)):
        return made
    raise TypeError(
        f"the function returned {made!r} ({type(made).__name__}), expected a list or generator of rows; yield the row"
    )
