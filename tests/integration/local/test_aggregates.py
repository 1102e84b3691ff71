"""Running aggregates and tumbling windows, end to end, against DuckDB."""

from __future__ import annotations

import math
import random
from collections import Counter
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rayflow as rf
from rayflow import col

NAN = float("nan")


def env(parallelism: int = 1, rows: int = 65536, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(parallelism=parallelism, config={"batch.rows": rows, **config})


def random_table(rows: int, seed: int) -> pa.Table:
    rng = random.Random(seed)

    def some(make: Any, nulls: float = 0.2) -> list[Any]:
        return [None if rng.random() < nulls else make() for _ in range(rows)]

    base = datetime(2024, 1, 1)
    return pa.table(
        {
            "k": some(lambda: rng.choice(["a", "b", "ü", ""])),
            "k2": pa.array(some(lambda: rng.randrange(3)), pa.int16()),
            "i": pa.array(some(lambda: rng.randrange(-1000, 1000)), pa.int32()),
            "u": pa.array(some(lambda: rng.randrange(2**40)), pa.uint64()),
            "f": some(lambda: rng.uniform(-10, 10)),
            "d": pa.array(some(lambda: Decimal(rng.randrange(-(10**6), 10**6)) / 100), pa.decimal128(9, 2)),
            "s": some(lambda: rng.choice(["x", "y", "zz", "é"])),
            "b": some(lambda: rng.random() < 0.5),
            "t": pa.array(
                some(lambda: base + timedelta(seconds=rng.randrange(10**6)), 0), pa.timestamp("ms")
            ),
            "day": some(lambda: (base + timedelta(days=rng.randrange(30))).date()),
        }
    )


AGGREGATES = {
    "n": (rf.count(), "count(*)"),
    "ni": (col("i").count(), "count(i)"),
    "si": (col("i").sum(), "sum(i)"),
    "su": (col("u").sum(), "sum(u)"),
    "sd": (col("d").sum(), "sum(d)"),
    "mi": (col("i").min(), "min(i)"),
    "xs": (col("s").max(), "max(s)"),
    "md": (col("d").min(), "min(d)"),
    "xt": (col("t").max(), "max(t)"),
    "mday": (col("day").min(), "min(day)"),
    "xb": (col("b").max(), "max(b)"),
    "mean": (col("i").mean(), "avg(i)"),
    "meand": (col("d").mean(), "avg(d::double)"),
    "std": (col("i").stddev(), "stddev_samp(i)"),
    "var": (col("f").variance(), "var_samp(f)"),
    "sf": (col("f").sum(), "sum(f)"),
    "dist": (col("s").count_distinct(), "count(distinct s)"),
    "disti": (col("i").count_distinct(), "count(distinct i)"),
    "fn": (rf.count().filter(col("i") > 0), "count(*) filter (i > 0)"),
    "fs": (col("u").sum().filter(col("b")).filter(col("i") < 5), "sum(u) filter (b and i < 5)"),
    "expr": ((col("i") * 2 + 1).max(), "max(i*2+1)"),
    "list": (col("s").collect_list(), "list(s order by s) filter (s is not null)"),
}


def rounded(rows: Counter[Any]) -> Counter[Any]:
    def one(value: Any) -> Any:
        if isinstance(value, float | Decimal):
            return round(float(value), 6) + 0.0
        return tuple(sorted(value)) if isinstance(value, tuple) else value

    return Counter({tuple(map(one, row)): times for row, times in rows.items()})


def sql_rows(query: str, table: pa.Table) -> Counter[Any]:
    assert table.num_rows >= 0  # DuckDB finds it by its name
    rows = [
        tuple(tuple(v) if isinstance(v, list) else v for v in row) for row in duckdb.sql(query).fetchall()
    ]
    return rounded(Counter(rows))


@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (2, 1), (3, 10)])
def test_every_running_aggregate_equals_duckdb(lab: Any, parallelism: int, rows: int) -> None:
    table = random_table(300, seed=parallelism)
    got = (
        env(parallelism, rows)
        .from_arrow(table)
        .key_by("k", "k2")
        .aggregate(**{name: agg for name, (agg, _) in AGGREGATES.items()})
        .execute_and_collect(local=True)
    )
    query = ", ".join(f"{sql} as {name}" for name, (_, sql) in AGGREGATES.items())
    expected = sql_rows(f"select k, k2, {query} from table_ group by all".replace("table_", '"table"'), table)
    assert (
        rounded(lab.bag(got.set_column(got.num_columns - 1, "list", null_if_empty(got["list"])))) == expected
    )


def null_if_empty(lists: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(pc.equal(pc.list_value_length(lists), 0), pa.scalar(None, lists.type), lists)


@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (2, 7)])
def test_every_windowed_aggregate_equals_duckdb(lab: Any, parallelism: int, rows: int) -> None:
    table = random_table(300, seed=parallelism + 10)
    got = (
        env(parallelism, rows)
        .from_arrow(table, watermark=rf.Watermark("t", delay="12d"))
        .key_by("k", "k2")
        .window(rf.Tumbling("1d", offset="6h"))
        .aggregate(**{name: agg for name, (agg, _) in AGGREGATES.items()})
        .execute_and_collect(local=True)
    )
    query = ", ".join(f"{sql} as {name}" for name, (_, sql) in AGGREGATES.items())
    start = "time_bucket(interval 1 day, t, interval 6 hour)"
    expected = sql_rows(
        f'select k, k2, {start} ws, {start} + interval 1 day we, {query} from "table" group by k, k2, ws',
        table,
    )
    assert (
        rounded(lab.bag(got.set_column(got.num_columns - 1, "list", null_if_empty(got["list"])))) == expected
    )


def test_first_last_and_lists_go_by_event_time(lab: Any) -> None:
    base = datetime(2024, 1, 1)
    order = list(range(50))
    random.Random(5).shuffle(order)
    table = pa.table(
        {
            "k": ["x"] * 50,
            "n": order,
            "t": pa.array([base + timedelta(seconds=n) for n in order], pa.timestamp("us")),
        }
    )
    keyed = env(2, 3).from_arrow(table, watermark=rf.Watermark("t", delay="1h")).key_by("k")
    aggregates = {"first": col("n").first(), "last": col("n").last(), "all": col("n").collect_list()}
    for stream in (keyed.aggregate(**aggregates), keyed.window(rf.Tumbling("1h")).aggregate(**aggregates)):
        (row,) = stream.execute_and_collect(local=True).to_pylist()
        assert (row["first"], row["last"], row["all"]) == (0, 49, list(range(50)))


@pytest.mark.parametrize("parallelism", [1, 4])
def test_odd_keys_are_equal_where_the_rules_say(parallelism: int) -> None:
    table = pa.table({"f": [0.0, -0.0, NAN, -NAN, None, None, math.inf, 1.5], "n": range(8)})
    got = (
        env(parallelism, 1)
        .from_arrow(table)
        .key_by("f")
        .aggregate(n=rf.count())
        .execute_and_collect(local=True)
    )
    counts = {str(row["f"]).lstrip("-"): row["n"] for row in got.to_pylist()}
    assert counts == {"0.0": 2, "nan": 2, "None": 2, "inf": 1, "1.5": 1}


@pytest.mark.parametrize(
    "keys",
    [
        pa.array([Decimal("1.10"), Decimal("1.10"), None], pa.decimal128(10, 2)),
        pa.array([b"\x00", b"\x00", b""]),
        pa.array([True, True, None]),
        pa.array([datetime(2024, 1, 1)] * 2 + [None], pa.timestamp("ns", "UTC")),
        pa.array(["a", "a", ""], pa.large_string()),
        pa.array(["a", "a", None]).dictionary_encode(),
        pa.array([timedelta(days=1)] * 2 + [None], pa.duration("us")),
        pa.array([1.5, 1.5, None], pa.float32()),
        pa.array([2**64 - 1] * 2 + [0], pa.uint64()),
        pa.array(["a", "a", None], pa.large_string()).dictionary_encode(),
        pa.array([b"ab", b"ab", None], pa.binary(2)),
        pa.nulls(3),
    ],
    ids=lambda keys: str(keys.type),
)
def test_keys_of_every_type(keys: pa.Array) -> None:
    table = pa.table({"k": keys, "n": [1, 2, 4]})
    got = env(2, 1).from_arrow(table).key_by("k").aggregate(s=col("n").sum()).execute_and_collect(local=True)
    assert sorted(got["s"].to_pylist()) == ([3, 4] if keys.type != pa.null() else [7])
    assert got.schema.field("k").type in (keys.type, getattr(keys.type, "value_type", None))


def test_upsert_sinks_hold_the_last_row_per_key_in_every_format(lab: Any, tmp_path: Path) -> None:
    e = env(2, 5, **{"checkpoint.interval": "20ms"})
    numbers = e.generate(
        lambda start, count: pa.RecordBatch.from_pydict(
            {"k": [f"k{n % 13}" for n in range(start, start + count)], "n": list(range(start, start + count))}
        ),
        rows=2000,
        rate_limit=8000,
    )
    totals = numbers.key_by("k").aggregate(n=rf.count(), last=col("n").max(), mean=col("n").mean())
    totals.write_parquet(tmp_path / "p", mode="upsert")
    totals.write_csv(tmp_path / "c", mode="upsert")
    totals.write_json(tmp_path / "j", mode="upsert")
    totals.filter(col("n") > 153).write_parquet(tmp_path / "f", mode="upsert")
    totals.write_parquet(tmp_path / "by", mode="upsert", partition_by="k")
    lab.finish(e)
    want = {f"k{k}": (len(range(k, 2000, 13)), range(k, 2000, 13)[-1]) for k in range(13)}
    for name, suffix in [("p", "parquet"), ("c", "csv"), ("j", "jsonl")]:
        rows = lab.read(tmp_path / name, suffix, schema=totals.schema).to_pylist()
        assert len(rows) == 13
        assert {row["k"]: (row["n"], row["last"]) for row in rows} == want
        assert lab.leftovers(tmp_path / name) == []
    kept = {k: v for k, v in want.items() if v[0] > 153}
    assert {row["k"]: (row["n"], row["last"]) for row in lab.read(tmp_path / "f").to_pylist()} == kept
    assert sorted(path.name for path in (tmp_path / "by").iterdir()) == sorted(f"k=k{k}" for k in range(13))


def test_print_shows_the_changes(capfd: pytest.CaptureFixture[str], lab: Any) -> None:
    e = env(1, 1)
    e.from_rows([{"k": "a", "n": 1}, {"k": "a", "n": 2}]).key_by("k").aggregate(s=col("n").sum()).print()
    lab.finish(e)
    lines = [line for line in capfd.readouterr().out.splitlines() if line.strip()]
    assert [line.split()[0] if line[0] in "+-" else line for line in lines if "a" in line][:3]
    text = "\n".join(lines)
    assert text.index("+I") < text.index("-U") < text.index("+U")


def test_windows_of_windows_and_sums_of_sums() -> None:
    base = datetime(2024, 1, 1)
    table = pa.table(
        {
            "k": [n % 3 for n in range(1000)],
            "t": pa.array([base + timedelta(minutes=n) for n in range(1000)], pa.timestamp("s")),
        }
    )
    hourly = (
        env(2, 10)
        .from_arrow(table, watermark=rf.Watermark("t"))
        .key_by("k")
        .window(rf.Tumbling("1h"))
        .aggregate(n=rf.count())
    )
    daily = hourly.key_by("k").window(rf.Tumbling("1d")).aggregate(n=col("n").sum(), hours=rf.count())
    got = daily.execute_and_collect(local=True).to_pylist()
    assert sorted((r["k"], r["n"], r["hours"]) for r in got) == [(0, 334, 17), (1, 333, 17), (2, 333, 17)]
    assert {r["window_end"] for r in got} == {datetime(2024, 1, 2)}


@pytest.mark.parametrize(
    "type_",
    [
        pa.timestamp("s"),
        pa.timestamp("ms", "UTC"),
        pa.timestamp("us", "America/New_York"),
        pa.timestamp("ns"),
    ],
    ids=str,
)
def test_window_bounds_have_the_type_of_event_time(type_: pa.DataType) -> None:
    times = pa.array([-1, 0, 86_399, 86_400, 1_700_000_000], pa.timestamp("s")).cast(pa.timestamp(type_.unit))
    times = pc.assume_timezone(times, "UTC").cast(type_) if type_.tz else times
    table = pa.table({"k": [1] * 5, "t": times})
    got = (
        env(1, 1)
        .from_arrow(table, watermark=rf.Watermark("t", delay="1s"))
        .key_by("k")
        .window(rf.Tumbling("1d"))
        .aggregate(n=rf.count())
        .execute_and_collect(local=True)
    )
    assert got.schema.field("window_start").type == type_
    starts = (
        got["window_start"].cast(pa.timestamp(type_.unit))
        if not type_.tz
        else got["window_start"].cast(pa.timestamp(type_.unit, "UTC"))
    )
    assert sorted(starts.cast(pa.int64()).to_pylist()) == sorted(
        v * {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[type_.unit]
        for v in (-86_400, 0, 86_400, 1_699_920_000)
    )
    assert sorted(got["n"].to_pylist()) == [1, 1, 1, 2]
