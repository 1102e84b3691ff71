from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from rayflow.operators.contracts import Operator
from rayflow.runtime.chain import Chain, ChainedOperator

ROWS = pa.record_batch({"n": [1, 2, 3]})


class PutAside(Operator):
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.out.emit_side("aside", batch)
        self.out.emit(batch)


class Slow(Operator):
    """Emits what it holds when its timer is let fire; keeps a diary that it shares with others."""

    def __init__(self, name: str, diary: list[str]) -> None:
        self.name, self.diary, self.held = name, diary, 0
        self.due = False

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.held += 1

    def blocked(self) -> bool:
        return self.held > 1

    def drained(self) -> bool:
        return not self.held

    def next_timer_ms(self) -> int | None:
        return 5 if self.due and self.held else None

    def on_timer(self, now_ms: int) -> None:
        self.held -= 1
        self.diary.append(f"{self.name} emits")
        self.out.emit(ROWS)

    def end(self) -> None:
        self.diary.append(f"{self.name} ends")


def chain_of(harness: Any, operators: list[Operator]) -> Chain:
    chained = [ChainedOperator(operator, harness(PutAside).context, PutAside) for operator in operators]
    chain = Chain(chained, lambda tag, _: None, lambda _: None, lambda: None)
    chain.open({})
    return chain


def test_the_end_goes_on_only_when_the_operator_before_is_drained(harness: Any) -> None:
    diary: list[str] = []
    first, second = Slow("first", diary), Slow("second", diary)
    chain = chain_of(harness, [first, second])
    chain.process(ROWS, 0)
    assert not chain.end()
    assert not chain.end()
    first.due = second.due = True
    while not chain.end():
        assert chain.next_timer_ms() == 5
        assert chain.fire_timers(5)
    assert diary == ["first ends", "first emits", "second emits", "second ends"]
    assert chain.drained()


def test_what_is_before_a_blocked_operator_does_not_emit(harness: Any) -> None:
    diary: list[str] = []
    first, second = Slow("first", diary), Slow("second", diary)
    chain = chain_of(harness, [first, second])
    first.held, first.due, second.held = 1, True, 2
    assert chain.blocked()
    assert chain.next_timer_ms() is None
    assert not chain.fire_timers(9)
    second.due = True
    assert chain.fire_timers(9)
    assert diary == ["second emits"]
    assert chain.fire_timers(9)
    assert diary[1] == "first emits"


@pytest.mark.parametrize(("read", "emitted"), [(True, ["aside", None]), (False, [None])])
def test_a_side_output_leaves_only_where_it_is_read(harness: Any, read: bool, emitted: list[Any]) -> None:
    contexts = [
        harness(PutAside, side_outputs=tags).context for tags in ({}, {"aside": None} if read else {})
    ]
    seen: list[str | None] = []
    operators = [ChainedOperator(PutAside(), context, PutAside) for context in contexts]
    chain = Chain(operators, lambda tag, _: seen.append(tag), lambda _: None, lambda: None)
    chain.open({})
    chain.process(ROWS, 0)
    assert seen == emitted
    unread = [context.metrics.counter("unread_side_rows").value for context in contexts]
    assert unread == [3, 0 if read else 3]
