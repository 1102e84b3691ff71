"""`reduce` before the exchange: rows of a key become one row, by the user's own function, before they travel.

A reduced row has the columns of the rows it is made of, so the operator behind the exchange takes it as it takes any.
That gives what it would have given only if the function is associative, `fn(a, fn(b, c)) == fn(fn(a, b), c)`: whoever
asks for it says so. Rows of a key stay in the order in which they came here, so it need not be commutative.

Where combining does not pay (see `reduction`) rows are passed on as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.tables import slice_rows
from rayflow.operators.contracts import OperatorContext, Output
from rayflow.operators.reduce import ReducedRows
from rayflow.skew.holding import HoldingOperator
from rayflow.skew.reduction import Reduction
from rayflow.state.parts import RestoredPart


class ReduceBeforeOperator(HoldingOperator):
    """Makes one row per key of rows of `schema`, by an associative `fn`; see `operators.reduce`."""

    def __init__(self, fn: Callable[[Any, Any], Any], keys: tuple[str, ...], schema: pa.Schema) -> None:
        super().__init__()
        self._rows = ReducedRows(fn, keys, schema)
        self._reduction = Reduction()
        self._held_inputs = 0

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._rows.fn.open(ctx)
        self._combined = ctx.metrics.counter("rows_combined")
        self._passed = ctx.metrics.counter("rows_passed_on")

    def close(self) -> None:
        """See `Operator`."""
        self._rows.fn.close()

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Hold rows, or pass them on."""
        rows = visible(batch)
        if self._reduction.passes:
            self._reduction.passed(rows.num_rows)
            self._flush()
            self._passed.inc(rows.num_rows)
            self.out.emit(rows)
            return
        _, _, is_new = self._rows.reduce(rows)
        self._held_entries += int(np.count_nonzero(is_new))
        self._held_inputs += rows.num_rows
        self._held_more()

    def _nbytes(self) -> int:
        return self._rows.nbytes

    def _shrink(self) -> None:
        self._rows.clear()

    def _let_go(self) -> None:
        index = self._rows.index
        live = index.live()
        self._combined.inc(self._held_inputs)
        self._reduction.combined(self._held_inputs, len(live))
        self._held_inputs = 0
        for piece in slice_rows(self._rows.rows(live), max_rows=self.ctx.batch_rows):
            self.out.emit(piece)
        index.remove(live)
