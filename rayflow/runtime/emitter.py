"""What leaves a task: rows, event time, and the word that it is idle, over all output edges.

Theory of operation. Word that the input is idle waits until the chain owes nothing: who hears it stops waiting for this
task's rows. It is said again behind rows that a timer brings out meanwhile, since rows make a channel active; and it
is void as soon as anything comes in. Once all inputs have ended it is not said any more: the end says more, and nothing
may follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from rayflow.observe.metrics import MetricGroup
from rayflow.runtime.messages import Frame, IdleFrame
from rayflow.runtime.outputs import OutputEdge


class Emitter:
    """The output edges of one task as one. Task thread only.

    `drained` returns whether the chain owes no rows of what came in.
    """

    def __init__(
        self,
        edges: Sequence[OutputEdge],
        metrics: MetricGroup,
        *,
        drained: Callable[[], bool],
        now_ms: Callable[[], int],
    ) -> None:
        self._edges = edges
        self._rows_out = metrics.counter("rows_out")
        self._drained = drained
        self._now_ms = now_ms
        self._input_ended = False
        self._owes_idle = False
        # Said, and nothing has come in since.
        self._idle = False

    @property
    def full(self) -> bool:
        """Whether some output is full."""
        # Asked several times a step: a loop, not a generator.
        for edge in self._edges:  # noqa: SIM110
            if edge.full:
                return True
        return False

    @property
    def deadline_ms(self) -> int | None:
        """When something that was emitted has waited long enough."""
        earliest = None
        for edge in self._edges:
            due = edge.deadline_ms
            if due is not None and (earliest is None or due < earliest):
                earliest = due
        return earliest

    def emit(self, tag: str | None, batch: pa.RecordBatch) -> None:
        """The chain emitted rows (tag None: the main output)."""
        self._rows_out.inc(batch.num_rows)
        # A timer's: to whoever gets them, the channel is active again.
        self._owes_idle |= self._idle
        for edge in self._edges:
            if edge.tag == tag:
                edge.emit(batch, self._now_ms())

    def emit_watermark(self, watermark: int) -> None:
        """A watermark has passed the chain."""
        self._owes_idle |= self._idle
        for edge in self._edges:
            edge.emit_watermark(watermark, self._now_ms())

    def emit_idle(self) -> None:
        """The chain has nothing to say about event time for now, once it owes no rows."""
        if self._input_ended:
            self._idle = self._owes_idle = False
            return
        self._owes_idle = not self._drained()
        self._idle = not self._owes_idle
        if self._idle:
            self.broadcast(IdleFrame())
            # Now: where time alone made it idle, nothing may come that would have it sent later.
            self.pump()

    def catch_up_on_idle(self) -> None:
        """Say that the task is idle, if that is owed and can be said by now."""
        if self._owes_idle:
            self.emit_idle()

    def resume(self) -> None:
        """Rows or event time came in: the task is not idle."""
        self._idle = self._owes_idle = False

    def end_input(self) -> None:
        """All inputs have ended."""
        self._input_ended = True

    def broadcast(self, frame: Frame) -> None:
        """Put a frame behind all rows, on every output."""
        for edge in self._edges:
            edge.broadcast(frame)

    def flush(self) -> None:
        """Queue what was gathered, and send what has credit."""
        for edge in self._edges:
            edge.flush()
        self.pump()

    def pump(self) -> bool:
        """Send what has waited long enough and has credit; return whether anything was sent."""
        sent = False
        for edge in self._edges:
            sent |= edge.pump(self._now_ms())
        return sent
