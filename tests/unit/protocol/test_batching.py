"""Batched writes: example timelines, and any run of any limits against what a naive reader of the trace finds."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.batching import BatchLimits, WriteBatcher
from rayflow.protocol.batching_messages import (
    CutRequest,
    FlushAsked,
    GiveUp,
    HalveRequest,
    RequestFailed,
    RequestWritten,
    RowsCame,
    SendRequest,
    SetRowAside,
    TimePassed,
)


def limits(**given: Any) -> BatchLimits:
    base: dict[str, Any] = {
        "batch_rows": 10,
        "batch_bytes": 1_000,
        "linger_ms": 100,
        "lanes": 1,
        "places": 1,
        "timeout_ms": 10_000,
        "retry_for_ms": 60_000,
    }
    return BatchLimits(**{**base, **given})


def sent(commands: tuple[Any, ...]) -> list[int]:
    return [command.request for command in commands if isinstance(command, SendRequest)]


# ------------------------------------------------------------------------------------------- when


def test_rows_wait_for_a_full_batch() -> None:
    batcher = WriteBatcher(limits())
    assert batcher.handle(RowsCame(0, 9, 9, 0)) == ()
    assert batcher.handle(RowsCame(0, 3, 3, 5)) == (CutRequest(1, 0, 10), SendRequest(1))
    assert (batcher.rows, batcher.in_flight) == (12, 1)


def test_rows_wait_for_the_bytes_of_a_batch() -> None:
    # 4 rows of 300 bytes: three of them are 900.
    batcher = WriteBatcher(limits())
    assert batcher.handle(RowsCame(0, 4, 1_200, 0)) == (CutRequest(1, 0, 3), SendRequest(1))


def test_a_row_larger_than_a_batch_is_one() -> None:
    batcher = WriteBatcher(limits())
    assert batcher.handle(RowsCame(0, 1, 5_000, 0)) == (CutRequest(1, 0, 1), SendRequest(1))


def test_rows_wait_no_longer_than_the_linger_of_the_oldest() -> None:
    batcher = WriteBatcher(limits())
    batcher.handle(RowsCame(0, 1, 1, 1_000))
    batcher.handle(RowsCame(0, 1, 1, 1_090))
    assert batcher.due_ms(1_090) == 1_100
    assert batcher.handle(TimePassed(1_099)) == ()
    assert batcher.handle(TimePassed(1_100)) == (CutRequest(1, 0, 2), SendRequest(1))


def test_a_flush_sends_what_is_here_but_not_what_comes_after() -> None:
    batcher = WriteBatcher(limits(places=2))
    batcher.handle(RowsCame(0, 1, 1, 0))
    assert batcher.handle(FlushAsked(1)) == (CutRequest(1, 0, 1), SendRequest(1))
    assert batcher.handle(RowsCame(0, 1, 1, 2)) == ()
    assert batcher.due_ms(2) == 102


def test_a_flush_is_not_forgotten_while_all_places_are_taken() -> None:
    batcher = WriteBatcher(limits())
    batcher.handle(RowsCame(0, 10, 10, 0))
    batcher.handle(RowsCame(0, 2, 2, 0))
    assert batcher.handle(FlushAsked(0)) == ()
    assert batcher.handle(RequestWritten(1, 1)) == (CutRequest(2, 0, 2), SendRequest(2))


def test_a_lane_with_one_place_sends_one_at_a_time_and_lanes_do_not_wait_for_each_other() -> None:
    batcher = WriteBatcher(limits(lanes=2))
    assert sent(batcher.handle(RowsCame(0, 30, 30, 0))) == [1]
    assert sent(batcher.handle(RowsCame(1, 30, 30, 0))) == [2]
    assert batcher.requests(0) == (1,)
    assert sent(batcher.handle(RequestWritten(2, 1))) == [3]
    assert batcher.requests(1) == (3,)


def test_it_is_full_at_twice_what_may_be_under_way() -> None:
    batcher = WriteBatcher(limits(places=2))
    batcher.handle(RowsCame(0, 39, 39, 0))
    assert not batcher.full
    batcher.handle(RowsCame(0, 1, 1, 0))
    assert batcher.full
    batcher.handle(RequestWritten(1, 0))
    assert not batcher.full
    batcher.handle(RowsCame(0, 1, 4_000, 0))
    assert batcher.full


def test_a_rate_counts_every_try_and_cuts_batches_to_a_second() -> None:
    batcher = WriteBatcher(limits(rows_per_second=4.0, batch_rows=100))
    assert batcher.handle(RowsCame(0, 8, 8, 0)) == (CutRequest(1, 0, 4), SendRequest(1))
    assert sent(batcher.handle(RequestFailed(1, "retry", 100, chance=0.0))) == []
    # Four rows are a second's worth; a batch goes when there is a token, and leaves a debt.
    assert batcher.due_ms(100) == 250
    assert sent(batcher.handle(TimePassed(250))) == [1]
    batcher.handle(RequestWritten(1, 260))
    assert batcher.due_ms(260) == 1_250
    assert sent(batcher.handle(TimePassed(1_250))) == [2]


# --------------------------------------------------------------------------------------- failures


def test_a_failure_that_may_pass_is_tried_again_after_a_delay_drawn_from_a_growing_range() -> None:
    batcher = WriteBatcher(limits(batch_rows=1))
    batcher.handle(RowsCame(0, 1, 1, 0))
    now, delays = 0, []
    for _ in range(8):
        assert batcher.handle(RequestFailed(1, "retry", now, chance=0.999)) == ()
        due = batcher.due_ms(now)
        assert due is not None
        delays.append(due - now)
        now = due
        assert sent(batcher.handle(TimePassed(now))) == [1]
    assert delays == [99, 199, 399, 799, 1598, 3196, 4995, 4995]


def test_what_the_system_asks_for_is_the_least_delay() -> None:
    batcher = WriteBatcher(limits(batch_rows=1))
    batcher.handle(RowsCame(0, 1, 1, 0))
    batcher.handle(RequestFailed(1, "retry", 0, chance=0.5, after_ms=7_000))
    assert batcher.due_ms(0) == 7_000


def test_tries_end_when_the_next_one_would_be_too_late() -> None:
    batcher = WriteBatcher(limits(batch_rows=1, retry_for_ms=300))
    batcher.handle(RowsCame(0, 1, 1, 1_000))
    assert batcher.handle(RequestFailed(1, "retry", 1_010, chance=0.9)) == ()
    batcher.handle(TimePassed(1_100))
    assert batcher.handle(RequestFailed(1, "retry", 1_290, chance=0.9)) == (GiveUp(1, "retried", 2, 290),)
    assert batcher.handle(TimePassed(5_000)) == ()


def test_a_refused_batch_is_halved_down_to_the_row_to_blame() -> None:
    # Rows 0 to 3, of which 2 is refused: [0 1 2 3] → [0 1] [2 3] → [2] aside, [3].
    batcher = WriteBatcher(limits(batch_rows=4))
    batcher.handle(RowsCame(0, 4, 4, 0))
    refused = {"verdict": "refused", "now_ms": 1, "chance": 0.0, "halve": True}
    assert batcher.handle(RequestFailed(1, **refused)) == (HalveRequest(1, 2, 2, 3), SendRequest(2))
    assert batcher.handle(RequestWritten(2, 1)) == (SendRequest(3),)
    assert batcher.handle(RequestFailed(3, **refused)) == (HalveRequest(3, 1, 4, 5), SendRequest(4))
    assert batcher.handle(RequestFailed(4, **refused)) == (SetRowAside(4), SendRequest(5))
    batcher.handle(RequestWritten(5, 1))
    assert (batcher.rows, batcher.nbytes, batcher.settled) == (0, 0, batcher.mark)


@pytest.mark.parametrize(("verdict", "halve"), [("refused", False), ("fatal", True), ("fatal", False)])
def test_what_is_neither_passing_nor_to_be_set_aside_ends_the_attempt(verdict: Any, halve: bool) -> None:
    batcher = WriteBatcher(limits(batch_rows=1))
    batcher.handle(RowsCame(0, 1, 1, 0))
    failed = RequestFailed(1, verdict, 5, chance=0.0, halve=halve)
    assert batcher.handle(failed) == (GiveUp(1, verdict, 1, 5),)


def test_a_request_that_hangs_is_given_up() -> None:
    batcher = WriteBatcher(limits(batch_rows=1, timeout_ms=500))
    batcher.handle(RowsCame(0, 2, 2, 0))
    assert batcher.due_ms(0) == 500
    assert batcher.handle(TimePassed(499)) == ()
    assert batcher.handle(TimePassed(500)) == (GiveUp(1, "hung", 1, 500),)


def test_an_outcome_of_no_request_is_refused_and_changes_nothing() -> None:
    batcher = WriteBatcher(limits(batch_rows=1))
    batcher.handle(RowsCame(0, 1, 1, 0))
    for event in (RequestWritten(2, 0), RequestFailed(9, "retry", 0, 0.0), RowsCame(1, 1, 1, 0)):
        with pytest.raises(ProtocolViolation):
            batcher.handle(event)
    assert batcher.handle(RequestWritten(1, 0)) == ()
    with pytest.raises(ProtocolViolation, match="not under way"):
        batcher.handle(RequestWritten(1, 0))
    with pytest.raises(ProtocolViolation, match="positive"):
        WriteBatcher(limits(places=0))


# ----------------------------------------------------------------------------------- any run at all


@dataclass
class System:
    """Carries commands out on rows that are numbers, and knows what must be true of them."""

    limits: BatchLimits
    poison: frozenset[int]
    lanes: list[list[int]] = field(default_factory=list)
    came: list[list[int]] = field(default_factory=list)
    requests: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    running: list[int] = field(default_factory=list)
    written: list[list[int]] = field(default_factory=list)
    aside: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.batcher = WriteBatcher(self.limits)
        self.lanes = [[] for _ in range(self.limits.lanes)]
        self.came = [[] for _ in range(self.limits.lanes)]
        self.written = [[] for _ in range(self.limits.lanes)]

    def tell(self, event: Any) -> None:
        for command in self.batcher.handle(event):
            match command:
                case CutRequest(number, lane, rows):
                    assert 1 <= rows <= self.limits.batch_rows
                    assert len(self.lanes[lane]) >= rows
                    self.requests[number] = (lane, self.lanes[lane][:rows])
                    del self.lanes[lane][:rows]
                case SendRequest(number):
                    assert number not in self.running
                    self.running.append(number)
                    lane = self.requests[number][0]
                    if self.limits.places == 1:
                        # W1: nothing that is not settled comes before it in its lane.
                        before = self.batcher.requests(lane)
                        assert before[0] == number
                case HalveRequest(number, rows, first, second):
                    lane, whole = self.requests.pop(number)
                    assert 1 <= rows < len(whole)
                    self.requests[first], self.requests[second] = (lane, whole[:rows]), (lane, whole[rows:])
                case SetRowAside(number):
                    lane, whole = self.requests.pop(number)
                    assert len(whole) == 1
                    self.aside += whole
                case GiveUp():
                    raise AssertionError(command)
        assert len(self.running) == self.batcher.in_flight <= self.limits.under_way
        held = sum(map(len, self.lanes)) + sum(len(rows) for _, rows in self.requests.values())
        assert self.batcher.rows == held

    def end(self, index: int, fails: bool, now: int, chance: float) -> None:
        number = self.running.pop(index % len(self.running))
        lane, rows = self.requests[number]
        if self.poison & set(rows):
            self.tell(RequestFailed(number, "refused", now, chance, halve=True))
        elif fails:
            self.tell(RequestFailed(number, "retry", now, chance))
        else:
            self.written[lane] += self.requests.pop(number)[1]
            self.tell(RequestWritten(number, now))


@st.composite
def runs(draw: Any) -> tuple[BatchLimits, frozenset[int], list[tuple[Any, ...]]]:
    lanes, places = draw(st.sampled_from([(1, 1), (3, 1), (1, 3), (4, 1), (1, 8)]))
    bounds = limits(
        batch_rows=draw(st.integers(1, 8)),
        batch_bytes=draw(st.integers(1, 100)),
        linger_ms=draw(st.sampled_from([0, 50])),
        lanes=lanes,
        places=places,
        timeout_ms=1 << 40,
        retry_for_ms=1 << 40,
        rows_per_second=draw(st.sampled_from([None, 5.0, 1_000.0])),
    )
    step = st.one_of(
        st.tuples(st.just("rows"), st.integers(0, lanes - 1), st.integers(1, 12), st.integers(0, 60)),
        st.tuples(st.just("end"), st.integers(0, 7), st.booleans(), st.floats(0, 0.99)),
        st.tuples(st.just("flush")),
        st.tuples(st.just("time"), st.integers(1, 3_000)),
    )
    return bounds, draw(st.frozensets(st.integers(0, 60), max_size=6)), draw(st.lists(step, max_size=60))


def test_halves_wait_for_a_place_of_those_that_are_under_way_behind_them() -> None:
    batcher = WriteBatcher(limits(batch_rows=2, places=3))
    batcher.handle(RowsCame(0, 6, 6, 0))
    assert batcher.in_flight == 3
    refused = RequestFailed(1, verdict="refused", now_ms=1, chance=0.0, halve=True)
    assert batcher.handle(refused) == (HalveRequest(1, 1, 4, 5), SendRequest(4))
    assert batcher.handle(RequestWritten(3, 2)) == (SendRequest(5),)


def test_a_request_behind_the_places_is_given_up_as_well_when_it_hangs() -> None:
    batcher = WriteBatcher(limits(batch_rows=2, places=2, timeout_ms=500))
    batcher.handle(RowsCame(0, 4, 4, 0))
    batcher.handle(RequestFailed(1, verdict="refused", now_ms=400, chance=0.0, halve=True))
    assert batcher.due_ms(400) == 500


@given(runs())
@settings(max_examples=150)
def test_every_row_is_settled_once_in_the_order_of_its_lane(run: Any) -> None:
    bounds, poison, steps = run
    system, now, numbers = System(bounds, poison), 0, iter(range(10_000))
    marks: list[tuple[int, set[int]]] = []
    for step in steps:
        match step:
            case ("rows", lane, rows, nbytes):
                new = [next(numbers) for _ in range(rows)]
                system.lanes[lane] += new
                system.came[lane] += new
                system.tell(RowsCame(lane, rows, nbytes, now))
            case ("end", index, fails, chance):
                if system.running:
                    system.end(index, fails, now, chance)
            case ("flush",):
                system.tell(FlushAsked(now))
                marks.append((system.batcher.mark, {n for lane in system.came for n in lane}))
            case ("time", ms):
                now += ms
                system.tell(TimePassed(now))
        _check_marks(system, marks)
    system.tell(FlushAsked(now))
    # Nothing goes wrong any more: then time alone brings everything out.
    for _ in range(10_000):
        while system.running:
            system.end(0, False, now, 0.0)
        due = system.batcher.due_ms(now)
        if due is None:
            break
        assert system.running == []
        now = max(now, due)
        system.tell(TimePassed(now))
    assert system.batcher.rows == system.batcher.in_flight == 0
    assert system.batcher.settled == system.batcher.mark
    assert sorted(system.aside) == sorted(poison & {n for lane in system.came for n in lane})
    for came, written in zip(system.came, system.written):
        kept = [n for n in came if n not in poison]
        assert sorted(written) == kept
        if bounds.places == 1:
            assert written == kept


def _check_marks(system: System, marks: list[tuple[int, set[int]]]) -> None:
    done = {n for lane in system.written for n in lane} | set(system.aside)
    for mark, rows in marks:
        if system.batcher.settled >= mark:
            assert rows <= done


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.sampled_from([3.0, 10.0, 250.0]))
def test_a_rate_is_kept_over_any_time(pieces: list[int], rate: float) -> None:
    system = System(limits(rows_per_second=rate, places=2, timeout_ms=1 << 40), frozenset())
    now, sent_rows = 0, list[tuple[int, int]]()

    def end_all(now: int) -> None:
        # The end of one may be what sends another.
        while system.running:
            sent_rows.append((now, len(system.requests[system.running[0]][1])))
            system.end(0, False, now, 0.0)

    for rows, at in zip(pieces, _times()):
        now = at
        system.lanes[0] += [0] * rows
        system.tell(RowsCame(0, rows, rows, now))
        system.tell(FlushAsked(now))
        end_all(now)
    for _ in range(2_000):
        due = system.batcher.due_ms(now)
        if due is None:
            break
        now = max(now, due)
        system.tell(TimePassed(now))
        end_all(now)
    assert sum(rows for _, rows in sent_rows) == sum(pieces)
    burst = max(1, min(10, int(rate)))
    for index, (begin, _) in enumerate(sent_rows):
        total = 0
        for at, rows in sent_rows[index:]:
            total += rows
            assert total <= rate * (at - begin) / 1_000 + 2 * burst + 1e-6


def _times() -> Iterator[int]:
    return iter(range(0, 30 * 37, 37))
