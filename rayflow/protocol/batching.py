"""Batched writes to a system outside: when rows are cut into a request, which may be sent, and what follows a failure.

Theory of operation
-------------------
Rows wait in *lanes*, in order. A lane is *due* when it has a full batch (of rows or bytes), when its oldest row has
waited for the linger, or when a flush was asked for behind it (a barrier, the end). A lane that is due and has a free
*place* is cut: as many rows as make a batch become a *request*, which takes the place until its rows are settled. A
sink with keys has a lane per request that may be under way, each with one place, and rows of equal keys in one lane;
one without has one lane with all the places.

A request that fails is judged by whoever knows the system outside. What may pass is tried again after a delay with full
jitter: uniform from 0 to an exponentially growing bound (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture
Blog, 2015; the drawn number comes with the event), until it has been tried for `retry_for_ms`. What is refused because
of its rows is halved, both halves being requests of their own, until a single row is refused, which is set aside.
Anything else, and a request that does not return in time (nobody knows what became of it), is given up: the attempt
ends.

Where there is a rate, every try takes its rows from a token bucket (`rate`): repeated tries load the system as well.

Invariants
  W1  of one lane, requests are under way only from its first `places` unsettled ones: with one place, a row is not sent
      before all rows before it in its lane are settled.
  W2  every row that came is settled at most once: written, or set aside. No row is in two requests.
  W3  at most `lanes · places` requests are under way.
  W4  `settled` never passes a mark before every row that came before it is settled.
  W5  a request has at most `batch_rows` rows, and at most `batch_bytes` bytes unless it is a single row; rows that came
      together count as equally large.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.batching_messages import (
    BatchingCommand,
    BatchingEvent,
    CutRequest,
    FlushAsked,
    GiveUp,
    HalveRequest,
    Reason,
    RequestFailed,
    RequestWritten,
    RowsCame,
    SendRequest,
    SetRowAside,
    TimePassed,
)
from rayflow.protocol.rate import RateLimiter
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """The bounds of one subtask's writes; all positive. `rows_per_second` None: no rate."""

    batch_rows: int
    batch_bytes: int
    linger_ms: int
    lanes: int
    places: int
    timeout_ms: int
    retry_for_ms: int
    first_delay_ms: int = 100
    longest_delay_ms: int = 5_000
    rows_per_second: float | None = None

    @property
    def under_way(self) -> int:
        """Most requests under way at a time."""
        return self.lanes * self.places


@dataclass(slots=True, eq=False)
class _Piece:
    """Rows that wait in a lane. `came` numbers the event that brought them."""

    rows: int
    nbytes: int
    since_ms: int
    came: int


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    rows: int
    nbytes: int
    came: int
    due_ms: int = 0
    tries: int = 0
    began_ms: int = 0
    sent_ms: int | None = None
    """When the try under way began, None where none is."""


@dataclass(slots=True, eq=False)
class _Lane:
    pieces: deque[_Piece] = field(default_factory=deque)
    rows: int = 0
    nbytes: int = 0
    requests: list[_Request] = field(default_factory=list)


class WriteBatcher:
    """The requests of one subtask. `rows` and `nbytes` are what is held: came, and is not settled."""

    def __init__(self, limits: BatchLimits) -> None:
        numbers = (limits.batch_rows, limits.batch_bytes, limits.lanes, limits.places, limits.timeout_ms)
        if min(numbers) < 1 or limits.linger_ms < 0 or limits.retry_for_ms < 0:
            raise ProtocolViolation(f"limits of batched writes: expected positive numbers; got {limits}")
        self._limits = limits
        self._batch_rows = limits.batch_rows
        self._limiter: RateLimiter | None = None
        if limits.rows_per_second is not None:
            # Not more than a second's worth at a time: a large batch is a long silence after it.
            self._batch_rows = max(1, min(limits.batch_rows, int(limits.rows_per_second)))
            self._limiter = RateLimiter(limits.rows_per_second, self._batch_rows)
        self._lanes = [_Lane() for _ in range(limits.lanes)]
        self._first_lane = 0
        self._owners: dict[int, _Lane] = {}
        self._requests = 0
        self._came = 0
        self._flush_before = 0
        self._gave_up = False
        self.rows = 0
        self.nbytes = 0
        self.in_flight = 0

    @property
    def mark(self) -> int:
        """A number for now: `settled` reaches it when all rows that have come are settled."""
        return self._came

    @property
    def settled(self) -> int:
        """The newest mark before which every row is settled."""
        heads = [lane.pieces[0].came for lane in self._lanes if lane.pieces]
        heads += [request.came for lane in self._lanes for request in lane.requests]
        return min(heads, default=self._came)

    @property
    def full(self) -> bool:
        """Whether no more rows should come: as many wait as are under way at most."""
        held = 2 * self._limits.under_way
        return self.rows >= held * self._batch_rows or self.nbytes >= held * self._limits.batch_bytes

    def requests(self, lane: int) -> tuple[int, ...]:
        """Return the lane's requests that are not settled, in the order of their rows; those in no request follow."""
        return tuple(request.number for request in self._lanes[lane].requests)

    def due_ms(self, now_ms: int) -> int | None:
        """When `TimePassed` next leads to something, None where it does not; `now_ms` or before: at once."""
        wait_ms = 0 if self._limiter is None else self._limiter.wait_ms(now_ms)
        return min((due for lane in self._lanes for due in self._dues(lane, now_ms + wait_ms)), default=None)

    def handle(self, event: BatchingEvent) -> tuple[BatchingCommand, ...]:
        """Take an event; return what to do about it, in order."""
        commands: list[BatchingCommand] = []
        match event:
            case RowsCame():
                self._take(event)
            case FlushAsked():
                self._flush_before = self._came
            case RequestWritten():
                lane, request = self._ended(event.request)
                self._settle(lane, request)
            case RequestFailed():
                commands += self._failed(event)
            case TimePassed():
                commands += self._hung(event.now_ms)
            case _:
                unhandled(event)
        if not self._gave_up:
            commands += self._send(event.now_ms)
        return tuple(commands)

    # ----------------------------------------------------------------------------------- in and out

    def _take(self, event: RowsCame) -> None:
        if event.rows < 1 or not 0 <= event.lane < len(self._lanes):
            raise ProtocolViolation(
                f"{event}: expected at least one row, and a lane below {len(self._lanes)}"
            )
        lane = self._lanes[event.lane]
        lane.pieces.append(_Piece(event.rows, event.nbytes, event.now_ms, self._came))
        lane.rows += event.rows
        lane.nbytes += event.nbytes
        self.rows += event.rows
        self.nbytes += event.nbytes
        self._came += 1

    def _send(self, now_ms: int) -> Iterator[BatchingCommand]:
        lanes = self._lanes[self._first_lane :] + self._lanes[: self._first_lane]
        # In turn, so that none is always the last to get what a rate allows.
        self._first_lane = (self._first_lane + 1) % len(self._lanes)
        for lane in lanes:
            while len(lane.requests) < self._limits.places and self._is_due(lane, now_ms):
                yield self._cut(lane, now_ms)
            for request in self._next(lane):
                if request.due_ms > now_ms:
                    continue
                if self._limiter is not None:
                    if self._limiter.wait_ms(now_ms) > 0:
                        break
                    self._limiter.take(request.rows, now_ms)
                request.sent_ms = now_ms
                request.began_ms = now_ms if request.tries == 0 else request.began_ms
                request.tries += 1
                self.in_flight += 1
                yield SendRequest(request.number)

    def _is_due(self, lane: _Lane, now_ms: int) -> bool:
        return bool(lane.pieces) and self._ripe_ms(lane) <= now_ms

    def _ripe_ms(self, lane: _Lane) -> int:
        """When the lane's first rows, which it has, shall be cut."""
        full = lane.rows >= self._batch_rows or lane.nbytes >= self._limits.batch_bytes
        oldest = lane.pieces[0]
        return 0 if full or oldest.came < self._flush_before else oldest.since_ms + self._limits.linger_ms

    def _cut(self, lane: _Lane, now_ms: int) -> CutRequest:
        rows = nbytes = 0
        came = lane.pieces[0].came
        while lane.pieces and rows < self._batch_rows:
            piece = lane.pieces[0]
            # Shares are rounded up: what is cut may be a little over the limit, and rows without bytes may follow.
            room_bytes = max(0, self._limits.batch_bytes - nbytes)
            fitting = piece.rows if piece.nbytes <= room_bytes else piece.rows * room_bytes // piece.nbytes
            taken = min(fitting, self._batch_rows - rows)
            if taken <= 0:
                if rows:
                    break
                taken = 1
            share = piece.nbytes if taken == piece.rows else -(-piece.nbytes * taken // piece.rows)
            rows, nbytes = rows + taken, nbytes + share
            piece.rows, piece.nbytes = piece.rows - taken, piece.nbytes - share
            if piece.rows == 0:
                lane.pieces.popleft()
        lane.rows -= rows
        lane.nbytes -= nbytes
        request = self._new(lane, rows, nbytes, came, len(lane.requests))
        request.due_ms = now_ms
        return CutRequest(request.number, self._lanes.index(lane), rows)

    def _new(self, lane: _Lane, rows: int, nbytes: int, came: int, place: int) -> _Request:
        self._requests += 1
        request = _Request(self._requests, rows, nbytes, came)
        lane.requests.insert(place, request)
        self._owners[request.number] = lane
        return request

    def _dues(self, lane: _Lane, allowed_ms: int) -> Iterator[int]:
        if lane.pieces and len(lane.requests) < self._limits.places:
            yield self._ripe_ms(lane)
        for request in self._next(lane):
            yield max(request.due_ms, allowed_ms)
        for request in lane.requests:
            if request.sent_ms is not None:
                yield request.sent_ms + self._limits.timeout_ms

    def _next(self, lane: _Lane) -> list[_Request]:
        """Return the requests that may be sent, apart from when: halves may have pushed some that are under way
        behind the lane's places, which they hold all the same."""
        under_way = sum(request.sent_ms is not None for request in lane.requests)
        waiting = [r for r in lane.requests[: self._limits.places] if r.sent_ms is None]
        return waiting[: max(0, self._limits.places - under_way)]

    # ------------------------------------------------------------------------------------- outcomes

    def _ended(self, number: int) -> tuple[_Lane, _Request]:
        lane = self._owners.get(number)
        request = None if lane is None else next(r for r in lane.requests if r.number == number)
        if lane is None or request is None or request.sent_ms is None:
            raise ProtocolViolation(f"request {number} ended, which is not under way")
        request.sent_ms = None
        self.in_flight -= 1
        return lane, request

    def _settle(self, lane: _Lane, request: _Request) -> None:
        lane.requests.remove(request)
        del self._owners[request.number]
        self.rows -= request.rows
        self.nbytes -= request.nbytes

    def _failed(self, event: RequestFailed) -> Iterator[BatchingCommand]:
        lane, request = self._ended(event.request)
        if event.verdict == "retry":
            delay_ms = self._delay_ms(request, event)
            if event.now_ms + delay_ms - request.began_ms > self._limits.retry_for_ms:
                yield self._give_up(request, "retried", event.now_ms)
            request.due_ms = event.now_ms + delay_ms
        elif event.verdict == "refused" and event.halve:
            if request.rows > 1:
                yield self._halve(lane, request, event.now_ms)
            else:
                self._settle(lane, request)
                yield SetRowAside(request.number)
        else:
            yield self._give_up(request, event.verdict, event.now_ms)

    def _delay_ms(self, request: _Request, event: RequestFailed) -> int:
        bound_ms = self._limits.first_delay_ms << min(request.tries - 1, 30)
        return max(event.after_ms, int(event.chance * min(bound_ms, self._limits.longest_delay_ms)))

    def _halve(self, lane: _Lane, request: _Request, now_ms: int) -> HalveRequest:
        place, rows = lane.requests.index(request), request.rows // 2
        nbytes = request.nbytes * rows // request.rows
        lane.requests.remove(request)
        del self._owners[request.number]
        first = self._new(lane, rows, nbytes, request.came, place)
        second = self._new(lane, request.rows - rows, request.nbytes - nbytes, request.came, place + 1)
        first.due_ms = second.due_ms = now_ms
        return HalveRequest(request.number, rows, first.number, second.number)

    def _hung(self, now_ms: int) -> Iterator[GiveUp]:
        for lane in self._lanes:
            for request in lane.requests:
                if request.sent_ms is not None and now_ms - request.sent_ms >= self._limits.timeout_ms:
                    yield self._give_up(request, "hung", now_ms)

    def _give_up(self, request: _Request, reason: Reason, now_ms: int) -> GiveUp:
        self._gave_up = True
        return GiveUp(request.number, reason, request.tries, now_ms - request.began_ms)
