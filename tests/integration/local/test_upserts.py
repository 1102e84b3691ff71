"""Upsert streams, end to end, against DuckDB: the first rows of keys, whatever dies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col

BIDS = 6000


def bids(seed: int = 1, rows: int = BIDS) -> pa.Table:
    rng = np.random.default_rng(seed)
    return pa.table(
        {
            "event_order": np.arange(rows),
            "auction": rng.integers(0, 40, rows),
            "bidder": rng.integers(0, 30, rows),
            "price": rng.integers(0, 200, rows),
            "channel": rng.choice(["apple", "google", "baidu"], rows),
            "dateTime": pa.array(
                np.sort(rng.integers(0, 5000, rows)) + 1_436_918_400_000, pa.timestamp("ms")
            ),
        }
    )


def env(parallelism: int, rows: int = 500) -> rf.StreamEnvironment:
    # Few key groups: upsert files are written anew per key group and checkpoint.
    return rf.StreamEnvironment(parallelism=parallelism, max_parallelism=16, config={"batch.rows": rows})


def sql(query: str, table: pa.Table) -> Counter[Any]:
    assert table.num_rows  # DuckDB finds it by its name
    return Counter(duckdb.sql(query.replace("bids", '"table"')).fetchall())


def generated(e: rf.StreamEnvironment, table: pa.Table) -> Any:
    """A stream of the table's rows, half a second long."""

    def make(start: int, count: int) -> pa.RecordBatch:
        return table.slice(start, count).combine_chunks().to_batches()[0]

    return e.generate(make, rows=table.num_rows, rate_limit=2 * table.num_rows)


def run_with_crashes(lab: Any, e: rf.StreamEnvironment, seed: int) -> None:
    """Run the job; a subtask dies after each of the first two checkpoints."""
    watcher = lab.crashing(e, 2, seed)
    lab.finish(e, on_start=watcher, checkpoint__interval="30ms", restart__delay="1ms")
    assert len(watcher.stop()) == 2


Q18 = """select * exclude (r) from (select *, row_number() over (partition by bidder, auction
         order by dateTime desc, event_order desc) r from bids) where r = 1"""
Q19 = """select * from (select *, row_number() over (partition by auction
         order by price desc, event_order) rank_number from bids) where rank_number <= 10"""


def last_bids(stream: Any) -> Any:
    return stream.key_by("bidder", "auction").top_n(1, [col("dateTime").desc(), col("event_order").desc()])


def highest_bids(stream: Any, rank: str | None = "rank_number") -> Any:
    order = [col("price").desc(), col("event_order").asc()]
    return stream.key_by("auction").top_n(10, order_by=order, rank=rank)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_the_last_and_the_highest_rows_of_keys_equal_duckdb(lab: Any, parallelism: int) -> None:
    table = bids(parallelism)
    last = last_bids(env(parallelism).from_arrow(table)).execute_and_collect(local=True)
    assert lab.bag(last) == sql(Q18, table)
    highest = highest_bids(env(parallelism).from_arrow(table)).execute_and_collect(local=True)
    assert lab.bag(highest) == sql(Q19, table)
    unranked = highest_bids(env(parallelism).from_arrow(table), None).execute_and_collect(local=True)
    assert lab.bag(unranked) == sql(Q19.replace("*", "* exclude (rank_number)", 1), table)


def test_columns_without_nulls_and_columns_of_every_type_are_kept(lab: Any) -> None:
    table = bids(9, 300)
    columns = {
        "day": table["dateTime"].cast(pa.date32()),
        "exact": table["price"].cast(pa.decimal128(22, 2)),
        "names": pa.array([[str(n)] for n in range(300)]),
        "kind": table["channel"].dictionary_encode(),
        "both": pa.StructArray.from_arrays([table["price"].combine_chunks()], ["p"]),
        "flag": pa.array([n % 3 == 0 for n in range(300)]),
        "nothing": pa.nulls(300),
    }
    for name, column in columns.items():
        table = table.append_column(name, column)
    table = table.cast(pa.schema([field.with_nullable(field.name == "nothing") for field in table.schema]))
    order = [
        col("exact").desc(),
        col("kind").asc(),
        col("day").asc(),
        col("flag").desc(),
        col("event_order").asc(),
    ]
    for stream in (
        env(2, 7).from_arrow(table),
        env(2, 7).from_arrow(table).with_columns(bidder=col("bidder") + 0),
    ):
        got = stream.key_by("auction").top_n(2, order, rank="r").execute_and_collect(local=True)
        columns_ = [name for name in got.schema.names if name not in ("kind", "both", "names")]
        want = sql(
            f"select {', '.join(columns_)} from (select *, row_number() over (partition by auction "
            "order by exact desc, kind, day, flag desc, event_order) r from bids) where r <= 2",
            table,
        )
        assert lab.bag(got.select(columns_)) == want
        assert all(row["both"] == {"p": row["price"]} for row in got.to_pylist())


def test_the_last_row_is_the_same_by_aggregates_and_by_top_n(lab: Any) -> None:
    table = bids(3)
    keyed = env(2).from_arrow(table, watermark=rf.Watermark("dateTime")).key_by("auction")
    columns = ["bidder", "price", "channel", "dateTime", "event_order"]
    by_aggregates = keyed.aggregate(**{name: col(name).last() for name in columns})
    by_order = keyed.top_n(1, order_by="dateTime", ties="last").select("auction", *columns)
    assert lab.bag(by_order.execute_and_collect(local=True)) == lab.bag(
        by_aggregates.execute_and_collect(local=True)
    )


def test_filters_and_projections_keep_whole_rows_apart(lab: Any) -> None:
    table = bids(4)
    highest = highest_bids(env(2).from_arrow(table), None)
    seen = highest.filter(col("price") < 195).select("auction", "price").execute_and_collect(local=True)
    assert lab.bag(seen) == sql(f"select auction, price from ({Q19}) where price < 195", table)
    # Without the key they are still a multiset.
    prices = highest_bids(env(2).from_arrow(table), None).select("price").execute_and_collect(local=True)
    assert lab.bag(prices) == sql(f"select price from ({Q19})", table)


# ------------------------------------------------------------------------------- aggregates of aggregates

Q4 = """select channel, avg(final) mean, count(*) n from
        (select auction, channel, max(price) final from bids group by all) group by channel"""


def mean_of_highest(stream: Any) -> Any:
    highest = stream.key_by("auction", "channel").aggregate(final=col("price").max())
    return highest.key_by("channel").aggregate(mean=col("final").mean(), n=rf.count())


@pytest.mark.parametrize(("parallelism", "rows"), [(1, 500), (2, 37), (4, 5)])
def test_an_aggregate_of_running_aggregates_equals_duckdb(lab: Any, parallelism: int, rows: int) -> None:
    table = bids(parallelism, 2000)
    got = mean_of_highest(env(parallelism, rows).from_arrow(table)).execute_and_collect(local=True)
    assert lab.bag(got) == sql(Q4, table)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_groups_that_become_empty_are_gone(lab: Any, parallelism: int) -> None:
    table = bids(5, 3000)
    counts = (
        env(parallelism, 100)
        .from_arrow(table)
        .key_by("bidder")
        .aggregate(n=rf.count(), most=col("price").max())
    )
    busy = counts.filter(col("n") < 100).select("most", n=col("n") // 10, who=col("bidder"))
    # How many bidders have so many bids: every bid takes a bidder from one group to another.
    sizes = busy.key_by("n").aggregate(bidders=rf.count(), first=col("who").min(), most=col("most").max())
    per_bidder = "(select bidder, count(*) n, max(price) most from bids group by 1 having n < 100)"
    assert lab.bag(sizes.execute_and_collect(local=True)) == sql(
        f"select n // 10 g, count(*), min(bidder), max(most) from {per_bidder} group by g", table
    )


def test_changes_that_lost_their_key_are_aggregated_by_value(lab: Any) -> None:
    table = bids(6, 2000)
    counts = env(3, 50).from_arrow(table).key_by("auction", "bidder").aggregate(n=rf.count())
    got = counts.select("n").key_by("n").aggregate(times=rf.count()).execute_and_collect(local=True)
    assert lab.bag(got) == sql(
        "select n, count(*) from (select count(*) n from bids group by auction, bidder) group by n", table
    )


@pytest.mark.parametrize("rank", ["rank", None])
def test_the_first_of_running_aggregates_equal_duckdb(lab: Any, rank: str | None) -> None:
    table = bids(7, 3000)
    counts = env(2, 60).from_arrow(table).key_by("channel", "auction").aggregate(n=rf.count())
    order = [col("n").desc(), col("auction").asc()]
    top = counts.key_by("channel").top_n(5, order, rank=rank)
    ranked = """select channel, auction, count(*) n,
        row_number() over (partition by channel order by n desc, auction) rank
        from bids group by 1, 2 qualify rank <= 5"""
    want = ranked if rank else f"select * exclude (rank) from ({ranked})"
    assert lab.bag(top.execute_and_collect(local=True)) == sql(want, table)


def test_aggregates_of_the_first_rows_follow_them(lab: Any) -> None:
    table = bids(8, 3000)
    for rank in ("rank_number", None):
        top = highest_bids(env(2, 100).from_arrow(table), rank)
        per_bidder = top.key_by("bidder").aggregate(n=rf.count(), mean=col("price").mean())
        assert lab.bag(per_bidder.execute_and_collect(local=True)) == sql(
            f"select bidder, count(*), avg(price) from ({Q19}) group by bidder", table
        )


@pytest.mark.parametrize("parallelism", [1, 3])
def test_sessions_that_late_rows_merge_are_taken_back(lab: Any, parallelism: int) -> None:
    rng = np.random.default_rng(parallelism)
    times = np.sort(rng.integers(0, 100_000, 1000))
    times = times[np.argsort(times + rng.integers(0, 3000, len(times)))]
    table = pa.table({"k": rng.integers(0, 15, len(times)), "t": pa.array(times, pa.timestamp("ms"))})

    def sessions() -> Any:
        stream = env(parallelism, 20).from_arrow(table, watermark=rf.Watermark("t"))
        return stream.key_by("k").window(rf.Session("1s")).allowed_lateness("1h").aggregate(n=rf.count())

    final = sessions().execute_and_collect(local=True)
    by_size = sessions().key_by("n").aggregate(sessions=rf.count(), keys=col("k").sum())
    assert lab.bag(by_size.execute_and_collect(local=True)) == sql(
        "select n, count(*), sum(k) from bids group by n", final
    )
    longest = sessions().key_by("k").top_n(2, ["n", "window_start"], rank="r")
    assert lab.bag(longest.execute_and_collect(local=True)) == sql(
        """select *, row_number() over (partition by k order by n desc, window_start desc) r from bids
           qualify r <= 2""",
        final,
    )


def test_a_job_without_rows_leaves_a_readable_data_set(lab: Any, tmp_path: Path) -> None:
    e = env(2)
    nothing = e.from_arrow(bids(1, 10)).filter(col("price") < 0)
    nothing.write_csv(tmp_path / "append")
    last_bids(nothing).write_parquet(tmp_path / "upsert", mode="upsert")
    lab.finish(e)
    assert lab.read(tmp_path / "upsert").schema.equals(nothing.schema)
    assert lab.read(tmp_path / "append", "csv").schema.names == nothing.schema.names


def test_print_shows_what_comes_and_goes(capfd: pytest.CaptureFixture[str], lab: Any) -> None:
    e = env(1, 1)
    stream = e.from_rows([{"k": "a", "g": 1}, {"k": "a", "g": 2}, {"k": "b", "g": 2}])
    stream.key_by("k").aggregate(g=col("g").max()).key_by("g").aggregate(n=rf.count()).print()
    lab.finish(e)
    lines = [line.replace(" ", "") for line in capfd.readouterr().out.splitlines()]
    changes = [line for line in lines if line[:2] in ("+I", "-U", "+U", "-D")]
    assert changes[0] == '+I{"g":1,"n":1}'
    assert sorted(changes[1:3]) == ['+I{"g":2,"n":1}', '-D{"g":1,"n":1}']
    assert changes[3:] == ['-U{"g":2,"n":1}', '+U{"g":2,"n":2}']


@pytest.mark.parametrize("seed", range(2))
def test_aggregates_of_aggregates_survive_subtasks_that_die(lab: Any, tmp_path: Path, seed: int) -> None:
    table = bids(seed + 20)
    e = env(seed + 1, 50)
    stream = generated(e, table)
    mean_of_highest(stream).write_parquet(tmp_path / "means", mode="upsert")
    counts = stream.key_by("bidder").aggregate(n=rf.count())
    sizes = counts.with_columns(n=col("n") // 10).key_by("n").aggregate(bidders=rf.count())
    sizes.write_json(tmp_path / "sizes", mode="upsert")
    run_with_crashes(lab, e, seed)
    assert lab.rows(tmp_path / "means") == sql(Q4, table)
    # Arrow reads no JSON files without rows: those of groups that are gone went too.
    assert lab.bag(lab.read(tmp_path / "sizes", "jsonl", schema=sizes.schema)) == sql(
        "select n // 10 g, count(*) from (select count(*) n from bids group by bidder) group by g", table
    )


@pytest.mark.parametrize("seed", range(2))
def test_upsert_files_hold_the_first_rows_whatever_dies(lab: Any, tmp_path: Path, seed: int) -> None:
    table = bids(seed + 10)
    e = env(seed + 1, 50)

    stream = generated(e, table)
    last_bids(stream).write_parquet(tmp_path / "last", mode="upsert")
    highest_bids(stream).write_csv(tmp_path / "ranked", mode="upsert")
    highest_bids(stream, None).write_parquet(tmp_path / "unranked", mode="upsert", partition_by="channel")
    run_with_crashes(lab, e, seed)
    assert lab.rows(tmp_path / "last") == sql(Q18, table)
    ranked = duckdb.sql(f"select * from read_csv('{tmp_path}/ranked/*.csv')").fetchall()
    assert Counter(ranked) == sql(Q19, table)
    columns = "event_order, auction, bidder, price, channel, dateTime"
    unranked = duckdb.sql(f"select {columns} from read_parquet('{tmp_path}/unranked/*/*.parquet')").fetchall()
    assert Counter(unranked) == sql(f"select {columns} from ({Q19})", table)
