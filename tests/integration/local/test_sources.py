"""Sources end to end: files in every layout, memory, generators, watched folders, users' own."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import col


def env(parallelism: int = 1, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(parallelism=parallelism, config={"restart.strategy": "none", **config})


def numbers(start: int, stop: int) -> pa.Table:
    n = range(start, stop)
    return pa.table({"n": n, "s": [None if i % 5 == 0 else f"ü{i}" for i in n], "x": [i / 4 for i in n]})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    pq.write_table(numbers(0, 100), tmp_path / "a.parquet", row_group_size=30)
    pq.write_table(numbers(100, 101), tmp_path / "b.parquet")
    pq.write_table(numbers(0, 0), tmp_path / "empty.parquet")
    pq.write_table(numbers(101, 200), tmp_path / "deep" / "er" / "c.parquet")
    (tmp_path / "note.txt").write_text("not Parquet")
    (tmp_path / "_rayflow").mkdir()
    (tmp_path / "_rayflow" / "x.pending").write_text("not Parquet")
    return tmp_path


@pytest.mark.parametrize("parallelism", [1, 3])
def test_parquet_folders_globs_and_files(lab: Any, folder: Path, parallelism: int) -> None:
    e = env(parallelism, **{"batch.rows": 13})
    for path, (start, stop) in {
        str(folder): (0, 200),
        f"file://{folder}": (0, 200),
        str(folder / "a.parquet"): (0, 100),
        str(folder / "*.parquet"): (0, 101),
        str(folder / "[ab].parquet"): (0, 101),
        str(folder / "**" / "*.parquet"): (0, 200),
        str(folder / "deep"): (101, 200),
    }.items():
        got = e.read_parquet(path).execute_and_collect(local=True)
        assert lab.bag(got) == lab.bag(numbers(start, stop)), path


def test_paths_may_be_relative_and_path_objects(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert env().read_parquet("deep/er").execute_and_collect(local=True).num_rows == 99
    assert env().read_parquet(Path("a.parquet")).execute_and_collect(local=True).num_rows == 100


def test_parquet_columns_by_schema_are_picked_and_cast(folder: Path) -> None:
    schema = pa.schema({"x": pa.float32(), "n": pa.int32()})
    got = env().read_parquet(folder, schema=schema).execute_and_collect(local=True)
    assert got.schema == schema
    assert got.num_rows == 200


def test_csv_of_awkward_text(lab: Any, tmp_path: Path) -> None:
    table = pa.table({"a": ['q"uo,te', "line\nbreak", "", "ß", None], "n": [1, None, 3, 4, 5]})
    pa_csv.write_csv(table, tmp_path / "a.csv")
    with gzip.open(tmp_path / "b.csv.gz", "wt") as file:
        file.write("n,a\n7,zipped\n")
    (tmp_path / "c.csv").write_text('a,n\r\n"windows",8\r\n')
    (tmp_path / "header only.csv").write_text("a,n\n")
    got = env(2).read_csv(tmp_path, schema={"a": str, "n": int}).execute_and_collect(local=True)
    want = [*table.to_pylist(), {"a": "zipped", "n": 7}, {"a": "windows", "n": 8}]
    assert sorted(map(str, got.to_pylist())) == sorted(map(str, want))
    inferred = env().read_csv(tmp_path / "a.csv").execute_and_collect(local=True)
    assert lab.bag(inferred) == lab.bag(table)


def test_csv_types_are_inferred_and_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "when,n,ok,x,empty\n2024-01-01 10:00:00,1,true,1.5,\n2024-01-02 00:00:00,,false,,\n"
    )
    stream = env().read_csv(tmp_path / "a.csv")
    types = {f.name: str(f.type) for f in stream.schema}
    assert types == {"when": "timestamp[s]", "n": "int64", "ok": "bool", "x": "double", "empty": "string"}
    (row,) = (
        stream.filter(col("ok"))
        .select(h=col("when").hour(), m=col("n") + 1)
        .execute_and_collect(local=True)
        .to_pylist()
    )
    assert row == {"h": 10, "m": 2}


def test_json_lines_nested_missing_and_null(lab: Any, tmp_path: Path) -> None:
    rows = [
        {"n": 1, "o": {"x": [1, 2]}, "s": "ü\n", "late": None},
        {"n": None, "o": None, "s": None},
        {"n": 3, "o": {"x": []}, "s": "", "extra": True},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    (tmp_path / "b.ndjson").write_text(json.dumps({"n": 4}))  # no line end
    schema = pa.schema({"n": pa.int64(), "o": pa.struct({"x": pa.list_(pa.int64())}), "s": pa.string()})
    got = env(2).read_json(tmp_path, schema=schema).execute_and_collect(local=True)
    want = [{name: r.get(name) for name in schema.names} for r in [*rows, {"n": 4}]]
    assert sorted(map(str, got.to_pylist())) == sorted(map(str, want))


def test_text_lines_of_every_ending(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("eins\nzwei\r\n\n語\n".encode())
    (tmp_path / "b.txt").write_bytes(b"no end")
    (tmp_path / "c.txt").write_bytes(b"")
    got = env().read_text(tmp_path).execute_and_collect(local=True)
    assert got["line"].to_pylist() == ["eins", "zwei", "", "語", "no end"]


def test_rows_batches_arrow_and_generators(lab: Any) -> None:
    table = numbers(0, 1000)
    batches = table.to_batches(max_chunksize=77)
    e = env(3, **{"batch.rows": 10})

    def generated(start: int, count: int) -> pa.RecordBatch:
        return table.slice(start, count).combine_chunks().to_batches()[0]

    def yielding() -> Iterator[pa.RecordBatch]:
        yield batches[0].slice(0, 0)
        yield from batches

    for stream in (
        e.from_rows(table.to_pylist()),
        e.from_rows(table.to_pylist(), schema=table.schema),
        e.from_arrow(table),
        e.from_arrow(batches[0]).union(e.from_arrow(table.slice(77))),
        e.from_batches(batches),
        e.from_batches(yielding),
        e.from_batches(yielding, schema=table.schema),
        e.generate(generated, rows=1000),
    ):
        assert lab.bag(stream.execute_and_collect(local=True)) == lab.bag(table)
    assert e.generate(generated, rows=0).execute_and_collect(local=True).num_rows == 0


def test_order_is_kept_at_parallelism_1() -> None:
    e = env(1, **{"batch.rows": 7})
    got = e.from_arrow(numbers(0, 500)).filter(col("n") % 2 == 0).execute_and_collect(local=True)
    assert got["n"].to_pylist() == list(range(0, 500, 2))


def test_rate_limits_slow_a_source_and_a_sink(lab: Any, tmp_path: Path) -> None:
    for where in ("source", "sink"):
        e = env(2, **{"batch.rows": 10})
        limit = {"rate_limit": 1000.0}
        stream = e.from_arrow(numbers(0, 600), **(limit if where == "source" else {}))
        stream.write_parquet(tmp_path / where, **(limit if where == "sink" else {}))
        began = datetime.now()
        lab.finish(e)
        assert (datetime.now() - began).total_seconds() > 0.25
        assert lab.read(tmp_path / where).num_rows == 600


def test_a_watched_folder_gives_new_files_until_cancelled(lab: Any, tmp_path: Path) -> None:
    inbox, out = tmp_path / "in", tmp_path / "out"
    inbox.mkdir()
    pq.write_table(numbers(0, 10), inbox / "0.parquet")
    e = env(2)
    e.read_parquet(inbox, watch="20ms").write_parquet(out)
    written = [0]

    def look(job: Any) -> None:
        rows = sum(pq.read_metadata(f).num_rows for f in lab.files(out))
        if rows == 10 * (written[0] + 1):
            if written[0] == 3:
                job.master.cancel()
                return
            written[0] += 1
            pq.write_table(numbers(written[0] * 10, written[0] * 10 + 10), tmp_path / "new")
            (tmp_path / "new").rename(inbox / f"{written[0]}.parquet")

    watcher = lab.watch(look)
    result = lab.run(e, on_start=watcher, checkpoint__interval="20ms")
    watcher.stop()
    assert result.state == "CANCELLED"
    assert lab.bag(lab.read(out)) == lab.bag(numbers(0, 40))


# A source of one's own, in thirty lines: Fibonacci numbers, a range of indices a split.


class Fibonacci(rf.Source):
    def __init__(self, count: int, splits: int) -> None:
        self.count, self.parts = count, splits

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"i": pa.int64(), "fib": pa.decimal128(38)})

    def splits(self) -> Sequence[rf.Split]:
        return [rf.Split(id=str(p), payload={"first": p}) for p in range(self.parts)]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return FibonacciReader(self, split.payload["first"] if position is None else position)


class FibonacciReader(rf.SplitReader):
    def __init__(self, source: Fibonacci, at: int) -> None:
        self.source, self.at = source, at

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        indices = list(range(self.at, self.source.count, self.source.parts))[: min(max_rows, 3)]
        if not indices:
            return None
        self.at = indices[-1] + self.source.parts
        return pa.RecordBatch.from_pydict(
            {"i": indices, "fib": [fibonacci(i) for i in indices]}, schema=self.source.schema
        )

    def position(self) -> int:
        return self.at


def fibonacci(i: int) -> int:
    a, b = 0, 1
    for _ in range(i):
        a, b = b, a + b
    return a


def test_a_source_of_ones_own_is_read_in_parallel_and_survives_crashes(lab: Any) -> None:
    e = env(2)
    stream = e.from_source(Fibonacci(120, 7), rate_limit=400)
    stream.map_batches(lambda b: b, returns=stream.schema).sink_to(Kept("fib"))
    watcher = lab.crashing(e, 2, seed=1)
    lab.finish(
        e,
        on_start=watcher,
        checkpoint__interval="20ms",
        restart__strategy="fixed",
        restart__delay="1ms",
    )
    got = sorted((row["i"], int(row["fib"])) for rows in KEPT.pop("fib").values() for row in rows)
    assert got == [(i, fibonacci(i)) for i in range(120)]
    assert len(watcher.stop()) == 2


# A sink of one's own, exactly once, in thirty lines: rows are kept in this module's memory.

STAGED: dict[str, list[dict[str, Any]]] = {}
KEPT: dict[str, dict[str, list[dict[str, Any]]]] = {}


class Kept(rf.Sink):
    def __init__(self, name: str) -> None:
        self.name = name

    def open(self, ctx: rf.SinkContext) -> None:
        self.prefix, self.rows = f"{ctx.job_id}/{ctx.attempt}/{ctx.subtask_index}", []

    def write(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.to_pylist()

    def prepare(self, checkpoint_id: int) -> Any | None:
        if not self.rows:
            return None
        staged = f"{self.prefix}/{checkpoint_id}"
        STAGED[staged], self.rows = self.rows, []
        return staged

    def commit(self, permit: rf.CommitPermit) -> None:
        KEPT.setdefault(self.name, {})[permit.pending] = STAGED[permit.pending]


def test_files_in_reverse_order_of_time_make_no_row_late(lab: Any, tmp_path: Path) -> None:
    base = datetime(2024, 1, 1)
    for day in range(10):
        times = [base + timedelta(days=9 - day, minutes=m) for m in range(0, 1440, 7)]
        pq.write_table(
            pa.table({"t": pa.array(times, pa.timestamp("ms")), "k": ["x"] * len(times)}),
            tmp_path / f"{day}.parquet",
        )
    for parallelism in (1, 3):
        e = env(parallelism, **{"batch.rows": 20})
        windows = (
            e.read_parquet(tmp_path, watermark=rf.Watermark("t"))
            .key_by("k")
            .window(rf.Tumbling("1d"))
            .aggregate(n=rf.count())
        )
        got = windows.execute_and_collect(local=True)
        assert sorted(got["n"].to_pylist()) == [206] * 10
