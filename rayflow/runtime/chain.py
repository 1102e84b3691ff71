"""The operator chain of a task: operators joined by plain function calls (the cheapest exchange of all).

Each operator gets a `_Link` as its output, which hands rows to the next operator, or at the tail to the
output edges. An exception in an operator becomes a `UserFunctionError` that names the operator, the user's
line and some rows, unless it already is one of rayflow's own errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from rayflow.batch.tables import render_sample
from rayflow.model.errors import RayflowError, UserFunctionError
from rayflow.operators.contracts import Operator, OperatorContext
from rayflow.protocol.commits import CommitPermit
from rayflow.state.parts import RestoredPart, StatePart

Emit = Callable[[str | None, pa.RecordBatch], None]
EmitWatermark = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ChainedOperator:
    """An operator and where it runs. `make` makes another one."""

    operator: Operator
    context: OperatorContext
    make: Callable[[], Operator]


class Chain:
    """Runs the operators of one task in order. Task thread only.

    `emit(tag, batch)` takes what leaves the tail (tag None) or a side output; `emit_watermark` the
    watermark that has passed all operators; `emit_idle` the word of one that event time stands still.
    """

    def __init__(
        self,
        operators: Sequence[ChainedOperator],
        emit: Emit,
        emit_watermark: EmitWatermark,
        emit_idle: Callable[[], None],
    ) -> None:
        self._operators = tuple(operators)
        self._emit = emit
        self._emit_watermark = emit_watermark
        self._emit_idle = emit_idle
        self._rows_in = [op.context.metrics.counter("rows_in") for op in self._operators]
        self._links = [_Link(self, index) for index in range(len(self._operators))]
        self._timed = [
            (index, op)
            for index, op in enumerate(self._operators)
            if type(op.operator).next_timer_ms is not Operator.next_timer_ms
        ]
        self._with_timers = [op for _, op in self._timed]
        self._blockable = [
            (index, op.operator)
            for index, op in enumerate(self._operators)
            if type(op.operator).blocked is not Operator.blocked
        ]
        self._holding = [
            op.operator for op in self._operators if type(op.operator).drained is not Operator.drained
        ]
        self._stateful = [op for op in self._operators if type(op.operator).snapshot is not Operator.snapshot]
        self._watermarks: list[int | None] = [None] * len(self._operators)
        self._ending = 0
        self._ended = 0

    def open(self, restored: dict[str, list[RestoredPart]]) -> None:
        """Open every operator with its restored parts (by uid), last operator first, so that whatever
        an operator emits while opening finds the next one ready."""
        for index in reversed(range(len(self._operators))):
            chained = self._operators[index]
            with _Blame(chained, None):
                parts = restored.get(chained.context.uid, [])
                chained.operator.open(chained.context, self._links[index], parts)

    @property
    def uids(self) -> list[str]:
        """Of the operators, in order."""
        return [chained.context.uid for chained in self._operators]

    def fresh(self, start: int, stop: int, emit: Emit) -> Chain:
        """Return a chain of the operators from `start` to before `stop`, made anew; its watermarks go nowhere."""
        made = [
            ChainedOperator(chained.make(), chained.context, chained.make)
            for chained in self._operators[start:stop]
        ]
        return Chain(made, emit, lambda watermark: None, lambda: None)

    def index_of(self, uid: str) -> int:
        """Return the place of operator `uid`."""
        return next(i for i, chained in enumerate(self._operators) if chained.context.uid == uid)

    def process(self, batch: pa.RecordBatch, port: int, start: int = 0) -> None:
        """Run rows through the operators from `start` on."""
        if start < len(self._operators):
            self._run(start, batch, port)
        else:
            self._emit(None, batch)

    def advance(self, watermark: int, start: int = 0) -> None:
        """Take a watermark through the operators from `start` on."""
        current: int | None = watermark
        for index, chained in enumerate(self._operators[start:], start):
            self._watermarks[index] = watermark
            with _Blame(chained, None):
                current = chained.operator.on_watermark(watermark)
            if current is None:
                return
            watermark = current
        self._emit_watermark(watermark)

    def blocked(self) -> bool:
        """Whether some operator wants no rows now."""
        return bool(self._blockable) and any(operator.blocked() for _, operator in self._blockable)

    def drained(self) -> bool:
        """Whether no operator still owes results of what came in."""
        return all(operator.drained() for operator in self._holding)

    def next_timer_ms(self) -> int | None:
        """Earliest processing-time timer of any operator that may emit now."""
        timers = [t for op in self._free() if (t := op.operator.next_timer_ms()) is not None]
        return min(timers, default=None)

    def fire_timers(self, now_ms: int) -> bool:
        """Call the operators whose timer is due, unless they would emit into one that is blocked; return whether
        any was."""
        fired = False
        for chained in self._free():
            due = chained.operator.next_timer_ms()
            if due is not None and due <= now_ms:
                with _Blame(chained, None):
                    chained.operator.on_timer(now_ms)
                fired = True
        return fired

    def end_input(self, port: int) -> None:
        """One of the inputs ended."""
        for chained in self._operators[:1]:
            with _Blame(chained, None):
                chained.operator.end_input(port)

    def _free(self) -> list[ChainedOperator]:
        """Return the operators with timers that are not before a blocked one."""
        if not self._blockable:
            return self._with_timers
        last_blocked = self._last_blocked
        return [op for index, op in self._timed if index >= last_blocked]

    @property
    def _last_blocked(self) -> int:
        return max((index for index, op in self._blockable if op.blocked()), default=0)

    def end(self) -> bool:
        """All inputs ended: let every operator in turn emit what it still holds. Return whether all have; if
        not, call again after timers fired."""
        while self._ended < len(self._operators):
            chained = self._operators[self._ended]
            if self._ending == self._ended:
                self._ending += 1
                with _Blame(chained, None):
                    chained.operator.end()
            if not chained.operator.drained():
                return False
            self._ended += 1
        return True

    def measure_state(self) -> None:
        """Set every stateful operator's metric `state_bytes`."""
        for chained in self._stateful:
            with _Blame(chained, None):
                chained.context.metrics.gauge("state_bytes").set(chained.operator.state_bytes())

    def state_bytes(self) -> list[tuple[str, int]]:
        """Return name and size of every stateful operator's state, as last measured. Any thread."""
        return [(c.context.name, int(c.context.metrics.gauge("state_bytes").value)) for c in self._stateful]

    def release_memory(self) -> None:
        """Have every operator that may emit now give back what it buffers."""
        for chained in self._operators[self._last_blocked :]:
            with _Blame(chained, None):
                chained.operator.release_memory()

    def snapshot(self, checkpoint_id: int) -> list[tuple[str, StatePart]]:
        """Return (uid, part) of all operators' state."""
        parts: list[tuple[str, StatePart]] = []
        for chained in self._operators:
            with _Blame(chained, None):
                found = chained.operator.snapshot(checkpoint_id)
            parts.extend((chained.context.uid, part) for part in found)
        return parts

    def notify_complete(self, permit: CommitPermit) -> None:
        """Tell every operator that a checkpoint is complete."""
        for chained in self._operators:
            with _Blame(chained, None):
                chained.operator.notify_complete(permit)

    def committing(self) -> bool:
        """Whether some operator is still publishing what a complete checkpoint allowed."""
        return any(chained.operator.committing() for chained in self._operators)

    def hot_keys(self) -> dict[str, dict[str, Any]]:
        """Return what operators tell of their keys, by uid. On any thread."""
        found = ((c.context.uid, c.operator.hot_keys()) for c in self._operators)
        return {uid: told for uid, told in found if told is not None}

    def salt(self, uid: str, keys: Sequence[int]) -> None:
        """Have an operator salt these keys."""
        self._operators[self.index_of(uid)].operator.salt(keys)

    def close(self) -> list[Exception]:
        """Close every operator, whatever happens in the others; return what they raised."""
        errors: list[Exception] = []
        for chained in self._operators:
            try:
                chained.operator.close()
            except Exception as error:
                errors.append(error)
        return errors

    def statistics(self) -> dict[str, dict[str, float | None]]:
        """Return the operators' metrics, by uid, and with them the `watermark` (ns) that each has come to, None
        where none has come yet."""
        return {
            c.context.uid: {**c.context.metrics.snapshot(), "watermark": watermark}
            for c, watermark in zip(self._operators, self._watermarks, strict=True)
        }

    def _run(self, index: int, batch: pa.RecordBatch, port: int) -> None:
        chained = self._operators[index]
        self._rows_in[index].inc(batch.num_rows)
        with _Blame(chained, batch):
            chained.operator.process(batch, port)

    def _emitted(self, index: int, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        if index + 1 < len(self._operators):
            self._run(index + 1, batch, 0)
        else:
            self._emit(None, batch)

    def _side_emitted(self, index: int, tag: str, batch: pa.RecordBatch) -> None:
        if batch.num_rows == 0:
            return
        context = self._operators[index].context
        if tag in context.side_outputs:
            # The planner makes an operator whose side output is read the last of its chain.
            self._emit(tag, batch)
        else:
            context.metrics.counter("unread_side_rows").inc(batch.num_rows)


class _Link:
    """The `Output` of the chain's operator number `index`."""

    __slots__ = ("_chain", "_index")

    def __init__(self, chain: Chain, index: int) -> None:
        self._chain = chain
        self._index = index

    def emit(self, batch: pa.RecordBatch) -> None:
        self._chain._emitted(self._index, batch)

    def emit_side(self, tag: str, batch: pa.RecordBatch) -> None:
        self._chain._side_emitted(self._index, tag, batch)

    def emit_watermark(self, watermark: int) -> None:
        self._chain.advance(watermark, self._index + 1)

    def emit_idle(self) -> None:
        self._chain._emit_idle()


class _Blame:
    """Context that turns a foreign exception into a `UserFunctionError` naming the operator."""

    __slots__ = ("_batch", "_chained")

    def __init__(self, chained: ChainedOperator, batch: pa.RecordBatch | None) -> None:
        self._chained = chained
        self._batch = batch

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # SystemExit too: a function that calls sys.exit ends nothing but its attempt.
        if isinstance(error, RayflowError) or not isinstance(error, Exception | SystemExit):
            return
        context = self._chained.context
        sample = None if self._batch is None else render_sample(self._batch)
        raise UserFunctionError(
            context.name, f"{type(error).__name__}: {error}", context.location, sample
        ) from error
