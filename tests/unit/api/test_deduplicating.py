"""`deduplicate` as it is written down: what it makes of the plan, and what it refuses."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import PlanError, col
from rayflow.graph.plan import Exchange, JobGraph
from rayflow.operators.dedup.memories import CHUNK_COLUMN


@pytest.fixture
def rows(env: Any) -> Any:
    table = pa.table(
        {
            "user": ["a"],
            "item": [1],
            "small": pa.array([1], pa.uint16()),
            "t": pa.array([0], pa.timestamp("ms")),
            "l": [[1]],
        }
    )
    return env.from_arrow(table)


def todo(stream: Any) -> Any:
    return stream._node.spec.payload.args[0]


def exchanges(graph: JobGraph) -> list[Exchange]:
    return [edge.exchange for edge in graph.edges]


def planned(stream: Any) -> JobGraph:
    stream.discard()
    graph: JobGraph = stream._env.plan()
    return graph


def test_rows_are_told_apart_by_the_columns_named_and_lie_by_them(rows: Any) -> None:
    made = rows.deduplicate("user", col("item"))
    assert made.schema == rows.schema
    assert not made._info.is_upsert
    assert (todo(made).columns, todo(made).partition) == (("user", "item"), ("user", "item"))
    assert exchanges(planned(made)) == [Exchange("hash", ("user", "item"))]


def test_without_columns_all_of_them_tell_rows_apart(rows: Any) -> None:
    assert todo(rows.drop("l").deduplicate()).columns == ("user", "item", "small", "t")
    with pytest.raises(PlanError, match=r"'l' of type list.* cannot be a key"):
        rows.deduplicate()


def test_within_a_key_rows_lie_by_the_key_alone_and_so_does_what_follows(rows: Any) -> None:
    made = rows.key_by("user").deduplicate("item")
    assert (todo(made).columns, todo(made).partition) == (("user", "item"), ("user",))
    counted = made.key_by("user").aggregate(n=rf.count())
    assert exchanges(planned(counted)) == [Exchange("hash", ("user",))]


def test_of_a_keyed_stream_without_columns_the_key_is_enough(rows: Any) -> None:
    assert todo(rows.key_by("user", "item").deduplicate()).columns == ("user", "item")
    assert todo(rows.key_by("user").deduplicate("user")).columns == ("user",)


@pytest.mark.parametrize("name", ["item", "small"])
def test_for_bitmaps_neighbouring_ids_lie_together(rows: Any, name: str) -> None:
    made = rows.deduplicate(name, method="bitmap")
    assert made.schema == rows.schema
    keyed = rows.key_by(name).deduplicate(method="bitmap").key_by(name).aggregate(n=rf.count())
    assert exchanges(planned(keyed)) == [Exchange("hash", (CHUNK_COLUMN,)), Exchange("hash", (name,))]


def test_what_finds_out_which_ids_are_neighbours_runs_where_the_rows_are(rows: Any) -> None:
    # The source has one subtask, all else two: one exchange, not two.
    graph = planned(rows.with_parallelism(1).deduplicate("item", method="bitmap"))
    assert [vertex.parallelism for vertex in graph.vertices] == [1, 2]
    assert [op.name for op in graph.vertices[0].operators][1:] == ["chunk ids"]


def test_the_plan_says_how_keys_are_remembered_and_by_which_time(rows: Any) -> None:
    timed = rows.assign_watermarks(rf.Watermark("t"))
    assert rows.deduplicate("item")._node.spec.detail == "exact by item"
    assert rows.deduplicate("item", ttl="1h")._node.spec.detail == "exact by item, ttl 1h (processing time)"
    bloom = timed.deduplicate("item", method="bloom", ttl="90m", expected=5_000, false_positive_rate=0.02)
    assert bloom._node.spec.detail == (
        "bloom by item, 0.02 false positives, 5,000 keys expected, ttl 90m (event time t)"
    )
    assert bloom._info.time_column == "t"


def test_without_a_ttl_a_stream_that_never_ends_is_warned_about(env: Any) -> None:
    def make(start: int, count: int) -> pa.RecordBatch:
        return pa.record_batch({"id": pa.array(range(start, start + count), pa.int64())})

    endless = env.generate(make, rows=None)
    endless.deduplicate("id", ttl="1h", method="bitmap").discard()
    assert not env.plan().warnings
    endless.deduplicate("id").discard()
    (warning,) = env.plan().warnings
    assert "keeps every key for ever" in warning
    assert "give it ttl=" in warning


def test_columns_that_nobody_reads_are_not_read_from_files(env: Any, tmp_path: Any) -> None:
    table = pa.table(
        {"id": [1, 1, 2], "x": [1, 2, 3], "y": [1, 2, 3], "t": pa.array([0, 1, 2], pa.timestamp("ms"))}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    for method in ("exact", "bitmap"):
        read = env.read_parquet(str(tmp_path / "rows.parquet"), watermark=rf.Watermark("t"))
        made = read.deduplicate("id", method=method, ttl="1d").select("x")
        graph = planned(made)
        assert graph.vertices[0].operators[0].schema.names == ["id", "x", "t"]
        assert made.execute_and_collect(local=True).column("x").to_pylist() == [1, 3]


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.deduplicate("usr"), "unknown column 'usr'; did you mean 'user'"),
        (lambda s: s.deduplicate("user", "user"), "named twice"),
        (lambda s: s.deduplicate(col("item") + 1), "expected a column"),
        (lambda s: s.deduplicate("l"), "cannot be a key"),
        (lambda s: s.deduplicate("item", method="set"), "method='set': expected 'exact', 'bitmap', 'bloom'"),
        (lambda s: s.deduplicate("item", ttl="0s"), "ttl: expected a duration longer than zero"),
        (lambda s: s.deduplicate("item", ttl="10us"), "ttl: expected 1ms to 100 years; got '10us'"),
        (lambda s: s.deduplicate("item", ttl="soon"), "ttl: "),
        (lambda s: s.deduplicate("item", expected=10), "are for method='bloom'; 'exact' makes no mistakes"),
        (lambda s: s.deduplicate("item", method="bitmap", false_positive_rate=0.1), "are for method='bloom'"),
        (lambda s: s.deduplicate("item", method="bloom", false_positive_rate=1), "1e-06 to 0.5 .*; got 1"),
        (lambda s: s.deduplicate("item", method="bloom", false_positive_rate=0), "got 0"),
        (lambda s: s.deduplicate("item", method="bloom", expected=0), "expected: a number of different keys"),
        (
            lambda s: s.deduplicate("item", method="bloom", expected=1.5),
            "expected: a number of different keys",
        ),
        (lambda s: s.deduplicate("user", method="bitmap"), "user string; use method='exact', or 'bloom'"),
        (lambda s: s.deduplicate("t", method="bitmap"), r"t timestamp\[ms\]; use method='exact'"),
        (lambda s: s.key_by("user").deduplicate("item", method="bitmap"), "user string, item int64; use"),
        (lambda s: s.map(lambda row: row).deduplicate("user"), "returns="),
        (lambda s: s.key_by("user").aggregate(n=rf.count()).deduplicate("n"), r"upsert stream.*\.top_n\(1"),
        (
            lambda s: s.key_by("user").aggregate(n=rf.count()).key_by("n").deduplicate(),
            "before the running aggregate or outer join",
        ),
    ],
)
def test_a_mistake_is_a_plan_error_at_the_users_line(rows: Any, call: Any, says: str) -> None:
    with pytest.raises(PlanError, match=says) as error:
        call(rows)
    assert "test_deduplicating.py" in str(error.value.location)


def test_no_column_may_be_called_like_the_hidden_one(env: Any) -> None:
    with pytest.raises(PlanError, match=f"'{CHUNK_COLUMN}' is reserved"):
        env.from_rows([{"id": 1}]).with_columns(**{CHUNK_COLUMN: col("id")})
