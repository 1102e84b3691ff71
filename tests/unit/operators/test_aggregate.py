from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.changelog import DELETE, INSERT, OP_COLUMN, UPDATE_AFTER, UPDATE_BEFORE, with_op
from rayflow.batch.expressions import col
from rayflow.model.errors import UserFunctionError
from rayflow.operators.aggregate import RunningAggregateOperator

SCHEMA = pa.schema([("k", pa.string()), ("v", pa.int64())])
AGGREGATES = [("n", count()), ("total", col("v").sum()), ("longest", col("v").max())]


def make(emit_before: bool = False) -> RunningAggregateOperator:
    return RunningAggregateOperator(("k",), AGGREGATES, SCHEMA, emit_before)


def batch(*rows: tuple[str | None, int | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([k for k, _ in rows], pa.string()), pa.array([v for _, v in rows], pa.int64())],
        schema=SCHEMA,
    )


def changes(driven: Any) -> list[tuple[Any, ...]]:
    return [(row[OP_COLUMN], row["k"], row["n"], row["total"]) for row in driven.rows]


def test_a_key_is_inserted_once_and_updated_once_per_batch(harness: Any) -> None:
    driven = harness(make)
    driven.feed(batch(("a", 1), ("b", 5), ("a", 2))).feed(batch(("c", None), ("a", 10)))
    assert changes(driven) == [
        (INSERT, "a", 2, 3),
        (INSERT, "b", 1, 5),
        (INSERT, "c", 1, None),
        (UPDATE_AFTER, "a", 3, 13),
    ]
    assert driven.batches[0].schema.names == ["k", "n", "total", "longest", OP_COLUMN]


def test_the_old_row_comes_just_before_the_new_one(harness: Any) -> None:
    driven = harness(lambda: make(emit_before=True))
    driven.feed(batch(("a", 1), ("b", 5))).feed(batch(("b", 1), ("c", 2), ("a", 1)))
    assert changes(driven)[2:] == [
        (UPDATE_BEFORE, "b", 1, 5),
        (UPDATE_AFTER, "b", 2, 6),
        (INSERT, "c", 1, 2),
        (UPDATE_BEFORE, "a", 1, 1),
        (UPDATE_AFTER, "a", 2, 2),
    ]


def test_output_is_cut_to_the_batch_size(harness: Any) -> None:
    driven = harness(make, batch_rows=2).feed(batch(("a", 1), ("b", 1), ("c", 1)))
    assert [b.num_rows for b in driven.batches] == [2, 1]


def test_an_overflow_names_the_aggregate(harness: Any) -> None:
    driven = harness(make)
    with pytest.raises(UserFunctionError, match=r"aggregate 'total'.*does not fit int64"):
        driven.feed(batch(("a", 2**63 - 1), ("a", 1)))


def test_first_and_last_go_by_the_time_column(harness: Any) -> None:
    schema = pa.schema([("k", pa.int8()), ("t", pa.timestamp("s"))])
    aggregates = [("first", col("t").first()), ("last", col("t").last())]
    driven = harness(lambda: RunningAggregateOperator(("k",), aggregates, schema, False, "t"))
    rows = pa.RecordBatch.from_arrays(
        [pa.array([1, 1, 1], pa.int8()), pa.array([5, 9, 2], pa.timestamp("s"))], schema=schema
    )
    (row,) = driven.feed(rows).rows
    assert (row["first"].second, row["last"].second) == (2, 9)


ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", None]), st.none() | st.integers(-9, 9)), max_size=40
)


DISK = st.sampled_from([None, 1, 40_000])
"""Memory for state, with the rest on disk: everything leaves at once; or some; None: there is no disk."""


@given(
    ROWS, st.sampled_from([1, 7, 100]), st.integers(0, 5), st.integers(1, 3), st.integers(1, 3), DISK, DISK
)
@settings(max_examples=60, deadline=None)
def test_the_last_row_per_key_is_the_aggregate_over_all_rows_whatever_was_restarted(
    subtasks: Any,
    rows: list[Any],
    cut: int,
    restart_after: int,
    before: int,
    after: int,
    disk_before: int | None,
    disk_after: int | None,
) -> None:
    driven = subtasks(make, ["k"], before, disk_bytes=disk_before)
    for number, at in enumerate(range(0, len(rows), cut)):
        if number == restart_after:
            driven.restart(1, after, disk_bytes=disk_after)
        driven.feed(batch(*rows[at : at + cut]))
    final = {row["k"]: (row["n"], row["total"], row["longest"]) for row in driven.rows}
    expected = {}
    for key in {k for k, _ in rows}:
        values = [v for k, v in rows if k == key and v is not None]
        number = sum(k == key for k, _ in rows)
        expected[key] = (number, sum(values) if values else None, max(values, default=None))
    assert final == expected
    inserts = [row["k"] for row in driven.rows if row[OP_COLUMN] == INSERT]
    assert len(inserts) == len(set(inserts)) == len(expected)


# ----------------------------------------------------------------------------------- of upsert streams


def retracting(emit_before: bool = False) -> RunningAggregateOperator:
    return RunningAggregateOperator(("k",), AGGREGATES, SCHEMA, emit_before, retracts=True)


def changelog(*rows: tuple[int, str | None, int | None]) -> pa.RecordBatch:
    return with_op(batch(*((k, v) for _, k, v in rows)), np.array([op for op, *_ in rows], np.int8))


def test_rows_that_go_are_taken_back_and_a_key_without_rows_is_deleted(harness: Any) -> None:
    driven = harness(lambda: retracting(emit_before=True))
    driven.feed(changelog((INSERT, "a", 1), (INSERT, "a", 5), (INSERT, "b", 7)))
    driven.events.clear()
    driven.feed(
        changelog((UPDATE_BEFORE, "a", 5), (UPDATE_AFTER, "a", 3), (DELETE, "b", 7), (INSERT, "c", None))
    )
    assert changes(driven) == [
        (UPDATE_BEFORE, "a", 2, 6),
        (UPDATE_AFTER, "a", 2, 4),
        (DELETE, "b", 1, 7),
        (INSERT, "c", 1, None),
    ]
    assert driven.snapshot(1)[0].table.num_rows == 2


def test_a_deletion_says_no_more_than_the_key_unless_old_rows_are_wanted(harness: Any) -> None:
    driven = harness(retracting).feed(changelog((INSERT, "a", 1), (INSERT, "b", 1)))
    driven.feed(changelog((INSERT, "b", 2), (DELETE, "a", 1)))
    assert changes(driven)[2:] == [(UPDATE_AFTER, "b", 2, 3), (DELETE, "a", None, None)]


def test_a_key_that_comes_and_goes_within_a_batch_is_not_mentioned(harness: Any) -> None:
    driven = harness(retracting).feed(changelog((INSERT, "a", 1), (DELETE, "a", 1)))
    assert driven.rows == []
    assert changes(driven.feed(changelog((INSERT, "a", 2)))) == [(INSERT, "a", 1, 2)]


def test_an_update_that_changes_nothing_is_left_out(harness: Any) -> None:
    aggregates = [("low", col("v").min()), ("mean", (col("v") * float("nan")).mean())]
    driven = harness(lambda: RunningAggregateOperator(("k",), aggregates, SCHEMA, True))
    driven.feed(batch(("a", 1), ("b", 5), ("c", None))).feed(batch(("a", 3), ("b", 2), ("c", None)))
    assert [(row[OP_COLUMN], row["k"]) for row in driven.rows[3:]] == [
        (UPDATE_BEFORE, "b"),
        (UPDATE_AFTER, "b"),
    ]


@given(
    st.data(),
    ROWS,
    st.sampled_from([1, 7, 100]),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    DISK,
    DISK,
)
@settings(max_examples=80, deadline=None)
def test_what_is_told_is_the_aggregate_of_the_rows_that_are_there(
    subtasks: Any,
    data: Any,
    rows: Any,
    cut: int,
    restart_after: int,
    before: int,
    after: int,
    pairs: bool,
    disk_before: int | None,
    disk_after: int | None,
) -> None:
    there: list[tuple[str | None, int | None]] = []
    given: list[tuple[int, str | None, int | None]] = []
    for row in rows:
        while there and data.draw(st.booleans()):
            given.append((data.draw(st.sampled_from([DELETE, UPDATE_BEFORE])), *there.pop()))
        there.append(row)
        given.append((data.draw(st.sampled_from([INSERT, UPDATE_AFTER])), *row))
    driven = subtasks(lambda: retracting(pairs), ["k"], before, disk_bytes=disk_before)
    for number, at in enumerate(range(0, len(given), cut)):
        if number == restart_after:
            driven.restart(1, after, disk_bytes=disk_after)
        driven.feed(changelog(*given[at : at + cut]))
    assert told(driven.rows, pairs) == aggregated(there)


def told(rows: list[dict[str, Any]], pairs: bool) -> dict[Any, Any]:
    """Apply changes, checking that each fits what was there."""
    table: dict[Any, Any] = {}
    for row in rows:
        key, values, op = row["k"], (row["n"], row["total"], row["longest"]), row[OP_COLUMN]
        assert (key in table) == (op != INSERT)
        if op == UPDATE_BEFORE or (op == DELETE and pairs):
            assert table[key] == values
        if op == DELETE:
            del table[key]
        elif op != UPDATE_BEFORE:
            table[key] = values
    return table


def aggregated(rows: list[Any]) -> dict[Any, Any]:
    found = {}
    for key, count_ in Counter(k for k, _ in rows).items():
        values = [v for k, v in rows if k == key and v is not None]
        found[key] = (count_, sum(values) if values else None, max(values, default=None))
    return found
