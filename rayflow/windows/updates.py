"""Results that come more than once: new rows, with the old row of an update just before each where asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.changelog import INSERT, UPDATE_AFTER, UPDATE_BEFORE, with_op


def updated_rows(
    after: pa.RecordBatch, is_new: npt.NDArray[np.bool_], before: pa.RecordBatch | None, max_rows: int
) -> Iterator[pa.RecordBatch]:
    """Yield `after` with its operations, in pieces of at most `max_rows` (but at least 2). `before` has the old row
    for each of those that are not new, in the same order; None where nobody wants them."""
    after = with_op(after, np.where(is_new, INSERT, UPDATE_AFTER).astype(np.int8))
    old_begin = 0
    step = max_rows if before is None else max(1, max_rows // 2)
    for begin in range(0, after.num_rows, step):
        piece, new = after.slice(begin, step), is_new[begin : begin + step]
        if before is None or new.all():
            yield piece
            continue
        old_count = len(new) - int(np.count_nonzero(new))
        old = with_op(before.slice(old_begin, old_count), UPDATE_BEFORE)
        old_begin += old_count
        yield _interleaved(old, piece, new)


def _interleaved(
    before: pa.RecordBatch, after: pa.RecordBatch, is_new: npt.NDArray[np.bool_]
) -> pa.RecordBatch:
    after_rows = np.arange(after.num_rows) + before.num_rows
    old_rows = np.cumsum(~is_new) - 1
    pairs = np.stack([np.where(is_new, -1, old_rows), after_rows], axis=1).ravel()
    return pa.concat_batches([before, after]).take(pa.array(pairs[pairs >= 0]))
