from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE, ops, visible, with_op
from rayflow.operators.joins.columns import JoinColumns, JoinSide
from rayflow.operators.joins.regular import Changes, RegularJoinOperator

SCHEMA = pa.schema([("k", pa.int64()), ("id", pa.int64()), ("v", pa.string())])
HOWS = {"inner": (False, False), "left": (True, False), "right": (False, True), "full": (True, True)}

Row = tuple[Any, Any, Any]


APPENDS = (Changes(), Changes())


def maker(how: str, changes: Any = APPENDS, ttl_ms: int | None = None) -> Any:
    left, right = (JoinSide(SCHEMA, ("k",), outer) for outer in HOWS[how])
    return lambda: RegularJoinOperator(left, right, JoinColumns(left, right), changes, ttl_ms)


def batch(rows: list[Row], operations: list[int] | None = None) -> pa.RecordBatch:
    arrays = [pa.array([row[i] for row in rows], field.type) for i, field in enumerate(SCHEMA)]
    plain = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
    return plain if operations is None else with_op(plain, np.array(operations, np.int8))


def result(driven: Any) -> Counter[tuple[Any, ...]]:
    """What the emitted changes come to; no row may be taken back before it came."""
    rows: Counter[tuple[Any, ...]] = Counter()
    for subtask in [*driven.done, *driven.subtasks] if hasattr(driven, "subtasks") else [driven]:
        for emitted in subtask.batches:
            for row, op in zip(visible(emitted).to_pylist(), ops(emitted).tolist()):
                values = tuple(row.values())
                rows[values] += 1 if op in (INSERT, UPDATE_AFTER) else -1
                assert hasattr(driven, "done") or rows[values] >= 0
    assert all(count >= 0 for count in rows.values())
    return +rows


def joined(left: list[Row], right: list[Row], how: str) -> Counter[tuple[Any, ...]]:
    """The naive model: a nested loop over all rows."""
    outer = HOWS[how]
    pairs = [(a, b) for a in left for b in right if a[0] is not None and a[0] == b[0]]
    rows = [(*a, *b[1:]) for a, b in pairs]
    if outer[0]:
        rows += [(*a, None, None) for a in left if not any(a[0] is not None and a[0] == b[0] for b in right)]
    if outer[1]:
        alone = [b for b in right if not any(a[0] is not None and a[0] == b[0] for a in left)]
        rows += [(b[0], None, None, *b[1:]) for b in alone]
    return Counter(rows)


def test_each_pair_comes_once_whichever_side_is_later(harness: Any) -> None:
    driven = harness(maker("inner")).feed(batch([(1, 1, "a"), (1, 2, "b"), (None, 3, "c")]))
    driven.feed(batch([(1, 7, "x"), (2, 8, "y"), (None, 9, "z")]), 1).feed(batch([(2, 4, "d")]))
    assert [tuple(row.values()) for row in driven.rows] == [
        (1, 1, "a", 7, "x"),
        (1, 2, "b", 7, "x"),
        (2, 4, "d", 8, "y"),
    ]
    assert driven.batches[0].schema.names == ["k", "id", "v", "id_right", "v_right"]


def test_an_unmatched_row_is_shown_alone_and_taken_back_at_its_first_match(harness: Any) -> None:
    driven = harness(maker("left")).feed(batch([(1, 1, "a"), (None, 2, "n")]))
    driven.feed(batch([(1, 7, "x")]), 1).feed(batch([(1, 8, "y")]), 1)
    shown = [
        (int(op), *row.values()) for b in driven.batches for row, op in zip(visible(b).to_pylist(), ops(b))
    ]
    assert shown == [
        (INSERT, None, 2, "n", None, None),
        (INSERT, 1, 1, "a", None, None),
        (DELETE, 1, 1, "a", None, None),
        (INSERT, 1, 1, "a", 7, "x"),
        (INSERT, 1, 1, "a", 8, "y"),
    ]


def test_a_hot_key_comes_in_batches_of_bounded_size(harness: Any) -> None:
    driven = harness(maker("inner"), batch_rows=100).feed(batch([(1, i, "a") for i in range(90)]))
    driven.feed(batch([(1, i, "b") for i in range(70)]), 1)
    assert [b.num_rows for b in driven.batches] == [100] * 63
    assert len(result(driven)) == 90 * 70


def test_rows_are_forgotten_after_their_time_and_what_was_shown_stays(harness: Any) -> None:
    clock = [1000]
    driven = harness(maker("left", ttl_ms=800), now_ms=lambda: clock[0])
    operator = driven.operator
    driven.feed(batch([(1, 1, "a")])).feed(batch([(1, 7, "x")]), 1)
    operator.on_timer(1000)
    assert operator.next_timer_ms() == 1100
    clock[0] = 1799
    operator.on_timer(1799)
    driven.feed(batch([(1, 2, "b")]))
    operator.on_timer(1800)
    driven.feed(batch([(1, 8, "y")]), 1)
    driven.feed(batch([(1, 3, "c")]))
    assert driven.metrics.snapshot()["expired_rows"] == 2
    assert result(driven) == Counter(
        [(1, 1, "a", 7, "x"), (1, 2, "b", 7, "x"), (1, 2, "b", 8, "y"), (1, 3, "c", 8, "y")]
    )


def test_keys_without_rows_are_forgotten(harness: Any) -> None:
    clock = [0]
    driven = harness(maker("inner", ttl_ms=8), now_ms=lambda: clock[0])
    for second in range(20):
        clock[0] = second * 1000
        driven.feed(batch([(second * 1000 + i, i, "a") for i in range(1000)]), second % 2)
        driven.operator.on_timer(second * 1000)
    assert len(driven.operator._sides.keys.index) <= 5000
    assert driven.operator._sides.keys.index.slot_limit <= 5000


ROWS = st.tuples(st.none() | st.integers(0, 4), st.integers(0, 2), st.sampled_from(["a", "b"]))
STEPS = st.lists(st.tuples(st.integers(0, 1), st.lists(ROWS, max_size=9)), max_size=8)


@given(
    STEPS,
    st.sampled_from(list(HOWS)),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 8),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_append_streams_join_as_in_a_nested_loop(
    subtasks: Any, steps: list[Any], how: str, cut: int, restart_at: int, before: int, after: int
) -> None:
    driven = subtasks(maker(how), ["k"], before, batch_rows=3)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for number, (port, rows) in enumerate(steps):
        if number == restart_at:
            driven.restart(1, after)
        for at in range(0, len(rows), cut):
            driven.feed(batch(rows[at : at + cut]), port)
        sides[port].extend(rows)
        assert result(driven) == joined(*sides, how)


def keyed_changes(rows: list[Row], live: dict[int, Row], old_rows: bool) -> tuple[list[Row], list[int]]:
    """An upsert stream's changes by `id`: each row replaces the one before; of the value "b", deletes it."""
    changed: list[Row] = []
    operations: list[int] = []
    for row in rows:
        old = live.pop(row[1], None)
        if row[2] == "b" or not old_rows:
            if old is not None:
                changed.append(old)
                operations.append(DELETE)
        elif old is not None:
            changed.append(old)
            operations.append(UPDATE_BEFORE)
        if row[2] != "b":
            changed.append(row)
            operations.append(UPDATE_AFTER if old is not None and old_rows else INSERT)
            live[row[1]] = row
    return changed, operations


@given(
    STEPS,
    st.sampled_from(list(HOWS)),
    st.sampled_from([1, 7, 100]),
    st.booleans(),
    st.integers(0, 8),
    st.integers(1, 3),
)
@settings(max_examples=60, deadline=None)
def test_an_upsert_stream_joins_as_its_last_rows_do(
    subtasks: Any, steps: list[Any], how: str, cut: int, old_rows: bool, restart_at: int, after: int
) -> None:
    driven = subtasks(maker(how, (Changes(("id",)), Changes())), ["k"], 2, batch_rows=3)
    live: dict[int, Row] = {}
    right: list[Row] = []
    for number, (port, rows) in enumerate(steps):
        if number == restart_at:
            driven.restart(1, after)
        if port == 0:
            changed, operations = keyed_changes(rows, live, old_rows)
            for at in range(0, len(changed), cut):
                driven.feed(batch(changed[at : at + cut], operations[at : at + cut]), 0)
        elif rows:
            right.extend(rows)
            driven.feed(batch(rows), 1)
        assert result(driven) == joined(list(live.values()), right, how)


@given(STEPS, st.sampled_from(list(HOWS)), st.sampled_from([1, 7, 100]), st.integers(0, 8))
@settings(max_examples=40, deadline=None)
def test_old_rows_need_not_come_where_the_join_key_is_part_of_the_upsert_key(
    subtasks: Any, steps: list[Any], how: str, cut: int, restart_at: int
) -> None:
    driven = subtasks(maker(how, (Changes(("k", "id")), Changes())), ["k"], 2, batch_rows=3)
    live: dict[Any, Row] = {}
    right: list[Row] = []
    for number, (port, rows) in enumerate(steps):
        if number == restart_at:
            driven.restart(1, 3)
        if port == 1:
            driven.feed(batch(rows), 1)
            right += rows
        else:
            # A deletion need not carry the values of the row that goes.
            operations = [DELETE if v == "b" else UPDATE_AFTER for _, _, v in rows]
            for at in range(0, len(rows), cut):
                driven.feed(batch(rows[at : at + cut], operations[at : at + cut]), 0)
            for row in rows:
                live.pop(row[:2], None)
                if row[2] != "b":
                    live[row[:2]] = row
        assert result(driven) == joined(list(live.values()), right, how)


@given(STEPS, st.sampled_from(list(HOWS)), st.sampled_from([1, 7, 100]), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_changelogs_without_a_key_join_as_multisets(
    subtasks: Any, steps: list[Any], how: str, cut: int, random: Any
) -> None:
    counted = Changes(("k", "id", "v"), counted=True)
    driven = subtasks(maker(how, (counted, counted)), ["k"], 2, batch_rows=3)
    sides: tuple[list[Row], list[Row]] = ([], [])
    for number, (port, rows) in enumerate(steps):
        changed: list[tuple[Row, int]] = []
        for row in rows:
            changed.append((row, INSERT))
            sides[port].append(row)
            if random.random() < 0.5:
                gone = random.choice(sides[port])
                sides[port].remove(gone)
                changed.append((gone, DELETE))
        for at in range(0, len(changed), cut):
            part = changed[at : at + cut]
            driven.feed(batch([row for row, _ in part], [op for _, op in part]), port)
        if number == 3:
            driven.restart(1, 3)
        assert result(driven) == joined(*sides, how)
    assert driven.count("unknown_deletions") == 0


def test_a_deletion_of_what_is_not_there_is_counted(harness: Any) -> None:
    counted = Changes(("k", "id", "v"), counted=True)
    driven = harness(maker("full", (counted, Changes()))).feed(batch([(1, 1, "a")] * 3, [DELETE] * 3))
    assert driven.rows == []
    assert driven.metrics.snapshot() == {"unknown_deletions": 3}


@pytest.mark.parametrize("how", ["left", "full"])
def test_columns_that_may_be_missing_may_be_null(how: str) -> None:
    strict = pa.schema([pa.field("k", pa.int64(), False), pa.field("x", pa.int64(), False)])
    left, right = (JoinSide(strict, ("k",), outer) for outer in HOWS[how])
    schema = JoinColumns(left, right, "_r").schema
    assert [field.nullable for field in schema] == [False, how == "full", True]
    assert schema.names == ["k", "x", "x_r"]
