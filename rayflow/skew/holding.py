"""What combiners share: they hold what they made of rows, let it go as a whole, and leave nothing to restore.

Theory of operation
-------------------
What is held goes out, and is forgotten, as a whole: when there are `skew.rows` entries or `skew.bytes` of them, when
the oldest has waited for `skew.linger`, at a barrier, and at the end. So at most one row per entry and flush leaves a
subtask, and memory is bounded by the limits and one batch.

*Nothing to restore.* `snapshot` flushes, before the barrier leaves: what came before the barrier is before it on the
outputs (or, where the barrier overtakes, recorded with them), so a combiner has no state. That is also why rows of a
key may at any time go through another combiner, or none.

*Event time.* A watermark may not pass rows that are held: it waits with them, for as long as the linger at most, and
follows them; rows that come meanwhile are before it, so they are never late because of it. Word that the input is
idle waits too (`drained`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.contracts import Operator
from rayflow.state.parts import StatePart


class HoldingOperator(Operator):
    """Subclasses count what they hold in `_held_entries`, call `_held_more` after each batch, and emit it all in
    `_let_go`."""

    def __init__(self) -> None:
        self._held_entries = 0
        self._due_ms: int | None = None
        self._watermark: int | None = None

    @abstractmethod
    def _let_go(self) -> None:
        """Emit all that is held, and forget it."""

    @abstractmethod
    def _nbytes(self) -> int:
        """Return the bytes of memory held."""

    @abstractmethod
    def _shrink(self) -> None:
        """Begin with new, small tables: arrays do not shrink. Nothing is held."""

    def _held_more(self) -> None:
        """Let go of what is held where it is too much, else after a while."""
        config = self.ctx.config
        if self._held_entries >= config.skew_rows:
            self._flush()
        elif self._nbytes() >= config.skew_bytes:
            self._flush()
            self._shrink()
        elif self._due_ms is None:
            self._due_ms = self.ctx.now_ms() + config.skew_linger_ms

    def _flush(self) -> None:
        """Emit what is held, then the watermark that waits behind it."""
        self._due_ms = None
        if self._held_entries:
            self._let_go()
            self._held_entries = 0
        watermark, self._watermark = self._watermark, None
        if watermark is not None:
            self.out.emit_watermark(watermark)

    def on_watermark(self, watermark: int) -> int | None:
        """Let it wait behind what is held."""
        if watermark >= WATERMARK_MAX:
            self._flush()
        if not self._held_entries:
            return watermark
        self._watermark = watermark if self._watermark is None else max(watermark, self._watermark)
        return None

    def next_timer_ms(self) -> int | None:
        """See `Operator`."""
        return self._due_ms

    def on_timer(self, now_ms: int) -> None:
        """What is held has waited long enough."""
        if self._due_ms is not None and now_ms >= self._due_ms:
            self._flush()

    def drained(self) -> bool:
        """See `Operator`."""
        return not self._held_entries

    def end(self) -> None:
        """See `Operator`."""
        self._flush()

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """Flush: there is nothing to store."""
        self._flush()
        return ()
