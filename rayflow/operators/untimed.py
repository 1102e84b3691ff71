"""Rows without event time beside rows that have it.

A stream without event time brings no watermarks, and whoever reads two streams waits for those of both. So this
operator says after every batch that its stream has nothing to say about event time: it is idle in that respect.
"""

from __future__ import annotations

import pyarrow as pa

from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.contracts import Operator


class UntimedOperator(Operator):
    """Passes rows on; watermarks need not wait for them."""

    def __init__(self) -> None:
        self._told = False

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """See `Operator`."""
        self.out.emit(batch)
        self.out.emit_idle()

    def on_watermark(self, watermark: int) -> int | None:
        """See `Operator`."""
        return watermark if watermark == WATERMARK_MAX else None

    def next_timer_ms(self) -> int | None:
        """See `Operator`. Due at once at the beginning: rows may be long in coming."""
        return None if self._told else 0

    def on_timer(self, now_ms: int) -> None:
        """See `Operator`."""
        self._told = True
        self.out.emit_idle()
