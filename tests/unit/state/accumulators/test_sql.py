"""Aggregates mean what SQL means by them: DuckDB over the same rows is the oracle, over types, nulls and NaN."""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.model.errors import PlanError
from rayflow.state.accumulators.columns import AggregateColumns

DAY = date(2024, 1, 1)
MOMENT = datetime(1969, 12, 31, 23)
VALUES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.int8(): st.integers(-128, 127),
    pa.int64(): st.integers(-(2**58), 2**58),
    pa.uint32(): st.integers(0, 2**32 - 1),
    pa.uint64(): st.integers(0, 2**58),
    pa.float32(): st.sampled_from([0.5, -0.25, 3.0, -0.0, 0.0, math.inf, math.nan]),
    pa.float64(): st.sampled_from([0.1, -1.25, 3e300, -0.0, 0.0, math.inf, -math.inf, math.nan]),
    pa.decimal128(9, 2): st.decimals(-(10**6), 10**6, places=2),
    pa.decimal128(38, 6): st.decimals(-(10**20), 10**20, places=6),
    pa.string(): st.text("aé𝄞", max_size=3),
    pa.binary(): st.binary(max_size=2),
    pa.bool_(): st.booleans(),
    pa.date32(): st.integers(-3, 3).map(lambda n: DAY + timedelta(days=n)),
    pa.time64("us"): st.integers(0, 3).map(lambda n: time(n, n, n, n)),
    pa.timestamp("us"): st.integers(-3, 3).map(lambda n: MOMENT + timedelta(hours=n, microseconds=n)),
    pa.timestamp("ms"): st.integers(-3, 3).map(lambda n: MOMENT + timedelta(hours=n)),
}
NUMBERS = [t for t in VALUES if pa.types.is_integer(t) or pa.types.is_floating(t) or pa.types.is_decimal(t)]
SQL = {
    "count": "count(v)",
    "sum": "sum(v)",
    "mean": "avg(v::double)",
    "min": "min(v)",
    "max": "max(v)",
    "stddev": "stddev_samp(v::double)",
    "variance": "var_samp(v::double)",
    "count_distinct": "count(distinct v)",
    "first": "first(v order by t, n) filter (v is not null)",
    "last": "last(v order by t, n) filter (v is not null)",
    "collect_list": "list(v order by t, n) filter (v is not null)",
}
GROUPS = 3


def fits(kind: str, type_: pa.DataType) -> bool:
    if kind in ("stddev", "variance"):
        # DuckDB raises for NaN and infinities.
        return type_ in NUMBERS and not pa.types.is_floating(type_)
    return type_ in NUMBERS if kind in ("sum", "mean") else True


@st.composite
def tables(draw: st.DrawFn) -> tuple[pa.DataType, pa.Table]:
    type_ = draw(st.sampled_from(list(VALUES)))
    row = st.tuples(
        st.integers(0, GROUPS - 1), st.none() | VALUES[type_], st.none() | st.booleans(), st.integers(0, 4)
    )
    rows = draw(st.lists(row, max_size=20))
    columns = [
        pa.array([r[0] for r in rows], pa.int64()),
        pa.array([r[1] for r in rows], type_),
        pa.array([r[2] for r in rows], pa.bool_()),
        pa.array([r[3] for r in rows], pa.int64()),
        pa.array(range(len(rows)), pa.int64()),
    ]
    return type_, pa.Table.from_arrays(columns, names=["g", "v", "keep", "t", "n"])


@given(tables(), st.booleans(), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_every_aggregate_is_that_of_sql(case: Any, retractable: bool, cut: int) -> None:
    type_, table = case
    kinds = [kind for kind in SQL if fits(kind, type_)]
    aggregates = [("rows", count()), ("kept", count().filter(col("keep")))]
    aggregates += [(kind, getattr(col("v"), kind)()) for kind in kinds]
    aggregates += [(f"{kind}_kept", getattr(col("v"), kind)().filter(col("keep"))) for kind in kinds]
    columns = AggregateColumns(aggregates, table.schema, retractable=retractable)
    columns.update(_empty(table), NOTHING, GROUPS, NOTHING)
    for batch in table.to_batches(max_chunksize=cut):
        columns.update(batch, batch["g"].to_numpy(), GROUPS, batch["t"].to_numpy())
    arrays = columns.results(np.arange(GROUPS))
    got = {name: array.to_pylist() for (name, _), array in zip(aggregates, arrays)}
    # An outer join with all groups: what a group without rows gives is tested too.
    sql = ", ".join(
        f'{_filtered(SQL[kind], extra)} as "{kind}{suffix}"'
        for suffix, extra in (("", ""), ("_kept", "keep"))
        for kind in kinds
    )
    query = (
        f"select count(n) as rows, count(n) filter (keep) as kept, {sql} "
        f"from range({GROUPS}) as all_groups(i) left join table_ on g = i group by i order by i"
    )
    expected = duckdb.sql(query.replace("table_", '"table"')).fetchall()
    for name, wanted in zip(got, zip(*expected)):
        assert list(map(comparable, got[name])) == list(map(comparable, wanted)), (name, type_)


def _filtered(sql: str, extra: str) -> str:
    if not extra:
        return sql
    return sql.replace("filter (", f"filter ({extra} and ") if "filter" in sql else f"{sql} filter ({extra})"


NOTHING = np.zeros(0, np.int64)


def _empty(table: pa.Table) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], f.type) for f in table.schema], schema=table.schema)


def comparable(value: Any) -> Any:
    if isinstance(value, list):
        return [comparable(v) for v in value] or None
    if isinstance(value, float | Decimal) and not isinstance(value, bool):
        number = float(value)
        if number != number:
            return "NaN"
        return pytest.approx(number, rel=1e-9, abs=1e-9) if math.isfinite(number) else number
    return value


D = Decimal
TYPES: dict[str, pa.Array] = {
    **{
        str(t): pa.array([3, 1, None, 2, 3], t)
        for t in (pa.int8(), pa.int16(), pa.uint8(), pa.uint64(), pa.float32(), pa.float64())
    },
    "halffloat": pa.array(np.array([3, 1, 0, 2, 3], np.float16)),
    **{
        str(t): pa.array([D(300), D(100), None, D(200), D(300)], t)
        for t in (pa.decimal32(6, 1), pa.decimal64(12, 1), pa.decimal256(50, 2), pa.decimal128(5, -2))
    },
    **{str(t): pa.array(["c", "a", None, "b", "c"], t) for t in (pa.large_string(), pa.string_view())},
    **{str(t): pa.array([b"cc", b"aa", None, b"bb", b"cc"], t) for t in (pa.binary_view(), pa.binary(2))},
    **{
        str(t): pa.array([3, 1, None, 2, 3], pa.int32() if t.bit_width == 32 else pa.int64()).view(t)
        for t in (pa.time32("ms"), pa.time64("ns"), pa.timestamp("ns", "UTC"), pa.duration("s"))
    },
    "date64": pa.array([86_400_000, 0, None, 0, 0], pa.date64()),
    "interval": pa.array([pa.MonthDayNano((1, 2, 3)), None, None, None, None]),
    "null": pa.nulls(5),
    "dictionary": pa.array(["c", "a", None, "b", "c"]).dictionary_encode(),
    "dictionary of numbers": pa.array([3, 1, None, 2, 3]).dictionary_encode(),
    "struct": pa.array([{"a": 3}, {"a": 1}, None, {"a": 2}, {"a": 3}]),
    "fixed list": pa.array([[3], [1], None, [2], [3]], pa.list_(pa.int8(), 1)),
    "large list": pa.array([[3], [1], None, [2], [3]], pa.large_list(pa.int8())),
    "map": pa.array([[("a", 3)], None, None, [], []], pa.map_(pa.string(), pa.int8())),
    "run-end encoded": pa.RunEndEncodedArray.from_arrays([2, 5], [1, 2]),
    "uuid": pa.array([bytes(16), None, None, None, None], pa.uuid()),
}
KINDS = [*SQL, "approx_count_distinct", "approx_quantile"]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("retractable", [False, True])
def test_an_aggregate_of_any_type_works_or_is_a_plan_error(name: str, retractable: bool) -> None:
    values, slots = TYPES[name], np.array([0, 0, 0, 1, 1])
    schema = pa.schema([("v", values.type)])
    works: list[str] = []
    refused: list[tuple[str, str]] = []
    for kind in KINDS:
        aggregate = getattr(col("v"), kind)(*([0.5] if kind == "approx_quantile" else []))
        try:
            columns = AggregateColumns([("a", aggregate)], schema, retractable=retractable)
        except PlanError as error:
            refused.append((kind, str(error)))
            continue
        batch = pa.record_batch([values], schema=schema)
        columns.update(batch, slots, 3)
        state = columns.freeze().state_columns(np.arange(3))
        restored = AggregateColumns([("a", aggregate)], schema, retractable=retractable)
        restored.merge(
            pa.RecordBatch.from_arrays([c for _, c in state], [n for n, _ in state]), np.arange(3), 3
        )
        if retractable:
            restored.update(batch, slots, 3)
            restored.retract(batch, slots, 3)
        (before,), (after,) = columns.results(np.arange(3)), restored.results(np.arange(3))
        assert before.type == columns.fields[0].type
        after.validate(full=True)
        assert str(after) == str(before)
        works.append(kind)
    assert "count" in works
    assert all('col("v")' in message and kind in message for kind, message in refused)
    usable = not (pa.types.is_nested(values.type) or name in ("interval", "run-end encoded", "uuid", "null"))
    if usable and not name.endswith("-2)"):
        assert {"min", "max", "first", "last", "count_distinct", "collect_list"} <= set(works)
