"""Joins, end to end: against DuckDB, with crashes, and the two-stream queries of NEXMark."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col

NAN = float("nan")


def env(parallelism: int = 1, rows: int = 65536, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(
        parallelism=parallelism, max_parallelism=8, config={"batch.rows": rows, **config}
    )


def random_table(rows: int, seed: int, letters: str = "abcdefgh") -> pa.Table:
    rng = random.Random(seed)
    return pa.table(
        {
            "k": [rng.choice([None, *letters]) for _ in range(rows)],
            "j": pa.array([rng.choice([None, 0, 1]) for _ in range(rows)], pa.int16()),
            "v": [rng.randrange(3) for _ in range(rows)],
            "f": [rng.choice([0.0, 1.5, None]) for _ in range(rows)],
            "t": pa.array([rng.randrange(60_000) for _ in range(rows)], pa.timestamp("ms")),
        }
    )


def sql_rows(query: str, **tables: pa.Table) -> Counter[Any]:
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return Counter(connection.sql(query).fetchall())


def crashing(lab: Any, times: int, seed: int) -> tuple[Any, list[str]]:
    """A watcher that crashes subtasks after checkpoints, and the names of those it crashed."""
    rng, crashed = random.Random(seed), []

    def look(job: Any) -> None:
        if len(crashed) < times and lab.completed(job) > len(crashed):
            crashed.append(lab.crash(job, rng))

    return lab.watch(look), crashed


JOINED = "coalesce(a.k, b.k), coalesce(a.j, b.j), a.v, a.f, a.t, b.v, b.f, b.t"


@pytest.mark.parametrize("how", ["inner", "left", "right", "full"])
@pytest.mark.parametrize(("parallelism", "rows"), [(1, 65536), (3, 7)])
def test_a_join_equals_duckdb(lab: Any, how: Any, parallelism: int, rows: int) -> None:
    a, b = random_table(90, 1, "abcdef"), random_table(80, 2, "defghi")
    made = env(parallelism, rows)
    got = made.from_arrow(a).join(made.from_arrow(b), on=["k", "j"], how=how)
    assert got.schema.names == ["k", "j", "v", "f", "t", "v_right", "f_right", "t_right"]
    expected = sql_rows(f"select {JOINED} from a {how} join b on a.k = b.k and a.j = b.j", a=a, b=b)
    assert lab.bag(got.execute_and_collect(local=True)) == expected


@pytest.mark.parametrize("how", ["inner", "full"])
def test_a_join_survives_crashes(lab: Any, tmp_path: Path, how: Any) -> None:
    a, b = random_table(3000, 3), random_table(300, 4, "efghijkl")
    made = env(3, 50, **{"source.rate_limit": 2500})
    joined = made.from_arrow(a).join(made.from_arrow(b), on=["k", "j"], how=how)
    joined.write_parquet(tmp_path / "out", mode="append" if how == "inner" else "upsert")
    watcher, crashed = crashing(lab, 2, seed=5)
    lab.finish(made, on_start=watcher, checkpoint__interval="50ms", restart__delay="1ms")
    assert crashed
    expected = sql_rows(f"select {JOINED} from a {how} join b on a.k = b.k and a.j = b.j", a=a, b=b)
    assert lab.rows(tmp_path / "out") == expected


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


def test_a_stream_joins_itself_and_joins_follow_joins(lab: Any) -> None:
    a = random_table(60, 8)
    made = env(2, 9)
    stream = made.from_arrow(a.select(["k", "v"]))
    twice = stream.join(stream, on="k").join(stream, on="k", how="left", suffix="_3")
    expected = sql_rows(
        "select a.k, a.v, b.v, c.v from a join a b on a.k = b.k left join a c on a.k = c.k", a=a
    )
    assert lab.bag(twice.execute_and_collect(local=True)) == expected


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
