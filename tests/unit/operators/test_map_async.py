"""`map_async` with calls that complete when the test says, on a clock that the test moves."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import TransientError, UserFunctionError
from rayflow.operators.async_calls import Completion, Coroutine
from rayflow.operators.map_async import AsyncOptions, MapAsyncOperator

RETURNS = pa.schema([("n", pa.int64()), ("twice", pa.int64())])


async def twice(row: dict[str, Any]) -> dict[str, Any]:
    return {"n": row["n"], "twice": 2 * row["n"]}


def numbers(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(values, pa.int64())})


class FakeCalls:
    """`AsyncCalls` that complete when told. Calls are known by the number of their try, from 0."""

    def __init__(self) -> None:
        self.running: dict[int, Coroutine] = {}
        self.cancelled: list[int] = []
        self.most = 0
        self.closed = False
        self._completed: list[Completion] = []

    def start(self, calls: Sequence[tuple[int, Coroutine]]) -> None:
        for call, make in calls:
            self.running[call] = make
            if call < 0:
                self.finish(call)
        self.most = max(self.most, len(self.running))

    def finish(self, *calls: int) -> None:
        for call in calls:
            try:
                self.running.pop(call)().send(None)  # type: ignore[attr-defined]
            except StopIteration as returned:
                self._completed.append(Completion(call, returned.value, None))
            except BaseException as error:
                self._completed.append(Completion(call, None, error))

    def cancel(self, call: int) -> None:
        self.cancelled.append(call)
        del self.running[call]

    @property
    def ready(self) -> bool:
        return bool(self._completed)

    def completed(self) -> list[Completion]:
        done, self._completed = self._completed, []
        return done

    def close(self, last: Coroutine | None) -> None:
        self.closed = True
        if last is not None:
            self.running = {-2: last}
            self.finish(-2)


class Driven:
    """A harness, its calls, and a clock: timers fire as they would in a task."""

    def __init__(self, harness: Any, fn: Any = twice, *, returns: Any = RETURNS, **options: Any) -> None:
        self.calls = FakeCalls()
        self.now_ms = 1_000
        host = {k: options.pop(k) for k in ("restored", "batch_rows", "index", "parallelism") if k in options}
        keys = options.pop("keys", ())
        scalar = options.pop("scalar", False)
        self.harness = harness(
            lambda: MapAsyncOperator(fn, returns, scalar, AsyncOptions(**options), keys),
            open_async_calls=lambda: self.calls,
            **host,
        )
        self.operator = self.harness.operator
        self.settle()

    def settle(self) -> Driven:
        for _ in range(1_000):
            due = self.operator.next_timer_ms()
            if due is None or due > self.now_ms:
                return self
            self.operator.on_timer(self.now_ms)
        raise AssertionError("timers never come to rest")

    def feed(self, *values: int) -> Driven:
        self.harness.feed(numbers(*values))
        return self.settle()

    def watermark(self, watermark: int) -> Driven:
        self.harness.watermark(watermark)
        return self.settle()

    def finish(self, *calls: int) -> Driven:
        self.calls.finish(*calls)
        return self.settle()

    def sleep(self, ms: int) -> Driven:
        self.now_ms += ms
        return self.settle()

    @property
    def seen(self) -> list[Any]:
        """What came out: the `n` of rows, and watermarks as `w5`."""
        out: list[Any] = []
        for event in self.harness.events:
            out += event[1].column("n").to_pylist() if event[0] == "rows" else [f"w{event[1]}"]
        return out

    def count(self, name: str) -> float:
        return self.harness.metrics.snapshot().get(name, 0)


# ------------------------------------------------------------------------------------------- order


def test_ordered_results_wait_for_those_before_them(harness: Any) -> None:
    driven = Driven(harness).feed(1, 2, 3)
    assert driven.finish(2).finish(1).seen == []
    assert driven.finish(0).seen == [1, 2, 3]
    assert driven.harness.rows[0] == {"n": 1, "twice": 2}


def test_unordered_results_come_as_they_are_finished(harness: Any) -> None:
    driven = Driven(harness, ordered=False).feed(1, 2, 3)
    assert driven.finish(2).finish(0).seen == [3, 1]
    assert driven.finish(1).seen == [3, 1, 2]


@pytest.mark.parametrize("ordered", [True, False])
def test_a_watermark_does_not_overtake_rows_nor_rows_a_watermark(harness: Any, ordered: bool) -> None:
    driven = Driven(harness, ordered=ordered).feed(1, 2).watermark(10).feed(3).watermark(20)
    assert driven.finish(2, 1).seen == ([] if ordered else [2])
    assert driven.finish(0).seen == ([1, 2] if ordered else [2, 1]) + ["w10", 3, "w20"]


def test_a_watermark_passes_where_nothing_is_held(harness: Any) -> None:
    assert Driven(harness).watermark(5).feed(1).finish(0).watermark(6).seen == ["w5", 1, "w6"]


def test_of_watermarks_in_a_row_only_the_newest_is_kept(harness: Any) -> None:
    driven = Driven(harness).feed(1).watermark(5).watermark(6).watermark(7)
    assert driven.finish(0).seen == [1, "w7"]


# ---------------------------------------------------------------------------------------- capacity


def test_never_more_than_capacity_are_under_way_and_the_rest_blocks(harness: Any) -> None:
    driven = Driven(harness, capacity=2).feed(*range(5)).watermark(9)
    assert sorted(driven.calls.running) == [0, 1]
    assert driven.operator.blocked()
    # Ordered: a result that may not leave yet keeps its place.
    assert sorted(driven.finish(1).calls.running) == [0]
    assert driven.count("in_flight") == 1
    assert sorted(driven.finish(0).calls.running) == [2, 3]
    driven.finish(2, 3)
    assert not driven.operator.blocked()
    assert not driven.operator.drained()
    driven.finish(4)
    assert driven.operator.drained()
    assert driven.seen == [0, 1, 2, 3, 4, "w9"]
    assert driven.calls.most == 2


def test_results_are_cut_to_batch_rows(harness: Any) -> None:
    driven = Driven(harness, batch_rows=2).feed(*range(5)).finish(*range(5))
    assert [batch.num_rows for batch in driven.harness.batches] == [2, 2, 1]


# ----------------------------------------------------------------------------- failures and retries


def failing(times: int, error: BaseException) -> Callable[[Any], Any]:
    left = [times]

    async def fn(row: dict[str, Any]) -> dict[str, Any]:
        if left[0]:
            left[0] -= 1
            row["n"] = 99  # a retry gets the row as it was
            raise error
        return await twice(row)

    return fn


def test_an_error_names_operator_line_and_row(harness: Any) -> None:
    driven = Driven(harness, failing(1, KeyError("no such thing"))).feed(7, 8)
    with pytest.raises(UserFunctionError, match=r"my operator.*KeyError.*no such thing") as raised:
        driven.finish(0)
    assert raised.value.location == "job.py:7: stream.map(f)"
    assert raised.value.sample == "{n: 7}"
    assert "raise error" in raised.value.cause


def test_rayflows_own_errors_are_raised_as_they_are(harness: Any) -> None:
    driven = Driven(harness, failing(1, TransientError("away"))).feed(1)
    with pytest.raises(TransientError, match="away"):
        driven.finish(0)


def test_retries_back_off_twice_as_long_each_time_and_keep_the_order(harness: Any) -> None:
    driven = Driven(harness, failing(2, OSError("gone")), retries=2, retry_delay_ms=100).feed(1, 2)
    driven.finish(0).finish(1)
    first = driven.operator.next_timer_ms() - driven.now_ms
    assert 50 <= first <= 100
    assert driven.calls.running == {}
    assert driven.sleep(100).seen == []
    assert driven.finish(3).finish(2).seen == [1, 2]
    assert driven.count("retries") == 2

    driven = Driven(harness, failing(3, OSError("gone")), retries=2, retry_delay_ms=100).feed(5)
    delays = []
    for call in (0, 1):
        driven.finish(call)
        delays.append(driven.operator.next_timer_ms() - driven.now_ms)
        driven.sleep(delays[-1])
    assert 50 <= delays[0] <= 100 <= delays[1] <= 200
    with pytest.raises(UserFunctionError, match=r"OSError: gone[^$]*in the last of 3 tries"):
        driven.finish(2)


def test_delays_are_random_and_the_same_on_every_run(harness: Any) -> None:
    def delays() -> list[int]:
        driven = Driven(harness, failing(8, OSError()), retries=1).feed(*range(8)).finish(*range(8))
        return sorted(entry[0] for entry in driven.operator._due)

    assert delays() == delays()
    assert len(set(delays())) > 3


def test_a_call_that_never_returns_fails_the_job_after_its_timeout(harness: Any) -> None:
    driven = Driven(harness, timeout_ms=500).feed(1, 2).finish(1).sleep(499)
    with pytest.raises(UserFunctionError, match=r"did not return within timeout=500ms") as raised:
        driven.sleep(1)
    assert raised.value.sample == "{n: 1}"
    assert driven.calls.cancelled == [0]
    assert driven.count("timeouts") == 1


def test_a_timed_out_call_is_tried_again_first(harness: Any) -> None:
    driven = Driven(harness, timeout_ms=500, retries=1, retry_delay_ms=10).feed(1).sleep(500).sleep(10)
    assert driven.finish(1).seen == [1]
    assert driven.count("timeouts") == driven.count("retries") == 1


@pytest.mark.parametrize("ordered", [True, False])
def test_on_timeout_drop_lets_the_others_go_on(harness: Any, ordered: bool) -> None:
    driven = Driven(harness, timeout_ms=500, drop_late=True, ordered=ordered).feed(1, 2).watermark(3)
    driven.finish(1).sleep(500)
    assert driven.seen == [2, "w3"]
    assert driven.count("dropped_rows") == 1
    assert driven.operator.drained()


def test_a_late_answer_of_a_cancelled_try_is_not_taken(harness: Any) -> None:
    driven = Driven(harness, timeout_ms=500, retries=1, retry_delay_ms=10).feed(1).sleep(500)
    driven.calls._completed.append(Completion(0, {"n": 1, "twice": -1}, None))
    driven.sleep(10).finish(1)
    assert driven.harness.rows == [{"n": 1, "twice": 2}]


def test_reminders_of_calls_that_returned_do_not_pile_up(harness: Any) -> None:
    driven = Driven(harness, timeout_ms=10**9, ordered=False, capacity=2).feed(0)
    for number in range(1, 4_000):
        driven.feed(number).finish(number)
    assert len(driven.operator._due) <= 1_004


# ------------------------------------------------------------------------------- results and hooks


def test_a_result_that_does_not_fit_is_blamed_on_its_row(harness: Any) -> None:
    async def odd(row: dict[str, Any]) -> Any:
        return "text" if row["n"] == 2 else await twice(row)

    driven = Driven(harness, odd).feed(1, 2, 3)
    with pytest.raises(UserFunctionError, match=r"returned 'text' \(str\), expected a dict") as raised:
        driven.finish(2, 1, 0)
    assert raised.value.sample == "{n: 2}"


def test_scalars_go_in_and_come_out(harness: Any) -> None:
    async def shout(word: str) -> str:
        return word.upper()

    returns = pa.schema([("word", pa.string())])
    driven = Driven(harness, shout, returns=returns, scalar=True)
    driven.harness.feed(pa.record_batch({"word": ["a", "b"]}))
    driven.settle().finish(0, 1)
    assert driven.harness.rows == [{"word": "A"}, {"word": "B"}]


class Client:
    """Counts what happens to it."""

    log: list[str] = []  # noqa: RUF012

    async def open(self, ctx: Any) -> None:
        self.log.append(f"open {ctx.subtask_index}/{ctx.parallelism}")
        self.calls = ctx.counter("calls")

    async def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        self.calls.inc()
        return await twice(row)

    def close(self) -> None:
        self.log.append("close")


def test_a_class_is_opened_before_its_first_call_and_closed_at_the_end(harness: Any) -> None:
    Client.log.clear()
    driven = Driven(harness, Client).feed(1).finish(0)
    assert Client.log == ["open 0/1"]
    assert driven.count("calls") == 1
    driven.operator.close()
    assert Client.log == ["open 0/1", "close"]
    assert driven.calls.closed


def test_what_open_raises_is_seen_even_if_no_row_ever_comes(harness: Any) -> None:
    class Broken(Client):
        async def open(self, ctx: Any) -> None:
            raise ConnectionError("no server")

    with pytest.raises(UserFunctionError, match="ConnectionError: no server"):
        Driven(harness, Broken)


# -------------------------------------------------------------------------------------- snapshots


def test_rows_without_a_result_are_in_the_snapshot_and_called_again(harness: Any) -> None:
    driven = Driven(harness, capacity=3).feed(0, 1, 2, 3, 4).finish(0, 2)
    assert driven.seen == [0]
    parts = driven.harness.snapshot(1)
    assert [part.kind for part in parts] == ["list"]
    assert parts[0].table.to_pydict() == {"n": [1, 2, 3, 4]}

    restored = Driven(harness, capacity=3, restored=parts).watermark(5)
    assert restored.operator.blocked()
    assert restored.finish(0, 1, 2).finish(3).seen == [1, 2, 3, 4, "w5"]


def test_rows_that_lie_by_key_are_restored_by_key(harness: Any) -> None:
    driven = Driven(harness, keys=("n",)).feed(*range(40))
    parts = driven.harness.snapshot(1)
    assert [part.kind for part in parts] == ["keyed"]
    restorable = sys.modules[harness.__module__].restorable  # type: ignore[attr-defined]
    restored = [
        Driven(harness, restored=restorable(parts, i, 2), index=i, parallelism=2, keys=("n",)) for i in (0, 1)
    ]
    got = [d.finish(*sorted(d.calls.running)).seen for d in restored]
    assert all(got)
    assert all(part == sorted(part) for part in got)
    assert sorted(got[0] + got[1]) == list(range(40))


def test_nothing_held_is_no_state(harness: Any) -> None:
    assert Driven(harness).feed(1).finish(0).harness.snapshot(1) == []


@settings(max_examples=150)
@given(seed=st.integers(0, 1 << 30))
def test_any_order_of_answers_with_restarts_gives_what_plain_map_gives(harness: Any, seed: int) -> None:
    """Rows and watermarks against a naive model: every row once, between its watermarks, in order if asked for."""
    rng = random.Random(seed)
    ordered, capacity = rng.random() < 0.5, rng.randint(1, 5)
    options: dict[str, Any] = {"ordered": ordered, "capacity": capacity, "retries": 10**6}
    driven = Driven(harness, **options)
    fed: list[Any] = []
    seen: list[Any] = []
    for step in range(rng.randint(1, 25)):
        action = rng.random()
        if action < 0.4:
            rows = [step * 100 + i for i in range(rng.randint(1, 6))]
            fed += rows
            driven.feed(*rows)
        elif action < 0.6:
            fed.append(f"w{step}")
            driven.watermark(step)
        elif action < 0.7:
            parts = driven.harness.snapshot(step)
            seen += [event for event in driven.seen if not isinstance(event, str)]
            driven = Driven(harness, restored=parts, **options)
            fed = [event for event in fed if not isinstance(event, str)]
        elif driven.calls.running:
            driven.finish(rng.choice(sorted(driven.calls.running)))
        assert driven.calls.most <= capacity
    while driven.calls.running:
        driven.finish(rng.choice(sorted(driven.calls.running)))
    assert driven.operator.drained()
    seen += driven.seen
    if ordered:
        assert _newest(seen) == _newest(fed)
    else:
        assert _segments(seen) == _segments(fed)


def _newest(events: list[Any]) -> list[Any]:
    """Without watermarks that another one directly follows."""
    pairs = zip(events, [*events, None][1:], strict=True)
    return [a for a, b in pairs if not (isinstance(a, str) and isinstance(b, str))]


def _segments(events: list[Any]) -> list[Counter[Any]]:
    out: list[Counter[Any]] = [Counter()]
    for event in _newest(events):
        out[-1][event] += 1
        if isinstance(event, str):
            out.append(Counter())
    return out
