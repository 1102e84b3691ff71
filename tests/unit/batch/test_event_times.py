from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.batch.event_times import believed_times

MS = 1_000_000


def batch(*times: int | None, nullable: bool = True) -> pa.RecordBatch:
    schema = pa.schema([("n", pa.int64()), pa.field("t", pa.timestamp("ms"), nullable=nullable)])
    columns = [pa.array(range(len(times)), pa.int64()), pa.array(times, pa.timestamp("ms"))]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def judged(*times: int | None, limit: int | None, step: int | None) -> tuple[list[Any], int | None, int, int]:
    found = believed_times(
        batch(*times),
        "t",
        MS,
        None if limit is None else limit * MS,
        None if step is None else step * MS,
    )
    ticks = found.batch.column("t").cast(pa.int64()).to_pylist()
    return ticks, None if found.newest is None else found.newest // MS, found.nulls, found.future


@pytest.mark.parametrize(
    ("times", "limit", "step", "kept", "newest", "nulls", "future"),
    [
        ((5, 10**9, None), None, None, [5, 10**9, None], 10**9, 1, 0),  # nothing to judge by
        ((5, 7), 10, 3, [5, 7], 7, 0, 0),
        ((5, 99), 10, 3, [5, None], 5, 0, 1),
        ((8, 11, 14, 17), 10, 3, [8, 11, 14, 17], 17, 0, 0),  # step by step
        ((17, 8, 14, 11, 99, 98), 10, 3, [17, 8, 14, 11, None, None], 17, 0, 2),
        ((99, 100), 10, 3, [None, None], None, 0, 2),  # none can be believed
        ((10**9, 5), None, 3, [None, 5], 5, 0, 1),  # the first rows: their median
        ((-(10**9), 5, 6, 7), None, 3, [-(10**9), 5, 6, 7], 7, 0, 0),  # the past is no harm
        ((10**9,), None, 3, [10**9], 10**9, 0, 0),
        ((None, None), 10, 3, [None, None], None, 2, 0),
        ((-(2**62), 2**62), 0, 3, [-(2**62), None], -(2**62), 0, 1),
    ],
)
def test_times(times: Any, limit: Any, step: Any, kept: Any, newest: Any, nulls: int, future: int) -> None:
    assert judged(*times, limit=limit, step=step) == (kept, newest, nulls, future)


@given(
    st.lists(st.one_of(st.none(), st.integers(-50, 200)), max_size=12),
    st.integers(-20, 100),
    st.integers(0, 30),
)
def test_equals_a_model_that_goes_up_row_by_row(times: list[int | None], limit: int, step: int) -> None:
    bound = limit
    believed = None
    for time in sorted(t for t in times if t is not None):
        if time > bound:
            break
        believed = time
        bound = max(bound, time + step)
    kept = [t if t is not None and believed is not None and t <= believed else None for t in times]
    future = sum(t is not None for t in times) - sum(t is not None for t in kept)
    assert judged(*times, limit=limit, step=step) == (kept, believed, times.count(None), future)


def test_the_column_can_be_null_in_every_batch_as_soon_as_times_are_judged() -> None:
    given_batch = batch(1, 2, nullable=False)
    assert believed_times(given_batch, "t", MS, 10 * MS, 3 * MS).batch.schema.field("t").nullable
    assert not believed_times(given_batch, "t", MS, None, None).batch.schema.field("t").nullable
