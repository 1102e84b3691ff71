from __future__ import annotations

import math
import random
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
from rayflow.state.accumulators.multiset import Multiset

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
    "approx_count_distinct": [t for t in VALUES if not pa.types.is_nested(t)],
    "approx_quantile": [*NUMBERS, pa.timestamp("ms"), pa.date32()],
}
Q = 0.4
SLOTS = 4


def expected(kind: str, rows: list[tuple[int, Any]], type_: pa.DataType) -> Any:
    """The naive model: `rows` are (time, value) in order of arrival, without nulls."""
    by_time = [value for _, value in sorted(rows, key=lambda row: row[0])]
    values = [value for _, value in rows]
    if kind == "count":
        return len(values)
    if kind in ("count_distinct", "approx_count_distinct"):
        return len({"nan" if v != v else v for v in values})
    if kind == "approx_quantile":
        ordered = sorted(v for v in values if v == v)
        wanted = max(math.ceil(Q * len(ordered)), 1)
        number = isinstance(ordered[0] if ordered else None, int | float | Decimal)
        return (float(ordered[wanted - 1]) if number else ordered[wanted - 1]) if ordered else None
    if not values:
        return None
    if kind in ("min", "max"):
        # A NaN is larger than all numbers.
        real = [v for v in values if v == v]
        if len(real) < len(values) and (kind == "max" or not real):
            return math.nan
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


def columns_of(kind: str, type_: pa.DataType, **options: Any) -> AggregateColumns:
    parameters = {"q": Q} if kind == "approx_quantile" else {}
    aggregate = getattr(col("v"), kind)(**parameters).filter(col("keep"))
    return AggregateColumns([("a", aggregate)], pa.schema([("v", type_), ("keep", pa.bool_())]), **options)


def state_of(columns: AggregateColumns, slots: Any) -> pa.RecordBatch:
    state = columns.freeze().state_columns(slots)
    return pa.RecordBatch.from_arrays([c for _, c in state], names=[n for n, _ in state])


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


@given(cases(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_states_of_rows_are_those_of_slots_with_one_row_each(case: Any, filtered: bool) -> None:
    kind, type_, rows, _ = case
    if not filtered:  # Where every row counts there is a short cut.
        rows = [(slot, time, value, True) for slot, time, value, _ in rows if value is not None]
    batch, _, times = batch_of(rows, type_)
    each = np.arange(len(rows))
    aggregate = getattr(col("v"), kind)(**({"q": Q} if kind == "approx_quantile" else {}))
    aggregates = [("a", aggregate.filter(col("keep")) if filtered else aggregate), ("n", count())]
    plain, short = AggregateColumns(aggregates, batch.schema), AggregateColumns(aggregates, batch.schema)
    plain.update(batch, each, len(rows), times)
    for _ in range(2):  # Nothing stays behind.
        states = short.states_of_rows(batch, times)
        assert [(name, column.type) for name, column in states] == [
            (name, column.type) for name, column in plain.state_columns(each)
        ]
        merged, wanted = AggregateColumns(aggregates, batch.schema), plain.results(each)
        merged.merge(
            pa.RecordBatch.from_arrays([c for _, c in states], [n for n, _ in states]), each, len(rows)
        )
        for got, want in zip(merged.results(each), wanted, strict=True):
            assert all(map(same, got.to_pylist(), want.to_pylist()))


@given(cases(), st.booleans(), st.sampled_from(["by table", "by slot", "from elsewhere"]))
@settings(max_examples=150, deadline=None)
def test_partial_states_of_one_slot_merge_to_the_whole(case: Any, retractable: bool, how: str) -> None:
    kind, type_, rows, _ = case
    retractable = retractable and not pa.types.is_nested(type_) and not kind.startswith("approx")
    batch, slots, times = batch_of(rows, type_)
    # Slots 0 and 1 become slot 0, slots 2 and 3 slot 1; "by slot" makes that slots 4 and 5.
    parts, whole = np.arange(SLOTS), np.array([0, 0, 1, 1])
    partial = columns_of(kind, type_, retractable=retractable)
    partial.update(batch, slots, SLOTS, times)
    merged = partial if how == "by slot" else columns_of(kind, type_, retractable=retractable)
    if how == "by table":
        merged.merge(state_of(partial, parts), whole, 2)
    elif how == "by slot":
        merged.merge_slots(whole + 4, parts, 6)
    else:
        merged.merge_slots(whole, parts, 2, partial)
    first = 4 if how == "by slot" else 0
    (results,) = merged.results(np.array([first, first + 1]))
    for slot, got in enumerate(results.to_pylist()):
        mine = [r for r in rows if r[0] // 2 == slot]
        # Of equal times the state that was merged first came first.
        mine.sort(key=lambda r: r[0])
        values = batch_of(mine, type_)[0].column(0).to_pylist()
        kept = [(r[1], v) for r, v in zip(mine, values) if r[3] and v is not None]
        want = expected(kind, kept, type_)
        assert same(got, want), (kind, type_)
        if retractable:
            assert merged.row_counts(np.array([first + slot])).tolist() == [len(mine)]


@given(cases(), st.booleans(), st.randoms(use_true_random=False))
@settings(max_examples=250, deadline=None)
def test_rows_taken_back_are_as_if_they_had_never_come(case: Any, timed: bool, rng: random.Random) -> None:
    kind, type_, rows, cut = case
    if kind.startswith("approx") or (pa.types.is_nested(type_) and kind != "count"):
        with pytest.raises(PlanError, match=r"cannot be a key|use an exact aggregate"):
            columns_of(kind, type_, retractable=True)
        return
    columns = columns_of(kind, type_, retractable=True)
    columns.update(*batch_of([], type_)[:2], SLOTS)
    there: list[Any] = []
    all_slots = np.arange(SLOTS)
    for number, at in enumerate(range(0, len(rows), cut)):
        piece = rows[at : at + cut]
        there += piece
        batch, slots, times = batch_of(piece, type_)
        columns.update(batch, slots, SLOTS, times if timed else None)
        taken = [
            there.pop(first_like(there, rng.choice(there), timed))
            for _ in range(rng.randrange(len(there) + 1))
        ]
        batch, slots, times = batch_of(taken, type_)
        columns.retract(batch, slots, SLOTS, times if timed else None)
        if number % 3 == 1:
            columns.results(all_slots)
        if number % 4 == 2:
            restored = columns_of(kind, type_, retractable=True)
            restored.merge(state_of(columns, all_slots), all_slots, SLOTS)
            columns = restored
        if number == 5:
            columns.clear(np.array([1]))
            there = [row for row in there if row[0] != 1]
    (results,) = columns.results(all_slots)
    assert columns.row_counts(all_slots).tolist() == [
        sum(r[0] == slot for r in there) for slot in range(SLOTS)
    ]
    for slot, got in enumerate(results.to_pylist()):
        mine = [r for r in there if r[0] == slot]
        values = batch_of(mine, type_)[0].column(0).to_pylist()
        kept = [(r[1] if timed else 0, v) for r, v in zip(mine, values) if r[3] and v is not None]
        want = expected(kind, kept, type_)
        exact = type_ != pa.float64() and kind != "mean"
        if kind in ("variance", "stddev") and isinstance(want, float):
            sizes = (abs(float(r[2])) for r in rows if r[2] is not None)
            right = same_spread(kind, got, want, max(size for size in sizes if size == size))
        else:
            right = got == want if exact else same(got, want)
        assert right, (kind, type_, mine)


def same_spread(kind: str, got: Any, want: float, largest: float) -> bool:
    """Compare variances; of what has gone, up to `largest`, the compensated squares keep about a hundred bits."""
    if want != want or got is None or got != got:
        return same(got, want)
    power = 2 if kind == "stddev" else 1
    return math.isclose(got**power, want**power, rel_tol=1e-9, abs_tol=1e-6 + largest**2 * 2.0**-95)


def first_like(there: list[Any], chosen: Any, timed: bool) -> int:
    """Return the place of the row that goes when `chosen` is taken back: without times the earliest like it."""
    shown = [repr(row[::2] if not timed else row[:3]) + str(row[3]) for row in there]
    return shown.index(shown[there.index(chosen)])


@pytest.mark.parametrize(("big", "good"), [(1e25, 2), (1e10, 4)])
def test_sums_of_doubles_survive_values_that_would_have_swallowed_them(big: float, good: int) -> None:
    schema, one = pa.schema([("v", pa.float64())]), np.array([0])
    kinds = ["sum", "mean", "variance", "stddev"]
    columns = AggregateColumns(
        [(kind, getattr(col("v"), kind)()) for kind in kinds], schema, retractable=True
    )

    def rows(*values: float) -> tuple[pa.RecordBatch, Any, int]:
        return pa.record_batch([pa.array(values)], schema=schema), np.zeros(len(values), np.int64), 1

    def results() -> list[Any]:
        return [column.to_pylist()[0] for column in columns.results(one)]

    columns.update(*rows(0.1, 0.2, big, math.inf, -math.inf, math.nan))
    assert all(math.isnan(value) for value in results())
    columns.retract(*rows(math.nan, -math.inf))
    assert results()[:2] == [math.inf, math.inf]
    columns.retract(*rows(math.inf, big))
    left = [0.3, 0.15, 0.005, math.sqrt(0.005)]
    assert results()[:good] == pytest.approx(left[:good], rel=1e-6)
    columns.retract(*rows(0.2))
    assert results()[0] == pytest.approx(0.1)
    assert results()[2:] == [None, None]
    columns.retract(*rows(0.1))
    assert results() == [None] * 4
    columns.update(*rows(0.1))
    assert results()[0] == 0.1  # nothing of the past is left


def test_a_largest_value_that_only_grows_is_never_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = AggregateColumns([("m", col("v").max())], pa.schema([("v", pa.int64())]), retractable=True)
    searched = []
    searching = Multiset.entries
    monkeypatch.setattr(
        Multiset, "entries", lambda self, slots: searched.append(slots) or searching(self, slots)
    )
    one = np.array([0])
    columns.update(pa.record_batch({"v": [1]}), one, 1)
    for value in range(1, 50):
        columns.update(pa.record_batch({"v": [value + 1]}), one, 1)
        columns.retract(pa.record_batch({"v": [value]}), one, 1)
        assert columns.results(one)[0].to_pylist() == [value + 1]
    assert searched == []
    columns.update(pa.record_batch({"v": [7]}), one, 1)
    columns.retract(pa.record_batch({"v": [50]}), one, 1)
    assert columns.results(one)[0].to_pylist() == [7]
    assert len(searched) == 1


def test_what_was_taken_back_leaves_no_memory_behind() -> None:
    aggregates = [
        (kind, getattr(col("v"), kind)()) for kind in ("max", "first", "collect_list", "count_distinct")
    ]
    columns = AggregateColumns(aggregates, pa.schema([("v", pa.string())]), retractable=True)
    slots = np.arange(100)
    sizes = []
    for number in range(200):
        batch = pa.record_batch({"v": [f"{number}-{i}" + "x" * 100 for i in range(100)]})
        columns.update(batch, slots, 100)
        columns.retract(batch, slots, 100)
        sizes.append(columns.nbytes)
    assert columns.row_counts(slots).tolist() == [0] * 100
    assert max(sizes) < 20_000_000  # 80 MB went through, and an index drops garbage from 1 MB on


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
