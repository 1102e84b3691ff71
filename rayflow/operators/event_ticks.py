"""Event times as whole numbers of the column's unit, for operators that do arithmetic with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.operators.contracts import OperatorContext
from rayflow.operators.functions import user_error

I64 = npt.NDArray[np.int64]

_INT64 = np.iinfo(np.int64)


def ticks_of(ctx: OperatorContext, rows: pa.RecordBatch, column: str, margin: int) -> I64:
    """Return the times in `column` (a timestamp without nulls) as numbers. A time nearer than `margin` to the end of
    what the column holds is refused, with a user's error."""
    times = rows.column(column)
    ticks: I64 = np.array(times.cast(pa.int64()).to_numpy())
    if len(ticks) and (
        int(ticks.min()) < _INT64.min + margin + 1 or int(ticks.max()) > _INT64.max - margin - 1
    ):
        raise user_error(
            ctx,
            f"column {column!r}: a timestamp is so near the end of what {times.type} can hold that its window is not; "
            "filter such rows out",
            rows,
        )
    return ticks
