"""Drives a source inside its subtask: splits, positions, watermarks, rate.

Theory of operation
-------------------
The driver asks the master for splits when it has nothing to read (`wants_splits`), reads them, and
says at a barrier where it is in each. A split that ends is recorded as finished until the attempt ends. Nothing is
restored here: the master gives a restored split back as an ordinary assignment with a position.

How many rows a read asks for follows from how large rows were, so that a batch takes no more than `batch_bytes`.

Splits that end (files) are read one after the other, so that few files are open; splits that never end
(partitions) are read in turns, and the driver goes on asking for more of them.

Watermarks follow API.md section 3: per split, largest time − delay − 1 unit; over splits, the minimum; never past
the *cap*, before which no split that has yet to be read holds rows (`protocol.split_watermarks.SplitWatermarks`).

With `max_drift` a split that is too far ahead is passed over until the slowest one has caught up. Subtasks hear of
each other's slowest splits through the master (`progress`), a few times a second.

Times further ahead than `max_ahead` become null and are counted as `far_future_rows` (see `batch.event_times`). Times
that are null before are counted as `null_time_rows`.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from rayflow.batch.tables import nbytes, row_bytes
from rayflow.graph.plan import OperatorSpec
from rayflow.model.errors import DataError, RayflowError, UserFunctionError
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.source_contract import Source, Split, SplitReader
from rayflow.protocol.pace import Portion
from rayflow.protocol.rate import RateLimiter
from rayflow.protocol.watermarks import (
    GoIdle,
)
from rayflow.runtime.event_clock import EventClock
from rayflow.runtime.messages import AssignSplits
from rayflow.state.manifest import SplitState

_EMPTY_POLL_MS = 20
_PROGRESS_MS = 100
_HELD_UP_MS = 5 * _EMPTY_POLL_MS
_BATCHES_PER_SECOND = 20


@dataclass(slots=True)
class _OpenSplit:
    split: Split
    reader: SplitReader
    max_time: int | None


@dataclass(frozen=True, slots=True)
class SplitProgress:
    """The slowest split of source `uid` here has come to `watermark` (ns); None: nobody need wait for one here."""

    uid: str
    watermark: int | None


class SourceDriver:
    """Reads the splits assigned to one source subtask. Task thread only."""

    def __init__(
        self,
        spec: OperatorSpec,
        *,
        parallelism: int,
        batch_rows: int,
        batch_bytes: int,
        watermark: int | None,
        warn: Callable[[str, str], None] = lambda type, message: None,
    ) -> None:
        self._warn = warn
        self._spec = spec
        self._source: Source = spec.payload
        self._metrics = MetricGroup()
        self._rows_in = self._metrics.counter("rows_in")
        self._endless_splits = not self._source.bounded and self._source.discovery_interval_ms() is None
        self._assigned: deque[SplitState] = deque()
        self._open: deque[_OpenSplit] = deque()
        self._finished: list[SplitState] = []
        self._no_more = False
        self._cap = WATERMARK_MIN
        self._asked = False
        self._retry_at_ms = 0
        self._looking = False
        self._looked_at_ms = 0
        self._told: int | None = None
        self._told_at_ms = 0
        self._warn_at = 1
        self._clock = EventClock(spec, spec.time, watermark, self._metrics) if spec.time else None
        rate = spec.rate_limit
        self._limiter: RateLimiter | None = None
        if rate is not None:
            share = rate / parallelism
            batch_rows = max(1, min(batch_rows, int(share / _BATCHES_PER_SECOND)))
            self._limiter = RateLimiter(share, batch_rows)
        schema = self._source.schema
        self._portion = Portion(batch_bytes, batch_rows, None if schema is None else row_bytes(schema))

    @property
    def uid(self) -> str:
        """Uid of the source operator."""
        return self._spec.uid

    def assign(self, message: AssignSplits) -> None:
        """Take splits to read, and what the master knows of the ones nobody reads yet."""
        # The same message may come twice, the second time whenever: what was read to its end is known too.
        known = {s.split for s in (*self._assigned, *self._finished)} | {
            o.split.to_json() for o in self._open
        }
        self._assigned.extend(s for s in message.splits if s.split not in known)
        self._no_more = message.no_more
        self._cap = message.cap
        if message.splits:
            self._asked = False
        self._move_cap()
        if self._clock is not None:
            self._clock.others(message.others)

    def wants_splits(self) -> bool:
        """Whether the master should be asked for splits now; True at most once until it answers."""
        if self._asked or self._no_more or self._assigned or (self._open and not self._endless_splits):
            return False
        self._asked = True
        return True

    @property
    def ended(self) -> bool:
        """Whether everything there will ever be has been read."""
        return self._no_more and not self._assigned and not self._open

    def poll(self, now_ms: int, most_rows: int = 1 << 62) -> pa.RecordBatch | None:
        """Return the next rows, `most_rows` at most, None if there are none now (`wake_at_ms` says when to look
        again)."""
        self._looking = False
        if now_ms < self._retry_at_ms:
            return None
        if self._limiter is not None and (wait := self._limiter.wait_ms(now_ms)) > 0:
            self._retry_at_ms = now_ms + wait
            return None
        self._look(now_ms)
        while self._assigned and (self._endless_splits or not self._open):
            self._open_next()
        for _ in range(len(self._open)):
            current = self._open[0]
            if self._clock is not None and not self._clock.may_read(current.split.id):
                self._open.rotate(-1)
                continue
            with self._blamed():
                batch = current.reader.read(min(self._portion.rows, most_rows))
            self._count_skipped(current.reader.skipped())
            if batch is None:
                self._finish(current)
                return None
            if batch.num_rows:
                return self._read(current, batch, now_ms)
            self._open.rotate(-1)
        self._retry_at_ms = now_ms + _EMPTY_POLL_MS if self._open else now_ms
        return None

    def wake_at_ms(self, now_ms: int) -> int | None:
        """When `poll` may have rows, None if only a message can change that."""
        idle_ms = None if self._clock is None else self._clock.next_deadline_ms()
        if self._assigned or self._open:
            return max(self._retry_at_ms, now_ms)
        return idle_ms

    def watermark(self, now_ms: int) -> tuple[int | GoIdle, ...]:
        """Return a new watermark, where there is one, then GoIdle when the source steps aside."""
        if self._clock is None:
            return ()
        waiting = not self._open and not self._assigned and not self._no_more
        # A bounded source ends as soon as the master has answered. Stepping aside for that long would let the other
        # inputs of a join go on without the rows that windows behind this source emit at its end.
        step_aside = waiting and self._cap == WATERMARK_MAX and not self._source.bounded
        return self._clock.take(now_ms if self._looking else None, step_aside=step_aside)

    def progress(self, now_ms: int) -> SplitProgress | None:
        """Return news for the source's other subtasks, at most every `_PROGRESS_MS` (at once when there is nothing
        to wait for any more), None where there is none."""
        if self._clock is None or self._spec.time is None or self._spec.time.max_drift is None:
            return None
        slowest = self._clock.slowest
        if slowest == self._told or (slowest is not None and now_ms < self._told_at_ms + _PROGRESS_MS):
            return None
        self._told, self._told_at_ms = slowest, now_ms
        return SplitProgress(self.uid, slowest)

    @property
    def current_watermark(self) -> int | None:
        """The last watermark, None if there is none."""
        return None if self._clock is None else self._clock.current

    def snapshot(self) -> tuple[SplitState, ...]:
        """Return the state of every split that was assigned in this attempt."""
        opened = [
            SplitState(split=o.split.to_json(), position=json.dumps(o.reader.position()), max_time=o.max_time)
            for o in self._open
        ]
        return (*opened, *self._assigned, *self._finished)

    @property
    def spec(self) -> OperatorSpec:
        """The source operator."""
        return self._spec

    def statistics(self) -> dict[str, float]:
        """Return the source's metrics: `rows_in` is what it read; rows whose time is null or too far ahead of the
        watermark are counted in `null_time_rows` and `far_future_rows`, records it was told to skip because they are
        broken in `rows_poisoned`."""
        return self._metrics.snapshot()

    def close(self) -> list[Exception]:
        """Close the readers; return what they raised."""
        errors: list[Exception] = []
        for opened in self._open:
            try:
                opened.reader.close()
            except Exception as error:
                errors.append(error)
        self._open.clear()
        return errors

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        """Have errors of the source name the operator and the user's line."""
        try:
            yield
        except DataError as error:
            raise UserFunctionError(self._spec.name, str(error), self._spec.location) from error
        except RayflowError:
            raise
        except (Exception, SystemExit) as error:
            cause = f"{type(error).__name__}: {error}"
            raise UserFunctionError(self._spec.name, cause, self._spec.location) from error

    def _look(self, now_ms: int) -> None:
        # Rows that nobody looked for (back-pressure, the rate limit) do not make a split idle.
        if self._clock is not None and now_ms - self._looked_at_ms > _HELD_UP_MS:
            self._clock.resumed(now_ms)
        self._looked_at_ms = now_ms
        self._looking = True

    def _open_next(self) -> None:
        state = self._assigned.popleft()
        split = Split.from_json(state.split)
        position = None if state.position is None else json.loads(state.position)
        with self._blamed():
            reader = self._source.open_split(split, position)
        self._open.append(_OpenSplit(split, reader, state.max_time))
        # Opened before the cap moves: at no moment may neither of them hold the watermark back.
        if self._clock is not None:
            self._clock.opened(split.id, state.max_time)
        self._move_cap()

    def _read(self, current: _OpenSplit, batch: pa.RecordBatch, now_ms: int) -> pa.RecordBatch:
        self._rows_in.inc(batch.num_rows)
        self._portion.took(batch.num_rows, nbytes(batch))
        if self._clock is not None:
            batch, newest = self._clock.read(current.split.id, batch, now_ms)
            if newest is not None:
                current.max_time = newest if current.max_time is None else max(current.max_time, newest)
        if self._limiter is not None:
            self._limiter.take(batch.num_rows, now_ms)
        if self._endless_splits:
            self._open.rotate(-1)
        return batch

    def _count_skipped(self, problems: Sequence[str]) -> None:
        if not problems:
            return
        counter = self._metrics.counter("rows_poisoned")
        counter.inc(len(problems))
        if counter.value >= self._warn_at:
            self._warn_at = 10 ** len(str(counter.value))
            self._warn(
                "rows_poisoned",
                f"{self._spec.name}: {counter.value} records skipped so far here; the last: {problems[-1]}",
            )

    def _finish(self, current: _OpenSplit) -> None:
        current.reader.close()
        self._open.popleft()
        self._finished.append(SplitState(split=current.split.to_json(), finished=True))
        if self._clock is not None:
            self._clock.finished(current.split.id)

    def _move_cap(self) -> None:
        # Splits that were assigned but not begun bound the watermark just as unassigned ones do.
        if self._clock is None:
            return
        cap = self._cap
        for state in self._assigned:
            earliest = Split.from_json(state.split).min_time
            cap = min(cap, WATERMARK_MIN if earliest is None else earliest - 1)
        self._clock.cap(cap)
