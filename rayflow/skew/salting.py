"""Hot keys take another way: rows of the keys that are salted at present go to the side output `SALTED`.

Theory of operation
-------------------
Every sender watches which keys its rows have (`batch.key_traffic`, a sample that forgets) and tells the job master
with each heartbeat; `protocol.salting` decides there which keys are hot, and the senders are told. Rows of these
keys go to the side output, whose exchange spreads them over all subtasks of a combiner, and come as partial
aggregates to where all other rows go directly.

A new set takes effect at the next barrier, or after `SWITCH_MS` where none comes (checkpoints may be off, or minutes
apart). Either is right: neither way holds anything of a key across a barrier, since combiners flush before it, and
what rows of a key become does not depend on the way each took, since partial aggregates may be merged in any order
and any number. So no update is lost or counted twice, wherever the switch falls, even if senders do it at different
times. (Results for which the order of rows counts are not salted this way; see `api.skew`.) So a restarted sender
may begin without any.

Keys are known by their 64-bit hash. Keys that share one are salted together, which is no harm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.hashing import Hashes, hash_columns
from rayflow.batch.key_traffic import KeyTraffic
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.state.parts import RestoredPart, StatePart

SALTED = "salted"

SWITCH_MS = 1_000


class SaltOperator(Operator):
    """Passes rows, or partial aggregates, on: those of salted keys (by the columns `keys`) to `SALTED`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(keys)
        self._traffic: KeyTraffic | None = None
        # Replaced as a whole, since heartbeats read them on another thread.
        self._salted: Hashes = np.empty(0, np.uint64)
        self._coming: tuple[Hashes, int] | None = None

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._traffic = KeyTraffic(self._keys, ctx.max_parallelism, show_keys=False)
        self._rows_salted = ctx.metrics.counter("rows_salted")

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Send each row its way."""
        rows = visible(batch)
        hashes = hash_columns(rows, self._keys)
        assert self._traffic is not None, "rows come after open"
        self._traffic.tick(self.ctx.now_ms())
        self._traffic.observe(rows, hashes)
        if self._coming is not None and self.ctx.now_ms() >= self._coming[1]:
            self._switch()
        if len(self._salted) == 0:
            self.out.emit(rows)
            return
        at = np.searchsorted(self._salted, hashes)
        hot = self._salted.take(at, mode="clip") == hashes
        count = int(np.count_nonzero(hot))
        self._rows_salted.inc(count)
        if count == 0:
            self.out.emit(rows)
        elif count == rows.num_rows:
            self.out.emit_side(SALTED, rows)
        else:
            self.out.emit_side(SALTED, rows.filter(pa.array(hot)))
            self.out.emit(rows.filter(pa.array(~hot)))

    def hot_keys(self) -> dict[str, Any] | None:
        """See `Operator`."""
        if self._traffic is None:  # a heartbeat while it is opened
            return None
        sketch = self._traffic.statistics()["hot_keys"]
        salted = self._salted if self._coming is None else self._coming[0]
        return {
            "rows": sketch["total"],
            "counts": [[key, estimate - error] for key, _, estimate, error in sketch["entries"]],
            "salted": salted.tolist(),
        }

    def salt(self, keys: Sequence[int]) -> None:
        """See `Operator`."""
        self._coming = (np.array(sorted(keys), np.uint64), self.ctx.now_ms() + SWITCH_MS)

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """The barrier: what is to be salted from now on takes effect."""
        self._switch()
        return ()

    def _switch(self) -> None:
        coming = self._coming
        if coming is not None:
            # In this order: whoever looks in between sees the set that is right.
            self._salted = coming[0]
            self._coming = None
