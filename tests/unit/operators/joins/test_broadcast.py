from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.joins.broadcast import BroadcastJoinOperator
from rayflow.operators.joins.columns import JoinColumns, JoinSide

LEFT = pa.schema([("k", pa.string()), ("v", pa.int64())])
RIGHT = pa.schema([("w", pa.int64()), ("key", pa.string())])


def maker(how: str = "inner", latest: bool = False) -> Any:
    left, right = JoinSide(LEFT, ("k",), how == "left"), JoinSide(RIGHT, ("key",))
    return lambda: BroadcastJoinOperator(left, right, JoinColumns(left, right), latest)


def left(*rows: tuple[Any, int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [pa.array([r[i] for r in rows], LEFT.field(i).type) for i in range(2)], schema=LEFT
    )


def right(*rows: tuple[Any, int]) -> pa.RecordBatch:
    arrays = [pa.array([r[1] for r in rows], pa.int64()), pa.array([r[0] for r in rows], pa.string())]
    return pa.RecordBatch.from_arrays(arrays, schema=RIGHT)


def shown(driven: Any) -> list[tuple[Any, ...]]:
    return [(row["k"], row["v"], row["w"]) for row in driven.rows]


def test_rows_wait_for_the_end_of_a_bounded_table_and_the_watermark_with_them(harness: Any) -> None:
    driven = harness(maker("left")).feed(left(("a", 1), ("b", 2), (None, 3))).feed(right(("a", 10)), 1)
    driven.watermark(5)
    assert driven.events == []
    driven.feed(right(("a", 11), (None, 12)), 1)
    driven.operator.end_input(1)
    assert shown(driven) == [("a", 1, 10), ("a", 1, 11), ("b", 2, None), (None, 3, None)]
    assert [event[0] for event in driven.events] == ["rows", "rows", "watermark"]
    driven.feed(left(("b", 4), ("a", 5))).watermark(7).watermark(WATERMARK_MAX)
    assert shown(driven)[4:] == [("a", 5, 10), ("a", 5, 11), ("b", 4, None)]
    assert driven.watermarks == [5, 7, WATERMARK_MAX]
    assert driven.batches[0].schema.names == ["k", "v", "w"]


def test_the_end_of_the_left_side_lets_nothing_go(harness: Any) -> None:
    driven = harness(maker()).feed(left(("a", 1))).feed(right(("a", 10)), 1)
    driven.operator.end_input(0)
    assert driven.rows == []


def test_rows_and_watermarks_that_wait_for_the_table_are_owed(harness: Any) -> None:
    driven = harness(maker())
    assert driven.operator.drained()
    driven.feed(left(("a", 1)))
    assert not driven.operator.drained()
    driven.operator.end_input(1)
    assert driven.operator.drained()
    driven = harness(maker()).feed(right(("a", 10)), 1).watermark(5)
    assert not driven.operator.drained()
    driven.operator.end_input(1)
    assert driven.operator.drained()


def test_rows_that_were_restored_are_owed_too(harness: Any) -> None:
    parts = harness(maker()).feed(left(("a", 1))).snapshot(1)
    assert not harness(maker(), restored=parts).operator.drained()


def test_nothing_waits_for_a_table_that_never_ends(harness: Any) -> None:
    assert harness(maker(latest=True)).feed(left(("a", 1))).watermark(5).operator.drained()


def test_of_a_table_that_never_ends_the_latest_row_of_a_key_counts(harness: Any) -> None:
    driven = harness(maker(latest=True)).feed(left(("a", 0)))
    driven.feed(right(("a", 10), ("b", 20), ("a", 11)), 1).feed(left(("a", 1), ("b", 2)))
    driven.feed(right(("a", 12)), 1).feed(left(("a", 3)))
    assert shown(driven) == [("a", 1, 11), ("b", 2, 20), ("a", 3, 12)]


def test_changing_one_key_over_and_over_takes_no_more_memory(harness: Any) -> None:
    driven = harness(maker(latest=True))
    for version in range(5000):
        driven.feed(right(("a", version)), 1)
    driven.feed(left(("a", 0)))
    assert shown(driven) == [("a", 0, 4999)]
    assert driven.operator._table.nbytes < 300_000


def test_keys_that_are_only_asked_for_are_not_kept(harness: Any) -> None:
    driven = harness(maker("left")).feed(right(("a", 1)), 1)
    driven.operator.end_input(1)
    driven.feed(left(*((f"x{i}", i) for i in range(100))))
    assert len(driven.rows) == 100
    assert len(driven.operator._keys.index) == 1


ROWS = st.lists(st.tuples(st.none() | st.sampled_from("abc"), st.integers(0, 3)), max_size=9)


@pytest.mark.parametrize("how", ["inner", "left"])
@given(
    st.lists(st.tuples(st.booleans(), ROWS), max_size=6),
    ROWS,
    st.sampled_from([1, 7, 100]),
    st.integers(0, 6),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_a_bounded_table_joins_as_in_a_nested_loop(
    subtasks: Any,
    how: str,
    steps: list[Any],
    after_end: Any,
    cut: int,
    restart_at: int,
    before: int,
    after: int,
) -> None:
    driven = subtasks(maker(how), ["k"], before, batch_rows=3)
    table: list[Any] = []
    lefts: list[Any] = []
    for number, (is_right, rows) in enumerate(steps):
        if number == restart_at:
            driven.restart(1, after)
        for at in range(0, len(rows), cut):
            part = rows[at : at + cut]
            if is_right:
                for subtask in driven.subtasks:
                    subtask.feed(right(*part), 1)
            else:
                driven.feed(left(*part))
        (table if is_right else lefts).extend(rows)
    for subtask in driven.subtasks:
        subtask.operator.end_input(1)
    if after_end:
        driven.feed(left(*after_end))
        lefts += after_end
    expected = Counter((k, v, w) for k, v in lefts for key, w in table if k is not None and k == key)
    if how == "left":
        known = {key for key, _ in table if key is not None}
        expected.update((k, v, None) for k, v in lefts if k not in known)
    assert Counter(shown(driven)) == expected
