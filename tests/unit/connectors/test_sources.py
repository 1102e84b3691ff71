from __future__ import annotations

import itertools
import json
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.connectors.file_source import CsvSource, JsonSource, ParquetSource, TextSource
from rayflow.connectors.line_readers import LineRange
from rayflow.connectors.memory_sources import BatchesSource, GeneratorSource, RowsSource
from rayflow.model.errors import DataError, PlanError
from rayflow.operators.source_contract import Source, Split


def read_all(source: Source, max_rows: int = 7) -> list[dict[str, Any]]:
    """Every split to its end, each reader replaced by a restored one after every batch."""
    rows: list[dict[str, Any]] = []
    for split in source.splits():
        position: Any = None
        while True:
            reader = pickle.loads(pickle.dumps(source)).open_split(Split.from_json(split.to_json()), position)
            batch = reader.read(max_rows)
            if batch is None:
                break
            assert batch.num_rows <= max_rows
            rows += batch.to_pylist()
            position = json.loads(json.dumps(reader.position()))
            reader.close()
    return rows


TABLE = pa.table({"n": pa.array(range(50), pa.int64()), "s": [f"text {i}" for i in range(50)]})


def test_parquet_splits_are_row_groups_with_their_smallest_time(tmp_path: Path) -> None:
    times = pa.array([i * 1000 for i in range(50)], pa.timestamp("ms"))
    pq.write_table(TABLE.append_column("t", times), tmp_path / "a.parquet", row_group_size=20)
    source = ParquetSource(str(tmp_path), time_column="t")
    assert [s.min_time for s in source.splits()] == [0, 20_000_000_000, 40_000_000_000]
    assert [r["n"] for r in read_all(source)] == list(range(50))


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_parquet_times_of_any_unit_become_nanoseconds(tmp_path: Path, unit: str) -> None:
    table = pa.table({"t": pa.array([86_400 * 10**9]).cast(pa.timestamp("ns")).cast(pa.timestamp(unit))})
    pq.write_table(table, tmp_path / "a.parquet")
    assert ParquetSource(str(tmp_path), time_column="t").splits()[0].min_time == 86_400 * 10**9


def test_csv_is_read_with_inferred_types_and_restored_in_the_middle(tmp_path: Path) -> None:
    pa_csv.write_csv(TABLE, tmp_path / "a.csv")
    source = CsvSource(str(tmp_path / "*.csv"))
    assert source.schema == TABLE.schema
    assert read_all(source) == TABLE.to_pylist()


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("n,s\n1,a\nx,b\n", "line 3", "column 'n' is 'x', expected int64"),
        ("n,s\n1,a\n2,b\n3\n", "line 4", "expected 2 columns, got 1"),
    ],
)
def test_a_csv_row_that_does_not_parse_is_named(tmp_path: Path, text: str, place: str, problem: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    source = CsvSource(str(tmp_path / "a.csv"), schema=pa.schema([("n", pa.int64()), ("s", pa.string())]))
    with pytest.raises(DataError) as caught:
        read_all(source)
    assert place in str(caught.value)
    assert problem in str(caught.value)
    assert "a.csv" in str(caught.value)


def test_json_lines_are_read_and_a_broken_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in TABLE.to_pylist()))
    source = JsonSource(str(path))
    assert read_all(source) == TABLE.to_pylist()
    path.write_text('{"n": 1, "s": "a"}\n{"n": oops}\n')
    with pytest.raises(DataError, match=r"a\.jsonl, line at byte 19: not JSON"):
        read_all(JsonSource(str(path), schema=TABLE.schema))


def test_text_lines_lose_their_ends_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("één\r\n\n  two  \nlast".encode())
    assert read_all(TextSource(str(tmp_path))) == [{"line": x} for x in ["één", "", "  two  ", "last"]]


@settings(max_examples=80)
@given(
    st.lists(st.text("ab\r", max_size=5), max_size=12),
    st.booleans(),
    st.lists(st.integers(1, 30), max_size=6),
)
def test_ranges_hold_every_line_exactly_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: bool, cuts: list[int]
) -> None:
    from pyarrow import fs

    data = "\n".join(lines).encode() + (b"\n" if end else b"")
    path = tmp_path_factory.mktemp("lines") / "f"
    path.write_bytes(data)
    bounds = sorted({0, len(data), *(c for c in cuts if c < len(data))})
    got = b""
    for start, stop in itertools.pairwise(bounds):
        lines_of = LineRange(fs.LocalFileSystem(), str(path), start, stop, None)
        while block := lines_of.next_block(2):
            got += b"".join(block)
        lines_of.close()
    assert got == data


def test_hidden_names_and_staged_output_are_not_input(tmp_path: Path) -> None:
    for name in ("a.parquet", "sub/b.parquet", "_rayflow/c.parquet", ".d.parquet", "e.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pq.write_table(TABLE, tmp_path / name)
    names = [s.payload["path"].removeprefix(f"{tmp_path}/") for s in ParquetSource(str(tmp_path)).splits()]
    assert names == ["a.parquet", "sub/b.parquet"]
    assert len(ParquetSource(f"{tmp_path}/*.parquet").splits()) == 1
    assert len(ParquetSource(f"{tmp_path}/**/*.parquet").splits()) == 2


@pytest.mark.parametrize("source", [ParquetSource, CsvSource, JsonSource, TextSource])
def test_a_missing_path_is_a_plan_error_that_names_it(source: Any, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="nowhere"):
        source(str(tmp_path / "nowhere"))
    with pytest.raises(PlanError, match="no files to read"):
        source(str(tmp_path))


def test_an_unreadable_parquet_file_is_a_plan_error(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 this is no parquet file")
    with pytest.raises(PlanError, match=r"cannot read .*a\.parquet"):
        ParquetSource(str(tmp_path))


def test_a_file_that_lacks_a_column_is_named(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet")
    pq.write_table(TABLE.drop_columns("s"), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet has no column 's'"):
        read_all(ParquetSource(str(tmp_path)))


def test_watching_an_empty_directory_needs_a_schema(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="give schema="):
        ParquetSource(str(tmp_path), watch_ms=100)
    source = ParquetSource(str(tmp_path), watch_ms=100, schema=TABLE.schema)
    assert list(source.splits()) == []
    assert not source.bounded
    pq.write_table(TABLE, tmp_path / "a.parquet")
    assert len(source.splits()) == 1


def test_rows_batches_and_generated_rows_survive_a_restore_anywhere() -> None:
    assert read_all(RowsSource(TABLE)) == TABLE.to_pylist()
    assert read_all(BatchesSource(TABLE.to_batches(max_chunksize=11))) == TABLE.to_pylist()

    def numbers(start: int, count: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"i": pa.array(range(start, start + count), pa.int64())})

    source = GeneratorSource(numbers, 100_000)
    got = [
        i
        for split in source.splits()
        for reader in [source.open_split(split, None)]
        for batch in iter(lambda r=reader: r.read(9_999), None)
        for i in batch.column(0).to_pylist()
    ]
    assert got == list(range(100_000))


def test_stripes_of_an_unbounded_generator_share_all_numbers() -> None:
    def numbers(start: int, count: int) -> pa.RecordBatch:
        return pa.RecordBatch.from_pydict({"i": pa.array(range(start, start + count), pa.int64())})

    source = GeneratorSource(numbers, None)
    seen: set[int] = set()
    for split in source.splits():
        reader = source.open_split(split, None)
        for _ in range(4):
            batch = reader.read(10_000)
            assert batch is not None
            values = set(batch.column(0).to_pylist())
            assert not values & seen
            seen |= values
    assert seen == set(range(len(seen)))


def test_a_generator_that_returns_too_few_rows_is_told_so() -> None:
    source = GeneratorSource(lambda start, count: pa.RecordBatch.from_pydict({"i": [1]}), 10)
    with pytest.raises(DataError, match="returned 1 rows; expected a RecordBatch of 10 rows"):
        source.open_split(source.splits()[0], None).read(10)
