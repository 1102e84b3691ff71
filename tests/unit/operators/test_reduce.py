from __future__ import annotations

import math
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import INSERT, OP_COLUMN, UPDATE_AFTER, UPDATE_BEFORE
from rayflow.model.errors import UserFunctionError
from rayflow.operators.reduce import ReduceOperator

SCHEMA = pa.schema([("v", pa.int64()), ("k", pa.string()), ("all", pa.list_(pa.int64()))])


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    total = None if old["v"] is None or new["v"] is None else old["v"] + new["v"]
    return {"v": total, "all": old["all"] + new["all"]}


def make(emit_before: bool = False, fn: Any = joined, schema: pa.Schema = SCHEMA) -> ReduceOperator:
    return ReduceOperator(fn, ("k",), schema, emit_before)


def batch(*rows: tuple[str | None, int | None]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist([{"v": v, "k": k, "all": [v]} for k, v in rows], schema=SCHEMA)


def changes(driven: Any) -> list[tuple[Any, ...]]:
    return [(row[OP_COLUMN], row["k"], row["v"], row["all"]) for row in driven.rows]


def test_a_key_has_its_first_row_and_then_what_the_function_makes(harness: Any) -> None:
    driven = harness(make)
    driven.feed(batch(("a", 1), ("b", None), ("a", 2))).feed(batch((None, 7), ("a", 10)))
    assert changes(driven) == [
        (INSERT, "a", 3, [1, 2]),
        (INSERT, "b", None, [None]),
        (INSERT, None, 7, [7]),
        (UPDATE_AFTER, "a", 13, [1, 2, 10]),
    ]
    assert driven.batches[0].schema.names == ["v", "k", "all", OP_COLUMN]


def test_the_old_row_comes_just_before_the_new_one(harness: Any) -> None:
    driven = harness(lambda: make(emit_before=True), batch_rows=2)
    driven.feed(batch(("a", 1), ("b", 5))).feed(batch(("b", 1), ("c", 2), ("a", 1)))
    assert [row[:3] for row in changes(driven)[2:]] == [
        (UPDATE_BEFORE, "b", 5),
        (UPDATE_AFTER, "b", 6),
        (INSERT, "c", 2),
        (UPDATE_BEFORE, "a", 1),
        (UPDATE_AFTER, "a", 2),
    ]
    assert max(b.num_rows for b in driven.batches) == 2


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda old, new: 1 // 0, r"ZeroDivisionError.*\n  in <lambda>"),
        (lambda old, new: None, r"returned None \(NoneType\), expected a dict with 'v', 'k', 'all'"),
        (
            lambda old, new: {**old, "k": "z"},
            "returned 'z' for key column 'k', expected 'a': a row stays with its",
        ),
        (lambda old, new: {"v": "text"}, "do not fit returns=: row 0: column 'v' is 'text', expected int64"),
        (lambda old, new: {"w": 1}, "rows have the column 'w', which the schema does not name"),
    ],
)
def test_what_the_function_does_wrong_names_operator_line_and_rows(
    harness: Any, fn: Any, message: str
) -> None:
    driven = harness(lambda: make(fn=fn))
    with pytest.raises(UserFunctionError, match=message) as caught:
        driven.feed(batch(("a", 1), ("a", 2)))
    assert "my operator" in str(caught.value)
    assert "k: 'a'" in str(caught.value)


def test_a_nan_key_stays_with_itself(harness: Any) -> None:
    schema = pa.schema([("k", pa.float64()), ("n", pa.int8())])
    driven = harness(lambda: make(fn=lambda old, new: {**new, "n": old["n"] + new["n"]}, schema=schema))
    driven.feed(
        pa.RecordBatch.from_pylist([{"k": math.nan, "n": 1}, {"k": -math.nan, "n": 2}], schema=schema)
    )
    assert [row["n"] for row in driven.rows] == [3]


class Opened:
    def open(self, ctx: Any) -> None:
        self.calls = ctx.counter("calls")

    def __call__(self, old: Any, new: Any) -> Any:
        self.calls.inc()
        return new


def test_a_function_may_be_a_class_with_open_and_close(harness: Any) -> None:
    driven = harness(lambda: make(fn=Opened)).feed(batch(("a", 1), ("a", 2), ("a", 3)))
    assert driven.metrics.counter("calls").value == 2
    assert changes(driven) == [(INSERT, "a", 3, [3])]


ROWS = st.lists(st.tuples(st.sampled_from(["a", "b", None]), st.none() | st.integers(-9, 9)), max_size=30)


DISK = st.sampled_from([None, 1, 1 << 20])
"""Bytes for state with `state.backend=disk`; those of one byte keep next to nothing in memory."""


@given(
    ROWS, st.sampled_from([1, 7, 100]), st.integers(0, 5), st.integers(1, 3), st.integers(1, 3), DISK, DISK
)
@settings(max_examples=60, deadline=None)
def test_the_last_row_per_key_folds_all_rows_whatever_was_restarted(
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
    expected: dict[Any, Any] = {}
    for key, value in rows:
        row = {"v": value, "all": [value]}
        expected[key] = joined(expected[key], row) if key in expected else row
    assert {row["k"]: {"v": row["v"], "all": row["all"]} for row in driven.rows} == expected
    inserts = [row["k"] for row in driven.rows if row[OP_COLUMN] == INSERT]
    assert len(inserts) == len(set(inserts)) == len(expected)
