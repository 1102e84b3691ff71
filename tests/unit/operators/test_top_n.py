"""The first rows of each key, against a naive model: any order, any cutting, restarts, rows that go again."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import DELETE, INSERT, OP_COLUMN, UPDATE_AFTER, UPDATE_BEFORE, with_op
from rayflow.batch.expressions import col
from rayflow.operators.top_n import TopNOperator

SCHEMA = pa.schema(
    [("k", pa.string()), ("f", pa.float64()), ("i", pa.int64()), ("s", pa.string()), ("id", pa.int64())]
)
NAN = float("nan")


def make(
    n: int, *order: Any, rank: str | None = None, last: bool = False, by: Any = None, before: bool = False
) -> Any:
    return lambda: TopNOperator(("k",), n, order or (col("i").desc(),), SCHEMA, rank, last, by, before)


def batch(rows: list[dict[str, Any]], ops: Any = None) -> pa.RecordBatch:
    arrays = [pa.array([row.get(f.name) for row in rows], f.type) for f in SCHEMA]
    plain = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
    return plain if ops is None else with_op(plain, np.array(ops, np.int8))


def rows(*pairs: tuple[str | None, Any]) -> pa.RecordBatch:
    return batch([{"k": k, "i": i, "id": number} for number, (k, i) in enumerate(pairs)])


def shown(driven: Any) -> list[tuple[Any, ...]]:
    found = [(row[OP_COLUMN], row["k"], row["i"], row.get("rank")) for row in driven.rows]
    driven.events.clear()
    return found


# ------------------------------------------------------------------------------------ what is emitted


def test_without_rank_only_what_came_in_and_dropped_out_is_told(harness: Any) -> None:
    driven = harness(make(2)).feed(rows(("a", 1), ("a", 5), ("b", 7)))
    assert shown(driven) == [(INSERT, "a", 5, None), (INSERT, "a", 1, None), (INSERT, "b", 7, None)]
    driven.feed(rows(("a", 3), ("a", 0), ("b", 9)))
    assert shown(driven) == [(DELETE, "a", 1, None), (INSERT, "a", 3, None), (INSERT, "b", 9, None)]
    assert shown(driven.feed(rows(("a", 2), ("b", 1)))) == []


def test_with_rank_every_rank_that_another_row_has_now_is_updated(harness: Any) -> None:
    driven = harness(make(3, rank="rank", before=True)).feed(rows(("a", 1), ("a", 5)))
    assert shown(driven) == [(INSERT, "a", 5, 1), (INSERT, "a", 1, 2)]
    assert shown(driven.feed(rows(("a", 3)))) == [
        (UPDATE_BEFORE, "a", 1, 2),
        (UPDATE_AFTER, "a", 3, 2),
        (INSERT, "a", 1, 3),
    ]
    driven = harness(make(3, rank="rank")).feed(rows(("a", 1), ("a", 5))).feed(rows(("a", 9)))
    assert shown(driven)[2:] == [(UPDATE_AFTER, "a", 9, 1), (UPDATE_AFTER, "a", 5, 2), (INSERT, "a", 1, 3)]


def test_the_first_row_of_a_key_is_updated_by_key(harness: Any) -> None:
    driven = harness(make(1)).feed(rows(("a", 1), (None, 2))).feed(rows(("a", 0), (None, 3)))
    assert shown(driven) == [(INSERT, "a", 1, None), (INSERT, None, 2, None), (UPDATE_AFTER, None, 3, None)]


@pytest.mark.parametrize(("last", "wins"), [(False, 0), (True, 3)])
def test_of_equal_rows_the_first_or_the_last_to_come_wins(harness: Any, last: bool, wins: int) -> None:
    driven = harness(make(1, last=last)).feed(rows(("a", 1), ("a", 1), ("a", 0), ("a", 1)))
    assert [row["id"] for row in driven.rows] == [wins]


def test_output_is_cut_to_the_batch_size(harness: Any) -> None:
    driven = harness(make(2), batch_rows=2).feed(rows(("a", 1), ("b", 1), ("c", 1)))
    assert [b.num_rows for b in driven.batches] == [2, 1]


def test_a_row_that_goes_makes_room_for_the_next_best(harness: Any) -> None:
    driven = harness(make(2, by=("id",), rank="rank"))
    all_rows = rows(("a", 1), ("a", 5), ("a", 3))
    driven.feed(with_op(all_rows, INSERT))
    assert shown(driven) == [(INSERT, "a", 5, 1), (INSERT, "a", 3, 2)]
    driven.feed(with_op(all_rows.slice(1, 1), DELETE))
    assert shown(driven) == [(UPDATE_AFTER, "a", 3, 1), (UPDATE_AFTER, "a", 1, 2)]
    driven.feed(with_op(all_rows.slice(2, 1), UPDATE_BEFORE))
    assert shown(driven) == [(UPDATE_AFTER, "a", 1, 1), (DELETE, "a", 1, 2)]
    driven.feed(with_op(all_rows.slice(0, 1), DELETE))
    assert shown(driven) == [(DELETE, "a", 1, 1)]
    assert driven.snapshot(1)[0].table.num_rows == 0
    driven.feed(with_op(all_rows.slice(0, 1), DELETE))
    assert shown(driven) == []
    assert driven.metrics.counter("unmatched_retractions").value == 1


def test_what_went_leaves_room_for_what_comes(harness: Any) -> None:
    rng = np.random.default_rng(1)
    bounded, all_rows = harness(make(3)), harness(make(3, by=("id",)))
    sizes = []
    for _ in range(60):
        new = batch(
            [
                {"k": "a", "i": int(i), "s": "x" * 50, "id": number}
                for number, i in enumerate(rng.integers(0, 99, 50))
            ]
        )
        bounded.feed(new)
        old = with_op(new, DELETE).take(pa.array(rng.permutation(50)))
        all_rows.feed(with_op(new, INSERT)).feed(old)
        sizes.append(bounded.operator._rows.nbytes + all_rows.operator._rows.nbytes)
    assert max(sizes) == max(sizes[:30])


# ------------------------------------------------------------------------------------ against a model

ORDERS = {
    "float": [col("f").desc()],
    "float up": [col("f").asc()],
    "int": [col("i").desc()],
    "text": [col("s").asc()],
    "two": [col("s").desc(), col("f").asc(), col("i").asc()],
    "expression": [(col("i") % 3).asc()],
}
FLOATS = st.sampled_from([1.0, 0.0, -0.0, -2.5, NAN, math.inf, -math.inf, None])
INTS = st.sampled_from([0, 1, 2, -1, 2**63 - 1, -(2**63), None])
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "k": st.sampled_from(["a", "b", None]),
            "f": FLOATS,
            "i": INTS,
            "s": st.sampled_from(["x", "y", "é", "", None]),
        }
    ),
    min_size=1,
    max_size=30,
)


def place(row: dict[str, Any], order: str) -> tuple[Any, ...]:
    """Return what sorts rows as the model has it."""
    columns = {
        "float": [("f", -1)],
        "float up": [("f", 1)],
        "int": [("i", -1)],
        "text": [("s", 1)],
        "two": [("s", -1), ("f", 1), ("i", 1)],
        "expression": [("i3", 1)],
    }[order]
    values = {**row, "i3": None if row["i"] is None else row["i"] % 3}
    return tuple(_rank(values[name], sign) for name, sign in columns)


def _rank(value: Any, sign: int) -> tuple[Any, ...]:
    if value is None:
        return (2, 0)
    if isinstance(value, str):
        return (0, [sign * byte for byte in value.encode()] + ([] if sign > 0 else [1]))
    if value != value:
        return (1, 0)
    return (0, sign * value)


def wanted(there: list[dict[str, Any]], n: int, order: str, last: bool) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for key in {row["k"] for row in there}:
        mine = [row for row in there if row["k"] == key]
        mine = sorted(mine[::-1] if last else mine, key=lambda row: place(row, order))
        found.update((key, rank, row["id"]) for rank, row in enumerate(mine[:n], 1))
    return found


def there_now(driven: Any, n: int, ranked: bool) -> Counter[Any]:
    """Apply all changes: rows come where none is, and go where they are."""
    if n > 1 and not ranked:
        counts: Counter[Any] = Counter()
        for row in driven.rows:
            counts[row["k"], row["id"]] += 1 if row[OP_COLUMN] in (INSERT, UPDATE_AFTER) else -1
            assert counts[row["k"], row["id"]] in (0, 1)
        return +counts
    table: dict[Any, Any] = {}
    for row in driven.rows:
        where, op = (row["k"], row.get("rank", 1)), row[OP_COLUMN]
        assert (where in table) == (op != INSERT)
        if op in (UPDATE_BEFORE, DELETE):
            assert table[where] == row["id"]
        if op == DELETE:
            del table[where]
        elif op != UPDATE_BEFORE:
            table[where] = row["id"]
    return Counter((*where, id_) if ranked else (where[0], id_) for where, id_ in table.items())


SETTINGS = {
    "order": st.sampled_from(sorted(ORDERS)),
    "n": st.integers(1, 4),
    "ranked": st.booleans(),
    "last": st.booleans(),
    "cut": st.sampled_from([1, 7, 100]),
    "restart_after": st.integers(0, 5),
    "parallelism": st.tuples(st.integers(1, 3), st.integers(1, 3)),
}


def compare(got: Counter[Any], want: Counter[Any], ranked: bool) -> None:
    assert got == (want if ranked else Counter((k, id_) for k, _, id_ in want))


@given(ROWS, st.fixed_dictionaries(SETTINGS))
@settings(max_examples=120, deadline=None)
def test_the_first_rows_are_those_of_all_rows_sorted(subtasks: Any, given: Any, how: Any) -> None:
    ranked = how["ranked"]
    operator = make(
        how["n"], *ORDERS[how["order"]], rank="rank" if ranked else None, last=how["last"], before=ranked
    )
    driven = subtasks(operator, ["k"], how["parallelism"][0])
    given = [{**row, "id": number} for number, row in enumerate(given)]
    for number, at in enumerate(range(0, len(given), how["cut"])):
        if number == how["restart_after"]:
            driven.restart(1, how["parallelism"][1])
        driven.feed(batch(given[at : at + how["cut"]]))
    compare(
        there_now(driven, how["n"], ranked),
        wanted(given, how["n"], how["order"], how["last"]),
        ranked,
    )


@given(st.data(), ROWS, st.fixed_dictionaries(SETTINGS), st.booleans())
@settings(max_examples=120, deadline=None)
def test_rows_that_go_are_as_if_they_had_never_come(
    subtasks: Any, data: Any, given: Any, how: Any, by_all: bool
) -> None:
    there: list[dict[str, Any]] = []
    changes: list[tuple[int, dict[str, Any]]] = []
    for number, row in enumerate(given):
        if there and data.draw(st.booleans()):
            gone = there.pop(data.draw(st.integers(0, len(there) - 1)))
            changes.append((data.draw(st.sampled_from([DELETE, UPDATE_BEFORE])), gone))
        there.append({**row, "id": number})
        changes.append((data.draw(st.sampled_from([INSERT, UPDATE_AFTER])), there[-1]))
    ranked = how["ranked"]
    by = tuple(SCHEMA.names) if by_all else ("id",)
    operator = make(
        how["n"],
        *ORDERS[how["order"]],
        rank="rank" if ranked else None,
        last=how["last"],
        by=by,
        before=ranked,
    )
    driven = subtasks(operator, ["k"], how["parallelism"][0])
    for number, at in enumerate(range(0, len(changes), how["cut"])):
        if number == how["restart_after"]:
            driven.restart(1, how["parallelism"][1])
        piece = changes[at : at + how["cut"]]
        driven.feed(batch([row for _, row in piece], [op for op, _ in piece]))
    compare(there_now(driven, how["n"], ranked), wanted(there, how["n"], how["order"], how["last"]), ranked)
    assert driven.count("unmatched_retractions") == 0
