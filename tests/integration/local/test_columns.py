"""Steps on columns, end to end, over values that are easily got wrong."""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rayflow as rf
from rayflow import col

NAN = float("nan")
ODD = pa.table(
    {
        "i": pa.array([1, None, -(2**63), 2**63 - 1, 0], pa.int64()),
        "f": pa.array([0.0, -0.0, NAN, None, math.inf], pa.float64()),
        "s": ["", None, "ß→語", 'a\nb,"c"', "\x00nul"],
        "b": pa.array([b"", None, b"\xff\x00", b"x", b"y"]),
        "d": pa.array([Decimal("0.10"), None, Decimal("-99999999.99"), Decimal("1.00"), Decimal("0.00")]),
        "l": pa.array([[1, None], [], None, [3], [4, 5]], pa.list_(pa.int32())),
        "st": pa.array(
            [{"x": 1, "y": "a"}, None, {"x": None, "y": None}, {"x": 2, "y": ""}, {"x": 3, "y": "é"}]
        ),
        "t": pa.array([True, None, False, True, False]),
        "cat": pa.array(["u", None, "v", "u", "w"]).dictionary_encode(),
    }
)


def env(parallelism: int = 1, rows: int = 65536) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(parallelism=parallelism, config={"batch.rows": rows})


@pytest.mark.parametrize("parallelism", [1, 3])
@pytest.mark.parametrize("batch_rows", [1, 2, 65536])
def test_odd_values_pass_unchanged_through_exchanges(lab: Any, parallelism: int, batch_rows: int) -> None:
    stream = (
        env(parallelism, batch_rows)
        .from_arrow(ODD)
        .rebalance()
        .filter(rf.lit(True))
        .rescale()
        .select(*ODD.column_names)
    )
    got = stream.execute_and_collect(local=True)
    assert got.schema == ODD.schema
    assert lab.bag(got) == lab.bag(ODD)


def test_odd_values_pass_through_python_functions(lab: Any) -> None:
    table = ODD.drop_columns(["cat"])
    got = env().from_arrow(table).map(lambda row: row, returns=table.schema).execute_and_collect(local=True)
    assert got.schema == table.schema
    assert lab.bag(got) == lab.bag(table)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "Asia/Kathmandu"])
def test_timestamps_keep_unit_and_zone(lab: Any, unit: str, zone: str | None) -> None:
    times = pa.array([0, None, -1, 1_700_000_000, 4_000_000_000], pa.timestamp(unit, zone))
    table = pa.table({"t": times, "n": range(5)})
    got = (
        env(2)
        .from_arrow(table)
        .rebalance()
        .with_columns(u=col("t"))
        .filter(col("t").is_valid() | col("t").is_null())
        .execute_and_collect(local=True)
    )
    assert got.schema.field("u").type == table.schema.field("t").type
    assert lab.bag(got.select(["t", "n"])) == lab.bag(table)


def test_select_with_columns_drop_rename_follow_arrow(lab: Any) -> None:
    table = pa.table({"a": [1, 2, None], "b": [10.5, None, -1.0], "ünïcode name": ["x", "Y", None]})
    got = (
        env()
        .from_arrow(table)
        .with_columns(
            c=col("a") * 2 + 1,
            d=col("a") / 2,
            e=(col("a") + 7) // 2,
            big=rf.when(col("b") > 0).then(rf.lit("plus")).otherwise(rf.lit("not plus")),
            up=col("ünïcode name").utf8_upper(),
        )
        .drop("b")
        .rename({"ünïcode name": "u"})
        .rename(c="see")
        .select(
            "u",
            "see",
            col("d"),
            col("e").cast(pa.float32()).alias("e32"),
            "big",
            "up",
            one=rf.lit(1),
            nothing=rf.lit(None),
        )
        .execute_and_collect(local=True)
    )
    assert got.column_names == ["u", "see", "d", "e32", "big", "up", "one", "nothing"]
    assert got.to_pylist() == [
        {"u": "x", "see": 3, "d": 0.5, "e32": 4.0, "big": "plus", "up": "X", "one": 1, "nothing": None},
        {"u": "Y", "see": 5, "d": 1.0, "e32": 4.0, "big": "not plus", "up": "Y", "one": 1, "nothing": None},
        {
            "u": None,
            "see": None,
            "d": None,
            "e32": None,
            "big": "not plus",
            "up": None,
            "one": 1,
            "nothing": None,
        },
    ]


def test_three_valued_logic_in_filters(lab: Any) -> None:
    values = [True, False, None]
    pairs = pa.table({"p": [p for p in values for _ in values], "q": values * 3})
    for expression, sql in [
        (col("p") & col("q"), "p and q"),
        (col("p") | col("q"), "p or q"),
        (~col("p"), "not p"),
        (~(col("p") & ~col("q")), "not (p and not q)"),
        (col("p") == col("q"), "p = q"),
    ]:
        got = env().from_arrow(pairs).filter(expression).execute_and_collect(local=True)
        assert lab.bag(got) == Counter(duckdb.sql(f"select * from pairs where {sql}").fetchall()), sql


def test_wide_tables_and_single_rows(lab: Any) -> None:
    table = pa.table({f"c{i}": [i, None, -i] for i in range(1500)})
    got = (
        env(2, 1)
        .from_arrow(table)
        .with_columns(total=col("c1") + col("c1499"))
        .rebalance()
        .drop("c3")
        .execute_and_collect(local=True)
    )
    assert got.num_columns == 1500
    assert sorted(got["total"].to_pylist(), key=str) == sorted([1500, None, -1500], key=str)


def test_empty_inputs_give_empty_tables_of_the_right_columns(lab: Any) -> None:
    empty = ODD.slice(0, 0)
    stream = env(2).from_arrow(empty)
    assert stream.execute_and_collect(local=True).schema == ODD.schema
    counted = stream.key_by("s").aggregate(n=rf.count(), total=col("d").sum())
    got = counted.execute_and_collect(local=True)
    assert got.num_rows == 0
    assert got.schema.names == ["s", "n", "total"]


def test_explode_drops_empty_lists_and_nulls(lab: Any) -> None:
    got = env().from_arrow(ODD.select(["i", "l"])).explode("l").execute_and_collect(local=True)
    assert got.to_pylist() == [
        {"i": 1, "l": 1},
        {"i": 1, "l": None},
        {"i": 2**63 - 1, "l": 3},
        {"i": 0, "l": 4},
        {"i": 0, "l": 5},
    ]


def test_integer_overflow_fails_loudly() -> None:
    stream = env().from_arrow(ODD).with_columns(more=col("i") + 1)
    with pytest.raises(rf.JobFailed, match="overflow") as failed:
        stream.execute_and_collect(local=True)
    assert "test_columns.py" in str(failed.value)


def test_union_of_branches_of_one_stream_at_different_parallelism(lab: Any) -> None:
    e = env(2, 3)
    numbers = e.from_arrow(pa.table({"n": range(100)}))
    odd = numbers.filter(col("n") % 2 == 1).with_parallelism(3)
    even = numbers.filter(col("n") % 2 == 0)
    more = e.from_rows([{"n": 1000}, {"n": 2000}])
    got = odd.union(even, more).with_parallelism(1).execute_and_collect(local=True)
    assert sorted(got["n"].to_pylist()) == [*range(100), 1000, 2000]


def test_broadcast_gives_every_subtask_every_row() -> None:
    e = env(1, 7)
    got = (
        e.from_arrow(pa.table({"n": range(50)}))
        .broadcast()
        .with_columns(m=col("n") * 2)
        .with_parallelism(3)
        .execute_and_collect(local=True)
    )
    assert Counter(got["m"].to_pylist()) == {2 * n: 3 for n in range(50)}


def test_time_arithmetic_follows_arrow() -> None:
    t = datetime(2024, 2, 29, 23, 59, 59, 999_999)
    table = pa.table({"t": [t, None]})
    got = (
        env().from_arrow(table)
        .select(h=col("t").hour(), later=col("t") + rf.lit(timedelta(seconds=1)), day=col("t").cast(pa.date32()),
                utc=col("t").assume_timezone("UTC"))
        .execute_and_collect(local=True)
    )  # fmt: skip
    first = got.to_pylist()[0]
    assert first["h"] == 23
    assert first["later"] == t + timedelta(seconds=1)
    assert str(first["day"]) == "2024-02-29"
    assert first["utc"] == t.replace(tzinfo=timezone.utc)
    assert pc.is_null(got["h"])[1].as_py()
