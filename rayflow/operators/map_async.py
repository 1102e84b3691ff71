"""Users' coroutine functions, many calls at a time: look-ups and services that take long to answer.

Theory of operation
-------------------
Rows that came in wait as batches (`_waiting`, with the watermarks between them) until one of `capacity` places is free;
then they become calls in a `CallQueue`, which decides when their results and the watermarks leave. A place is free
again when the result has been emitted. While rows wait the operator is blocked, so what it holds is bounded by
`capacity` rows and what one call of the operator before it emits.

Everything happens in `on_timer`, which is due at once whenever there is something to do and is told the time: results
are taken, calls that took too long cancelled, failed ones tried again after a delay, results emitted, free places
filled. Each try has a number of its own, so that nothing that a cancelled one does can be taken for an answer.

Delivery. Rows whose results have not been emitted are the operator's state, and are called again after a restore: state
behind the operator is exactly-once, the calls are at-least-once. At another parallelism the rows may come to other
subtasks; where the stream lies by keys (`keys`) they come to where their keys go.
"""

from __future__ import annotations

import heapq
import inspect
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import pyarrow as pa

from rayflow.batch.tables import slice_rows
from rayflow.model.durations import format_duration_ns
from rayflow.model.errors import RayflowError, UserFunctionError
from rayflow.model.tracebacks import describe_error
from rayflow.operators.async_calls import Completion
from rayflow.operators.call_queue import Call, CallQueue
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.operators.functions import FunctionContext, ResultShape, UserFunction
from rayflow.operators.keyed_parts import restored_rows, rows_part
from rayflow.operators.poison import PoisonRows
from rayflow.state.parts import RestoredPart, StatePart

_PART = "rows"
_OPENING = -1
_LONGEST_DELAY_MS = 60_000
_SPARE_DEADLINES = 1_000
_NANOS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AsyncOptions:
    """How calls are made. `timeout_ms` None: a call may take for ever.

    A call that raises or times out is tried again up to `retries` times, after `retry_delay_ms`, then twice that,
    and so on up to a minute, each shortened at random by up to half. `drop_late`: a row whose last try times out
    is dropped instead of failing the job.
    """

    capacity: int = 100
    timeout_ms: int | None = None
    ordered: bool = True
    retries: int = 0
    retry_delay_ms: int = 100
    drop_late: bool = False


class MapAsyncOperator(Operator):
    """Replaces each row by what `fn` (a coroutine function, an object with an async `__call__`, or a class of
    such objects) returns for it. `open(ctx)` and `close()` run on the calls' event loop and may be async.

    `scalar`: the stream has one column and `fn` gets its value. `returns` None: see `ResultShape`. `keys`: columns
    by which the stream lies. Metrics: `in_flight` (calls running now), `retries`, `timeouts`, `dropped_rows`.
    """

    state_place = "little"

    def __init__(
        self,
        fn: Callable[[Any], Any] | type,
        returns: pa.Schema | None,
        scalar: bool,
        options: AsyncOptions,
        keys: Sequence[str] = (),
    ) -> None:
        self._function = _AsyncFunction(fn)
        self._shape = ResultShape(self._function, returns)
        self._scalar = scalar
        self._options = options
        self._keys = list(keys)
        self._opened = False
        self._waiting: deque[pa.RecordBatch | int] = deque()
        self._queue = CallQueue(options.ordered)
        self._running: dict[int, Call] = {}
        self._numbers = count()
        # (time, tie-breaker, call, number): a running try's deadline, or (number None) the next try's start.
        self._due: list[tuple[int, int, Call, int | None]] = []
        self._ties = count()

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`. The user's `open` begins here; no call begins before it has returned."""
        super().open(ctx, out, restored)
        self._random = random.Random(f"{ctx.uid}/{ctx.subtask_index}/{ctx.attempt}")
        self._in_flight = ctx.metrics.gauge("in_flight")
        self._retries = ctx.metrics.counter("retries")
        self._timeouts = ctx.metrics.counter("timeouts")
        self._poison = PoisonRows(ctx, out, restored)
        self._waiting.extend(restored_rows(restored, _PART))
        self._function.open(ctx)
        self._calls = ctx.open_async_calls()
        self._calls.start([(_OPENING, self._function.prepare)])

    # ------------------------------------------------------------------------------------- input

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self._waiting.append(batch)

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`. A watermark stays behind the rows before it."""
        if not self._waiting and not len(self._queue):
            return watermark
        if self._waiting and isinstance(self._waiting[-1], int):
            self._waiting[-1] = watermark
        else:
            self._waiting.append(watermark)
        return None

    def blocked(self) -> bool:
        """See `Operator`."""
        return bool(self._waiting)

    def drained(self) -> bool:
        """See `Operator`. Not before `open` has returned: what it raises must not go unseen."""
        return self._opened and not self._waiting and not len(self._queue)

    # -------------------------------------------------------------------------------------- work

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        if self._calls.ready or self._can_begin():
            return 0
        return self._due[0][0] if self._due else None

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        for completion in self._calls.completed():
            self._completed(completion, now_ms)
        self._meet_deadlines(now_ms)
        self._emit()
        while self._can_begin():
            self._begin(now_ms)
        self._in_flight.set(len(self._running))

    def _can_begin(self) -> bool:
        if not self._waiting or not self._opened:
            return False
        return isinstance(self._waiting[0], int) or len(self._queue) < self._options.capacity

    def _begin(self, now_ms: int) -> None:
        """Let the next watermark, or as many rows as have a place, out of `_waiting`."""
        head = self._waiting.popleft()
        if isinstance(head, int):
            self._queue.add_watermark(head)
            self._emit()
            return
        free = self._options.capacity - len(self._queue)
        if head.num_rows > free:
            self._waiting.appendleft(head.slice(free))
            head = head.slice(0, free)
        calls = [Call(head, row) for row in range(head.num_rows)]
        for call in calls:
            self._queue.add(call)
        self._start(calls, self._arguments(head), now_ms)

    def _arguments(self, rows: pa.RecordBatch) -> list[Any]:
        arguments: list[Any] = rows.column(0).to_pylist() if self._scalar else rows.to_pylist()
        return arguments

    def _start(self, calls: Sequence[Call], arguments: Sequence[Any], now_ms: int) -> None:
        tries = []
        for call, argument in zip(calls, arguments, strict=True):
            call.tries += 1
            call.number = next(self._numbers)
            self._running[call.number] = call
            if self._options.timeout_ms is not None:
                self._remind(now_ms + self._options.timeout_ms, call, call.number)
            tries.append((call.number, partial(self._function.call, argument)))
        self._calls.start(tries)

    def _completed(self, completion: Completion, now_ms: int) -> None:
        if completion.call == _OPENING:
            if completion.error is not None:
                raise self._blame(completion.error, None) from completion.error
            self._opened = True
            return
        call = self._running.pop(completion.call, None)
        if call is None:
            return
        call.number = None
        if completion.error is not None:
            self._failed(call, completion.error, now_ms)
        else:
            call.result = completion.result
            self._queue.finish(call)

    def _failed(self, call: Call, error: BaseException, now_ms: int) -> None:
        if call.tries <= self._options.retries:
            self._retries.inc()
            delay_ms = min(self._options.retry_delay_ms << min(call.tries - 1, 30), _LONGEST_DELAY_MS)
            self._remind(now_ms + int(delay_ms * self._random.uniform(0.5, 1)), call, None)
        elif self._options.drop_late and isinstance(error, _TimedOut):
            self.ctx.metrics.counter("dropped_rows").inc()
            call.dropped = True
            self._queue.finish(call)
        else:
            blame = self._blame(error, call)
            blame.__cause__ = error
            if not self._poison.tolerates(blame):
                raise blame from error
            self._leave_out(call, blame)
            self._queue.finish(call)

    def _leave_out(self, call: Call, error: Exception) -> None:
        # Taken as poison when its turn comes to leave: until then the row is this operator's state.
        call.dropped, call.poison = True, error

    def _blame(self, error: BaseException, call: Call | None) -> RayflowError:
        if isinstance(error, RayflowError):
            return error
        cause = str(error) if isinstance(error, _TimedOut) else describe_error(error)
        if call is not None and call.tries > 1:
            cause += f"\n  in the last of {call.tries} tries"
        return self._function.error(cause, None if call is None else call.rows)

    # --------------------------------------------------------------------------------- deadlines

    def _remind(self, at_ms: int, call: Call, number: int | None) -> None:
        heapq.heappush(self._due, (at_ms, next(self._ties), call, number))
        if len(self._due) > 2 * self._options.capacity + _SPARE_DEADLINES:
            self._due = [entry for entry in self._due if _is_live(entry)]
            heapq.heapify(self._due)

    def _meet_deadlines(self, now_ms: int) -> None:
        while self._due and (self._due[0][0] <= now_ms or not _is_live(self._due[0])):
            entry = heapq.heappop(self._due)
            call, number = entry[2:]
            if not _is_live(entry):
                continue
            if number is None:
                self._start([call], self._arguments(call.rows), now_ms)
            else:
                self._timed_out(call, number, now_ms)

    def _timed_out(self, call: Call, number: int, now_ms: int) -> None:
        self._timeouts.inc()
        self._calls.cancel(number)
        del self._running[number]
        call.number = None
        limit = format_duration_ns((self._options.timeout_ms or 0) * _NANOS_PER_MS)
        self._failed(call, _TimedOut(f"the call did not return within timeout={limit}"), now_ms)

    # ------------------------------------------------------------------------------------ output

    def _emit(self) -> None:
        while True:
            calls, watermark = self._queue.take()
            made = self._results(calls)
            for call in calls:
                if call.poison is not None:
                    self._poison.add(call.rows, call.poison)
            self._poison.flush()
            for batch in made:
                self.out.emit(batch)
            if watermark is not None:
                self.out.emit_watermark(watermark)
            elif not calls:
                return

    def _results(self, calls: list[Call]) -> list[pa.RecordBatch]:
        left = [call for call in calls if not call.dropped]
        if not left:
            return []
        try:
            made = self._shape.batch_of_rows([call.result for call in left], left[0].rows)
        except UserFunctionError:
            for call in left:
                # One by one, the error is that of the row to blame.
                self._fit(call)
            if all(call.poison is None for call in left):
                raise
            return self._results(left)
        return [] if made is None else slice_rows(made, max_rows=self.ctx.batch_rows)

    def _fit(self, call: Call) -> None:
        try:
            self._shape.batch_of_rows([call.result], call.rows)
        except UserFunctionError as error:
            if not self._poison.tolerates(error):
                raise
            self._leave_out(call, error)

    # ------------------------------------------------------------------------------------- state

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Return the rows that have given no result yet."""
        pieces: list[tuple[pa.RecordBatch, list[int] | None]] = []
        for call in self._queue.calls():
            rows = pieces[-1][1] if pieces and pieces[-1][0] is call.batch else None
            if rows is None:
                pieces.append((call.batch, [call.row]))
            else:
                rows.append(call.row)
        pieces += [(batch, None) for batch in self._waiting if not isinstance(batch, int)]
        parts = self._poison.snapshot()
        if pieces:
            parts.append(
                rows_part(_PART, [_picked(*p) for p in pieces], self._keys, self.ctx.max_parallelism)
            )
        return parts

    def close(self) -> None:
        """See `Operator`."""
        if hasattr(self, "_calls") and (error := self._calls.close(self._function.finish)) is not None:
            raise error


class _TimedOut(TimeoutError):
    """A call took longer than its timeout. As a TimeoutError it is something that may pass (`runtime.faults`)."""


class _AsyncFunction(UserFunction):
    """The user's function; its coroutines run wherever calls do."""

    def open(self, ctx: OperatorContext) -> None:
        """Take the context; `prepare` does the rest."""
        self._ctx = ctx

    async def prepare(self) -> None:
        """Make the object, and let it get ready."""
        self._fn = self._given() if isinstance(self._given, type) else self._given
        await _hook(self._fn, "open", FunctionContext(self._ctx))

    async def call(self, argument: Any) -> Any:
        """Call the function."""
        return await self._fn(argument)

    async def finish(self) -> None:
        """Let the object release what it holds."""
        fn, self._fn = self._fn, None
        await _hook(fn, "close")


async def _hook(fn: Any, name: str, *args: Any) -> None:
    hook = getattr(fn, name, None)
    if callable(hook) and inspect.isawaitable(returned := hook(*args)):
        await returned


def _is_live(entry: tuple[int, int, Call, int | None]) -> bool:
    """Whether a reminder still means something: the try that it is about runs, or the call waits for its next."""
    return not entry[2].done and entry[2].number == entry[3]


def _picked(batch: pa.RecordBatch, rows: list[int] | None) -> pa.RecordBatch:
    return batch if rows is None else batch.take(pa.array(rows))
