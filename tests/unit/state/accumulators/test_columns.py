from __future__ import annotations

import math
import statistics
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.model.errors import PlanError
from rayflow.state.accumulators.columns import AggregateColumns

VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int64(): st.none() | st.integers(-(10**6), 10**6) | st.sampled_from([2**57, -(2**57)]),
    pa.uint64(): st.none() | st.integers(0, 2**60),
    pa.int16(): st.none() | st.integers(-300, 300),
    pa.float64(): st.none() | st.sampled_from([0.5, -1.25, 3.0, math.nan, -0.0, 1e6]),
    pa.decimal128(20, 2): st.none() | st.decimals(-(10**12), 10**12, places=2),
    pa.decimal256(50, 1): st.none() | st.decimals(-(10**25), 10**25, places=1),
    pa.string(): st.none() | st.text("abc", max_size=3),
    pa.string_view(): st.none() | st.text("abc", max_size=3),
    pa.binary(2): st.none() | st.binary(min_size=2, max_size=2),
    pa.bool_(): st.none() | st.booleans(),
    pa.timestamp("ms"): st.none() | st.integers(-5, 5),
    pa.date32(): st.none() | st.integers(-5, 5),
    pa.list_(pa.int8()): st.none() | st.lists(st.integers(0, 3), max_size=2),
}
NUMBERS = [pa.int64(), pa.uint64(), pa.int16(), pa.float64(), pa.decimal128(20, 2), pa.decimal256(50, 1)]
KINDS = {
    "sum": NUMBERS,
    "mean": NUMBERS,
    "stddev": NUMBERS,
    "variance": NUMBERS,
    "min": [t for t in VALUES if not pa.types.is_nested(t)],
    "max": [t for t in VALUES if not pa.types.is_nested(t)],
    "first": list(VALUES),
    "last": list(VALUES),
    "count": list(VALUES),
    "count_distinct": [t for t in VALUES if not pa.types.is_nested(t)],
    "collect_list": list(VALUES),
}
SLOTS = 4


def expected(kind: str, rows: list[tuple[int, Any]], type_: pa.DataType) -> Any:
    """The naive model: `rows` are (time, value) in order of arrival, without nulls."""
    by_time = [value for _, value in sorted(rows, key=lambda row: row[0])]
    values = [value for _, value in rows]
    if kind == "count":
        return len(values)
    if kind == "count_distinct":
        return len({"nan" if v != v else v for v in values})
    if not values:
        return None
    if kind in ("min", "max"):
        real = [v for v in values if v == v] or values
        return min(real) if kind == "min" else max(real)
    if kind == "sum":
        return sum(values)
    if kind == "mean":
        return float(sum(values)) / len(values)
    if kind in ("stddev", "variance"):
        if len(values) < 2:
            return None
        floats = [float(v) for v in values]
        variance = math.nan if any(f != f for f in floats) else statistics.variance(floats)
        return math.sqrt(variance) if kind == "stddev" else variance
    if kind == "first":
        return by_time[0]
    if kind == "last":
        return by_time[-1]
    return by_time


def same(got: Any, want: Any) -> bool:
    if isinstance(want, list) and isinstance(got, list):
        return len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, float):
        if got is None:
            return False
        return (want != want and got != got) or math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-6)
    return bool(got == want)


@st.composite
def cases(draw: st.DrawFn) -> tuple[str, pa.DataType, list[tuple[int, int, Any, bool]], int]:
    kind = draw(st.sampled_from(list(KINDS)))
    type_ = draw(st.sampled_from(KINDS[kind]))
    row = st.tuples(st.integers(0, SLOTS - 1), st.integers(0, 9), VALUES[type_], st.booleans())
    return kind, type_, draw(st.lists(row, max_size=25)), draw(st.sampled_from([1, 7, 100]))


def columns_of(kind: str, type_: pa.DataType) -> AggregateColumns:
    aggregate = getattr(col("v"), kind)().filter(col("keep"))
    return AggregateColumns([("a", aggregate)], pa.schema([("v", type_), ("keep", pa.bool_())]))


def batch_of(rows: list[Any], type_: pa.DataType) -> tuple[pa.RecordBatch, Any, Any]:
    values, keep = pa.array([r[2] for r in rows], type_), pa.array([r[3] for r in rows], pa.bool_())
    batch = pa.record_batch([values, keep], names=["v", "keep"])
    return batch, np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.int64)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_every_aggregate_agrees_with_a_naive_model_however_rows_are_cut_moved_and_cleared(case: Any) -> None:
    kind, type_, rows, cut = case
    model: list[list[tuple[int, Any]]] = [[] for _ in range(SLOTS)]
    columns, moved = columns_of(kind, type_), columns_of(kind, type_)
    all_slots = np.arange(SLOTS)
    for number, at in enumerate(range(0, len(rows), cut)):
        piece = rows[at : at + cut]
        batch, slots, times = batch_of(piece, type_)
        columns.update(batch, slots, SLOTS, times)
        for value, (slot, time, _, keep) in zip(batch.column(0).to_pylist(), piece):
            if keep and value is not None:
                model[slot].append((time, value))
        if number == 1:
            columns.clear(np.array([1]))
            model[1] = []
        if number == 2:
            # What was frozen does not see what comes later; merging it elsewhere gives the same state.
            frozen = columns.freeze()
            columns.clear(all_slots)
            state = pa.RecordBatch.from_arrays(
                [c for _, c in frozen.state_columns(all_slots)],
                names=[name for name, _ in frozen.state_columns(all_slots)],
            )
            moved.merge(state, all_slots[::-1].copy(), SLOTS)
            columns, moved = moved, columns
            model.reverse()
    columns.update(*batch_of([], type_)[:2], SLOTS)
    (results,) = columns.results(all_slots)
    results.validate(full=True)
    assert results.type == columns.fields[0].type
    for got, rows_of_slot in zip(results.to_pylist(), model):
        assert same(got, expected(kind, rows_of_slot, type_)), (kind, type_, rows_of_slot)


@given(cases())
@settings(max_examples=100, deadline=None)
def test_partial_states_of_one_slot_merge_to_the_whole(case: Any) -> None:
    kind, type_, rows, _ = case
    whole, partial = columns_of(kind, type_), columns_of(kind, type_)
    batch, slots, times = batch_of(rows, type_)
    whole.update(batch, slots, SLOTS, times)
    partial.update(batch, slots, SLOTS, times)
    merged = columns_of(kind, type_)
    state = partial.freeze().state_columns(np.arange(SLOTS))
    table = pa.RecordBatch.from_arrays([c for _, c in state], names=[n for n, _ in state])
    # Slots 0 and 1 become slot 0, slots 2 and 3 slot 1.
    merged.merge(table, np.array([0, 0, 1, 1]), 2)
    (results,) = merged.results(np.array([0, 1]))
    for slot, got in enumerate(results.to_pylist()):
        mine = [r for r in rows if r[0] // 2 == slot]
        # Of equal times the state that was merged first came first.
        mine.sort(key=lambda r: r[0])
        values = batch_of(mine, type_)[0].column(0).to_pylist()
        kept = [(r[1], v) for r, v in zip(mine, values) if r[3] and v is not None]
        want = expected(kind, kept, type_)
        assert same(got, want), (kind, type_)


def test_rows_are_counted_nulls_or_not() -> None:
    columns = AggregateColumns([("n", count()), ("v", col("v").count())], pa.schema([("v", pa.int64())]))
    columns.update(pa.record_batch({"v": [1, None, 3]}), np.array([0, 0, 1]), 2)
    assert [c.to_pylist() for c in columns.results(np.array([0, 1]))] == [[2, 1], [1, 1]]


@pytest.mark.parametrize(
    ("type_", "values"),
    [
        (pa.int64(), [2**63 - 1, 1]),
        (pa.int64(), [-(2**63), -1]),
        (pa.uint64(), [2**64 - 1, 1]),
        (pa.decimal128(38, 0), [Decimal(10**38 - 1), Decimal(1)]),
    ],
)
def test_a_sum_that_does_not_fit_raises_and_names_the_aggregate(
    type_: pa.DataType, values: list[Any]
) -> None:
    columns = AggregateColumns([("total", col("v").sum())], pa.schema([("v", type_)]))
    for value in values:
        columns.update(pa.record_batch([pa.array([value], type_)], names=["v"]), np.array([0]), 1)
    with pytest.raises(OverflowError, match=r"aggregate 'total'.*does not fit"):
        columns.results(np.array([0]))


def test_a_sum_may_pass_its_type_on_the_way() -> None:
    columns = AggregateColumns([("total", col("v").sum())], pa.schema([("v", pa.int64())]))
    columns.update(pa.record_batch({"v": [2**63 - 1, 5, -10]}), np.array([0, 0, 0]), 1)
    assert columns.results(np.array([0]))[0].to_pylist() == [2**63 - 6]


def test_without_times_the_order_of_arrival_decides_also_after_a_restore() -> None:
    schema, one = pa.schema([("v", pa.string())]), np.array([0])
    aggregates = [("f", col("v").first()), ("l", col("v").last()), ("all", col("v").collect_list())]
    columns = AggregateColumns(aggregates, schema)
    for value in "abc":
        columns.update(pa.record_batch({"v": [value]}), one, 1)
    state = columns.freeze().state_columns(one)
    restored = AggregateColumns(aggregates, schema)
    restored.merge(pa.RecordBatch.from_arrays([c for _, c in state], names=[n for n, _ in state]), one, 1)
    restored.update(pa.record_batch({"v": ["d"]}), one, 1)
    assert [c.to_pylist()[0] for c in restored.results(one)] == ["a", "d", ["a", "b", "c", "d"]]


def test_variance_is_stable_far_from_zero() -> None:
    columns = AggregateColumns([("s", col("v").stddev())], pa.schema([("v", pa.float64())]))
    for offset in range(50):
        values = [1e9 + offset % 2, 1e9 - offset % 2]
        columns.update(pa.record_batch({"v": values}), np.array([0, 0]), 1)
    assert columns.results(np.array([0]))[0][0].as_py() == pytest.approx(math.sqrt(50 / 99), rel=1e-6)


def test_pools_of_strings_drop_what_was_overwritten() -> None:
    columns = AggregateColumns([("l", col("v").last())], pa.schema([("v", pa.string())]))
    for number in range(300):
        batch = pa.record_batch({"v": [f"{number}-{i}" + "x" * 100 for i in range(100)]})
        columns.update(batch, np.arange(100), 100)
    assert columns.nbytes < 1_000_000  # 3 MB went through
    assert columns.results(np.array([7]))[0].to_pylist() == ["299-7" + "x" * 100]


def test_an_aggregate_that_its_type_does_not_have_is_a_plan_error() -> None:
    with pytest.raises(PlanError, match="sum"):
        AggregateColumns([("a", col("v").sum())], pa.schema([("v", pa.string())]))
