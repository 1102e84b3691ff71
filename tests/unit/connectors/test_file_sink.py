"""File sinks: what lies where, and when; what is refused; what every format holds."""

from __future__ import annotations

import datetime as dt
import os
import pickle
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE, changelog_schema, with_op
from rayflow.connectors import append_files, staged_files, upsert_files
from rayflow.connectors.file_formats import FORMATS
from rayflow.connectors.file_sink import FileSink
from rayflow.model.errors import PlanError, ProtocolViolation, StorageError
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.commits import CommitPermit


def context(attempt: int = 1, subtask: int = 0, job: str = "job-1", **more: Any) -> SinkContext:
    values: dict[str, Any] = {"parallelism": 1, "max_parallelism": 16, "uid": "out", **more}
    return SinkContext(job_id=job, attempt=attempt, subtask_index=subtask, **values)


def batch(*rows: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(rows))


def permit(number: int, pending: Any, job: str = "job-1") -> CommitPermit:
    return CommitPermit(job, 1, number, pending)  # type: ignore[arg-type]


def committed(path: Path) -> list[str]:
    return sorted(
        p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file() and "_rayflow" not in p.parts
    )


def run(sink: FileSink, *batches: pa.RecordBatch, **more: Any) -> None:
    """A whole job of one checkpoint."""
    sink.start_job(context(0, -1, **more))
    sink.open(context(**more))
    for rows in batches:
        sink.write(rows)
    pending = sink.prepare(1)
    if pending is not None:
        sink.commit(permit(1, pending))
    sink.close()
    sink.finish_job(context(1, -1, succeeded=True, **more))


# ------------------------------------------------------------------------------------------- visibility


@pytest.mark.parametrize("format", ["parquet", "csv", "json", "arrow"])
def test_rows_are_invisible_until_committed_and_the_job_leaves_nothing_else(
    tmp_path: Path, format: Any
) -> None:
    out = tmp_path / "out"
    sink = FileSink(out, format)
    suffix = sink.format.suffix
    sink.start_job(context(0, -1))
    sink.open(context())
    sink.write(batch({"x": 1}))
    assert not list(out.rglob(f"*{suffix}"))
    pending = sink.prepare(7)
    assert not list(out.rglob(f"*{suffix}"))
    assert all(path.suffix == ".pending" for path in out.rglob("*") if path.is_file())
    sink.commit(permit(7, pending))
    (file,) = committed(out)
    assert file.startswith("part-job-1-00000007-")
    assert file.endswith(f"-0000-0000{suffix}")
    sink.finish_job(context(1, -1, succeeded=True))
    assert os.listdir(out) == [file]


def test_a_checkpoint_without_rows_has_no_transaction(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out")
    sink.open(context())
    assert sink.prepare(1) is None


def test_rows_keep_their_order_and_small_batches_share_row_groups(tmp_path: Path) -> None:
    run(FileSink(tmp_path / "out"), *[batch({"x": i}) for i in range(500)])
    (name,) = committed(tmp_path / "out")
    file = pq.ParquetFile(tmp_path / "out" / name)
    assert file.num_row_groups == 1
    assert file.read()["x"].to_pylist() == list(range(500))


def test_a_commit_whose_rows_are_lost_fails_loudly(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out")
    sink.open(context())
    sink.write(batch({"x": 1}))
    pending = sink.prepare(1)
    for path in (tmp_path / "out").rglob("*.pending"):
        path.unlink()
    with pytest.raises(StorageError, match=r"neither .* exists; someone has removed them"):
        sink.commit(permit(1, pending))


def test_abort_removes_what_was_staged(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out")
    sink.open(context())
    sink.write(batch({"x": 1}))
    sink.abort(sink.prepare(1))
    assert not [p for p in (tmp_path / "out").rglob("*") if p.is_file()]


def test_only_this_jobs_older_attempts_are_cleaned_away(tmp_path: Path) -> None:
    for job, attempt in (("job-1", 1), ("job-1", 2), ("job-1", 10), ("job-2", 1)):
        sink = FileSink(tmp_path / "out")
        sink.open(context(attempt, job=job))
        sink.write(batch({"x": 1}))
        sink.prepare(1)
    FileSink(tmp_path / "out").restored(context(10))
    staging = tmp_path / "out" / "_rayflow"
    assert sorted(p.relative_to(staging).as_posix() for p in staging.glob("*/*")) == ["job-1/10", "job-2/1"]
    FileSink(tmp_path / "out").finish_job(context(10, -1))
    assert os.listdir(staging) == ["job-2"]


def test_a_zombie_whose_directory_was_cleaned_away_cannot_go_on(tmp_path: Path) -> None:
    zombie, sink = FileSink(tmp_path / "out"), FileSink(tmp_path / "out")
    zombie.open(context(1))
    sink.open(context(2))
    sink.restored(context(2))
    with pytest.raises(StorageError, match=r"_rayflow/job-1/1/.*No such file"):
        zombie.write(batch({"x": 1}))


def test_a_failed_job_keeps_what_its_newest_checkpoint_left_pending_and_a_new_job_commits_it(
    tmp_path: Path,
) -> None:
    # 1 prepared, 1 complete, failed before its commit; rows after the barrier are garbage.
    out = tmp_path / "out"
    failed = FileSink(out)
    failed.open(context())
    failed.write(batch({"x": 1}))
    pending = failed.prepare(1)
    failed.write(batch({"x": 2}))
    failed.prepare(2)
    failed.close()
    failed.finish_job(context(1, -1, completed_checkpoint=1))
    assert len([p for p in out.rglob("*.pending")]) == 1
    restored = FileSink(out)
    restored.open(context(job="job-2"))
    restored.commit(permit(1, pending, "job-2"))
    assert len(committed(out)) == 1
    restored.finish_job(context(1, -1, job="job-2", succeeded=True))
    assert os.listdir(out) == committed(out)


def test_a_manager_that_ends_the_job_leaves_alone_what_a_later_one_has_staged(tmp_path: Path) -> None:
    out = tmp_path / "out"
    old, later = FileSink(out), FileSink(out)
    for attempt, sink in ((1, old), (2, later)):
        sink.open(context(attempt))
        sink.write(batch({"x": attempt}))
        pending = sink.prepare(1)
    FileSink(out).finish_job(context(1, -1))
    later.commit(permit(1, pending))
    assert len(committed(out)) == 1
    assert os.listdir(out / "_rayflow" / "job-1") == ["2"]


def test_a_transaction_is_committed_where_it_was_staged_even_if_the_path_has_changed(tmp_path: Path) -> None:
    old, new = FileSink(tmp_path / "old"), FileSink(tmp_path / "new")
    old.open(context())
    old.write(batch({"x": 1}))
    pending = old.prepare(1)
    new.open(context(job="job-2"))
    new.commit(permit(1, pending, "job-2"))
    assert len(committed(tmp_path / "old")) == 1
    assert not committed(tmp_path / "new")


def test_two_sinks_of_a_job_and_all_subtasks_may_share_a_path(tmp_path: Path) -> None:
    for uid in ("one", "two"):
        for subtask in (0, 1):
            sink = FileSink(tmp_path / "out")
            sink.open(context(subtask=subtask, uid=uid, parallelism=2))
            sink.write(batch({"x": 1}))
            sink.commit(permit(1, sink.prepare(1)))
    assert len(committed(tmp_path / "out")) == 4


# ------------------------------------------------------------------------------------------------ start


def test_a_fresh_job_refuses_a_path_with_anything_in_it(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PlanError, match=r"is not empty \(it has notes.txt\).*if_exists"):
        FileSink(tmp_path).start_job(context(0, -1))
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_staged_files_of_another_job_do_not_make_a_path_non_empty(tmp_path: Path) -> None:
    (tmp_path / "_rayflow" / "job-9" / "1").mkdir(parents=True)
    (tmp_path / "_rayflow" / "job-9" / "1" / "x.pending").write_text("")
    FileSink(tmp_path).start_job(context(0, -1))
    FileSink(tmp_path, if_exists="overwrite").start_job(context(0, -1))
    assert (tmp_path / "_rayflow" / "job-9" / "1" / "x.pending").exists()


def test_append_leaves_and_overwrite_removes_data_files_of_any_format(tmp_path: Path) -> None:
    (tmp_path / "p=1").mkdir()
    for name in ("a.parquet", "p=1/b.csv", "c.jsonl", "notes.txt"):
        (tmp_path / name).write_text("")
    FileSink(tmp_path, if_exists="append").start_job(context(0, -1))
    assert len(committed(tmp_path)) == 4
    FileSink(tmp_path, if_exists="overwrite").start_job(context(0, -1))
    assert committed(tmp_path) == ["notes.txt"]


def test_overwriting_the_home_or_working_directory_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    inner = tmp_path / "project"
    inner.mkdir()
    monkeypatch.chdir(inner)
    for path in (".", tmp_path, "/", "~"):
        with pytest.raises(PlanError, match="refuses"):
            FileSink(path, if_exists="overwrite")


def test_a_path_that_cannot_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        with pytest.raises(PlanError, match=f"output file://{path} cannot be written"):
            FileSink(path).start_job(context(0, -1))


def test_a_relative_path_means_the_same_wherever_the_sink_is_shipped(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = pickle.loads(pickle.dumps(FileSink("out")))
    monkeypatch.chdir("/")
    run(shipped, batch({"x": 1}))
    assert len(committed(tmp_path / "out")) == 1


SCHEMA = pa.schema([("k", pa.string()), ("v", pa.int64()), ("l", pa.list_(pa.int64()))])


@pytest.mark.parametrize(
    ("make", "schema", "problem"),
    [
        (lambda: FileSink("out", "xml"), None, "format is 'xml'"),  # type: ignore[arg-type]
        (lambda: FileSink("out", mode="merge"), None, "mode is 'merge'"),  # type: ignore[arg-type]
        (lambda: FileSink("out", if_exists="fail"), None, "if_exists is 'fail'"),  # type: ignore[arg-type]
        (lambda: FileSink("ftp://out"), None, "cannot write files to ftp"),
        (lambda: FileSink("out", mode="upsert"), None, "belong together"),
        (
            lambda: FileSink("out", mode="upsert", upsert_key=["k"], partition_by=["v"]),
            None,
            "not part of the",
        ),
        (lambda: FileSink("out", partition_by=["w"]), SCHEMA, "partition_by column 'w' does not exist"),
        (lambda: FileSink("out", mode="upsert", upsert_key=["w"]), SCHEMA, "upsert key column 'w' does not"),
        (lambda: FileSink("out", partition_by=["l"]), SCHEMA, "'l' is nested"),
        (lambda: FileSink("out", partition_by=["k", "v", "l"][:2]), SCHEMA.remove(2), "names every column"),
        (lambda: FileSink("out", "csv"), SCHEMA, "'l' of type list.* cannot be written to CSV"),
        (lambda: FileSink("out", "json", "upsert", upsert_key=["k"]), SCHEMA, "'l' .*read back from JSON"),
        (lambda: FileSink("out"), changelog_schema(SCHEMA), "write it with mode='upsert'"),
    ],
)
def test_what_cannot_be_written_is_a_plan_error(make: Any, schema: pa.Schema | None, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        make().validate(schema)


@pytest.mark.parametrize(("format", "files"), [("parquet", 1), ("csv", 1), ("json", 0)])
def test_a_finished_job_without_rows_leaves_a_readable_empty_data_set(
    tmp_path: Path, format: Any, files: int
) -> None:
    out = tmp_path / "out"
    sink = FileSink(out, format)
    sink.validate(pa.schema([("x", pa.int64())]))
    run(pickle.loads(pickle.dumps(sink)))
    assert len(committed(out)) == files
    if files:
        assert duckdb.sql(f"select count(x) from '{out}/*.{format}'").fetchall() == [(0,)]
    FileSink(tmp_path / "x", format).finish_job(context(1, -1))
    assert committed(tmp_path / "x") == []


# ------------------------------------------------------------------------------------ formats, partitions


@pytest.mark.parametrize("format", ["parquet", "csv", "json"])
def test_others_read_what_is_written(tmp_path: Path, format: Any) -> None:
    rows = pa.record_batch(
        {
            "i": pa.array([1, None, -3]),
            "f": [1.5, None, 2.0],
            "s": ['quo"te', "line\nbreak", None],
            "t": pa.array(
                [dt.datetime(2013, 1, 1, 5), None, dt.datetime(2024, 2, 29, 23, 59)], pa.timestamp("ms")
            ),
            "b": [True, False, None],
        }
    )
    run(FileSink(tmp_path / "out", format), rows, rows.slice(1))
    suffix = FORMATS[format].suffix
    reader = {"parquet": "read_parquet", "csv": "read_csv", "json": "read_json"}[format]
    table = duckdb.sql(
        f"select * replace (t::timestamp as t) from {reader}('{tmp_path}/out/*{suffix}')"
    ).fetchall()
    expected = [tuple(row.values()) for row in rows.to_pylist()]
    assert [tuple(row) for row in table] == expected + expected[1:]


def test_partitions_are_hive_directories_without_their_columns(tmp_path: Path) -> None:
    rows = [("x/y", 1), (None, 2), ("é =", 3), ("x/y", 4)]
    run(
        FileSink(tmp_path / "out", partition_by=["p", "q"]),
        *[batch({"p": p, "v": v, "q": v % 2 == 0}) for p, v in rows],
        pa.record_batch({"p": ["x/y", "x/y"], "v": [5, 7], "q": [True, False]}),
    )
    directories = {name.rpartition("/")[0] for name in committed(tmp_path / "out")}
    null = "__HIVE_DEFAULT_PARTITION__"
    assert directories == {"p=x%2Fy/q=false", "p=x%2Fy/q=true", f"p={null}/q=true", "p=%C3%A9%20%3D/q=false"}
    table = ds.dataset(tmp_path / "out", partitioning="hive").to_table().select(["p", "v"])
    assert sorted(zip(*table.to_pydict().values(), strict=True), key=lambda r: r[1]) == [
        *rows,
        ("x/y", 5),
        ("x/y", 7),
    ]


def test_open_files_and_buffers_are_bounded_and_nothing_is_lost(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(append_files, "OPEN_FILES", 3)
    monkeypatch.setattr(append_files, "BUFFER_BYTES", 100)
    monkeypatch.setattr(staged_files, "ROW_GROUP_ROWS", 4)
    rows = pa.record_batch({"p": np.arange(200) % 7, "v": np.arange(200)})
    run(FileSink(tmp_path / "out", partition_by=["p"]), *[rows.slice(i, 10) for i in range(0, 200, 10)])
    table = ds.dataset(tmp_path / "out", partitioning="hive").to_table()
    assert sorted(table["v"].to_pylist()) == list(range(200))


def test_a_file_is_finished_at_a_size(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(append_files, "FILE_BYTES", 1000)
    run(FileSink(tmp_path / "out"), *[pa.record_batch({"v": np.arange(100) + i}) for i in range(0, 500, 100)])
    names = committed(tmp_path / "out")
    assert len(names) == 3
    assert pa.concat_tables([pq.read_table(tmp_path / "out" / n) for n in names])["v"].to_pylist() == list(
        range(500)
    )


def test_rows_are_widened_to_the_schema_before_and_otherwise_begin_a_new_file(tmp_path: Path) -> None:
    run(
        FileSink(tmp_path / "out"),
        batch({"a": 1.5, "b": "x"}),
        batch({"b": None, "a": 2}),  # int to float, null to string, other order
        batch({"a": 3, "b": "y", "c": True}),  # a new column
    )
    first, second = (pq.read_table(tmp_path / "out" / name) for name in committed(tmp_path / "out"))
    assert first.to_pylist() == [{"a": 1.5, "b": "x"}, {"a": 2.0, "b": None}]
    assert second.to_pylist() == [{"a": 3, "b": "y", "c": True}]


# ---------------------------------------------------------------------------------------------- upserts


def changes(*rows: tuple[int, Any, Any]) -> pa.RecordBatch:
    table = pa.record_batch({"k": [r[1] for r in rows], "v": [r[2] for r in rows]})
    return with_op(table, np.array([r[0] for r in rows], np.int8))


def upserted(path: Path) -> dict[Any, Any]:
    tables = [pq.read_table(path / name) for name in committed(path)]
    rows = [tuple(row.values()) for table in tables for row in table.to_pylist()]
    assert len({repr(key) for key, _ in rows}) == len(rows)
    assert all(table.column_names == ["k", "v"] for table in tables)
    return dict(rows)


def upsert_sink(path: Path, **more: Any) -> FileSink:
    return FileSink(path, mode="upsert", upsert_key=["k"], **more)


def test_files_hold_the_last_row_per_key_without_the_operation(tmp_path: Path) -> None:
    run(
        upsert_sink(tmp_path / "out"),
        changes((INSERT, "a", 1), (INSERT, "b", 1), (INSERT, None, 1)),
        changes((UPDATE_BEFORE, "a", 1), (UPDATE_AFTER, "a", 2), (DELETE, "b", 1), (UPDATE_BEFORE, None, 1)),
        changes((DELETE, "never", None)),
    )
    assert upserted(tmp_path / "out") == {"a": 2, None: 1}


def test_nan_and_negative_zero_are_one_key_each(tmp_path: Path) -> None:
    nan, other_nan = float("nan"), float(np.uint64(0xFFF8000000000001).view(np.float64))
    run(
        upsert_sink(tmp_path / "out"),
        changes((INSERT, 0.0, 1), (INSERT, nan, 1)),
        changes((UPDATE_AFTER, -0.0, 2), (UPDATE_AFTER, other_nan, 2)),
    )
    assert sorted(upserted(tmp_path / "out").values()) == [2, 2]


@pytest.mark.parametrize(("format", "files"), [("parquet", 1), ("csv", 1), ("json", 0)])
def test_a_bucket_whose_last_row_is_deleted_does_not_trouble_readers(
    tmp_path: Path, format: Any, files: int
) -> None:
    sink = FileSink(tmp_path / "out", format, "upsert", upsert_key=["k"])
    run(sink, changes((INSERT, "a", 1)), max_parallelism=1)
    sink = FileSink(tmp_path / "out", format, "upsert", "append", upsert_key=["k"])
    run(sink, changes((DELETE, "a", 1)), max_parallelism=1)
    found = committed(tmp_path / "out")
    assert len(found) == files
    if found:
        dataset = ds.dataset([str(tmp_path / "out" / file) for file in found], format=format)
        assert dataset.to_table().num_rows == 0


def test_a_fresh_job_may_continue_an_upsert_data_set(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(upsert_sink(out), changes(*[(INSERT, i, 0) for i in range(50)]))
    files = committed(out)
    assert 1 < len(files) <= 16
    run(upsert_sink(out, if_exists="append"), changes((UPDATE_AFTER, 7, 1), (DELETE, 8, 0)))
    assert upserted(out) == {i: 0 for i in range(50) if i != 8} | {7: 1}
    assert committed(out) == files
    with pytest.raises(PlanError, match="max_parallelism=8, so it cannot be continued"):
        upsert_sink(out, if_exists="append").start_job(context(0, -1, max_parallelism=8))
    run(upsert_sink(out, if_exists="overwrite"), changes((INSERT, 1, 1)))
    assert upserted(out) == {1: 1}


def test_changes_over_the_buffers_size_are_merged_before_the_barrier(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(upsert_files, "CHANGES_BYTES", 200)
    monkeypatch.setattr(upsert_files, "CACHE_BYTES", 0)
    run(upsert_sink(tmp_path / "out"), *[changes((UPDATE_AFTER, i % 10, i)) for i in range(100)])
    assert upserted(tmp_path / "out") == {i: 90 + i for i in range(10)}


def test_rows_of_another_subtasks_keys_are_refused(tmp_path: Path) -> None:
    sink = upsert_sink(tmp_path / "out")
    sink.open(context(subtask=1, parallelism=2))
    sink.write(changes(*[(INSERT, i, 0) for i in range(50)]))
    with pytest.raises(ProtocolViolation, match=r"must be partitioned by \['k'\]"):
        sink.prepare(1)


def test_upserts_may_be_partitioned_by_key_columns(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out", mode="upsert", upsert_key=["p", "k"], partition_by=["p"])
    sink.start_job(context(0, -1))
    sink.open(context())
    for number in range(1, 4):
        rows = pa.record_batch({"p": ["x", None, "x"], "k": [1, 1, 2], "v": [number, 10 * number, 0]})
        sink.write(
            with_op(rows, np.array([UPDATE_AFTER, UPDATE_AFTER, DELETE if number == 3 else INSERT], np.int8))
        )
        sink.commit(permit(number, sink.prepare(number)))
    table = ds.dataset(tmp_path / "out", partitioning="hive", exclude_invalid_files=True).to_table()
    assert sorted(table.to_pylist(), key=str) == [{"k": 1, "v": 3, "p": "x"}, {"k": 1, "v": 30, "p": None}]


def test_columns_may_come_and_widen_but_a_key_keeps_its_type(tmp_path: Path) -> None:
    sink = upsert_sink(tmp_path / "out")
    sink.open(context(max_parallelism=1))
    sink.write(pa.record_batch({"k": ["a", "b"], "v": [1, 2]}))
    sink.commit(permit(1, sink.prepare(1)))
    sink.write(pa.record_batch({"k": ["b"], "v": [2.5], "w": ["new"]}))
    sink.commit(permit(2, sink.prepare(2)))
    (name,) = committed(tmp_path / "out")
    assert pq.read_table(tmp_path / "out" / name).to_pylist() == [
        {"k": "a", "v": 1.0, "w": None},
        {"k": "b", "v": 2.5, "w": "new"},
    ]
    sink.write(pa.record_batch({"k": [1], "v": [1.0], "w": ["x"]}))
    with pytest.raises(PlanError, match="rows no longer fit what bucket-00000-of-00001"):
        sink.prepare(3)


def test_json_cannot_hold_a_nan_key(tmp_path: Path) -> None:
    sink = FileSink(tmp_path / "out", "json", "upsert", upsert_key=["k"])
    sink.open(context())
    with pytest.raises(PlanError, match=r"key column 'k' holds NaN"):
        sink.write(changes((INSERT, float("nan"), 1)))


# --------------------------------------------------------------------------------------------------- S3


@pytest.mark.s3
def test_on_s3_others_read_the_partitions_and_nothing_is_left_over(s3_server: Any) -> None:
    from rayflow.connectors.filesystems import open_filesystem
    from rayflow.connectors.targets import open_target

    url = f"s3://{s3_server.new_bucket()}/deep/out"
    run(
        FileSink(url, partition_by=["p"], options=s3_server.options),
        batch({"p": "x/y é", "v": 1}, {"p": None, "v": 2}),
    )
    names = open_target(url, s3_server.options).list("")
    assert [name.rpartition("/")[0] for name in names] == ["p=__HIVE_DEFAULT_PARTITION__", "p=x%2Fy%20%C3%A9"]
    filesystem, path = open_filesystem(url, s3_server.options)
    table = ds.dataset(path, filesystem=filesystem, partitioning="hive").to_table()
    assert sorted(table.to_pylist(), key=lambda row: row["v"]) == [
        {"v": 1, "p": "x/y é"},
        {"v": 2, "p": None},
    ]
    with pytest.raises(PlanError, match="is not empty"):
        FileSink(url, options=s3_server.options).start_job(context(0, -1))
    FileSink(url, if_exists="overwrite").start_job(context(0, -1, options=s3_server.options))
    assert open_target(url, s3_server.options).list("") == []


@pytest.mark.s3
def test_on_s3_a_large_file_is_uploaded_in_parts(s3_server: Any) -> None:
    from rayflow.connectors.targets import open_target

    target = open_target(f"s3://{s3_server.new_bucket()}/out", s3_server.options)
    data = np.random.default_rng(1).bytes(20 << 20)
    stream = target.open_output("x.bin")
    for start in range(0, len(data), 1 << 20):
        stream.write(data[start : start + (1 << 20)])
    assert not target.exists("x.bin")
    assert [path for path, _ in target._uploads.unfinished("")] == ["x.bin"]
    stream.close()
    assert target.read("x.bin") == data
    assert target._uploads.unfinished("") == []


def large_rows(rows: int = 1 << 20) -> pa.RecordBatch:
    return pa.record_batch({"x": np.random.default_rng(7).random(rows)})


@pytest.mark.s3
def test_on_s3_no_upload_in_parts_is_left_behind_by_failures_nor_by_killed_processes(
    s3_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rayflow.connectors.targets import open_target
    from rayflow.state import s3_uploads

    monkeypatch.setattr(s3_uploads, "PART_BYTES", 5 << 20)  # the least that S3 allows
    url = f"s3://{s3_server.new_bucket()}/out"
    uploads = open_target(url, s3_server.options)._uploads
    made = lambda: FileSink(url, options=s3_server.options)  # noqa: E731

    failed, killed = made(), made()
    failed.start_job(context(0, -1))
    for number, sink in enumerate((failed, killed), 1):
        sink.open(context(number))
        for _ in range(2):
            sink.write(large_rows())
    assert sorted(path.split("/")[2] for path, _ in uploads.unfinished("")) == ["1", "2"]
    failed.close()
    assert [path.split("/")[2] for path, _ in uploads.unfinished("")] == ["2"]
    third = made()
    third.open(context(3))
    third.write(large_rows())
    pending = third.prepare(1)
    third.restored(context(3))
    assert uploads.unfinished("") == []
    with pytest.raises(StorageError, match="cannot write s3://"):
        killed.prepare(1)  # a zombie
    third.commit(permit(1, pending))
    third.write(large_rows())
    third.write(large_rows())
    assert len(uploads.unfinished("")) == 1
    made().finish_job(context(3, -1, completed_checkpoint=1))
    assert uploads.unfinished("") == []
    assert len(open_target(url, s3_server.options).list("")) == 1


@pytest.mark.s3
@pytest.mark.parametrize("kind", ["drop-reply", "error-after"])
def test_on_s3_a_commit_whose_outcome_is_unknown_is_found_out(s3_server: Any, kind: str) -> None:
    from tests.faulty_proxy import faulty_proxy

    url = f"s3://{s3_server.new_bucket()}/out"
    with faulty_proxy(s3_server.endpoint) as proxy:
        sink = FileSink(url, options={**s3_server.options, "s3.endpoint": proxy.endpoint})
        sink.start_job(context(0, -1))
        sink.open(context())
        sink.write(batch({"x": 1}))
        pending = sink.prepare(1)
        # More often than the client itself tries: the copy first, then the delete.
        faults = [proxy.fail(kind, "PUT", ".parquet", 3), proxy.fail(kind, "POST", "delete", 3)]
        sink.commit(permit(1, pending))
        assert [fault.happened for fault in faults] == [3, 3]
        sink.commit(permit(1, pending))
    from rayflow.connectors.targets import open_target

    (name,) = open_target(url, s3_server.options).list("")
    assert name == pending["files"][0][1]
