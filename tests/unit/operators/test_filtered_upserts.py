"""What a filter makes of an upsert stream."""

from __future__ import annotations

from collections import Counter
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


def test_a_function_is_not_asked_about_rows_that_are_gone(harness: Any) -> None:
    driven = harness(lambda: FilterOperator(lambda row: row["n"] < 2))
    driven.feed(changes((INSERT, "a", 1), (DELETE, "b", None), (UPDATE_AFTER, "c", 2)))
    assert [(row[OP_COLUMN], row["k"]) for row in driven.rows] == [
        (INSERT, "a"),
        (DELETE, "b"),
        (DELETE, "c"),
    ]


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


# ------------------------------------------------------------------------------------ with old rows


def filtered_pairs(harness: Any, *batches: pa.RecordBatch) -> list[tuple[int, str, int | None]]:
    driven = harness(lambda: FilterOperator(col("n") < 2, False, True))
    for batch in batches:
        driven.feed(batch)
    return [(row[OP_COLUMN], row["k"], row["n"]) for row in driven.rows]


@pytest.mark.parametrize(
    ("old", "new", "becomes"),
    [
        (0, 1, [(UPDATE_BEFORE, "a", 0), (UPDATE_AFTER, "a", 1)]),
        (0, 2, [(DELETE, "a", 0)]),
        (2, 0, [(INSERT, "a", 0)]),
        (2, None, []),
    ],
)
def test_an_update_of_which_one_row_is_kept_is_a_deletion_or_an_insertion(
    harness: Any, old: Any, new: Any, becomes: Any
) -> None:
    pair = changes((UPDATE_BEFORE, "a", old), (UPDATE_AFTER, "a", new))
    assert filtered_pairs(harness, pair) == becomes
    # Cut in the middle, the same rows come and go.
    cut = filtered_pairs(harness, pair.slice(0, 1), pair.slice(1))
    assert Counter((n, op in (INSERT, UPDATE_AFTER)) for op, _, n in cut) == Counter(
        (n, op in (INSERT, UPDATE_AFTER)) for op, _, n in becomes
    )


def test_a_deletion_passes_only_if_its_row_did(harness: Any) -> None:
    rows = changes((INSERT, "a", 1), (INSERT, "b", 5), (DELETE, "b", 5), (DELETE, "a", 1))
    assert filtered_pairs(harness, rows) == [(INSERT, "a", 1), (DELETE, "a", 1)]


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 3)), min_size=1, max_size=20),
    st.integers(1, 5),
)
def test_rows_come_and_go_as_if_only_kept_ones_existed(harness: Any, updates: Any, cut: int) -> None:
    there: dict[str, Any] = {}
    rows: list[tuple[int, str, int | None]] = []
    for key, n in updates:
        if key not in there:
            rows.append((INSERT, key, n))
        elif there[key] == n:
            rows.append((DELETE, key, n))
            del there[key]
            continue
        else:
            rows += [(UPDATE_BEFORE, key, there[key]), (UPDATE_AFTER, key, n)]
        there[key] = n
    counts: Counter[Any] = Counter()
    batches = [changes(*rows[at : at + cut]) for at in range(0, len(rows), cut)]
    for op, key, n in filtered_pairs(harness, *batches):
        counts[key, n] += 1 if op in (INSERT, UPDATE_AFTER) else -1
        assert counts[key, n] in (0, 1)
    assert +counts == Counter({(k, n): 1 for k, n in there.items() if n is not None and n < 2})
