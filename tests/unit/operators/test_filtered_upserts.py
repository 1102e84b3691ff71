"""What a filter makes of an upsert stream."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.batch.changelog import DELETE, INSERT, OP_COLUMN, UPDATE_AFTER, UPDATE_BEFORE, with_op
from rayflow.batch.expressions import col
from rayflow.operators.stateless import FilterOperator


def changes(*rows: tuple[int, str, int | None]) -> pa.RecordBatch:
    operations = np.array([op for op, _, _ in rows], np.int8)
    plain = pa.record_batch(
        {"k": pa.array([k for _, k, _ in rows]), "n": pa.array([n for _, _, n in rows], pa.int64())}
    )
    return with_op(plain, operations)


def filtered(harness: Any, batch: pa.RecordBatch) -> list[tuple[int, str, int | None]]:
    rows = harness(lambda: FilterOperator(col("n") < 2)).feed(batch).rows
    return [(row[OP_COLUMN], row["k"], row["n"]) for row in rows]


@pytest.mark.parametrize(
    ("change", "becomes"),
    [
        ((INSERT, "a", 1), [(INSERT, "a", 1)]),
        ((INSERT, "a", 2), []),
        ((UPDATE_AFTER, "a", 1), [(UPDATE_AFTER, "a", 1)]),
        ((UPDATE_AFTER, "a", 2), [(DELETE, "a", 2)]),
        ((UPDATE_AFTER, "a", None), [(DELETE, "a", None)]),
        ((UPDATE_BEFORE, "a", 2), []),
        ((DELETE, "a", 1), [(DELETE, "a", 1)]),
        ((DELETE, "a", 2), [(DELETE, "a", 2)]),
    ],
)
def test_an_update_to_a_row_that_is_not_kept_deletes_it(harness: Any, change: Any, becomes: Any) -> None:
    assert filtered(harness, changes(change)) == becomes


def last_rows(rows: list[tuple[int, str, int | None]]) -> dict[str, int | None]:
    table: dict[str, int | None] = {}
    for op, key, n in rows:
        if op in (INSERT, UPDATE_AFTER):
            table[key] = n
        elif op == DELETE:
            table.pop(key, None)
    return table


@given(st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 3)), min_size=1, max_size=20))
def test_the_last_rows_are_those_of_the_filtered_last_rows(harness: Any, updates: Any) -> None:
    seen: set[str] = set()
    rows = []
    for key, n in updates:
        rows.append((UPDATE_AFTER if key in seen else INSERT, key, n))
        seen.add(key)
    want = {key: n for key, n in last_rows(rows).items() if n is not None and n < 2}
    assert last_rows(filtered(harness, changes(*rows))) == want
