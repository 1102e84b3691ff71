"""Joins, end to end: against DuckDB, with crashes, and the two-stream queries of NEXMark."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from tests.integration.local.join_inputs import JOINED, env, random_table, sql_rows, timed

NAN = float("nan")


@pytest.mark.parametrize("how", ["inner", "left", "right", "full"])
@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (3, 7)])
def test_a_join_equals_duckdb(lab: Any, how: Any, parallelism: int, rows: int) -> None:
    a, b = random_table(90, 1, "abcdef"), random_table(80, 2, "defghi")
    made = env(parallelism, rows)
    got = made.from_arrow(a).join(made.from_arrow(b), on=["k", "j"], how=how)
    assert got.schema.names == ["k", "j", "v", "f", "t", "v_right", "f_right", "t_right"]
    expected = sql_rows(f"select {JOINED} from a {how} join b on a.k = b.k and a.j = b.j", a=a, b=b)
    assert lab.bag(got.execute_and_collect(local=True)) == expected


@pytest.mark.parametrize("how", ["inner", "left", "full"])
def test_a_running_aggregate_joins_as_its_last_rows(lab: Any, how: Any) -> None:
    a, b = random_table(200, 6), random_table(20, 7, "abcxyz").select(["k", "v", "f"])
    made = env(2, 5)
    counts = made.from_arrow(a).key_by("k").aggregate(n=rf.count(), last=col("t").max())
    got = counts.join(made.from_arrow(b), on="k", how=how).filter(col("n").is_null() | (col("n") > 3))
    expected = sql_rows(
        f"""select coalesce(c.k, b.k), n, last, v, f from (select k, count(*) n, max(t) last from a group by k) c
        {how} join b on c.k = b.k where n is null or n > 3""",
        a=a,
        b=b,
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


@pytest.mark.parametrize("how", ["inner", "full"])
def test_two_running_aggregates_join_and_the_result_is_grouped_anew(lab: Any, how: Any) -> None:
    a, b = random_table(200, 11, "abcdef"), random_table(200, 12, "defghi")
    made = env(3, 5)
    left = made.from_arrow(a).key_by("k").aggregate(n=rf.count())
    right = made.from_arrow(b).key_by("k").aggregate(m=rf.count(), f=col("f").sum())
    joined = left.join(right, on="k", how=how)
    got = joined.key_by("m").aggregate(rows=rf.count(), n=col("n").sum(), f=col("f").max())
    expected = sql_rows(
        f"""select m, count(*), sum(n), max(f) from (select k, count(*) n from a group by k) a {how} join
        (select k, count(*) m, sum(f) f from b group by k) b on a.k = b.k group by m""",
        a=a,
        b=b,
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


def test_the_best_joined_rows_of_a_key(lab: Any) -> None:
    a, b = random_table(100, 13, "abc"), random_table(60, 14, "bcd").select(["k", "v"])
    made = env(2, 9)
    joined = made.from_arrow(a).join(made.from_arrow(b), on="k", how="left").select("k", "t", "v_right")
    got = joined.key_by("k").top_n(3, order_by=[col("t").desc(), col("v_right").desc()])
    expected = sql_rows(
        """select a.k, a.t, b.v from a left join b on a.k = b.k qualify row_number() over
        (partition by a.k order by a.t desc, b.v desc nulls last) <= 3""",
        a=a,
        b=b,
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


def test_a_stream_joins_itself_and_joins_follow_joins(lab: Any) -> None:
    a = random_table(60, 8)
    made = env(2, 9)
    stream = made.from_arrow(a.select(["k", "v"]))
    twice = stream.join(stream, on="k").join(stream, on="k", how="left", suffix="_3")
    expected = sql_rows(
        "select a.k, a.v, b.v, c.v from a join a b on a.k = b.k left join a c on a.k = c.k", a=a
    )
    assert lab.bag(twice.execute_and_collect(local=True)) == expected


# --------------------------------------------------------------------------------------- event time


@pytest.mark.parametrize("how", ["inner", "full"])
@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (3, 7)])
def test_a_window_join_equals_duckdb(lab: Any, how: Any, parallelism: int, rows: int) -> None:
    a, b = random_table(300, 21, "abcd"), random_table(200, 22, "cdef").select(["k", "v", "t"])
    made = env(parallelism, rows)
    got = timed(made, a).join(timed(made, b), on="k", window=rf.Sliding("10s", "5s"), how=how)
    windows = """(select *, time_bucket(interval 5 second, t) + i * interval 5 second ws from
        (select *, unnest([-1, 0]) i from {0})) {0}"""
    expected = sql_rows(
        f"""select coalesce(a.k, b.k), coalesce(a.ws, b.ws), coalesce(a.ws, b.ws) + interval 10 second,
        a.j, a.v, a.f, a.t, b.v, b.t from {windows.format("a")} {how} join {windows.format("b")}
        on a.k = b.k and a.ws = b.ws""",
        a=a,
        b=b,
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (3, 7)])
def test_an_interval_join_equals_duckdb_and_windows_may_follow(lab: Any, parallelism: int, rows: int) -> None:
    a, b = random_table(300, 23, "abcd"), random_table(300, 24, "abcd").select(["k", "v", "t"])
    made = env(parallelism, rows)
    got = timed(made, a).key_by("k").interval_join(timed(made, b).key_by("k"), lower="-3s", upper="2s")
    counts = got.key_by("k").window(rf.Tumbling("10s")).aggregate(n=rf.count(), t=col("t_right").max())
    expected = sql_rows(
        """select a.k, time_bucket(interval 10 second, a.t) ws, ws + interval 10 second, count(*), max(b.t)
        from a join b on a.k = b.k and b.t between a.t - interval 3 second and a.t + interval 2 second
        group by all""",
        a=a,
        b=b,
    )
    assert lab.bag(counts.execute_and_collect(local=True)) == expected


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (3, 7)])
def test_a_temporal_join_equals_duckdb(lab: Any, how: Any, parallelism: int, rows: int) -> None:
    a = random_table(300, 25, "abcd")
    b = random_table(200, 26, "cdef").select(["k", "v", "t"])
    b = b.filter(
        pa.array(
            [
                (k, t) not in set(zip(b["k"].to_pylist()[:i], b["t"].to_pylist()[:i]))
                for i, (k, t) in enumerate(zip(b["k"].to_pylist(), b["t"].to_pylist()))
            ]
        )
    )
    made = env(parallelism, rows)
    got = timed(made, a).temporal_join(timed(made, b), on="k", how=how)
    expected = sql_rows(
        f"select a.k, a.j, a.v, a.f, a.t, b.v, b.t from a asof {how} join b on a.k = b.k and a.t >= b.t",
        a=a,
        b=b,
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


BY_EVENT_TIME: dict[str, Callable[[Any, Any], Any]] = {
    "window": lambda a, b: a.join(b, on="k", window=rf.Tumbling("10s"), how="full"),
    "interval": lambda a, b: a.key_by("k").interval_join(b.key_by("k"), "-1s", "1s"),
    "temporal": lambda a, b: a.temporal_join(b, on="k", how="left"),
}
FAR_MS = 7_258_118_400_000


@pytest.mark.parametrize("kind", list(BY_EVENT_TIME))
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("rows", [7, 65536])
def test_a_row_from_the_far_future_is_in_no_pair_and_makes_no_other_late(
    lab: Any, tmp_path: Path, kind: str, side: str, rows: int
) -> None:
    tables = {
        "left": random_table(150, 41, "ab"),
        "right": random_table(120, 42, "ab").select(["k", "v", "t"]),
    }
    row = tables[side].slice(80, 1)
    at = row.schema.get_field_index("t")
    wrong = row.set_column(
        at, row.schema.field(at), pa.chunked_array([pa.array([FAR_MS], row.schema.field(at).type)])
    )
    with_wrong = pa.concat_tables([tables[side].slice(0, 80), wrong, tables[side].slice(80)])
    mark = rf.Watermark("t", delay="1m", max_ahead="1h")
    results = []
    for given in (tables, {**tables, side: with_wrong}):
        made = env(1, rows)
        left, right = (made.from_arrow(given[name], watermark=mark) for name in ("left", "right"))
        out = tmp_path / str(len(results))
        BY_EVENT_TIME[kind](left, right).write_parquet(out)
        metrics = lab.finish(made).metrics["operators"].values()
        results.append(lab.rows(out))
    assert results[0] == results[1]
    assert results[0]
    counted = Counter[str]()
    for operator in metrics:
        counted.update({name: value for name, value in operator.items() if isinstance(value, int)})
    assert counted["far_future_rows"] == counted["null_time_rows"] == 1, "at the source, and at the join"
    assert counted["late_rows"] == counted["late_versions"] == 0


@pytest.mark.parametrize("kind", ["join", "broadcast_join"])
def test_joins_that_do_not_look_at_event_time_keep_a_row_from_the_far_future_without_its_time(
    lab: Any, kind: str
) -> None:
    a = pa.table({"k": ["x", "x", "y"], "t": pa.array([1, FAR_MS, 3], pa.timestamp("ms"))})
    made = env()
    left = made.from_arrow(a, watermark=rf.Watermark("t", max_ahead="1h"))
    joined = getattr(left, kind)(made.from_rows([{"k": "x", "n": 1}]), on="k")
    got = joined.select("n", t=col("t").cast(pa.int64())).execute_and_collect(local=True)
    assert lab.bag(got) == Counter([(1, 1), (1, None)])


# ---------------------------------------------------------------------------------------- broadcast


@pytest.mark.parametrize("how", ["inner", "left"])
@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (3, 7)])
def test_a_broadcast_join_equals_duckdb(lab: Any, how: Any, parallelism: int, rows: int) -> None:
    a, b = random_table(300, 31, "abcdef"), random_table(40, 32, "defghi")
    made = env(parallelism, rows)
    got = made.from_arrow(a).broadcast_join(made.from_arrow(b), on=["k", "j"], how=how)
    expected = sql_rows(
        f"select a.k, a.j, a.v, a.f, a.t, b.v, b.f, b.t from a {how} join b on a.k = b.k and a.j = b.j",
        a=a,
        b=b,
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


def test_both_sides_of_a_broadcast_join_may_come_from_one_source(lab: Any) -> None:
    a = random_table(2000, 33)
    made = env(2, 10)
    stream = made.from_arrow(a, watermark=rf.Watermark("t", delay="60s"))
    lasts = stream.key_by("k").window(rf.Tumbling("1d")).aggregate(n=rf.count())
    got = stream.broadcast_join(lasts.select("k", "n"), on="k").select("k", "v", "n")
    expected = sql_rows("select k, v, count(*) over (partition by k) from a where k is not null", a=a)
    assert lab.bag(got.execute_and_collect(local=True)) == expected


# ------------------------------------------------------------------------------------------ NEXMark

NEXMARK = Path("/work/shared/nexmark")
needs_nexmark = pytest.mark.skipif(not NEXMARK.exists(), reason="the shared data set is not here")


def nexmark(query: str) -> Counter[Any]:
    return sql_rows(query.format(**{s: f"'{NEXMARK}/{s}/*.parquet'" for s in ("person", "auction", "bid")}))


@needs_nexmark
@pytest.mark.parametrize("parallelism", [1, 3])
def test_sellers_with_their_auctions(lab: Any, parallelism: int) -> None:
    made = env(parallelism)
    auctions = made.read_parquet(NEXMARK / "auction").filter(col("category") == 10)
    states = (col("state") == "OR") | (col("state") == "ID") | (col("state") == "CA")
    persons = made.read_parquet(NEXMARK / "person").filter(states)
    got = auctions.join(persons, on={"seller": "id"}).select("name", "city", "state", "id")
    expected = nexmark(
        "select name, city, state, a.id from {auction} a join {person} p on a.seller = p.id "
        "where category = 10 and state in ('OR', 'ID', 'CA')"
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


@needs_nexmark
def test_bids_with_their_auction(lab: Any) -> None:
    made = env(2)
    auctions = made.read_parquet(NEXMARK / "auction").filter(col("category") == 10)
    bids = made.read_parquet(NEXMARK / "bid")
    got = bids.join(auctions, on={"auction": "id"}).select(
        "event_order", "auction", "itemName", "extra_right"
    )
    expected = nexmark(
        "select b.event_order, auction, itemName, a.extra from {bid} b join {auction} a on b.auction = a.id "
        "where category = 10"
    )
    assert lab.bag(got.execute_and_collect(local=True)) == expected


@needs_nexmark
@pytest.mark.parametrize("parallelism", [1, 2])
def test_persons_who_opened_an_auction_in_the_window_they_registered_in(lab: Any, parallelism: int) -> None:
    made = env(parallelism)
    watermark = rf.Watermark("dateTime")
    persons = made.read_parquet(NEXMARK / "person", watermark=watermark).select("id", "name", "dateTime")
    auctions = made.read_parquet(NEXMARK / "auction", watermark=watermark).select("seller", "dateTime")
    joined = persons.join(auctions, on={"id": "seller"}, window=rf.Tumbling("10s"))
    got = joined.select("id", "name", "window_start").execute_and_collect(local=True)
    expected = nexmark(
        """select p.id, p.name, time_bucket(interval 10 second, p.dateTime) w from {person} p join {auction} a
        on p.id = a.seller
        where time_bucket(interval 10 second, p.dateTime) = time_bucket(interval 10 second, a.dateTime)"""
    )
    assert lab.bag(got) == expected
