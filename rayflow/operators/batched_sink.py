"""`BatchedSink`: what a sink for a system outside is, apart from the one call that writes rows to it.

A sink of one's own is a few lines::

    class Posting(rf.BatchedSink):
        batching = rf.Batching(rows=500, linger="1s", in_flight=4)

        def open(self, ctx):
            self.client = httpx.Client(timeout=10)

        def write_batch(self, batch):
            self.client.post("https://example.org/rows", json=batch.to_pylist()).raise_for_status()

        def close(self):
            self.client.close()

Everything else (`operators.batched_writes` does it, and `protocol.batching` decides) comes with the base: batches by
rows, bytes, time and barriers, several requests at a time, order by key, tries, back-pressure, rate, poison rows,
metrics.

Delivery. A row counts as done when it is written or set aside. At a barrier all rows that wait are sent, and those that
are not done yet are part of the checkpoint, so it does not wait for a slow system, and no row is lost: after a restore
they are written, with what came behind them, once more. So rows are written at least once, in order by key: where
writing a row again changes nothing (an upsert by key), the effect is that of once. A checkpoint counts as committed,
and a job ends, when all rows before it are done.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from rayflow.model.durations import parse_duration_ms, parse_size
from rayflow.model.errors import ConfigError, DataError, RayflowError, TransientError, UserFunctionError
from rayflow.model.passing import may_pass
from rayflow.operators.contracts import Sink
from rayflow.protocol.batching_messages import Verdict

MAX_IN_FLIGHT = 16
"""Most requests of a subtask at a time: each is a thread of its process."""

_LONGEST_LINGER_MS = 24 * 3_600_000


class RetryLater(TransientError):
    """Raise it in `write_batch` where the system asks to be left alone for `after_ms` milliseconds at least."""

    def __init__(self, message: str, after_ms: int = 0) -> None:
        super().__init__(message, after_ms)
        self.message = message
        self.after_ms = after_ms

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How a sink's rows are written; per subtask.

    A batch is written when it has so many `rows` or `bytes`, when its oldest row has waited for `linger`, and at each
    barrier; up to `in_flight` batches at a time. A write that has not returned within `timeout` ends the attempt:
    nobody knows what became of it. One that fails in a way that may pass is tried again, with delays that grow from
    100 ms to 5 s, each shortened at random, for as long as `retry_for`; then the attempt ends. When twice as much as
    may be in flight is here, no more rows are taken. Raises ConfigError.
    """

    rows: int = 5_000
    bytes: int | str = "4MiB"
    linger: str | timedelta = "100ms"
    in_flight: int = 1
    timeout: str | timedelta = "30s"
    retry_for: str | timedelta = "60s"

    def __post_init__(self) -> None:
        for what, value, most in (
            ("rows", self.rows, 1 << 31),
            ("in_flight", self.in_flight, MAX_IN_FLIGHT),
            ("bytes", self.nbytes, 1 << 31),
            ("timeout, in ms,", self.timeout_ms, 1 << 31),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
                raise ConfigError(f"rf.Batching: {what} is {value!r}: expected 1 to {most}")
        if self.linger_ms > _LONGEST_LINGER_MS:
            raise ConfigError(f"rf.Batching: linger is {self.linger!r}: expected at most a day")

    @property
    def nbytes(self) -> int:
        """`bytes` as a number."""
        return parse_size(self.bytes)

    @property
    def linger_ms(self) -> int:
        """`linger` in milliseconds."""
        return parse_duration_ms(self.linger)

    @property
    def timeout_ms(self) -> int:
        """`timeout` in milliseconds."""
        return parse_duration_ms(self.timeout)

    @property
    def retry_for_ms(self) -> int:
        """`retry_for` in milliseconds."""
        return parse_duration_ms(self.retry_for)


class BatchedSink(Sink):
    """A public contract: a sink that writes batches of rows to a system outside.

    The object is pickled to where it runs. There, each of up to `batching.in_flight` requests has a shallow copy of
    it to itself: its methods are never called by two at a time, but for `close`. Per copy, on a thread that may block::

        open ─▶ { write_batch }* ─▶ close          and again from open, after an error that may pass

    `validate`, `start_job` and `finish_job` are those of `Sink`; its other methods play no part.
    """

    batching: Batching = Batching()
    """How rows are written; a class's, or set in `__init__`."""

    keys: Sequence[str] = ()
    """Columns by which writes must keep their order: rows equal in them come to one subtask, and are written in the
    order in which they come, never by two requests at a time. Without keys batches are written in any order."""

    request_id: str = ""
    """While `write_batch` runs: the name of the request, the same at each try of the same rows, and no other's."""

    detail: str = ""
    """What plans and `describe` say of it, besides its name. No secrets."""

    def behind(self, upsert_key: Sequence[str] | None) -> BatchedSink:
        """Return the sink for a stream: an upsert stream of that key, or (None) an append stream. Called when the plan
        is built. Raises PlanError where it cannot take such a stream."""
        return self

    @abstractmethod
    def write_batch(self, batch: pa.RecordBatch) -> None:
        """Write rows (at least one), all or none of them. What it raises is judged by `classify`. Should have
        timeouts of its own, shorter than `batching.timeout`, after which it raises."""

    def classify(self, error: Exception) -> Verdict:
        """Return what an error of `open` or `write_batch` is about: "retry" (may pass: the connection is made anew, and
        the rows are written again), "refused" (the rows: see `on_error`), or "fatal" (the job cannot go on).

        By default a `TransientError`, timeouts and errors of the operating system may pass (see `model.passing`); what
        rayflow raises about something else than rows is fatal; everything else is about the rows.
        """
        if may_pass(error):
            return "retry"
        ours = isinstance(error, RayflowError) and not isinstance(error, DataError | UserFunctionError)
        return "fatal" if ours or isinstance(error, MemoryError) else "refused"

    def close(self) -> None:
        """Let go of what `open` made. Called also where that failed half-way; and, when the attempt ends, while
        `write_batch` runs: closing its connection is the way to end it."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows here and now: what `Sink` promises, where nobody batches."""
        self.write_batch(batch)
